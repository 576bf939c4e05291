"""What the site adds to the pages: files of the project that lie outside of docs/, and links to them.

Law: a link to a file of the project leads to a page of the site, or the build fails; no page is changed on the disk.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
# The pages that are made of files outside of docs/, by the path of the file.
PAGES = {"CHANGELOG.md": "reference/changelog.md", "CONTRIBUTING.md": "explanation/contributing.md"}
# Nobody who is on the site needs the page that leads to it.
ALIASES = {"README.md": "index.md"}
FENCED = re.compile(r"(^```.*?^```[ \t]*$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
SESSION = re.compile(r"^```python(?=[^\n]*\n>>> )", re.MULTILINE)


def examples() -> list[Path]:
    """The programs of the gallery."""
    return sorted((ROOT / "examples").glob("*.py"))


def example_page(path: Path) -> str:
    """The page of a program: what its docstring says, its picture if it has one, and its text."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    docstring = ast.get_docstring(tree) or ""
    title, _, rest = docstring.partition("\n")
    picture = ROOT / "docs" / "gallery" / f"{path.stem}.svg"
    shown = f"![What it shows]({path.stem}.svg)\n\n" if picture.exists() else ""
    body = "".join(source.splitlines(keepends=True)[tree.body[0].end_lineno :]).lstrip("\n")
    return f"# {path.name}\n\n**{title}**\n{rest}\n\n{shown}```python\n{body}```\n"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made of files outside of docs/."""
    for name, uri in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, uri, content=text))
    for path in examples():
        files.append(File.generated(config, f"gallery/{path.stem}.md", content=example_page(path)))
    return files


def page_of(path: str) -> str | None:
    """The page of the site that shows this file of the project, if one does."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("examples/") and path.endswith(".py"):
        return f"gallery/{Path(path).stem}.md"
    return PAGES.get(path) or ALIASES.get(path)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Have links lead to pages of the site, and show interactive sessions as what they are."""
    uri = page.file.src_uri
    origin = next((name for name, made in PAGES.items() if made == uri), f"docs/{uri}")

    def on_the_site(match: re.Match[str]) -> str:
        target, hash_, anchor = match[2].partition("#")
        if not target or "://" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        found = page_of(path)
        if found is None:
            raise PluginError(f"{origin} links to {path}, which is no page of the site")
        return f"{match[1]}{posixpath.relpath(found, posixpath.dirname(uri) or '.')}{hash_}{anchor}{match[3]}"

    parts = FENCED.split(markdown)
    parts[::2] = [LINK.sub(on_the_site, part) for part in parts[::2]]
    return SESSION.sub("```pycon", "".join(parts))
