"""Check that every link inside a built site leads somewhere: ``python docs/check_links.py SITE``.

Pages, files and anchors; other sites are not asked. (LinkChecker does the same, but gives up root's
rights when it runs as root and then may not be able to read the site.)
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup


def pages_of(site: Path) -> list[Path]:
    """The pages, without what the theme keeps among its files."""
    return [page for page in sorted(site.rglob("*.html")) if site / "_static" not in page.parents]


def broken_links(site: Path) -> list[str]:
    """``page: link`` for every link to a missing file of the site or a missing anchor."""

    @cache
    def parsed(page: Path) -> tuple[list[str], set[str]]:
        soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
        links = [tag.get("href") or tag.get("src") or "" for tag in soup.find_all(True)]
        return links, {value for tag in soup.find_all(True) if (value := tag.get("id"))}

    broken = []
    for page in pages_of(site):
        for link in parsed(page)[0]:
            parts = urlsplit(link)
            if not link or parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.is_file():
                broken.append(f"{page.relative_to(site)}: {link}")
                continue
            anchor = unquote(parts.fragment) if target.suffix == ".html" else ""
            if anchor and anchor not in parsed(target)[1]:
                broken.append(f"{page.relative_to(site)}: {link}")
    return broken


def main() -> int:
    """Print what is broken; 1 if anything is."""
    parser = argparse.ArgumentParser(description="Check the links inside a built site.")
    parser.add_argument("site", type=Path, metavar="SITE", help="folder of the built pages")
    site = parser.parse_args().site.resolve()
    pages = len(pages_of(site))
    if not pages:
        print(f"no pages in {site}", file=sys.stderr)
        return 1
    broken = broken_links(site)
    print("\n".join([*broken, f"{pages} pages, {len(broken)} broken links inside the site"]))
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
