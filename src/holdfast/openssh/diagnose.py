"""What ssh's stderr means, in the user's words, with the next step, and whether trying again can help.

Pure: text in, a Trouble out. Wordings differ between versions, so lines are matched by their key words, and
an unknown ending shows ssh's own last line.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Remedy(Enum):
    """What can help, and so how long to wait before the next try (the delays are in keeper/states.py)."""

    RETRY = "the server was never reached"
    RETRY_LATER = "the server was reached, and something failed"
    RETRY_MUCH_LATER = "closed before the banner: MaxStartups, a penalty, a firewall"
    LOGIN = "only a person can go on"
    NONE = "trying again can't help"


class Trouble(NamedTuple):
    """Why a login failed or a link was lost: one line in the user's words, a hint, and what can help."""

    reason: str
    hint: str
    remedy: Remedy


def diagnose(log: str, host: str) -> Trouble:
    """Why ssh ended, from what it wrote to stderr or its -E file while it ran. `host` is as the user typed it."""
    raise NotImplementedError
