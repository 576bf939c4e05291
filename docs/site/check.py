"""Check a built site: no page loads anything from a network, and every file and anchor that a page names is there.

    python3 docs/site/check.py build/site

Law: it reads the pages as a browser does, and knows nothing of the generator.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches without being asked, by tag.
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
# A link that says something of the page, and of which a browser fetches nothing.
SAYS = {"canonical", "prev", "next"}
IMPORTED = re.compile(r"(?:url\(|@import )[\"']?((?:https?:)?//[^)\"';]*)")


class Page(HTMLParser):
    """What a page loads, where its links lead, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what one tag names."""
        values = {name: value or "" for name, value in attrs}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        target = values.get(LOADS.get(tag, ""), "")
        if target and values.get("rel") not in SAYS:
            self.loads.append(target)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])


def troubles(folder: Path) -> list[str]:
    """All that is wrong with the site, in words."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    found = [] if pages else [f"there is no page in {folder}"]
    for path, page in pages.items():
        name = path.relative_to(folder.resolve())
        # The page for an address that is not there is for servers alone.
        if name.name == "404.html":
            continue
        for target in (*page.loads, *page.links):
            address = urlsplit(target)
            if address.scheme == "data" or (target in page.links and address.scheme):
                continue
            if address.scheme or address.netloc:
                found.append(f"{name} loads {target}")
                continue
            file = (path.parent / unquote(address.path)).resolve() if address.path else path
            if not file.is_file():
                found.append(f"{name}: there is no {target}")
            elif file in pages and address.fragment and unquote(address.fragment) not in pages[file].anchors:
                found.append(f"{name}: there is no anchor {target}")
    for path in sorted(folder.rglob("*.css")):
        text = path.read_text(encoding="utf-8")
        found += [f"{path.name} loads {address}" for address in IMPORTED.findall(text)]
    return found


if __name__ == "__main__":
    wrong = troubles(Path(sys.argv[1]))
    print("\n".join(wrong), end="\n" if wrong else "")
    sys.exit(bool(wrong))
