"""ssh run by a command, which waits for it: a login in the user's own terminal, and the version.

At a login ssh asks whatever it has to ask, then goes into the background (-f). It writes its log to a file (-E),
so that it can be read for as long as the master lives; what a person must see meanwhile (the server's
instructions, `Permission denied, please try again.`) is copied from there.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# How often, in seconds, the log is looked at while a person types.
_LOOK = 0.05
# A line is shown once it is this old, so that the words of an ssh that ends at once are left to diagnose.py.
_SETTLED = 0.25


def log_in(argv: Sequence[str], log: Path) -> int:
    """Runs `argv` (see command.master) in this terminal; ssh's exit status: 0 when the master is there.

    Raises KeyboardInterrupt as usual: the terminal has then sent it to ssh as well.
    """
    shown = 0
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
        try:
            changed = time.monotonic()
            size = 0
            while (status := process.poll()) is None:
                now_size = log.stat().st_size if log.exists() else 0
                if now_size != size:
                    size, changed = now_size, time.monotonic()
                if size > shown and time.monotonic() - changed > _SETTLED:
                    shown = _show(log, shown)
                try:
                    status = process.wait(_LOOK)
                except subprocess.TimeoutExpired:
                    continue
        except KeyboardInterrupt:
            process.terminate()
            raise
    return status


def version() -> str:
    """What `ssh -V` prints, as in 'OpenSSH_9.2p1 Debian-2'; '' when there is no ssh."""
    try:
        printed = subprocess.run(
            ["ssh", "-V"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=False
        ).stderr
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return printed.strip().partition(",")[0]


def _show(log: Path, start: int) -> int:
    with log.open("rb") as file:
        file.seek(start)
        text = file.read()
    sys.stderr.write(text.decode(errors="replace"))
    sys.stderr.flush()
    return start + len(text)
