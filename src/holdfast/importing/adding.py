"""Puts what was found beside what the configuration describes: nothing of that is ever changed. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from holdfast.config import reading, writing
from holdfast.config.reading import Described, Start
from holdfast.control import LONGEST_NAME
from holdfast.forward import Address, Forward
from holdfast.importing.found import Remark

_What = tuple[str, tuple[str, ...], frozenset[Forward]]
_Taken = tuple[bool, Address, str]


class Added(NamedTuple):
    """`tables` are those of the tunnels that are new, under their final names; `text` is the file with them.

    `there` are the names of those tunnels in the file that were found again.
    """

    names: tuple[str, ...]
    tables: str
    text: str
    there: tuple[str, ...]
    remarks: tuple[Remark, ...]


def add(found: Sequence[Described], text: str, path: Path) -> Added:
    """The tunnels `found`, added to `text`, the configuration at `path`.

    The same tunnel isn't added twice, whatever its name, groups and start; a name that is taken gets a number.
    Raises ConfigError where `text` has mistakes already, HoldfastError where its form is in the way.
    """
    adding = _Adding(text, path, {group for tunnel in found for group in tunnel.groups})
    for tunnel in found:
        adding.take(tunnel)
    return adding.result()


class _Adding:
    """The file as it grows."""

    def __init__(self, text: str, path: Path, groups: set[str]) -> None:
        self._path = path
        self._text = text
        self._usual = reading.usual(text, path)
        before = reading.parse(text, path)
        self._names = {tunnel.name for tunnel in before}
        self._groups = {group for tunnel in before for group in tunnel.groups}
        self._known: dict[_What, str] = {}
        self._takers: dict[_Taken, str] = {}
        for tunnel in before:
            self._remember(tunnel)
        self._renamed = {group: _free(group, self._names) for group in groups}
        self._groups |= set(self._renamed.values())
        self._tables: dict[str, str] = {}
        self._there: list[str] = []
        self._remarks: list[Remark] = []

    def take(self, tunnel: Described) -> None:
        named = self._named(tunnel)
        try:
            table = self._table(named)
            settled = self._settled(table)
        except reading.ConfigError as error:
            told = "; ".join(mistake.text for mistake in error.mistakes)
            self._remarks.append(Remark(tunnel.name, f"not taken: {told}"))
            return
        same = self._known.get(_what(settled))
        if same is not None:
            self._skip(tunnel.name, same)
            return
        if self._clashes(settled) and named.start is not Start.MANUAL:
            self._remarks.append(
                Remark(named.name, 'start = "login" is left out: of those two only one can be up')
            )
            named = named._replace(start=Start.MANUAL)
            table = self._table(named)
        self._tell_of_names(tunnel, named)
        self._text = writing.with_tunnel(self._text, named, self._path)
        self._names.add(named.name)
        self._tables[named.name] = table
        self._remember(settled)

    def _skip(self, name: str, same: str) -> None:
        if same not in self._tables:
            self._there.append(same)
        if same in self._tables or same != name:
            self._remarks.append(Remark(name, f"{same} is the same tunnel, so it isn't written again"))

    def result(self) -> Added:
        return Added(
            names=tuple(self._tables),
            tables="\n".join(self._tables.values()),
            text=self._text,
            there=tuple(dict.fromkeys(self._there)),
            remarks=tuple(self._remarks),
        )

    def _named(self, tunnel: Described) -> Described:
        """`tunnel` under names that nothing else has: a tunnel's isn't a group's either."""
        return tunnel._replace(
            name=_free(tunnel.name, self._names | self._groups),
            groups=tuple(self._renamed[group] for group in tunnel.groups),
        )

    def _table(self, tunnel: Described) -> str:
        return writing.table_text(tunnel.name, writing.table_of(tunnel, *self._usual))

    def _settled(self, table: str) -> Described:
        """The tunnel as it will be read from the file. Raises ConfigError."""
        (tunnel,) = reading.parse(table, self._path)
        return tunnel._replace(options=reading.merged_options(tunnel.options, self._usual[1]))

    def _remember(self, tunnel: Described) -> None:
        self._known.setdefault(_what(tunnel), tunnel.name)
        for end in _ends(tunnel):
            self._takers.setdefault(end, tunnel.name)

    def _clashes(self, tunnel: Described) -> bool:
        """Whether another tunnel wants one of its ports; says so."""
        ends = [end for end in _ends(tunnel) if end in self._takers]
        clashes = sorted({(self._takers[end], str(end[1].path or end[1].port)) for end in ends})
        for other, port in clashes:
            self._remarks.append(Remark(tunnel.name, f"{other} wants {port} too: only one of them can be up"))
        return bool(clashes)

    def _tell_of_names(self, tunnel: Described, named: Described) -> None:
        old, new = (tunnel.name, *tunnel.groups), (named.name, *named.groups)
        for before, after in zip(old, new, strict=True):
            if before != after:
                self._remarks.append(Remark(after, f"the name {before} is taken, so it is {after} here"))


def _what(tunnel: Described) -> _What:
    return tunnel.host, tunnel.options, frozenset(tunnel.forwards)


def _ends(tunnel: Described) -> set[_Taken]:
    """The ends that a tunnel takes for itself, here or on its host."""
    ends = (end for forward in tunnel.forwards for end in reading.listeners(forward))
    return {(is_there, listen, tunnel.host if is_there else "") for is_there, listen in ends}


def _free(name: str, taken: set[str]) -> str:
    number, candidate = 2, name
    while candidate in taken:
        ending = f"-{number}"
        candidate = name[: LONGEST_NAME - len(ending)] + ending
        number += 1
    return candidate
