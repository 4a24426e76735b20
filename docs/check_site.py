"""Check a built site: ``python docs/check_site.py SITE``.

Every link inside it leads to a page, a file or an anchor that is there (other sites are not asked),
and no text shows markup that was not rendered. (LinkChecker follows links as well, but gives up
root's rights when it runs as root and then may not be able to read the site.)
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup


class Page(NamedTuple):
    """What is checked of a page: its links, its anchors, and its text outside of code."""

    links: list[str]
    anchors: set[str]
    text: str


def read(site: Path) -> dict[Path, Page]:
    """The pages, without what the theme keeps among its files."""
    paths = [path for path in sorted(site.rglob("*.html")) if site / "_static" not in path.parents]
    return {path: _parsed(path.read_text(encoding="utf-8")) for path in paths}


def _parsed(html: str) -> Page:
    soup = BeautifulSoup(html, "html.parser")
    tags = soup.find_all(True)
    links = [link for tag in tags if (link := tag.get("href") or tag.get("src"))]
    anchors = {anchor for tag in tags if (anchor := tag.get("id"))}
    article = soup.find("article") or soup.new_tag("article")
    for code in article.find_all(["pre", "code", "script"]):
        code.decompose()
    return Page(links, anchors, article.get_text())


def broken_links(pages: dict[Path, Page], site: Path) -> list[str]:
    """``page: link`` for every link to a missing file of the site or a missing anchor."""
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment) if target in pages else ""
            if not target.is_file() or (anchor and anchor not in pages[target].anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken


# A table's rule, a role, a reference with its inventory, strong text.
_MARKUP = re.compile(r"\| ?:?---|:\w+:`|python:\w|\*\*\w[^*\n]*\*\*")


def raw_markup(pages: dict[Path, Page], site: Path) -> list[str]:
    """``page: text`` wherever a page shows markup outside of code."""
    shown = []
    for path, page in pages.items():
        for found in _MARKUP.finditer(page.text):
            around = page.text[max(0, found.start() - 20) : found.end() + 20]
            shown.append(f"{path.relative_to(site)}: {' '.join(around.split())}")
    return shown


def main() -> int:
    """Print what is wrong; 1 if anything is."""
    parser = argparse.ArgumentParser(description="Check links and markup of a built site.")
    parser.add_argument("site", type=Path, metavar="SITE", help="folder of the built pages")
    site = parser.parse_args().site.resolve()
    pages = read(site)
    if not pages:
        print(f"no pages in {site}", file=sys.stderr)
        return 1
    broken, shown = broken_links(pages, site), raw_markup(pages, site)
    for problem in broken + shown:
        print(problem)
    print(f"{len(pages)} pages, {len(broken)} broken links, {len(shown)} places with raw markup")
    return int(bool(broken or shown))


if __name__ == "__main__":
    sys.exit(main())
