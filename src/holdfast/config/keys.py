"""The keys of the configuration file, and what each says.

When one is left out, what control.Upkeep or reading.Described has by default counts; where they can't say it, it
stands after "Left out:".
"""

# Without annotations from __future__: a TypedDict compiles each that is a text, which takes a millisecond in all.
from typing import TypedDict


class TunnelTable(TypedDict, total=False):
    """A table `[tunnels.NAME]`, as it stands in the file."""

    host: str
    """Whatever ssh takes: `"lab"`, `"ann@lab"`, `"ssh://ann@lab:2222"`. Left out: the tunnel's name."""
    forwards: list[str | int]
    """The [forwards](../README.md#which-forwards), as on the command line. Left out: the host's own `LocalForward`
    lines, else 8888."""
    remote: list[str | int]
    """Forwards as after `-R`: `["9000:localhost:3000"]`; a port alone is SOCKS."""
    dynamic: list[str | int]
    """SOCKS proxies, as after `-D`: `["1080"]`."""
    groups: list[str]
    """Names that stand for several tunnels; no tunnel can have the same name."""
    start: str
    """`"login"`: with the login session. `"demand"`: the port is held from login on, ssh logs in at the first
    connection. `"manual"`: when you say `holdfast up`."""
    idle: str
    """With `start = "demand"`: the link ends after so long without a connection, and the port stays held; `"0s"`
    is never."""
    http: bool
    """It carries HTTP: browsers that wait are shown a page."""
    hold: int
    """Connections that may wait at each forward during an outage."""
    hold_for: str
    """How long each of them may wait."""
    switch: bool
    """The far side ends a connection that is dead."""
    notify: bool
    """Loss and return are told on the desktop."""
    mode: str
    """The permissions of its Unix sockets, as for chmod."""
    expose: bool
    """It may listen on addresses that other machines can reach, here or over there."""
    ssh: list[str]
    """ssh's options, as on the command line: `["-J", "bastion", "-o", "Compression=yes"]`; `-F`, `-o`, `-p`, `-i`,
    `-J` and `-l`."""
