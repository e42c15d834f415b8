"""What the documents show in a terminal goes as they show it: every block of every page is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.reader import DOCUMENTS, Reader, Step, blocks, differs, reader, shape
from tests.scenes import SCENES

__all__ = ["reader"]

ROOT = DOCUMENTS.parent
# Pages whose blocks other tests run.
ELSEWHERE = {
    "service.md": "in a session of systemd's own: test_service.py",
    "benchmarks.md": "it takes an hour: bench/",
    "politeness.md": "the same: bench/",
    "recovery.md": "the same: bench/",
    "CONTRIBUTING.md": "this is how the tests are run: .ci/run",
}


def pages() -> Mapping[str, Path]:
    """The documents that show a terminal, by name."""
    found = (*ROOT.glob("*.md"), *DOCUMENTS.glob("*.md"))
    return {path.name: path for path in found if list(blocks(path.read_text()))}


PAGES = sorted(set(pages()) - set(ELSEWHERE))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_has_its_reader_do_goes_as_it_shows(page: str, reader: Reader) -> None:
    reader.read(pages()[page].read_text(), SCENES.get(page, {}))


def test_each_page_that_is_run_elsewhere_is_there_and_so_is_what_runs_it() -> None:
    assert set(ELSEWHERE) <= set(pages())
    for reason in ELSEWHERE.values():
        (*_, runs) = reason.rpartition(": ")
        assert (ROOT / "tests" / runs).exists() or (ROOT / runs).exists(), reason


@pytest.mark.parametrize("page", sorted(SCENES))
def test_each_scene_is_of_one_block(page: str) -> None:
    shown = list(blocks(pages()[page].read_text()))
    named = [[block for block in shown if name in block.names] for name in SCENES[page]]
    assert [len(found) for found in named] == [1] * len(named), list(SCENES[page])


def steps(page: str) -> list[Step]:
    return [step for block in blocks(page) for step in block.steps]


def test_what_is_not_run_says_why_and_nothing_else_is_left_out() -> None:
    left_out = "<!-- not run: because -->\n\n```console\n$ no\n```\n"
    page = f"{left_out}\n<!-- ends with 3 -->\n\n```console\n$ a\nb\nc\n$ d\n```\n"
    assert steps(page) == [Step("a", ("b", "c")), Step("d", (), 3)]
    assert steps(page.replace("ends with 3", "end with 1, 0")) == [Step("a", ("b", "c"), 1), Step("d", ())]
    with pytest.raises(AssertionError):
        steps(page.replace("not run: because", "not run:"))
    with pytest.raises(ValueError, match="zip"):
        steps(page.replace("ends with 3", "end with 1, 0, 1"))


@pytest.mark.parametrize(
    ("shown", "printed", "is_surprising"),
    [
        ("lab  up  1 s", "lab up 22.5 s", False),
        ("lab  up", "lab down", True),
        ("http://localhost:8888", "http://localhost:8889", True),
        ("http://localhost:38215", "http://localhost:10003", False),
        ("one", "one\ntwo", True),
        ("one\ntwo", "one", True),
        ("ok ...", "ok this", False),
        ("ok ...", "ok this\nok that", True),
        ("ok ...", "wrong this", True),
        ("one\n...\nfour", "one\ntwo\nthree\nfour", False),
        ("...\nfour", "one\nfive", True),
    ],
)
def test_another_output_than_the_one_shown_is_noticed(shown: str, printed: str, is_surprising: bool) -> None:
    assert differs(shape(shown), shape(printed)) is is_surprising
