"""Opens, closes and tries forwards over a master, passes their ports from a guard to it and back, and finds out
why one can't be had."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from holdfast.errors import HoldfastError, MasterError, UsageError
from holdfast.forward import Address, Forward, Kind
from holdfast.jupyter.servers import Notebook
from holdfast.keeper import guard, listeners, processes
from holdfast.keeper.guard import MODE, Guard, Tally
from holdfast.keeper.states import ForwardState
from holdfast.openssh.control_socket import ControlSocket, ForwardRefused
from holdfast.openssh.diagnose import Refusal, refusal
from holdfast.openssh.master import Master
from holdfast.peer import is_stale

# Seconds that opening a forward may take: a round trip for a remote one.
OPENING = 10.0
# Seconds that closing one may take.
CLOSING = 5.0
# Seconds that a target may take to accept a probe.
PROBE = 5.0


# sshd doesn't say which it is (PROTOCOL.mux, and "remote port forwarding failed" in the log for all of them).
_REMOTE_HINT = (
    "its sshd may forbid it (AllowTcpForwarding, PermitListen), or something has the port over there, "
    "perhaps a dead connection of yours; it is tried again"
)
_REMOTE_LEFT_OVER = (
    "the connection that was lost may still have it over there; it is tried again every few seconds"
)


class Withheld(NamedTuple):
    """Why the guard keeps the port of a forward over a link that is up. No reason: that is being found out."""

    reason: str = ""
    hint: str = ""


class Lease:
    """A program's claim to forwards, for as long as it runs. Compared by identity."""

    __slots__ = ("forwards",)

    def __init__(self) -> None:
        # In the order in which they were asked for.
        self.forwards: list[OpenForward] = []


@dataclass(slots=True, eq=False)
class OpenForward:
    """A forward of a tunnel, and what was last found out about it. `asked` is what the person wrote."""

    asked: Forward
    forward: Forward
    state: ForwardState = ForwardState.CLOSED
    reason: str = ""
    hint: str = ""
    # The master that listens for it, and the listeners that it has opened for us.
    master: Master | None = None
    listening: list[Address] = field(default_factory=list)
    # What listens when no master does; a remote forward has none.
    guard: Guard | None = None
    tally: Tally = field(default_factory=Tally)
    # A master has listened for it before: whoever asked for it knows its port, which leads elsewhere.
    was_open: bool = False
    # The port that the server chose for a remote forward with port 0.
    chosen_port: int = 0
    # The notebook server that it leads to, and where that has moved to, until whoever sees to the port knows.
    notebook: Notebook | None = None
    moves_to: Address | None = None
    # Why no master may listen for it, although one could.
    withheld: Withheld | None = None
    # Whether it was asked for to stay, and the leases of programs that want it for as long as they run.
    kept: bool = True
    leases: set[Lease] = field(default_factory=set)
    # The permissions of a Unix socket; connections, as they were counted last.
    mode: int = MODE
    connections: int | None = None

    def found(self, state: ForwardState, reason: str = "", hint: str = "") -> None:
        self.state, self.reason, self.hint = state, reason, hint

    def claim(self, lease: Lease | None) -> None:
        """It is wanted for as long as `lease` lasts, or else to stay."""
        if lease is None:
            self.kept = True
        else:
            self.leases.add(lease)
            lease.forwards.append(self)

    def lead_to(self, notebook: Notebook, target: Address | None) -> None:
        """It leads to that notebook from now on, which is at `target`."""
        self.notebook, self.withheld = notebook, None
        self.moves_to = target if self.forward.target != target else None

    def lost(self) -> None:
        """No master listens for it any more."""
        self.found(ForwardState.CLOSED)
        self.listening.clear()
        self.master = None

    def listen_on(self, port: int) -> None:
        """Is to listen on another port here. Nobody knows of the one before yet, and no master listens on it."""
        self.forward = self.forward._replace(listen=self.forward.listen._replace(port=port))
        if self.guard is not None:
            self.guard.close()
            self.guard.forward = self.forward

    def move(self) -> None:
        """Leads to where its notebook server has moved. No master may be listening for it."""
        if self.moves_to is not None:
            self.asked = self.asked._replace(target=self.moves_to)
            self.forward = self.forward._replace(target=self.moves_to)
            self.moves_to = None
            if self.guard is not None:
                self.guard.forward = self.forward

    @property
    def is_open(self) -> bool:
        """Whether a master listens for it: ours, or one that the user had told to already."""
        found = self.state is not ForwardState.CLOSED and (bool(self.listening) or self.state is ForwardState.UP)
        return self.master is not None and found

    @property
    def wanted_listeners(self) -> tuple[Address, ...]:
        """Where a master is to listen for it: over there on the same port as before, where any would do."""
        return self.shown.listeners if self.chosen_port else self.forward.listeners

    @property
    def shown(self) -> Forward:
        """The forward with the port that it really listens on."""
        if self.chosen_port:
            return self.forward._replace(listen=self.forward.listen._replace(port=self.chosen_port))
        return self.forward


