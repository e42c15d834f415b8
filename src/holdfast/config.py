"""The configuration file: TOML in, tunnels out, all mistakes at once with their place. No I/O."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from holdfast.forward import Forward


class Start(StrEnum):
    """When a tunnel is brought up: with the login session, on its first connection, or by `holdfast up`."""

    LOGIN = "login"
    DEMAND = "demand"
    MANUAL = "manual"


class Described(NamedTuple):
    """A tunnel as the configuration describes it. `options` are ssh's, as words; `upkeep` has fields of
    control.Upkeep; `expose` allows listening on addresses that other machines can reach."""

    name: str
    host: str
    forwards: tuple[Forward, ...]
    groups: tuple[str, ...] = ()
    start: Start = Start.MANUAL
    options: tuple[str, ...] = ()
    upkeep: dict[str, int] = {}  # noqa: RUF012 - a named tuple's default, never changed
    expose: bool = False
