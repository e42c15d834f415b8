"""What must survive a restart, written atomically; and what happened, one log a tunnel, for `holdfast logs`."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from holdfast import paths
from holdfast.control import (
    check_host,
    check_name,
    check_options,
    check_upkeep,
    decode_forward,
    encode_forward,
    fill,
)
from holdfast.errors import HoldfastError
from holdfast.forward import Forward
from holdfast.jupyter.servers import Notebook

VERSION = 4
# A log is put aside (one older one is kept) when it has grown to this many bytes.
LONGEST_LOG = 128 * 1024
# How the names of files begin that are being written.
TEMPORARY = "writing."
# How many tunnels that were taken down are remembered, with their forwards.
LONGEST_MEMORY = 100


class SavedForward(NamedTuple):
    """`asked` is what the person wrote, port 0 included; `forward` is what that became, and `notebook` is what is
    behind it, if that is known. Without `kept` only programs hold it. `chosen_port` is a remote forward's, by the
    server's choice, or 0."""

    asked: Forward
    forward: Forward
    notebook: Notebook | None = None
    kept: bool = True
    chosen_port: int = 0


class SavedTunnel(NamedTuple):
    """`up_since` is when it came up, in ISO 8601, or '' when it wasn't up. `upkeep` is a control.Upkeep, `origin`
    the configuration file that describes it, or ''."""

    name: str
    host: str
    options: tuple[str, ...]
    environment: dict[str, str]
    wanted: bool
    drops: int = 0
    outages: int = 0
    down_seconds: int = 0
    up_since: str = ""
    upkeep: dict[str, int] = {}  # noqa: RUF012 - a named tuple's default, never changed
    origin: str = ""
    forwards: tuple[SavedForward, ...] = ()

    def without_leases(self) -> SavedTunnel:
        """What of it was asked for to stay."""
        return self._replace(forwards=tuple(saved for saved in self.forwards if saved.kept))


class SavedMaster(NamedTuple):
    """A master of ours, by the host and options that it serves.

    `attended`: a person had to log in; `draining`: another one has taken its place.
    """

    host: str
    options: tuple[str, ...]
    socket: str
    control_path: str
    attended: bool = False
    draining: bool = False


class Saved(NamedTuple):
    tunnels: tuple[SavedTunnel, ...] = ()
    masters: tuple[SavedMaster, ...] = ()


def load() -> tuple[Saved, str]:
    """What was saved, and a message when it could not be read: that file is then kept aside, never lost."""
    path = paths.state_file()
    for left in path.parent.glob(f"{TEMPORARY}*"):  # by a keeper that was killed while it wrote
        left.unlink(missing_ok=True)
    try:
        text = path.read_text()
    except FileNotFoundError:
        return Saved(), ""
    except (OSError, UnicodeDecodeError) as error:
        return Saved(), _put_aside(path, str(error))
    try:
        return _decode(json.loads(text)), ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, HoldfastError) as error:
        return Saved(), _put_aside(path, str(error) or type(error).__name__)


def save(saved: Saved) -> None:
    """Replaces the file as a whole. Raises HoldfastError; the old content is then untouched."""
    path = paths.state_file()
    text = json.dumps(_encode(saved), indent=1)
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)  # 0600 by itself
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).rename(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise HoldfastError(
            f"can't write {path}: {error.strerror}", f"is the disk full? df -h {path.parent}"
        ) from None


def record(tunnel: str, text: str) -> None:
    """Adds a line to the tunnel's log. A disk that is full costs the line, nothing else."""
    with contextlib.suppress(OSError, HoldfastError):
        _append(paths.logs_dir() / paths.log_name(tunnel), text)


def note(text: str) -> None:
    """Adds a line to the keeper's own log."""
    with contextlib.suppress(OSError, HoldfastError):
        _append(paths.keeper_log(), text)


def _append(log: Path, text: str) -> None:
    stamp = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    if log.exists() and log.stat().st_size > LONGEST_LOG:
        log.rename(log.with_suffix(".log.1"))
    with log.open("a") as file:
        file.write(f"{stamp}  {text}\n")


def _put_aside(path: Path, why: str) -> str:
    aside = path.with_name(f"state.json.broken-{datetime.now().astimezone():%Y%m%dT%H%M%S.%f}")
    with contextlib.suppress(OSError):
        path.rename(aside)
    return f"{path} could not be read ({why}); it was kept as {aside.name}, and no tunnel is known any more"


def _encode(saved: Saved) -> dict[str, Any]:
    tunnels = [
        {
            **tunnel._asdict(),
            "forwards": [_encode_saved(saved) for saved in tunnel.forwards],
        }
        for tunnel in saved.tunnels
    ]
    return {"version": VERSION, "tunnels": tunnels, "masters": [master._asdict() for master in saved.masters]}


def _encode_saved(saved: SavedForward) -> list[Any]:
    ends = [encode_forward(saved.asked), encode_forward(saved.forward)]
    return [*ends, saved.notebook.encode() if saved.notebook else None, saved.kept, saved.chosen_port]


def _decode_saved(record: list[Any]) -> SavedForward:
    since_4: list[Any] = [None, True, 0]  # version 3 had the first of these, where there was one
    asked, forward, notebook, kept, chosen_port = [*record, *since_4[len(record) - 2 :]]
    known = Notebook.decode(notebook) if notebook is not None else None
    ends = decode_forward(tuple(asked)), decode_forward(tuple(forward))
    if type(kept) is not bool or type(chosen_port) is not int or not 0 <= chosen_port < 65536:
        raise ValueError("a forward is not what it should be")
    return SavedForward(*ends, known, kept, chosen_port)


def _decode(record: dict[str, Any]) -> Saved:
    if record["version"] not in (1, 2, 3, VERSION):
        raise ValueError(f"its version is {record['version']}, not {VERSION}")
    is_old = record["version"] == 1
    absent = {**(_SINCE_2 if is_old else {}), **(_SINCE_4 if record["version"] < VERSION else {})}
    tunnels = tuple(_tunnel({**absent, **fields}) for fields in record["tunnels"])
    masters = tuple(
        fill(SavedMaster, {**(_MASTER_SINCE_2 if is_old else {}), **fields}) for fields in record["masters"]
    )
    return Saved(tunnels, masters)


# What versions before didn't have.
_SINCE_2: dict[str, Any] = {"outages": 0, "down_seconds": 0, "upkeep": {}}
_SINCE_4: dict[str, Any] = {"origin": ""}
_MASTER_SINCE_2 = {"attended": False, "draining": False}


def _tunnel(fields: dict[str, Any]) -> SavedTunnel:
    forwards = tuple(map(_decode_saved, fields.pop("forwards")))
    tunnel = fill(SavedTunnel, fields, forwards=forwards)
    check_name(tunnel.name)
    check_host(tunnel.host)
    check_options(tunnel.options)
    check_upkeep(tunnel.upkeep)
    if tunnel.up_since and datetime.fromisoformat(tunnel.up_since).tzinfo is None:
        raise ValueError(f"'{tunnel.up_since}' has no time zone")
    return tunnel
