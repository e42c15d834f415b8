"""Asks the terminal whether its background is dark. Most answer; one that doesn't costs `PATIENCE` seconds."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import time
import tty

PATIENCE = 0.3
# The background's colour (xterm's OSC 11), and then what every terminal answers at once (DA1).
_QUESTION = b"\x1b]11;?\x1b\\\x1b[c"
_COLOUR = re.compile(rb"\x1b\]11;rgba?:([0-9a-fA-F]+)/([0-9a-fA-F]+)/([0-9a-fA-F]+)")
_DONE = re.compile(rb"\x1b\[\?[0-9;]*c")


def is_dark() -> bool | None:
    """None where there is no terminal, or it doesn't tell."""
    try:
        answer = _ask(sys.stdin.fileno(), sys.stderr.fileno())
    except (OSError, termios.error, ValueError):
        return None
    return darkness(answer)


def darkness(answer: bytes) -> bool | None:
    """What the terminal's answer means."""
    found = _COLOUR.search(answer)
    if found is None:
        return None
    red, green, blue = (int(part, 16) / (16 ** len(part) - 1) for part in found.groups())
    return bool(0.299 * red + 0.587 * green + 0.114 * blue < 0.5)


def _ask(keys: int, screen: int) -> bytes:
    """What the terminal answers. Raises OSError, termios.error."""
    if not (os.isatty(keys) and os.isatty(screen)):
        return b""
    before = termios.tcgetattr(keys)
    answer = b""
    try:
        tty.setcbreak(keys, termios.TCSANOW)
        os.write(screen, _QUESTION)
        ends = time.monotonic() + PATIENCE
        while not _DONE.search(answer) and (left := ends - time.monotonic()) > 0:
            if select.select([keys], [], [], left)[0]:
                answer += os.read(keys, 1024)
    finally:
        termios.tcsetattr(keys, termios.TCSANOW, before)
    return answer