async def open_forward(master: Master, forward: OpenForward, host: str, *, after_loss: bool = False) -> None:
    """Has the master listen. Why it can't is in `forward` afterwards; where it can, `probe` finds out the rest.

    `host` is for the messages; `after_loss`: a connection that was just lost may have left something over there.
    Raises MasterError when the master doesn't answer.
    """
    forward.master = master
    for listen in forward.wanted_listeners:
        if listen in forward.listening:
            continue
        is_held = forward.guard is not None and listen in forward.guard.holds
        try:
            if not (master.ours or is_held) and await _is_taken_by_others(master, forward.forward, listen):
                raise ForwardRefused("taken")  # asked all the same, it would say so in the user's own terminal
            chosen = await _open_listener(master, forward, listen)
        except ForwardRefused:
            if forward.forward.kind is Kind.REMOTE:
                if forward.chosen_port and not after_loss:  # somebody else has it by now: any other will do
                    forward.chosen_port = 0
                    await open_forward(master, forward, host)
                    return
                hint = _REMOTE_LEFT_OVER if after_loss else _REMOTE_HINT
                forward.found(ForwardState.REFUSED, f"{host} refuses to listen on {listen}", hint)
                return
            if await _explain_local_refusal(forward, listen, master):
                continue
            await _close_listeners(master, forward)
            return
        forward.listening.append(listen)
        forward.chosen_port = chosen or forward.chosen_port


async def leads_to_itself(master: Master, forward: OpenForward) -> bool:
    """Whether the target is the guard, on a host that is this machine: each connection would make another one.

    For a host that has an address of ours, as one in a container may that has its own ports. Asked while the guard
    listens.
    """
    target, held_by = forward.forward.target, forward.guard
    if held_by is None or target is None or target.path or forward.forward.kind is not Kind.LOCAL:
        return False
    if target.port != forward.forward.listen.port or not target.is_loopback or not held_by.holds:
        return False
    before = forward.tally.held
    with contextlib.suppress(TimeoutError):
        await _accepts(master, target)
        await asyncio.sleep(0)  # the guard takes in who has come
    return forward.tally.held > before


async def _open_listener(master: Master, forward: OpenForward, listen: Address) -> int | None:
    """Has the master listen on `listen`, where a guard may be listening until then. Raises ForwardRefused."""
    own, held_by = forward.forward, forward.guard
    if own.kind is Kind.REMOTE or held_by is None:
        # While the far side is silent, the master reads nothing else from the connection that asked.
        control = await ControlSocket.connect(master.socket)
        try:
            return await control.open_forward(own, listen, OPENING)
        finally:
            control.close()
    if listen.path:
        await _open_path(master, forward, listen, held_by)
        return None
    if listen.host == "*":  # two sockets to ssh, which is content when it gets one of them
        held_by.let_go(listen)
    is_held = listen in held_by.holds
    with contextlib.suppress(*([ForwardRefused] if is_held else [])):
        # The guard lets go when the request is on its way: the shortest time in which nobody listens.
        return await master.control.open_forward(own, listen, OPENING, lambda: held_by.let_go(listen))
    # The master was quicker than that.
    return await master.control.open_forward(own, listen, OPENING)


