"""A project's `.holdfast.toml`: found from the working directory upwards, and used only once the user has agreed
to exactly what is in it, since it can name hosts and have ssh run programs here."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from holdfast import paths
from holdfast.errors import UsageError

if TYPE_CHECKING:
    from holdfast.config.reading import Described

FILE = ".holdfast.toml"
# Bytes of a file that somebody wrote by hand, and more.
LONGEST_FILE = 1024 * 1024
# The keywords of ssh_config that are known to change nothing but the connection. With others ssh can be had to run
# a program, to load a library or to write into a file on this machine, some of them in ways that only ssh knows.
_HARMLESS = frozenset(
    (
        *("addressfamily", "ciphers", "compression", "connectionattempts", "connecttimeout"),
        *("gssapiauthentication", "hostkeyalgorithms", "identitiesonly", "ipqos", "kexalgorithms", "macs"),
        *("passwordauthentication", "port", "preferredauthentications", "pubkeyauthentication", "rekeylimit"),
        *("serveralivecountmax", "serveraliveinterval", "tcpkeepalive"),
    )
)


class ProjectFile(NamedTuple):
    path: Path
    content: bytes


def find(folder: Path) -> ProjectFile | None:
    """The project file of `folder` or of the nearest folder above it that has one; None when there is none.

    The home directory is the last that is looked into, and a folder that is another user's is not.
    Raises UsageError for a file that somebody else could have written.
    """
    homes = (Path.home(), Path(os.path.realpath(Path.home())))
    for where in (folder, *folder.parents):
        if not _may_look_into(where):
            return None
        with contextlib.suppress(FileNotFoundError):
            return ProjectFile(where / FILE, _read_or_say_why(where / FILE))
        if where in homes:
            return None
    return None


def configurations(described: Iterable[Described]) -> dict[str, bytes]:
    """What is in the ssh configurations that the tunnels of a project have ssh read (-F), by their paths.

    Raises UsageError for one that isn't there, can't be read whole, or that others can write to.
    """
    found: dict[str, bytes] = {}
    for path in sorted(
        {value for tunnel in described for option, value in _pairs(tunnel) if _is_file(option, value)}
    ):
        try:
            found[path] = _read_or_say_why(Path(path))
        except FileNotFoundError:
            raise UsageError(f"there is no {path}, which ssh is to read", f"ls -l {path}") from None
    return found


def digest(file: ProjectFile, configurations: Mapping[str, bytes]) -> str:
    """What the user agrees to: this content at this place, with the ssh configurations that it has ssh read."""
    parts = [os.fsencode(file.path), file.content]
    for path, content in sorted(configurations.items()):
        parts += [os.fsencode(path), content]
    return _sha256(b"".join(bytes.fromhex(_sha256(part)) for part in parts))


def with_copies(tunnel: Described, configurations: Mapping[str, bytes]) -> Described:
    """`tunnel`, with ssh reading copies of the `configurations`: what the user has agreed to, whatever is there at
    some later reconnect. Raises HoldfastError."""
    words: list[str] = []
    for option, value in _pairs(tunnel):
        words += [option, str(_copy(configurations[value])) if _is_file(option, value) else value]
    return tunnel._replace(options=tuple(words))


def is_allowed(digest: str) -> bool:
    return (agreements() / digest).exists()


def allow(file: ProjectFile, digest: str) -> None:
    """Remembers that the user has agreed. Raises HoldfastError."""
    from holdfast.config.file import write

    write(agreements() / digest, os.fsencode(file.path))  # whole or not at all: `deny` knows it by its content


def deny(path: Path) -> bool:
    """Takes back every agreement to the file at `path`; whether there was one."""
    notes = [note for note in agreements().iterdir() if note.read_bytes() == os.fsencode(path)]
    for note in notes:
        note.unlink(missing_ok=True)
    return bool(notes)


def options(tunnel: Described) -> list[tuple[str, bool]]:
    """ssh's options of `tunnel`, as they are written, and whether each can have ssh run programs or change files
    on this machine. Those that can come last."""
    told = [(f"{option} {value}", not _is_harmless(option, value)) for option, value in _pairs(tunnel)]
    return sorted(told, key=lambda one: one[1])


def _is_harmless(option: str, value: str) -> bool:
    match option:
        case "-p" | "-i":
            return True
        case "-F":
            return not _is_file(option, value)
        case "-J" | "-l":  # may become a part of a command line that a shell reads
            return re.fullmatch(r"[\w.@:,/\[\]%-]+", value, re.ASCII) is not None
        case "-o":
            found = re.fullmatch(r'(\w+)[ =][^"]*', value, re.ASCII)  # ssh takes quotes away, within words too
            return found is not None and found[1].lower() in _HARMLESS
        case _:
            return False


def _pairs(tunnel: Described) -> Iterable[tuple[str, str]]:
    return zip(tunnel.options[::2], tunnel.options[1::2], strict=True)


def _is_file(option: str, value: str) -> bool:
    """Whether that names an ssh configuration."""
    return option == "-F" and value != "none"


def _copy(content: bytes) -> Path:
    """A file of ours with this content. Raises HoldfastError."""
    from holdfast.config.file import write

    copy = paths.private_dir(paths.state_dir() / "configurations") / _sha256(content)
    if not copy.exists():
        write(copy, content)
    return copy


def _sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def agreements() -> Path:
    """The directory of what the user has agreed to."""
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
