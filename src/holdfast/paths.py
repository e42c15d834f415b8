"""Where sockets, state and logs live, and the checks that they are ours alone.

Sockets are short-lived and their paths must be short, so they get a directory of their own, on a local disk.
`platformdirs` would do for the rest, but costs a third of `holdfast status` (27 ms of 75).
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from holdfast.errors import HoldfastError, UsageError

# Bytes of a path that ssh can use for a control socket: it binds `path` + "." + 16 characters first,
# and that must fit in sun_path (108 bytes on Linux, 104 elsewhere) with its closing NUL.
LONGEST_CONTROL_PATH = 90 if sys.platform == "linux" else 86
_MASTER_NAME = len("/m/0123456789ab")


def runtime_dir() -> Path:
    """The directory of the sockets, made if need be: 0700 and ours.

    Raises HoldfastError when it can't be made, belongs to somebody else, or is too long for a socket.
    """
    chosen = _chosen("HOLDFAST_RUNTIME_DIR")
    if chosen:
        return private_dir(chosen, room=_MASTER_NAME)
    for parent in (os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{os.getuid()}"):
        if parent and _is_private(Path(parent)) and _fits(Path(parent) / "holdfast", _MASTER_NAME):
            return private_dir(Path(parent) / "holdfast", room=_MASTER_NAME)
    return private_dir(Path(f"/tmp/holdfast-{os.getuid()}"), room=_MASTER_NAME)  # noqa: S108 - checked: 0700, ours


def state_dir() -> Path:
    """The directory of what must survive a restart, and of the logs: 0700 and ours.

    A home can be shared by several machines (clusters), a keeper can't: each machine has its own part.
    """
    chosen = _chosen("HOLDFAST_STATE_DIR")
    if chosen:
        return private_dir(chosen)
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return private_dir(Path(base) / "holdfast" / _machine())


def config_file() -> Path:
    """The user's configuration file, which need not be there. Raises UsageError."""
    chosen = _chosen("HOLDFAST_CONFIG")
    if chosen:
        return chosen
    base = Path(os.environ.get("XDG_CONFIG_HOME") or "")
    return (base if base.is_absolute() else Path.home() / ".config") / "holdfast" / "config.toml"


def keeper_socket() -> Path:
    """Where a keeper listens that made its socket itself."""
    return runtime_dir() / "keeper.sock"


def service_socket() -> Path:
    """Where the service manager listens for the keeper. Never the keeper's own: each removes what it made."""
    return runtime_dir() / "service.sock"


def masters_dir() -> Path:
    return private_dir(runtime_dir() / "m")


def logs_dir() -> Path:
    return private_dir(state_dir() / "logs")


def state_file() -> Path:
    """What is wanted, and which masters there are. The keeper's alone to write."""
    return state_dir() / "state.json"


def lock_file() -> Path:
    """Held by the keeper for as long as it runs. Its content is the path of the keeper's socket."""
    return state_dir() / "keeper.lock"


def keeper_log() -> Path:
    return state_dir() / "keeper.log"


def crash_log() -> Path:
    return state_dir() / "crash.log"


def private_dir(path: Path, room: int = 0) -> Path:
    """`path` as a directory of ours that nobody else can enter, with `room` bytes left for a control socket.

    Raises HoldfastError.
    """
    if room and not _fits(path, room):
        raise HoldfastError(
            f"the path {path} is too long for a socket",
            f"name a shorter one: HOLDFAST_RUNTIME_DIR=/tmp/holdfast-{os.getuid()}",
        )
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise HoldfastError(
            f"can't make the directory {path}: {error.strerror}", "holdfast doctor tells more"
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise HoldfastError(
            f"{path} is not a directory of yours", f"it may be an attack by another user: ls -ld {path}"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(0o700)
    return path


def log_name(tunnel: str) -> str:
    """The file name of a tunnel's log: control.check_name lets nothing through that needs care."""
    return f"{tunnel}.log"


def _chosen(variable: str) -> Path | None:
    """The path that the environment names. Raises UsageError for one that differs from folder to folder."""
    value = os.environ.get(variable)
    if value and not Path(value).is_absolute():
        raise UsageError(f"{variable} is '{value}', which is not an absolute path", f"{variable}=$PWD/{value}")
    return Path(value) if value else None


def _fits(path: Path, room: int) -> bool:
    return len(os.fsencode(path)) + room <= LONGEST_CONTROL_PATH


def _is_private(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _machine() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip()[:12] or "local"
    except OSError:
        return "local"
