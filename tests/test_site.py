"""The documents' site and the manual page: built, whole, and of this version."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from tools.man_page import MAN_PAGE, man_page
from tools.site_pages import on_page_markdown, section_of

ROOT = Path(__file__).resolve().parent.parent
# What a page fetches by itself, by element and attribute. `a` is only followed by who clicks on it.
FETCHED = {("img", "src"), ("script", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}


class Page(HTMLParser):
    """What a page links to, what it fetches, and which places in it can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.fetched: set[str] = set()
        self.places: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.places.add(value)
            elif (tag, name) in FETCHED and value:
                self.fetched.add(value)
            elif (tag, name) == ("a", "href") and value:
                self.links.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, which has nothing to complain of."""
    made = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(made)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return made


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """Each page but the one for what isn't there, whose links begin at the root of wherever the site is put."""
    found = {path: Page(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(found) > 25
    return found


def targets(pages: dict[Path, Page]) -> Iterator[tuple[Path, str]]:
    for path, page in pages.items():
        yield from ((path, target) for target in page.links | page.fetched)


def test_every_link_of_the_site_leads_somewhere(pages: dict[Path, Page]) -> None:
    for path, target in targets(pages):
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            continue
        leads_to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        leads_to = leads_to / "index.html" if leads_to.is_dir() else leads_to
        assert leads_to.exists(), f"{path.name}: {target}"
        if leads_to in pages and not parts.fragment.startswith("__"):  # those are the theme's own
            assert unquote(parts.fragment) in pages[leads_to].places, f"{path.name}: {target}"


def test_the_site_fetches_nothing_from_elsewhere(pages: dict[Path, Page], site: Path) -> None:
    elsewhere = [(path.name, one) for path, page in pages.items() for one in page.fetched if urlsplit(one).netloc]
    assert elsewhere == []
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert "url(http" not in styles
    assert "@import" not in styles


def test_what_is_looked_up_is_on_the_site(site: Path) -> None:
    for page, told in {
        "commands.html": "holdfast up",
        "exit-codes.html": "a person must log in",
        "forwards.html": "any free port",
        "json.html": "switch_seconds",
        "api.html": "atunnel",
        "security.html": "The threats",
        "overview.html": "What was tried",
    }.items():
        assert told in (site / page).read_text(), page
    api = (site / "api.html").read_text()
    for name in ("tunnel", "Tunnel.status", "Endpoint", "HoldfastError", "SSHTunnelForwarder", "open_tunnel"):
        assert f'.{name}"' in api, name


def test_links_out_of_the_folder_become_links_to_pages() -> None:
    text = (
        "[a](../README.md#which-forwards) [b](../README.md) [c](../SECURITY.md#the-threats) [d](states.md#states)"
    )
    assert on_page_markdown(text) == (
        "[a](forwards.md) [b](overview.md) [c](security.md#the-threats) [d](states.md#states)"
    )


def test_a_section_that_is_not_there_is_noticed() -> None:
    assert section_of("## A\na\n### B\nb\n", "A") == "a\n"
    with pytest.raises(AssertionError):
        section_of("## A\na\n", "B")


def test_the_manual_page_is_of_this_version() -> None:
    assert MAN_PAGE.read_text() == man_page(), "say: make docs"


@pytest.mark.skipif(shutil.which("groff") is None, reason="there is no groff")
def test_the_manual_page_has_nothing_that_roff_complains_of() -> None:
    words = ["groff", "-man", "-Tutf8", "-ww", "-P-cbou", str(MAN_PAGE)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == ""
    for told in ("holdfast service install", "--hold-for", "EXIT STATUS", "A person must log in"):
        assert told in done.stdout
