"""Tells, once a host, that other people are logged in there who can reach what is forwarded."""

from __future__ import annotations

import contextlib
import json
from datetime import date
from pathlib import Path

from holdfast import paths
from holdfast.cli.asking import Far, run_there
from holdfast.cli.main import complain
from holdfast.control import TunnelStatus
from holdfast.errors import HoldfastError
from holdfast.jupyter import audit

# Seconds that the host may take to tell.
PATIENCE = 5
TOLD = "told"
_OF_THE_HOST = ("127.0.0.1:", "[::1]:", "localhost:")


def tell_of(tunnel: TunnelStatus) -> None:
    """Says who else can connect to the TCP ports over there that `tunnel` leads to, if that wasn't said before.

    A host is asked once a day, until there was somebody. What it can't tell is nobody's trouble.
    """
    targets = [forward["target"] or "" for forward in tunnel["forwards"] if forward["kind"] == "local"]
    if tunnel["state"] not in ("up", "no service") or not any(one.startswith(_OF_THE_HOST) for one in targets):
        return
    notes = paths.state_dir() / "people.json"
    known = _read(notes)
    today = date.today().isoformat()
    if known.get(tunnel["host"]) in (TOLD, today):
        return
    others: tuple[str, ...] = ()
    with contextlib.suppress(HoldfastError):
        others = audit.others(run_there(Far(tunnel["name"], ()), audit.PEOPLE, PATIENCE, PATIENCE))
    if others:
        complain(audit.warning(others, tunnel["host"]), f"holdfast doctor {tunnel['host']}")
    with contextlib.suppress(OSError):
        notes.write_text(json.dumps({**known, tunnel["host"]: TOLD if others else today}))


def _read(notes: Path) -> dict[str, str]:
    try:
        known = json.loads(notes.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