async def _open_path(master: Master, forward: OpenForward, listen: Address, held_by: Guard) -> None:
    """A Unix socket is made beside its place and moved there, so the path is never without a listener."""
    made, place = Path(guard.beside(listen).path), Path(listen.path)
    remove_stale_socket(made)
    await master.control.open_forward(forward.forward, guard.beside(listen), OPENING)
    # A master that has had it open from before makes nothing anew.
    if made.exists() and os.path.lexists(place) and listen not in held_by.holds and not is_stale(place):
        await master.control.close_forward(forward.forward, guard.beside(listen), CLOSING)
        made.unlink(missing_ok=True)
        raise ForwardRefused("taken")
    guard.move_into_place(listen, forward.mode)
    held_by.let_go(listen)


def copy_listeners(master: Master, forward: OpenForward) -> None:
    """Gives the guard copies of what `master` has just opened, where the system allows that."""
    if forward.guard is None or forward.master is not master:
        return
    for listen in forward.listening:
        copy = None if listen.path else listeners.copy_of(master.pid, listen)
        if copy is not None:
            forward.guard.keep_copy(listen, copy)


async def close_forward(forward: OpenForward) -> None:
    """Takes back what `open_forward` opened, guard and all. Established connections stay."""
    if forward.master is not None and not forward.master.control.closed.is_set():
        await _close_listeners(forward.master, forward)
    forget_listeners(forward)
    if forward.guard is not None:
        forward.guard.close()
    forward.lost()


async def hold(forward: OpenForward) -> bool:
    """Has the guard listen in place of the master, living or dead, that did. Whether it holds all that it should.

    Raises MasterError when the master that listens doesn't answer.
    """
    before, opened = forward.master, list(forward.listening)
    if before is not None and not before.control.closed.is_set():
        for listen in opened:
            try:
                await _close_listener(before, forward, listen)
            except MasterError:
                if not before.control.closed.is_set():  # else it was ended in this very moment
                    raise
    forward.lost()
    own = forward.guard
    if own is None:
        return True
    taken = [own.take(end, from_master=end in opened) or _is_missing(end) for end in forward.forward.listeners]
    return all(taken)


def _is_missing(listen: Address) -> bool:
    """Whether it is the ::1 of a machine without IPv6, which nobody misses."""
    return listen.host == "::1" and processes.why_not(listen) in processes.NO_SUCH_ADDRESS


async def _close_listener(master: Master, forward: OpenForward, listen: Address) -> None:
    own, holder = forward.forward, forward.guard
    if own.kind is Kind.REMOTE or holder is None:
        closing = master.control.close_forward(own, listen, CLOSING)
    elif listen.path:
        holder.take(listen, from_master=True)
        closing = master.control.close_forward(own, guard.beside(listen), CLOSING)
    else:
        closing = master.control.close_forward(own, listen, CLOSING, lambda: holder.take(listen, from_master=True))
    with contextlib.suppress(ForwardRefused):
        await closing
    # A slow master had it for longer than the guard tried. The other address of `localhost` waits for this one.
    if holder is not None and own.kind is not Kind.REMOTE:
        holder.take(listen, from_master=True)


async def _close_listeners(master: Master, forward: OpenForward) -> None:
    """Closes what `forward` has opened at `master`, for nobody to listen there afterwards."""
    is_remote = forward.forward.kind is Kind.REMOTE
    for listen in forward.listening:
        end = guard.beside(listen) if listen.path and not is_remote else listen
        try:
            await master.control.close_forward(forward.forward, end, CLOSING)
        except ForwardRefused:
            continue
        except MasterError:
            break  # it doesn't answer: the others would only wait as long
    forget_listeners(forward)


