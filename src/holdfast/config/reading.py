"""The configuration file: TOML in, tunnels out, all mistakes at once with their place. Reads no other file."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from holdfast.config.keys import TunnelTable
from holdfast.config.spelling import parse_duration, parse_mode
from holdfast.control import check_host, check_name, check_options, check_upkeep
from holdfast.errors import UsageError
from holdfast.forward import Address, Forward, Kind
from holdfast.forward import parse as parse_forward

if TYPE_CHECKING:
    from holdfast.config.places import Keys

# The keys of a tunnel's table, and of [defaults].
KEYS = tuple(TunnelTable.__annotations__)
DEFAULTS = ("http", "hold", "hold_for", "switch", "notify", "idle", "mode", "ssh")
FORWARDS = {"forwards": Kind.LOCAL, "remote": Kind.REMOTE, "dynamic": Kind.DYNAMIC}
# More mistakes than a person mends at once.
MOST_TOLD = 20
# Characters of a mistake.
LONGEST_TOLD = 300
# Mistakes that are looked for down to the line of what was found; for the others the line of their key does.
MOST_LOOKED_FOR = 100
# Options of ssh of which it takes one.
_SINGLE = ("-F", "-p", "-J", "-l")
_FLAGS = ("http", "switch", "notify")

Value = TypeVar("Value")


class Start(StrEnum):
    """When a tunnel is brought up: with the login session, on its first connection, or by `holdfast up`."""

    LOGIN = "login"
    DEMAND = "demand"
    MANUAL = "manual"


class Described(NamedTuple):
    """A tunnel as the configuration describes it. `options` are ssh's, as words; `upkeep` has those fields of
    control.Upkeep that are said; `expose` allows listening on addresses that other machines can reach; `origin`
    is the file's path. No `forwards`: the host's own, else 8888."""

    name: str
    host: str
    forwards: tuple[Forward, ...]
    groups: tuple[str, ...] = ()
    start: Start = Start.MANUAL
    options: tuple[str, ...] = ()
    upkeep: dict[str, int] = {}  # noqa: RUF012 - a named tuple's default, never changed
    expose: bool = False
    origin: str = ""

    @property
    def whole_upkeep(self) -> dict[str, int]:
        """Every field of control.Upkeep: a line that isn't in the file means the default."""
        return {field: int(value) for field, value in check_upkeep(self.upkeep)._asdict().items()}


class Mistake(NamedTuple):
    """`keys` lead to what is wrong; `line` counts from 1."""

    line: int
    keys: Keys
    text: str

    def told(self, file: str) -> str:
        where = f"{'.'.join(self.keys)}: " if self.keys else ""
        return _printable(f"{file}:{self.line}: {where[:LONGEST_TOLD]}{self.text[:LONGEST_TOLD]}")


class ConfigError(UsageError):
    """The file has `mistakes`; the message has a line for each."""

    def __init__(self, path: Path, mistakes: Sequence[Mistake]) -> None:
        told = [mistake.told(path.name) for mistake in mistakes[:MOST_TOLD]]
        if len(mistakes) > MOST_TOLD:
            told.append(f"{path.name}: and {len(mistakes) - MOST_TOLD} more")
        super().__init__(
            "\n".join(told), f"mend it, then look again: holdfast config check {shlex.quote(str(path))}"
        )
        self.mistakes = tuple(mistakes)


def parse(text: str, path: Path) -> list[Described]:
    """The tunnels that `text` describes, in its order; `path` is its file, absolute.

    Raises ConfigError with every mistake.
    """
    reading = _Reading(path)
    with _without_endless_numbers(text, path):
        tunnels = reading.document(_loaded(text, path))
    if reading.wrong:
        from holdfast.config.places import Places

        places = Places(text)
        mistakes = [
            Mistake(places.line(keys, found if number < MOST_LOOKED_FOR else None), keys, told)
            for number, (keys, told, found) in enumerate(reading.wrong)
        ]
        raise ConfigError(path, sorted(mistakes, key=lambda mistake: mistake.line))
    return tunnels


