"""A kernel over there, for a console or an editor here: its connection file, and the five ports in it. Pure.

The file holds the key with which its messages are signed, so it is fetched when it is asked for, and kept 0600.
"""

from __future__ import annotations

import json
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.forward import Address
from holdfast.openssh import script

PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")

_PROGRAM = r"""
data=${JUPYTER_DATA_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/jupyter}
for directory in "$JUPYTER_RUNTIME_DIR" "$data/runtime" "$HOME/Library/Jupyter/runtime" /tmp/holdfast-*/runtime; do
    file=$directory/kernel-$id.json
    [ -f "$file" ] && [ -O "$file" ] || continue
    echo @file
    head -c 16384 "$file"
    return
done
"""


def program(kernel: str) -> str:
    """The program that prints the connection file of the kernel with this id."""
    return script.assign(id=kernel) + _PROGRAM


def read(printed: str, host: str) -> dict[str, Any]:
    """The connection file that `program` printed. Raises HoldfastError."""
    text = next((text for name, _, text in script.sections(printed) if name == "file"), "")
    try:
        record = json.loads(text)
        if all(type(record[name]) is int for name in (*PORTS,)) and isinstance(record["ip"], str):
            return dict(record)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise HoldfastError(
        f"the kernel's connection file can't be found on {host}",
        "it is in the server's runtime directory: jupyter --runtime-dir tells that there",
    )


def targets(record: dict[str, Any]) -> dict[str, Address]:
    """Where each of the kernel's ports is over there: on TCP, or a Unix socket each."""
    if record.get("transport") == "ipc":
        return {name: Address(path=f"{record['ip']}-{record[name]}") for name in PORTS}
    return {name: Address(record["ip"], record[name]) for name in PORTS}


def connection_file(record: dict[str, Any], ports: dict[str, int]) -> str:
    """The file for this machine, on which the kernel's ports are `ports`."""
    return json.dumps({**record, "transport": "tcp", "ip": "127.0.0.1", **ports}, indent=1)
