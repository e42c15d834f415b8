"""What the service manager passes on to the keeper, and is told by it: sd_listen_fds(3), sd_notify(3).

What it says about that in the environment is for this process alone: it is taken out, so that no ssh inherits it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping
from pathlib import Path
from typing import NamedTuple

# The first descriptor that is passed on (SD_LISTEN_FDS_START).
FIRST = 3
# Descriptors that are looked at: one is meant.
MOST = 64


class ServiceManager(NamedTuple):
    """What started this process. `told_at` is the address of its ears, or empty; `passed` are descriptors."""

    told_at: str = ""
    passed: tuple[int, ...] = ()

    def tell(self, *news: str) -> None:
        """Sends assignments such as READY=1. Nobody who listens is no error: the keeper goes on."""
        if not self.told_at:
            return
        address = f"\0{self.told_at[1:]}" if self.told_at.startswith("@") else self.told_at
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as teller:
            teller.sendto("\n".join(news).encode(), address)

    def listener(self, path: Path) -> socket.socket | None:
        """The listening socket at `path` among what was passed on, or None. All others are closed.

        The caller owns it, but not its file: that is the service manager's.
        """
        found = None
        for descriptor in self.passed:
            if found is None and (candidate := _listening(descriptor, path)):
                found = candidate
            else:
                os.close(descriptor)
        return found


def taken_from(environment: MutableMapping[str, str]) -> ServiceManager:
    """What the service manager said in `environment`, which is then without it.

    Descriptors for another process don't count; ours are no longer inherited.
    """
    told_at = environment.pop("NOTIFY_SOCKET", "")
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return ServiceManager(told_at)
    passed = range(FIRST, FIRST + min(int(count), MOST))
    return ServiceManager(told_at, tuple(descriptor for descriptor in passed if _keeps_to_us(descriptor)))


def _keeps_to_us(descriptor: int) -> bool:
    """Has no child inherit the descriptor; False when it isn't open."""
    try:
        os.set_inheritable(descriptor, False)
    except OSError:
        return False
    return True


def _listening(descriptor: int, path: Path) -> socket.socket | None:
    """`descriptor` as a stream socket that listens at `path`, or None; then it is still open."""
    try:
        candidate = socket.socket(fileno=descriptor)
    except OSError:  # not a socket
        return None
    try:
        if (
            candidate.family == socket.AF_UNIX
            and candidate.type == socket.SOCK_STREAM
            and candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            and candidate.getsockname() == str(path)
        ):
            return candidate
    except OSError:
        pass
    candidate.detach()
    return None