def usual(text: str, path: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """What [defaults] says for every tunnel: fields of control.Upkeep, and ssh's options. Raises ConfigError."""
    with _without_endless_numbers(text, path):
        return _Reading(path).defaults(_loaded(text, path))


def parse_bytes(content: bytes, path: Path) -> list[Described]:
    """As `parse`, for what a file contains. Raises ConfigError."""
    return parse(decode(content, path), path)


def decode(content: bytes, path: Path) -> str:
    """The text of a file. Raises ConfigError."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(path, [Mistake(line, (), "this is not UTF-8: save it as that")]) from None


def merged_options(own: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """ssh's options `own`, which win, and those of `others` that may stand beside them."""
    kept = [
        (option, value)
        for option, value in zip(others[::2], others[1::2], strict=True)
        if option not in _SINGLE or option not in own[::2]
    ]
    return (*own, *(word for pair in kept for word in pair))


def listeners(forward: Forward) -> set[tuple[bool, Address]]:
    """What a forward takes for itself: each address, and whether that is over there. A port 0 takes none."""
    return {(forward.kind is Kind.REMOTE, listen) for listen in forward.listeners if listen.port or listen.path}


def named_twice(forwards: Sequence[Forward]) -> Forward | None:
    """The first forward that wants what one before it has."""
    taken: set[tuple[bool, Address]] = set()
    for forward in forwards:
        if taken & listeners(forward):
            return forward
        taken |= listeners(forward)
    return None


@contextlib.contextmanager
def _without_endless_numbers(text: str, path: Path) -> Iterator[None]:
    """Has Python's refusal to write out a number of thousands of digits be a mistake. Raises ConfigError."""
    try:
        yield
    except ValueError:
        longest = max(re.finditer(r"\w+", text), key=lambda word: len(word[0]))
        line = text.count("\n", 0, longest.start()) + 1
        raise ConfigError(path, [Mistake(line, (), "a number here is too long")]) from None


def _loaded(text: str, path: Path) -> dict[str, Any]:
    import tomllib  # 5 ms, which commands without a configuration needn't pay

    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(path, [Mistake(1, (), "this is nested too deeply")]) from None
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        found = re.search(r" \(at line (\d+), column (\d+)\)$", message)
        line = int(found[1]) if found else text.count("\n") + 1
        place = f", at column {found[2]}" if found else ""
        what = re.sub(r" \(at [^()]*\)$", "", message)
        told = f"this is not TOML: {what[:1].lower()}{what[1:]}{place}"
        raise ConfigError(path, [Mistake(line, (), told)]) from None


class _Reading:
    """Reads a document, and goes on after a mistake. `wrong` has its keys, what to tell, and what was found."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.wrong: list[tuple[Keys, str, object]] = []

    def document(self, document: dict[str, Any]) -> list[Described]:
        self._check_keys((), document, ("tunnels", "defaults"))
        usual, options = self.defaults(document)
        tables = self._table((), document, "tunnels")
        described = [self._tunnel(name, tables, usual, options) for name in tables]
        self._check_groups(described)
        self._check_ports(described)
        return described

    def defaults(self, document: dict[str, Any]) -> tuple[dict[str, int], tuple[str, ...]]:
        table = self._table((), document, "defaults")
        self._check_keys(("defaults",), table, DEFAULTS)
        return self._upkeep(("defaults",), table), self._options(("defaults",), table)

    def _tunnel(
        self, name: str, tables: dict[str, Any], usual: dict[str, int], options: tuple[str, ...]
    ) -> Described:
        where = ("tunnels", name)
        is_named = self._checked(where, name, _check_name) is not None
        table = self._table(("tunnels",), tables, name)
        self._check_keys(where, table, KEYS)
        start = self._start(where, table)
        said = self._upkeep(where, table)
        upkeep = {**usual, **said}
        if start is Start.DEMAND:
            upkeep["lazy"] = 1
        else:
            upkeep.pop("idle", None)
            if "idle" in table:
                self._say((*where, "idle"), 'only a tunnel with start = "demand" can go idle')
        host = self._one(where, table, "host", str, 'a host, as in host = "lab"')
        if host is not None or (is_named and "host" not in table):
            host = self._checked((*where, "host"), name if host is None else host, check_host)
        return Described(
            name=name,
            host=host or name,
            forwards=self._forwards(where, table, start),
            groups=self._groups(where, table),
            start=start,
            options=merged_options(self._options(where, table), options),
            upkeep=upkeep,
            expose=bool(self._one(where, table, "expose", bool, "true or false")),
            origin=str(self._path),
        )

    def _start(self, where: Keys, table: dict[str, Any]) -> Start:
        said = self._one(where, table, "start", str, '"login", "demand" or "manual"')
        if said is None:
            return Start.MANUAL
        try:
            return Start(said)
        except ValueError:
            told = f'expected "login", "demand" or "manual", found {_shown(said)}'
            self._say((*where, "start"), told + _meant(said, list(Start)))
            return Start.MANUAL

    def _forwards(self, where: Keys, table: dict[str, Any], start: Start) -> tuple[Forward, ...]:
        found: list[Forward] = []
        taken: set[tuple[bool, Address]] = set()
        for key, kind in FORWARDS.items():
            for text in self._texts(where, table, key, '["8888"]', or_number=True):
                forward = self._checked((*where, key), text, functools.partial(self._forward, kind=kind))
                if forward is not None:
                    problem = _problem_of(forward, taken, expose=bool(table.get("expose")))
                    if problem:
                        self._say((*where, key), f"{forward.listen} {problem}", text)
                    else:
                        found.append(forward)
                        taken |= listeners(forward)
        if start is Start.DEMAND and table.get("remote"):
            told = 'a tunnel with start = "demand" has no connection, and so no remote forwards, until it is used'
            self._say((*where, "remote"), told)
        return tuple(found)

    def _forward(self, text: str, kind: Kind) -> Forward:
        """The forward, with the path of a socket on this machine made absolute. Raises UsageError."""
        before = {Kind.LOCAL: r"", Kind.REMOTE: r".*?:", Kind.DYNAMIC: r"(?!)"}[kind]
        if found := re.match(rf"({before})((?:~|\.\.?)/[^:]*)", text):
            here = self._file(found[2]).replace(":", "\\:")
            text = f"{found[1]}{here}{text[found.end() :]}"
        return parse_forward(text, kind)

    def _groups(self, where: Keys, table: dict[str, Any]) -> tuple[str, ...]:
        said = self._texts(where, table, "groups", '["work"]')
        return tuple(group for group in said if self._checked((*where, "groups"), group, check_group) is not None)

    def _options(self, where: Keys, table: dict[str, Any]) -> tuple[str, ...]:
        words = tuple(self._texts(where, table, "ssh", '["-J", "bastion"]'))
        if self._checked((*where, "ssh"), words, check_options) is None:
            return ()
        pairs = zip(words[::2], words[1::2], strict=True)
        return tuple(
            word
            for option, value in pairs
            for word in (option, self._file(value) if option in ("-F", "-i") else value)
        )

    def _file(self, text: str) -> str:
        """The path that `text` names, as seen from the folder of the file. ssh's own words (none, %d) stay."""
        if text == "none" or text.startswith("%"):
            return text
        return os.path.normpath(self._path.parent / os.path.expanduser(text))  # noqa: PTH111 - never raises

    def _upkeep(self, where: Keys, table: dict[str, Any]) -> dict[str, int]:
        """The fields of control.Upkeep that `table` says."""
        found: dict[str, int | None] = {key: self._one(where, table, key, bool, "true or false") for key in _FLAGS}
        found["hold"] = self._one(where, table, "hold", int, "a number, as in hold = 512")
        found["hold_for"] = self._written(where, table, "hold_for", '"2m"', parse_duration)
        found["idle"] = self._written(where, table, "idle", '"30m"', parse_duration)
        found["mode"] = self._written(where, table, "mode", '"0660"', parse_mode)
        said = {key: int(value) for key, value in found.items() if value is not None}
        return {key: value for key, value in said.items() if self._is_in_range(where, table, key, value)}

    def _is_in_range(self, where: Keys, table: dict[str, Any], key: str, value: int) -> bool:
        try:
            check_upkeep({key: value, "lazy": 1})
        except UsageError as error:
            seconds = " of seconds" if key in ("hold_for", "idle") else ""
            self._say((*where, key), f"expected {error.hint}{seconds}, found {_shown(table[key])}")
            return False
        return True

    def _written(
        self, where: Keys, table: dict[str, Any], key: str, example: str, read: Callable[[str], int]
    ) -> int | None:
        text = self._one(where, table, key, str, f"text in quotes, as in {key} = {example}")
        return None if text is None else self._checked((*where, key), text, read)

    def _check_keys(self, where: Keys, table: dict[str, Any], known: Sequence[str]) -> None:
        for key in table:
            if key not in known:
                meant = _meant(key, known) or f"; there are {', '.join(known)}"
                self._say((*where, key), f"there is no such key{meant}")

    def _check_groups(self, described: Sequence[Described]) -> None:
        names = {tunnel.name for tunnel in described}
        for tunnel in described:
            for group in names.intersection(tunnel.groups):
                told = f"the group '{group}' has the name of a tunnel; give it another one"
                self._say(("tunnels", tunnel.name, "groups"), told, group)

    def _check_ports(self, described: Sequence[Described]) -> None:
        """Tunnels that are brought up together must not want the same port."""
        takers: dict[tuple[bool, Address, str], str] = {}
        for tunnel in described:
            for forward in tunnel.forwards if tunnel.start is not Start.MANUAL else ():
                wanted = {(there, listen, tunnel.host if there else "") for there, listen in listeners(forward)}
                others = {takers[one] for one in wanted if one in takers} - {tunnel.name}
                if others:
                    told = (
                        f"{forward.listen} is taken by the tunnel '{min(others)}', and both are held from login on"
                    )
                    key = next(key for key, kind in FORWARDS.items() if kind is forward.kind)
                    port = forward.listen.path or str(forward.listen.port)
                    self._say(("tunnels", tunnel.name, key), told, port)
                takers |= dict.fromkeys(wanted, tunnel.name)

    def _table(self, where: Keys, table: dict[str, Any], key: str) -> dict[str, Any]:
        value = table.get(key, {})
        if isinstance(value, dict):
            return value
        name = ".".join((*where, key))
        self._say((*where, key), f"expected a table, as [{name}] begins one, found {_shown(value)}")
        return {}

    def _one(self, where: Keys, table: dict[str, Any], key: str, kind: type[Value], what: str) -> Value | None:
        """The value of `key`, or None when there is none or it isn't of its type."""
        value = table.get(key)
        if value is None or type(value) is kind:
            return value
        self._say((*where, key), f"expected {what}, found {_shown(value)}")
        return None

    def _texts(
        self, where: Keys, table: dict[str, Any], key: str, example: str, *, or_number: bool = False
    ) -> list[str]:
        values = table.get(key, [])
        if not isinstance(values, list):
            self._say((*where, key), f"expected a list, as in {key} = {example}, found {_shown(values)}")
            return []
        good: list[str] = []
        for value in values:
            if type(value) is str or (or_number and type(value) is int):
                good.append(str(value))
            else:
                told = f"expected text in quotes, as in {key} = {example}, found {_shown(value)}"
                self._say((*where, key), told)
        return good

    def _checked(self, place: Keys, value: Any, check: Callable[[Any], Value]) -> Value | None:
        """What `check` makes of `value`; None, and a mistake, where it refuses that."""
        try:
            return check(value)
        except UsageError as error:
            told = f"{error.message}; {error.hint}" if error.hint else error.message
            self._say(place, told, value)
            return None

    def _say(self, keys: Keys, text: str, found: object = None) -> None:
        self.wrong.append((keys, text, found))


def _problem_of(forward: Forward, taken: Set[tuple[bool, Address]], *, expose: bool) -> str:
    """What speaks against a forward where others of its tunnel have `taken` those listeners, or ''."""
    if not forward.listen.is_loopback and not expose:
        return "can be reached by other machines; leave the address out, or add expose = true"
    if taken & listeners(forward):
        return "is named twice; each forward needs a port of its own"
    return ""


def _check_name(text: str, whose: str = "tunnel") -> str:
    """Raises UsageError."""
    try:
        return check_name(text)
    except UsageError as error:
        raise UsageError(f"{text[:60]!r} can't be a {whose}'s name", error.hint.partition(", as in")[0]) from None


def check_group(text: str) -> str:
    """Raises UsageError."""
    return _check_name(text, "group")


def _meant(text: str, known: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(text, list(known), 1)
    return f"; did you mean {near[0]}" if near else ""


def _shown(value: object) -> str:
    """What was found, as it stands in the file."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f"'{value[:60]}'"
        case dict():
            return "a table"
        case list():
            return "a list"
        case _:
            return str(value)[:60]


def _printable(text: str) -> str:
    """`text` with escapes for what a terminal would obey."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
