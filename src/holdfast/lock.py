"""A lock between processes: a file that one of them holds (flock), until it is released or that process ends."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

# Seconds between tries.
_PAUSE = 0.01


def acquire(path: Path, seconds: float) -> int | None:
    """The descriptor that holds the lock at `path`, or None when another had it for all of `seconds`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                return None
            time.sleep(_PAUSE)
        else:
            return descriptor


def release(descriptor: int) -> None:
    """Gives up the lock that `descriptor` holds, also where a child that was forked meanwhile has a copy of it."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
