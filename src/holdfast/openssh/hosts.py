"""The host names in the user's ssh_config, for completion. Never an error: what can't be read isn't offered."""

from __future__ import annotations

import contextlib
import glob
import shlex
from collections.abc import Iterator
from pathlib import Path


def host_names(config: Path | None = None) -> list[str]:
    """The names that `Host` lines spell out in `config` (~/.ssh/config) and what it includes; no patterns."""
    return sorted(set(_names(config or Path.home() / ".ssh" / "config", set())))


def _names(config: Path, seen: set[Path]) -> Iterator[str]:
    seen.add(config)
    try:
        lines = config.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        keyword, *words = _words(line)
        if keyword.lower() == "host":
            yield from (word for word in words if not set(word) & set("*?! "))
        elif keyword.lower() == "include":
            for path in _included(words):
                if path not in seen:
                    yield from _names(path, seen)


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line.replace("=", " ", 1), comments=True) or [""]
    except ValueError:  # a quote that is not closed
        return [""]


def _included(patterns: list[str]) -> Iterator[Path]:
    for pattern in patterns:
        with contextlib.suppress(RuntimeError):  # ~somebody who has no account
            where = Path.home() / ".ssh" / Path(pattern).expanduser()  # an absolute pattern stays itself
            yield from map(Path, glob.glob(str(where)))  # noqa: PTH207 - Path.glob takes no absolute pattern
