"""Finds notebook servers over there, and brings forwards to them up."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from holdfast import client
from holdfast.cli.asking import Far, ask, at_terminal, run_there, tunnels
from holdfast.client import environment
from holdfast.control import Down, ForwardStatus, TunnelStatus, Up, encode_forward
from holdfast.errors import HoldfastError
from holdfast.forward import Address, Forward, Kind, parse_address
from holdfast.jupyter import servers
from holdfast.jupyter.api import Api
from holdfast.jupyter.servers import Found, Notebook, Server


class Reached(NamedTuple):
    """A server, behind a forward of a tunnel."""

    server: Server
    tunnel: TunnelStatus
    listen: Address
    api: Api

    @property
    def url(self) -> str:
        return f"{'https' if self.server.secure else 'http'}://{self.listen}"


def find(there: Far, timeout: float, directory: str = "") -> Found:
    """Your servers over there, and what `directory` is called there. Raises HoldfastError."""
    program = servers.program_for(directory) if directory else servers.PROGRAM
    return servers.read(run_there(there, program, timeout))


def reach(there: Far, server: Server, found: Found, timeout: float, name: str = "") -> Reached:
    """Brings a forward to the server up, or finds the one that there is; of the tunnel `name`, or the host's own.

    Raises HoldfastError.
    """
    if server.hub:
        raise HoldfastError(
            f"the server in {server.directory} on {there.host} belongs to a JupyterHub: only that can log you in",
            f"open it at the hub's own address; a server beside it: holdfast jupyter {there.called} --start",
        )
    forward = Forward(Kind.LOCAL, Address("localhost"), server.place)
    running = tuple(one.pid for one in found.servers)
    (tunnel,) = ask(
        up_request(there, [forward], name=name, notebook=server.kept, running=running), there.host, timeout
    )
    own = next((one for one in tunnel["forwards"] if one["target"] == str(server.place)), None)
    if own is None:
        raise HoldfastError("the notebook server has moved in this very moment", "try again")
    if own["state"] not in ("up", "no service", "connecting"):
        hint = f"holdfast jupyter {there.called} --stop, then --start --tls" if server.place.path else own["hint"]
        raise HoldfastError(own["reason"] or f"the tunnel to {server.place} is {own['state']}", hint or "")
    return _reached(server, tunnel, own)


def _reached(server: Server, tunnel: TunnelStatus, own: ForwardStatus) -> Reached:
    listen = parse_address(own["listen"])
    api = Api(listen.port, server.base_url, server.token, secure=server.secure, fingerprint=server.fingerprint)
    return Reached(server, tunnel, listen, api)


@contextlib.contextmanager
def reached_for_a_moment(there: Far, server: Server, found: Found, timeout: float) -> Iterator[Reached]:
    """The server behind a forward that there is, or behind one of a tunnel of its own that goes again."""
    for tunnel in tunnels(timeout):
        for own in tunnel["forwards"]:
            is_there = own["target"] == str(server.place) and own["kind"] == "local" and ":" in own["listen"]
            if is_there and own["state"] == "up" and there.host in (tunnel["host"], tunnel["name"]):
                yield _reached(server, tunnel, own)
                return
    reached = reach(there, server, found, timeout, name=f"moment-{secrets.token_hex(4)}")
    try:
        yield reached
    finally:
        client.ask(Down((reached.tunnel["name"],), (), False, forget=True), timeout=timeout)


def up_request(
    there: Far,
    forwards: Sequence[Forward],
    *,
    name: str = "",
    notebook: Notebook | None = None,
    running: tuple[int, ...] = (),
) -> Up:
    """The request for these forwards, as a command at this terminal makes it."""
    return Up(
        host=there.host,
        name=name or there.name,
        options=there.options,
        forwards=tuple(map(encode_forward, forwards)),
        environment=environment(),
        terminal=at_terminal(),
        wait=True,
        expose=False,
        notebook=notebook.encode() if notebook else {},
        running=running,
    )
