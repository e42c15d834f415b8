"""Where new forwards listen on this machine: who has a port already, and which one is to be had."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from holdfast.control import Upkeep
from holdfast.errors import UsageError
from holdfast.forward import Forward, Kind
from holdfast.jupyter.servers import Notebook
from holdfast.keeper import processes
from holdfast.keeper.forwarding import Lease, OpenForward
from holdfast.keeper.journal import SavedTunnel
from holdfast.keeper.tunnel import Tunnel

# The ports from a notebook's own on that are tried for it here, and its own where it listens on a Unix socket.
NOTEBOOK_PORTS = 100
NOTEBOOK_PORT = 8888
# Ports below are root's.
UNPRIVILEGED = 1024


class PortsHere:
    """The ports of all `tunnels`, which whoever made this goes on changing."""

    def __init__(self, tunnels: Mapping[str, Tunnel]) -> None:
        self._tunnels = tunnels

    def check_overlap(self, forward: Forward) -> None:
        """Raises UsageError where another forward listens there already."""
        found = self._overlap(forward)
        if found is not None:
            name, there = found
            end = there.listen.port or there.listen
            raise UsageError(
                f"{forward.listen} leads to {there.target or 'SOCKS'} already, in tunnel '{name}'",
                f"use another port, or first: holdfast down {name} {end}",
            )

    def _overlap(self, forward: Forward) -> tuple[str, Forward] | None:
        """The tunnel, and its forward, that listens where `forward` is to."""
        for other in self._tunnels.values():
            there = _clash(forward, other.plain_forwards)
            if there is not None:
                return other.name, there
        return None

    def _can_be_had(self, forward: Forward) -> bool:
        return all(map(processes.is_free, forward.listeners)) and self._overlap(forward) is None

    def for_notebook(
        self,
        forward: Forward,
        notebook: Notebook,
        found: SavedTunnel,
        tunnel: Tunnel | None,
        running: Sequence[int],
    ) -> Forward:
        """The forward to `notebook`: one that the tunnel has, to be led there, or `forward` with its own port.

        That is the one that the notebook had before, else the same as over there, else the next that is free.
        `running` are the pids of all servers there.
        """
        for own in tunnel.forwards if tunnel else []:
            before = own.notebook
            is_gone = before is not None and before.pid not in running
            if own.forward.target == forward.target or (is_gone and before and before.is_like(notebook)):
                return own.asked
        first = (forward.target.port if forward.target else 0) or NOTEBOOK_PORT
        earlier = [
            saved.forward.listen.port
            for saved in found.forwards
            if saved.notebook is not None and saved.notebook.is_like(notebook)
        ]
        for port in (*earlier, *range(first, min(first + NOTEBOOK_PORTS, 65536))):
            chosen = forward._replace(listen=forward.listen._replace(port=port))
            if self._can_be_had(chosen):
                return chosen
        return forward

    def remembered(self, found: SavedTunnel) -> list[Forward]:
        """The forwards that the tunnel had. One to a notebook has another port where something took its own."""
        up = self._tunnels.get(found.name)
        if up is not None and up.is_kept:
            return [own.asked for own in up.forwards if own.kept]
        return [
            self.for_notebook(saved.asked, saved.notebook, found, None, ())
            if saved.notebook and not all(map(processes.is_free, saved.forward.listeners))
            else saved.asked
            for saved in found.forwards
        ]

    def prepare(
        self,
        asked: Forward,
        found: SavedTunnel,
        notebook: Notebook | None,
        lease: Lease | None,
        beside: Sequence[Forward] = (),
    ) -> OpenForward:
        """`asked`, with a port of its own where any free one will do: the one it had, or a new one.

        For a program that is the number that the target has, if it can be had.
        """
        if notebook is None:
            notebook = next((own.notebook for own in found.forwards if own.asked.target == asked.target), None)
        kept = lease is None
        if asked.kind is Kind.REMOTE or asked.listen.path or asked.listen.port:
            return OpenForward(asked, asked, notebook=notebook, kept=kept)
        before = next((saved.forward for saved in found.forwards if saved.asked == asked), None)
        if lease is not None and asked.target and asked.target.port >= UNPRIVILEGED:
            before = asked._replace(listen=asked.listen._replace(port=asked.target.port))
        if before is not None and _clash(before, beside) is None and self._can_be_had(before):
            return OpenForward(asked, before, kept=kept)
        port = processes.free_port(asked.listeners)
        return OpenForward(asked, asked._replace(listen=asked.listen._replace(port=port)), kept=kept)


def _clash(forward: Forward, beside: Iterable[Forward]) -> Forward | None:
    """The one of `beside` that listens here where `forward` would."""
    if forward.kind is Kind.REMOTE or not (forward.listen.port or forward.listen.path):
        return None
    there = (other for other in beside if other.kind is not Kind.REMOTE)
    return next((other for other in there if set(other.listeners) & set(forward.listeners)), None)


def check_beside(forward: Forward, beside: Iterable[Forward]) -> None:
    """Raises UsageError for a forward that would listen where one asked for with it does."""
    clash = _clash(forward, beside)
    if clash is not None:
        raise UsageError(
            f"{forward.listen} can't lead to {forward.target or 'SOCKS'} and to {clash.target or 'SOCKS'}",
            "use another port for one of them, or 0 for any that is free",
        )


def check_lazy(name: str, upkeep: Upkeep, forwards: Iterable[Forward]) -> None:
    """Raises UsageError for a lazy tunnel that needs its connection all the time."""
    remote = next((forward for forward in forwards if forward.kind is Kind.REMOTE), None)
    if upkeep.lazy and remote is not None:
        raise UsageError(
            f"the remote forward {remote.listen} needs a connection, so the tunnel '{name}' can't be lazy",
            f"holdfast up {name} --no-lazy",
        )
