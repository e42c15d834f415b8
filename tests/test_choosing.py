"""What the words of a command name."""

from __future__ import annotations

import pytest

from holdfast.cli.choosing import choose, groups_of, split
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
