"""What the words of a command name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.cli.choosing import choose, expected, groups_of, named, named_or_new, split
from holdfast.cli.following import chooser
from holdfast.config.reading import Described
from holdfast.errors import Exit, HoldfastError

UP = ["gpu1", "gpu2", "lab", "web"]
KNOWN = [*UP, "gpu3", "old"]
GROUPS = {"work": ["lab", "gpu2", "gpu3"], "far": ["nowhere"], "web": ["lab"]}

DESCRIBED = [
    Described("lab", "lab", (), groups=("work",)),
    Described("gpu1", "gpu1", (), groups=("work", "gpus")),
    Described("gpu2", "gpu2", (), groups=("gpus",)),
]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["lab"], ["lab"]),
        (["old"], ["old"]),  # it was up, and the keeper says that it is down
        (["work"], ["gpu2", "lab"]),
        (["web"], ["web"]),  # a name comes before a group
        (["gpu*"], ["gpu1", "gpu2"]),
        (["gpu[13]"], ["gpu1"]),
        (["gpu?", "lab", "gpu2", "lab"], ["gpu1", "gpu2", "lab"]),
        ([], []),
    ],
)
def test_a_word_is_a_name_a_group_or_a_pattern_in_this_order(words: list[str], names: list[str]) -> None:
    assert choose(words, UP, KNOWN, GROUPS) == names


@pytest.mark.parametrize(
    ("word", "message", "hint"),
    [
        ("lap", "there is no tunnel 'lap'", "did you mean lab"),
        ("wrok", "there is no tunnel 'wrok'", "did you mean work"),
        ("xyzzy", "there is no tunnel 'xyzzy'", "see what there is: holdfast status"),
        ("LAB*", "none of 'LAB*' is up", "see what there is: holdfast status"),
        ("far", "none of 'far' is up", "see what there is: holdfast status"),
        ("\x1b", "there is no tunnel '\\x1b'", "see what there is: holdfast status"),
    ],
)
def test_a_word_that_names_nothing_is_told_with_what_may_be_meant(word: str, message: str, hint: str) -> None:
    with pytest.raises(HoldfastError) as raised:
        choose(["lab", word], UP, KNOWN, GROUPS)
    assert (raised.value.message, raised.value.hint) == (message, hint)
    assert raised.value.exit_code == (Exit.NOT_UP if message.startswith("none") else Exit.FAILED)


@pytest.mark.parametrize(
    ("words", "names", "rest", "is_one"),
    [
        (["lab"], ["lab"], (), True),
        (["lab", "6006"], ["lab"], ("6006",), True),
        (["work"], ["lab", "gpu1"], (), False),
        (["gpu*", "lab"], ["lab", "gpu1", "gpu2"], (), False),  # in the order of the file
        (["gpus", "work", "7000"], ["lab", "gpu1", "gpu2"], ("7000",), False),
        (["other", "lab"], [], ("other", "lab"), False),
        (["lab", "lab"], ["lab"], (), False),
        (["nothing*"], [], ("nothing*",), False),
    ],
)
def test_the_first_words_of_up_may_name_what_is_configured(
    words: list[str], names: list[str], rest: tuple[str, ...], is_one: bool
) -> None:
    tunnels, others, one = split(words, DESCRIBED)
    assert ([tunnel.name for tunnel in tunnels], others, one) == (names, rest, is_one)


def test_a_group_has_all_that_say_so() -> None:
    assert groups_of(DESCRIBED) == {"work": ["lab", "gpu1"], "gpus": ["gpu1", "gpu2"]}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration file whose group `work` has `lab` and `gpu1`, of a user who has `lab` up and had `gpu9`."""
    (tmp_path / "state").mkdir(mode=0o700)
    record = [{"name": "lab", "wanted": True}, {"name": "gpu9", "wanted": False}]
    (tmp_path / "state" / "state.json").write_text(json.dumps({"tunnels": record}))
    file = tmp_path / "config.toml"
    file.write_text("[tunnels.lab]\ngroups = ['work']\n[tunnels.gpu1]\ngroups = ['work']\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HOLDFAST_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HOLDFAST_CONFIG", str(file))
    return file


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("work", {"lab", "gpu1"}),
        ("gpu*", {"gpu1", "gpu9"}),
        ("gpu1", {"gpu1"}),
        ("later", {"later"}),
    ],
)
def test_what_is_waited_for_need_not_be_up_yet(work: Path, word: str, names: set[str]) -> None:
    assert work.exists()
    assert set(named_or_new([word], expected)) == names
    assert named(["work"]) == ("lab",)


def test_a_pattern_that_nothing_fits_cant_be_waited_for(work: Path) -> None:
    assert work.exists()
    with pytest.raises(HoldfastError, match="none of 'x\\*' is up") as raised:
        named_or_new(["x*"], expected)
    assert raised.value.exit_code is Exit.NOT_UP


def test_who_looks_on_is_told_of_groups_and_patterns_of_which_none_is_up_yet(work: Path) -> None:
    (work.parent / "state" / "state.json").unlink()
    is_chosen = chooser(["work", "db*"])
    assert [name for name in ("lab", "gpu1", "db7", "other") if is_chosen(name)] == ["lab", "gpu1", "db7"]
    with pytest.raises(HoldfastError, match="there is no tunnel 'nope'"):
        chooser(["nope"])


def test_in_a_file_that_has_mistakes_there_are_no_groups_and_a_pattern_is_told_so(work: Path) -> None:
    work.write_text("[tunnels.lab")
    assert named_or_new(["work"], expected) == ("work",)
    with pytest.raises(HoldfastError) as raised:
        expected(["x*"])
    assert raised.value.hint == "the configuration has mistakes: holdfast config check"
