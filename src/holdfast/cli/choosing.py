"""Which tunnels the words of a command name: exactly, by their group, or by a pattern such as 'gpu*'."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from holdfast.errors import Exit, HoldfastError

if TYPE_CHECKING:
    from holdfast.config.reading import Described

_WILD = frozenset("*?[")
_SEE = "see what there is: holdfast status"
_BROKEN = "the configuration has mistakes: holdfast config check"

Find = Callable[[Sequence[str]], tuple[str, ...]]


def named(words: Sequence[str]) -> tuple[str, ...]:
    """The tunnels, of those that are up or were, that `words` name. The configuration is read only for groups.

    Raises HoldfastError for a word that names none.
    """
    from holdfast.cli import completing

    known = completing.known_tunnels()
    if all(word in known for word in words):
        return tuple(dict.fromkeys(words))
    described, hint = _described()
    return tuple(choose(words, completing.known_tunnels(only_wanted=True), known, groups_of(described), hint))


def expected(words: Sequence[str]) -> tuple[str, ...]:
    """The tunnels that `words` name, whether they are up or come yet: of those that are up, were, or are in the
    configuration. A group is all that are in it.

    Raises HoldfastError for a word that names none.
    """
    from holdfast.cli import completing

    known = completing.known_tunnels()
    if all(word in known for word in words):
        return tuple(dict.fromkeys(words))
    described, hint = _described()
    names = list(dict.fromkeys([*known, *(tunnel.name for tunnel in described)]))
    return tuple(choose(words, names, names, groups_of(described), hint))


def named_or_new(words: Sequence[str], find: Find = named) -> tuple[str, ...]:
    """As `find`, but a word that names nothing stands for itself: the keeper may know better, or it may come yet.

    Raises HoldfastError for a group or a pattern that stands for nothing.
    """
    chosen: dict[str, None] = {}
    for word in words:
        try:
            chosen |= dict.fromkeys(find([word]))
        except HoldfastError as error:
            if error.exit_code is Exit.NOT_UP:
                raise
            chosen[word] = None
    return tuple(chosen)


def choose(
    words: Sequence[str],
    up: Sequence[str],
    known: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    hint: str = _SEE,
) -> list[str]:
    """The tunnels that `words` name, each once, in the order of the words: of `known` by their own names, of those
    that are `up` by groups and patterns as well.

    Raises HoldfastError, with `hint` if nothing better is known, for a word that names none.
    """
    chosen: dict[str, None] = {}
    for word in words:
        found = [word] if word in known else matching(word, up, groups)
        if not found and (word in groups or is_pattern(word)):
            raise HoldfastError(f"none of {_quoted(word)} is up", hint, Exit.NOT_UP)
        if not found:
            raise HoldfastError(f"there is no tunnel {_quoted(word)}", _meant(word, [*known, *groups]) or hint)
        chosen |= dict.fromkeys(found)
    return list(chosen)


def split(words: Sequence[str], described: Sequence[Described]) -> tuple[list[Described], tuple[str, ...], bool]:
    """The tunnels of a configuration that the first of `words` name, each once; the other words; and whether
    it is one tunnel, by its own name."""
    names = [tunnel.name for tunnel in described]
    groups = groups_of(described)
    found = [matching(word, names, groups) for word in words]
    count = next((place for place, one in enumerate(found) if not one), len(found))
    chosen = {name for one in found[:count] for name in one}
    tunnels = [tunnel for tunnel in described if tunnel.name in chosen]
    return tunnels, tuple(words[count:]), count == 1 and words[0] in names


def matching(word: str, names: Iterable[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Those of `names` that `word` is, or else that are in its group, or else that fit its pattern."""
    from fnmatch import fnmatchcase

    names = list(names)
    if word in names:
        return [word]
    if word in groups:
        return [name for name in names if name in groups[word]]
    return [name for name in names if fnmatchcase(name, word)] if is_pattern(word) else []


def groups_of(described: Iterable[Described]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for tunnel in described:
        for group in tunnel.groups:
            groups.setdefault(group, []).append(tunnel.name)
    return groups


def is_pattern(word: str) -> bool:
    return not _WILD.isdisjoint(word)


def _described() -> tuple[list[Described], str]:
    """The configuration's tunnels, none when it has mistakes; and the hint for a word that names nothing."""
    from holdfast.cli import configured

    try:
        return configured.trusted(), _SEE
    except HoldfastError:
        return [], _BROKEN


def _meant(word: str, known: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(word, known, 1)
    return f"did you mean {near[0]}" if near else ""


def _quoted(word: str) -> str:
    return f"'{word[:60]}'" if word.isprintable() else repr(word[:60])
