"""A kernel over there, for a console or an editor here: its connection file, and the five ports in it. Pure.

The file holds the key with which its messages are signed, so it is fetched when it is asked for, and kept 0600.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.forward import Address, Forward, Kind
from holdfast.jupyter.servers import COMMON
from holdfast.openssh import script

PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")

_PROGRAM = (
    COMMON
    + r"""
runtime_directories | while IFS= read -r directory; do
    is_own_file "$directory/kernel-$id.json" || continue
    tell file
    head -c 16384 "$directory/kernel-$id.json"
    break
done
"""
)


def program(kernel: str) -> str:
    """The program that prints the connection file of the kernel with this id. Raises HoldfastError."""
    if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", kernel):
        raise HoldfastError(f"the server has a kernel whose id is {kernel[:60]!r}", "this is no Jupyter server")
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


def is_on_sockets(record: dict[str, Any]) -> bool:
    """Whether the kernel talks over Unix sockets, and not over TCP."""
    return record.get("transport") == "ipc"


def is_encrypted(record: dict[str, Any]) -> bool:
    """Whether what the kernel says can't be read by whoever connects to its ports."""
    return "curve_publickey" in record


def forwards(record: dict[str, Any], beside: Path) -> list[Forward]:
    """The forwards for PORTS, in that order; from sockets `beside` the file, where they lead to such."""
    if is_on_sockets(record):
        ends = [(Address(path=f"{beside}-{record[name]}"), f"{record['ip']}-{record[name]}") for name in PORTS]
        return [Forward(Kind.LOCAL, here, Address(path=there)) for here, there in ends]
    return [Forward(Kind.LOCAL, Address("127.0.0.1"), Address(record["ip"], record[name])) for name in PORTS]


def connection_file(record: dict[str, Any], beside: Path, listens: Sequence[Address]) -> str:
    """The file for this machine, where the forwards for PORTS listen on `listens`."""
    if is_on_sockets(record):
        return json.dumps({**record, "ip": str(beside)}, indent=1)
    ports = {name: listen.port for name, listen in zip(PORTS, listens, strict=True)}
    return json.dumps({**record, "ip": "127.0.0.1", **ports}, indent=1)
