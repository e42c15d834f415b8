"""Unix sockets over there: sshd leaves a remote forward's where it was, and can't be told its permissions.

One that is stale is in the way of the next forward, and its removal must not hit one that somebody listens on: it
has to be ours, take no connection, and have no listener that the far side's kernel knows of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from holdfast.errors import HoldfastError, MasterError
from holdfast.forward import Address, Forward, Kind
from holdfast.keeper.forwarding import CLOSING, OPENING, stays_open
from holdfast.openssh import script, session
from holdfast.openssh.master import Master

# Seconds that the far side may take for one of these programs.
PATIENCE = 10.0

_REMOVE = r"""
[ -S "$path" ] && [ -O "$path" ] && [ -r /proc/net/unix ] || return 0
while read -r _ _ _ flags _ _ _ name; do
    case $name in "$path" | "$path~") [ "$flags" = 00010000 ] && return 0 ;; esac  # ours are renamed: guard.BESIDE
done </proc/net/unix
rm -f -- "$path" && tell removed
"""
_CHMOD = '[ -S "$path" ] && [ -O "$path" ] && chmod "$mode" "$path"\n'


async def remove_stale(master: Master, host: str, path: str, round_trip: Callable[[], Awaitable[object]]) -> bool:
    """Removes the socket at `path` on `host` if nobody listens there. Whether it has. See `stays_open`."""
    try:
        if await _takes_connections(master, path, round_trip):
            return False
        printed = await session.run(master.socket, script.assign(path=path) + _REMOVE, host, PATIENCE)
    except (HoldfastError, OSError, TimeoutError):
        return False
    return any(name == "removed" for name, *_ in script.sections(printed))


async def set_mode(master: Master, host: str, path: str, mode: int) -> None:
    """Gives our socket at `path` on `host` these permissions. What allows no program there keeps sshd's own."""
    with contextlib.suppress(HoldfastError, OSError):
        program = script.assign(path=path, mode=f"{mode:o}") + _CHMOD
        await session.run(master.socket, program, host, PATIENCE)


async def _takes_connections(master: Master, path: str, round_trip: Callable[[], Awaitable[object]]) -> bool:
    """Raises MasterError, OSError, TimeoutError."""
    listen = Address(path=str(master.socket.with_suffix(".try")))
    forward = Forward(Kind.LOCAL, listen, Address(path=path))
    Path(listen.path).unlink(missing_ok=True)  # a keeper may have been killed right here
    await master.control.open_forward(forward, listen, OPENING)
    try:
        return await stays_open(listen, round_trip)
    finally:
        with contextlib.suppress(MasterError):
            await master.control.close_forward(forward, listen, CLOSING)
        Path(listen.path).unlink(missing_ok=True)