def forget_listeners(forward: OpenForward) -> None:
    """Notes that no master listens for `forward` any more, and removes the sockets that ssh leaves behind."""
    for listen in forward.listening:
        if listen.path and forward.forward.kind is not Kind.REMOTE:
            remove_stale_socket(Path(listen.path))
    forward.listening.clear()


async def probe(
    master: Master, forward: OpenForward, host: str, round_trip: Callable[[], Awaitable[object]]
) -> None:
    """Finds out whether the target takes connections, by one connection that is closed at once.

    `round_trip` returns once the far side has answered something sent now.
    """
    target = forward.forward.target
    if forward.forward.kind is not Kind.LOCAL or target is None:
        forward.found(ForwardState.UP)
        return
    start = master.log_size()
    try:
        if target.path:
            served = await stays_open(forward.listening[0], round_trip)
        else:
            served = await _accepts(master, target)
    except TimeoutError:
        forward.found(
            ForwardState.NO_SERVICE,
            f"{target} does not accept connections from {host}",
            "the tunnel stays up, and works as soon as it does",
        )
        return
    if served:
        forward.found(ForwardState.UP)
        return
    match refusal(master.read_log(start)):
        case Refusal.FORBIDDEN:
            forward.found(
                ForwardState.REFUSED,
                f"the sshd of {host} forbids forwarding to {target}",
                "ask its administrator about AllowTcpForwarding and PermitOpen, or your key's options",
            )
        case Refusal.UNREACHABLE:
            forward.found(
                ForwardState.NO_SERVICE,
                f"{host} can't reach {target}",
                f"try it there: ssh {host} getent hosts {target.host}",
            )
        case Refusal.NO_SERVICE | Refusal.UNKNOWN:
            forward.found(
                ForwardState.NO_SERVICE,
                f"nothing listens at {target} on {host} yet",
                await _other_loopback(master, forward.forward, host)
                or "start it there: the tunnel stays up, and works as soon as it listens",
            )


async def _other_loopback(master: Master, forward: Forward, host: str) -> str:
    """A hint, if the target is only 127.0.0.1 and the service is on ::1."""
    assert forward.target is not None
    if forward.target.host != "127.0.0.1":
        return ""
    other = forward.target._replace(host="::1")
    with contextlib.suppress(TimeoutError):
        if await _accepts(master, other):
            return f"something listens at {other} there: holdfast up {host} {forward.listen.port}:{other}"
    return ""


async def _accepts(master: Master, target: Address) -> bool:
    """Whether the TCP `target` takes a connection. Raises TimeoutError, MasterError."""
    control = await ControlSocket.connect(master.socket)
    ours, theirs = socket.socketpair()
    try:
        async with asyncio.timeout(PROBE):
            await control.start_stdio_forward(target, (theirs.fileno(), theirs.fileno()), PROBE + 1)
    except ForwardRefused:
        return False
    finally:
        ours.close()
        theirs.close()
        control.close()
    return True


async def stays_open(listen: Address, round_trip: Callable[[], Awaitable[object]]) -> bool:
    """Whether a connection through our own listener is still there after a round trip.

    For Unix sockets over there: masters before 9.4 make TCP of a stdio forward to one. sshd connects to a Unix
    socket at once, so its refusal travels ahead of the answer to whatever was sent after the connection.
    """
    loop = asyncio.get_running_loop()
    family = socket.AF_UNIX if listen.path else socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        async with asyncio.timeout(PROBE):
            await loop.sock_connect(client, listen.path or (listen.host, listen.port))
            await round_trip()
        try:
            return client.recv(1) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False


