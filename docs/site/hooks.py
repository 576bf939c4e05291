"""What the site adds to the pages: files of the project that lie outside of docs/, and links to them.

Law: a link to a file of the project leads to a page of the site, or the build fails; no page is changed on the disk.
"""

from __future__ import annotations

import ast
import inspect
import json
import posixpath
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
# The pages that are made of files outside of docs/, by the path of the file.
PAGES = {
    "CHANGELOG.md": "reference/changelog.md",
    "CONTRIBUTING.md": "internals/contributing.md",
    "benchmarks/results.md": "explanation/all-benchmarks.md",
}
# Nobody who is on the site needs the page that leads to it.
ALIASES = {"README.md": "index.md"}
FENCED = re.compile(r"(^```.*?^```[ \t]*$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
SETTINGS = re.compile(r"^<!-- settings: (\w+) -->$", re.MULTILINE)
# A setting in a docstring: its name, what it may be, and what it does.
ITEM = re.compile(r"^ *- `(\w+)`(?: \((.*?)\))?: (.*?)(?=\n *- |\n\n)", re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(r"^<!-- test: output -->\n```text", re.MULTILINE)
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
    picture = ROOT / "docs" / "gallery" / f"{path.stem}.png"
    shown = f"![What it draws]({path.stem}.png)\n\n" if picture.exists() else ""
    body = "".join(source.splitlines(keepends=True)[tree.body[0].end_lineno :]).lstrip("\n")
    return f"# {path.name}\n\n**{title}**\n{rest}\n\n{shown}```python\n{body}```\n"


def notebooks() -> list[Path]:
    """The notebooks of the gallery."""
    return sorted((ROOT / "examples").glob("*.ipynb"))


def notebook_page(path: Path) -> str:
    """The page of a notebook: its texts, its cells, and what each has shown when it was executed."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "text/html" in data:
                # Without line breaks, as an empty line would end it.
                parts.append("".join(data["text/html"]).replace("\n", " "))
            elif output["output_type"] == "execute_result":
                parts.append(f'```text title="Output"\n{"".join(data["text/plain"])}\n```')
    return "\n\n".join(parts) + "\n"


def on_config(config: Any) -> Any:
    """Name the programs of the gallery in the navigation."""
    for section in config.nav:
        if "Gallery" in section:
            section["Gallery"] += [f"gallery/{path.stem}.md" for path in (*examples(), *notebooks())]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made of files outside of docs/."""
    for name, uri in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, uri, content=text))
    for path in examples():
        files.append(File.generated(config, f"gallery/{path.stem}.md", content=example_page(path)))
    for path in notebooks():
        files.append(File.generated(config, f"gallery/{path.stem}.md", content=notebook_page(path)))
    return files


def page_of(path: str) -> str | None:
    """The page of the site that shows this file of the project, if one does."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("examples/") and path.endswith((".py", ".ipynb")):
        return f"gallery/{Path(path).stem}.md"
    return PAGES.get(path) or ALIASES.get(path)


def settings_table(name: str) -> str:
    """The settings of a class, as its docstring and its signature have them."""
    sys.path.insert(0, str(ROOT))
    owner = getattr(import_module("conveyor"), name)
    told = {found[0]: found[1:] for found in ITEM.findall(owner.__doc__)}
    rows = ["| setting | default | |", "|---|---|---|"]
    for parameter in inspect.signature(owner).parameters.values():
        if parameter.name not in told:
            raise PluginError(f"the docstring of {name} says nothing of {parameter.name}")
        default = parameter.default
        shown = default.__name__ if isinstance(default, type) else repr(default)
        kind, text = (" ".join(each.split()) for each in told[parameter.name])
        kind = kind.removesuffix("; None")
        told_already = kind.strip('"') == shown.strip("'") or re.fullmatch(r"[\d,.]*", kind)
        text = ". ".join(each[0].upper() + each[1:] for each in ([text] if told_already else [kind, text]))
        rows.append(f"| `{parameter.name}` | `{shown}` | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Have links lead to pages of the site, and show interactive sessions as what they are."""
    uri = page.file.src_uri
    if uri == "index.md":
        page.meta["hide"] = ["navigation"]
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

    markdown = SETTINGS.sub(lambda match: settings_table(match[1]), markdown)
    markdown = OUTPUT.sub('```text title="Output"', markdown)
    parts = FENCED.split(markdown)
    parts[::2] = [LINK.sub(on_the_site, part) for part in parts[::2]]
    return SESSION.sub("```pycon", "".join(parts))
