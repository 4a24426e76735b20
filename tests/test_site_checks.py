"""The check of the built site finds what it is for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("bs4")
PATH = Path(__file__).parents[1] / "docs" / "check_site.py"
GOOD = """<html><body><article><h1 id="top">A</h1><a href="#top">up</a> <a href="b.html#there">b</a>
<a href="https://elsewhere.example/nothing">out</a> <img src="_static/a.png">
<pre>| --- | :class:`A` **x**</pre> <p>a ** b, **kwargs</p></article></body></html>"""


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("check_site", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(tmp_path):
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "a.png").write_bytes(b"")
    (tmp_path / "_static" / "theme.html").write_text('<a href="nowhere">x</a>')
    (tmp_path / "a.html").write_text(GOOD)
    (tmp_path / "b.html").write_text('<article><p id="there"></p></article>')
    return tmp_path


def test_a_good_site_has_no_complaints(check, site):
    assert check.broken_links(check.read(site), site) == []
    assert check.raw_markup(check.read(site), site) == []


@pytest.mark.parametrize("link", ["#nowhere", "b.html#nowhere", "c.html", "_static/b.png", "sub/"])
def test_a_link_that_leads_nowhere_is_found(check, site, link):
    (site / "c2.html").write_text(f'<article><a href="{link}">x</a></article>')
    assert check.broken_links(check.read(site), site) == [f"c2.html: {link}"]


@pytest.mark.parametrize(
    "text", ["| a | | --- |", "see :class:`A`", "residualpython:bool", "a **strong** b"]
)
def test_markup_that_was_not_rendered_is_found(check, site, text):
    (site / "c.html").write_text(f"<article><p>{text}</p></article>")
    (shown,) = check.raw_markup(check.read(site), site)
    assert shown.startswith("c.html: ")
