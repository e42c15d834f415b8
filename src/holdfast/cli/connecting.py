"""What editors and consoles on this machine need to use the kernels of a notebook server over there."""

from __future__ import annotations

import shlex
from pathlib import Path
from urllib.parse import quote

import click

from holdfast import paths
from holdfast.cli.asking import Far, ask, run_there
from holdfast.cli.main import complain
from holdfast.cli.reaching import Reached, up_request
from holdfast.errors import Exit
from holdfast.forward import parse_address
from holdfast.jupyter import kernels
from holdfast.jupyter.api import Kernel


def connect(there: Far, reached: Reached, timeout: float) -> int:
    """Prints it, and brings a tunnel to the kernel that was used last up. Raises HoldfastError."""
    reached.api.wait_for_answer(timeout)
    server = reached.server
    url = f"{reached.url}{server.base_url}?token={quote(server.token)}"
    click.echo(f"VS Code  Select Kernel > Existing Jupyter Server: {url}")
    click.echo(f"PyCharm  Jupyter Connection > Configured Server: {url}")
    running = sorted(reached.api.kernels(), key=lambda kernel: kernel.last_activity)
    if not running:
        complain("no kernel runs there yet, to which a console could be connected", "open a notebook first")
        return Exit.OK
    path = _connected_kernel(there, running[-1], reached.tunnel["name"], timeout)
    click.echo(f"console  jupyter console --existing {shlex.quote(str(path))}")
    return Exit.OK


def _connected_kernel(there: Far, kernel: Kernel, name: str, timeout: float) -> Path:
    """The connection file, here, of a kernel whose five ports a tunnel of their own leads to."""
    record = kernels.read(run_there(there, kernels.program(kernel.id), timeout), there.host)
    path = beside(kernel)
    forwards = kernels.forwards(record, path)
    (tunnel,) = ask(up_request(there, forwards, name=f"{name}-{path.name}"), there.host, timeout)
    listens = {own["target"]: parse_address(own["listen"]) for own in tunnel["forwards"]}
    file = path.with_suffix(".json")
    file.touch(mode=0o600)
    file.write_text(kernels.connection_file(record, path, [listens[str(own.target)] for own in forwards]))
    if not (kernels.is_encrypted(record) or kernels.is_on_sockets(record)):
        complain("what this kernel says can be read by every user of this machine, and of the other one")
    complain(f"to end its tunnel: holdfast down {tunnel['name']}")
    return file


def beside(kernel: Kernel) -> Path:
    """Where what belongs to a kernel is on this machine, but for its ending."""
    return paths.private_dir(paths.runtime_dir() / "kernels") / kernel.id[:8]
