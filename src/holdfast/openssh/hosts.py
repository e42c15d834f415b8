"""The host names in the user's ssh_config, for completion. Never an error: what can't be read isn't offered."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

# ssh gives up on files that include each other deeper than this (READCONF_MAX_DEPTH in readconf.c).
_DEEPEST = 16


def host_names(config: Path | None = None) -> list[str]:
    """The names that `Host` lines spell out in `config` (~/.ssh/config) and what it includes; no patterns."""
    return sorted(set(_names(config or Path.home() / ".ssh" / "config", 0)))


def _names(config: Path, depth: int) -> Iterator[str]:
    try:
        lines = config.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        keyword, *words = line.replace("=", " ", 1).replace('"', " ").split() or [""]
        if keyword.lower() == "host":
            yield from (word for word in words if not set(word) & set("*?!"))
        elif keyword.lower() == "include" and depth < _DEEPEST:
            for pattern in words:
                where = Path.home() / ".ssh" / Path(pattern).expanduser()  # an absolute pattern stays itself
                for path in glob.glob(str(where)):  # noqa: PTH207 - Path.glob takes no absolute pattern
                    yield from _names(Path(path), depth + 1)
