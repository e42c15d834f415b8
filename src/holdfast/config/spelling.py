"""How a person writes a time and a socket's mode: text in, number out, and back."""

from __future__ import annotations

import re

from holdfast.errors import UsageError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_duration(text: str) -> int:
    """Seconds, from what a person writes: 90s, 30m, 2h or 1d. Raises UsageError."""
    found = re.fullmatch(r"([0-9]{1,9}) ?([smhd])", text, re.ASCII)
    if found is None:
        meant = (
            f"did you mean {text}s or {text}m" if re.fullmatch("[0-9]{1,9}", text) else "write 90s, 30m, 2h or 1d"
        )
        raise UsageError(f"'{text[:60]}' is not a time", meant)
    return int(found[1]) * _UNITS[found[2]]


def duration(seconds: int) -> str:
    """`seconds` as `parse_duration` takes them, in the largest unit that divides them."""
    unit = next(unit for unit in ("d", "h", "m", "s") if seconds % _UNITS[unit] == 0 and (seconds or unit == "s"))
    return f"{seconds // _UNITS[unit]}{unit}"


def parse_mode(text: str) -> int:
    """A socket's permissions, from what a person writes for chmod: 0660. Raises UsageError."""
    if not re.fullmatch(r"(?:0o?)?[0-7]{3}", text, re.ASCII):
        raise UsageError(f"'{text[:60]}' can't be a socket's mode", "write it as for chmod: 0660")
    return int(text.replace("o", ""), 8)


def shown_mode(mode: int) -> str:
    """`mode` as `parse_mode` takes it."""
    return f"{mode:04o}"
