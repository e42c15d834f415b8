"""A project's `.holdfast.toml`: found from the working directory upwards, and used only once the user has agreed
to exactly what is in it, since it can name hosts and have ssh run programs here."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from holdfast import paths
from holdfast.errors import HoldfastError, UsageError

if TYPE_CHECKING:
    from holdfast.config.reading import Described

FILE = ".holdfast.toml"
# Bytes of a file that somebody wrote by hand, and more.
LONGEST_FILE = 1024 * 1024
# Options of ssh_config that have ssh run a program, or load a library, on this machine.
_RUNS = ("proxycommand", "localcommand", "knownhostscommand", "pkcs11provider", "securitykeyprovider", "include")


class ProjectFile(NamedTuple):
    path: Path
    content: bytes


def find(folder: Path) -> ProjectFile | None:
    """The project file of `folder` or of the nearest folder above it that has one; None when there is none.

    The home directory is the last that is looked into, and a folder that is another user's is not.
    Raises UsageError for a file that somebody else could have written.
    """
    for where in (folder, *folder.parents):
        if not _may_look_into(where):
            return None
        with contextlib.suppress(FileNotFoundError):
            return ProjectFile(where / FILE, _read_or_say_why(where / FILE))
        if where == Path.home():
            return None
    return None


def digest(file: ProjectFile, described: Iterable[Described] = ()) -> str:
    """What the user agrees to: this content at this place, with the ssh configurations that it has ssh read.

    Raises UsageError for one of those that can't be read whole, or that others can write to.
    """
    import hashlib

    parts = [os.fsencode(file.path), file.content]
    for path in sorted({path for tunnel in described for path in _configurations(tunnel)}):
        with contextlib.suppress(FileNotFoundError):
            parts += [os.fsencode(path), _read_or_say_why(Path(path))]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def is_allowed(digest: str) -> bool:
    return (_allowed() / digest).exists()


def allow(file: ProjectFile, digest: str) -> None:
    """Remembers that the user has agreed. Raises HoldfastError."""
    try:
        descriptor = os.open(_allowed() / digest, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as note:
            note.write(os.fsencode(file.path))
    except OSError as error:
        raise HoldfastError(f"can't remember that: {error.strerror}", f"df -h {_allowed()}") from None


def deny(path: Path) -> bool:
    """Takes back every agreement to the file at `path`; whether there was one."""
    notes = [note for note in _allowed().iterdir() if note.read_bytes() == os.fsencode(path)]
    for note in notes:
        note.unlink(missing_ok=True)
    return bool(notes)


def programs(tunnel: Described) -> list[str]:
    """The options of `tunnel` that can have ssh run programs on this machine, as they are written."""
    pairs = zip(tunnel.options[::2], tunnel.options[1::2], strict=True)
    return [f"{option} {value}" for option, value in pairs if option == "-F" or _runs(option, value)]


def _runs(option: str, value: str) -> bool:
    keyword = value.replace("=", " ", 1).replace('"', " ").split(maxsplit=1)[:1]
    return option == "-o" and keyword != [] and keyword[0].lower() in _RUNS


def _configurations(tunnel: Described) -> list[str]:
    pairs = zip(tunnel.options[::2], tunnel.options[1::2], strict=True)
    return [value for option, value in pairs if option == "-F" and value != "none"]


def _allowed() -> Path:
    return paths.private_dir(paths.state_dir() / "allowed")


def _may_look_into(folder: Path) -> bool:
    try:
        return folder.stat().st_uid in (os.getuid(), 0) and os.access(folder, os.X_OK)
    except OSError:
        return False


def _read_or_say_why(path: Path) -> bytes:
    """Raises FileNotFoundError, and UsageError for everything else that is in the way."""
    try:
        return read(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}", f"ls -l {path}") from None


def read(path: Path) -> bytes:
    """What is in a file that nobody but the user, or root, can write to. Raises OSError, UsageError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not be waited for
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{path} is not a file", f"see what it is: ls -ld {path}")
        if found.st_uid not in (os.getuid(), 0):
            raise UsageError(f"{path} belongs to another user, and is not used", f"ls -l {path}")
        if found.st_mode & 0o002:
            raise UsageError(f"every user can write to {path}, so it is not used", f"chmod o-w {path}")
        content = file.read(LONGEST_FILE + 1)
    if len(content) > LONGEST_FILE:
        raise UsageError(f"{path} is larger than {LONGEST_FILE >> 20} MiB")
    return content
