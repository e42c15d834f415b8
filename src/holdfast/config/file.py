"""Replaces a configuration file as a whole: whoever reads it finds the old one or the new one, never a part."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from holdfast import lock, paths
from holdfast.errors import HoldfastError

# Seconds that another command may take to write it.
PATIENCE = 10.0


def change(path: Path, text: str, before: bytes | None) -> None:
    """As `replace`, of a file that is still what it was: `before`, or None when there was none.

    Raises HoldfastError.
    """
    held = lock.acquire(paths.state_dir() / "config.lock", PATIENCE)
    if held is None:
        raise HoldfastError("another command is changing the configuration", "try again")
    try:
        if _found(path) != before:
            raise HoldfastError(f"{path} was changed meanwhile, and is not overwritten", "do it again")
        replace(path, text)
    finally:
        os.close(held)


def _found(path: Path) -> bytes | None:
    """What is in the file; None when there is none, as for a link that leads nowhere yet. Raises HoldfastError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HoldfastError(f"can't read {path}: {error.strerror}", f"ls -ld {path}") from None


def replace(path: Path, text: str) -> None:
    """Writes `text` to `path`, or to where that leads as a symbolic link, with the permissions that it had.

    Raises HoldfastError; the old content is then untouched.
    """
    try:
        content = text.encode()
    except UnicodeEncodeError:
        raise HoldfastError(f"can't write {path}: it has half a character in it") from None
    write(path, content)


def write(path: Path, content: bytes) -> None:
    """As `replace`, of bytes. A file that wasn't there is 0600."""
    target = Path(os.path.realpath(path))
    temporary = None
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # 0600 by itself
        with os.fdopen(descriptor, "wb") as file:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(descriptor, stat.S_IMODE(target.stat().st_mode))
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        Path(temporary).replace(target)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise HoldfastError(
            f"can't write {path}: {error.strerror}", f"ls -ld {target.parent}; df -h {target.parent}"
        ) from None