async def _is_taken_by_others(master: Master, forward: Forward, listen: Address) -> bool:
    if forward.kind is Kind.REMOTE or listen.path or processes.why_not(listen) != errno.EADDRINUSE:
        return False
    return (await asyncio.to_thread(processes.holder, listen)).pid != master.pid


async def _explain_local_refusal(forward: OpenForward, listen: Address, master: Master) -> bool:
    """Says in `forward` why the master can't listen there. True when the forward can do without this listener."""
    if listen.path:
        forward.found(
            ForwardState.PORT_TAKEN,
            f"can't listen on {listen.path}",
            f"see what is there: ls -l {listen.path}",
        )
        return False
    trouble = processes.why_not(listen)
    if (
        trouble in processes.NO_SUCH_ADDRESS
        and forward.forward.listen.host == "localhost"
        and listen.host == "::1"
    ):
        return True  # a machine without IPv6
    if trouble == errno.EADDRINUSE:
        who = await asyncio.to_thread(processes.holder, listen)
        if who.pid == master.pid and not master.ours:
            forward.found(ForwardState.UP, "forwarded by the master that you started yourself, and left alone")
            return True
        taken, other = port_taken(forward.forward, listen, who)
        forward.found(ForwardState.PORT_TAKEN, taken, other)
    else:
        forward.found(ForwardState.PORT_TAKEN, *_bind_trouble(forward.forward, listen, trouble))
    return False


def port_taken(forward: Forward, listen: Address, who: processes.Holder) -> tuple[str, str]:
    """The reason and the hint for a local port that `who` has."""
    hint = f"end that, or use another port: {_elsewhere(forward)}"
    return f"port {listen.port} on {listen.host} is taken by {who}", hint


def _bind_trouble(forward: Forward, listen: Address, trouble: int) -> tuple[str, str]:
    if trouble == errno.EACCES:
        return f"only root may listen on port {listen.port}", f"use one above 1023: {_elsewhere(forward)}"
    if trouble in processes.NO_SUCH_ADDRESS:
        return f"{listen.host} is not an address of this machine", "see them: ip address"
    return f"the master can't listen on {listen}", "it is tried again; holdfast logs tells more"


def _elsewhere(forward: Forward) -> str:
    port = forward.listen.port + (1 if forward.listen.port > 1023 else 8000)
    target = f"{forward.target}".removeprefix("127.0.0.1:") if forward.target else ""
    return f"-D {port}" if forward.kind is Kind.DYNAMIC else f"{port}:{target}"


def check_listener(forward: Forward) -> None:
    """That the listening end can be ours, as far as can be told before anything is started.

    Raises UsageError for what is wrong with it, HoldfastError when another program has it.
    """
    if forward.kind is Kind.REMOTE:
        return
    if forward.listen.path:
        _check_socket_path(Path(forward.listen.path))
        return
    for listen in forward.listeners:
        trouble = processes.why_not(listen) if listen.port else 0
        if trouble in processes.NO_SUCH_ADDRESS and forward.listen.host == "localhost":
            continue
        if trouble == errno.EADDRINUSE:
            who = processes.holder(listen)
            if who.name != "ssh":  # it may be the very master that is about to be adopted
                raise HoldfastError(*port_taken(forward, listen, who))
        elif trouble:
            raise HoldfastError(*_bind_trouble(forward, listen, trouble))


def _check_socket_path(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{path} is a directory", "name a socket file in it")
    if not path.parent.is_dir():
        raise UsageError(f"there is no directory {path.parent} for the socket", f"mkdir -p {path.parent}")
    if path.exists() and not path.is_socket():
        raise UsageError(f"{path} exists and is not a socket", "name another path")
    if path.is_socket() and not is_stale(path):
        raise HoldfastError(f"another program listens on {path}", "name another path")


def remove_stale_socket(path: Path) -> None:
    """Removes a socket that nobody listens on any more; anything else is left alone."""
    with contextlib.suppress(OSError):
        if is_stale(path):
            path.unlink(missing_ok=True)
