"""Check a built site: ``python docs/check_site.py SITE``.

Every link inside it leads to a page, a file or an anchor that is there (other sites are not asked),
and no text shows markup that was not rendered. (LinkChecker follows links as well, but gives up
root's rights when it runs as root and then may not be able to read the site.)
"""

from __future__ import annotations

import argparse
import re
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


# A table's rule, a role, a reference with its inventory, strong text.
_MARKUP = re.compile(r"\| ?:?---|:\w+:`|python:\w|\*\*\w[^*\n]*\*\*")


def raw_markup(site: Path) -> list[str]:
    """``page: text`` wherever a page shows markup outside of code."""
    shown = []
    for page in pages_of(site):
        soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
        article = soup.find("article")
        if article is None:
            continue
        for code in article.find_all(["pre", "code", "script"]):
            code.decompose()
        text = article.get_text()
        for found in _MARKUP.finditer(text):
            around = text[max(0, found.start() - 20) : found.end() + 20]
            shown.append(f"{page.relative_to(site)}: {' '.join(around.split())}")
    return shown


def main() -> int:
    """Print what is wrong; 1 if anything is."""
    parser = argparse.ArgumentParser(description="Check links and markup of a built site.")
    parser.add_argument("site", type=Path, metavar="SITE", help="folder of the built pages")
    site = parser.parse_args().site.resolve()
    pages = len(pages_of(site))
    if not pages:
        print(f"no pages in {site}", file=sys.stderr)
        return 1
    broken, shown = broken_links(site), raw_markup(site)
    for problem in broken + shown:
        print(problem)
    print(f"{pages} pages, {len(broken)} broken links, {len(shown)} places with raw markup")
    return int(bool(broken or shown))


if __name__ == "__main__":
    sys.exit(main())
