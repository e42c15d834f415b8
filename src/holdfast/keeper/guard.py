"""Holds a forward's local ports while no master does: nobody is refused, and no other program gets them.

A connection that comes meanwhile waits, unread, and is handed to a master once one serves: its descriptor goes
over the control socket (a stdio forward), so no byte of it passes through here. Masters before 9.4 can't do that
for a Unix socket over there, and none can for SOCKS: such connections are joined to the master's own listener.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from holdfast.errors import MasterError
from holdfast.forward import Address, Forward
from holdfast.keeper import waiting_room
from holdfast.keeper.hang_ups import HangUps, Owned, client_is_gone, owned_connections
from holdfast.keeper.holder import Holder
from holdfast.openssh.control_socket import ControlSocket, ForwardRefused
from holdfast.openssh.master import Master
from holdfast.peer import is_stale

# The permissions of a Unix socket, unless others were asked for.
MODE = 0o600
# What follows its path where it is made.
BESIDE = "~"
# Connections that the kernel keeps for us, besides those that are held.
BACKLOG = 128
# Seconds for which a port that its master is just letting go is tried again, without a pause: a refused client
# costs more than a thousandth of a second of one processor.
SPIN = 0.003
# Seconds that a held connection's target may take to be connected to.
CONNECTING = 20.0
# Connections that are handed over at once.
AT_ONCE = 32
# Seconds after which a browser that waits gets the page, and from one look at what it wants to the next.
BROWSER_WAITS = 2.0
LOOK = 1.0
# Seconds from a client's end of sending to the look whether it is gone: many may have left together.
SOON = 0.1
# Where a listener on every address is to be found.
_REACHABLE = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


class Hold(NamedTuple):
    """How many connections a forward may have waiting, and for how many seconds each."""

    most: int = 512
    seconds: float = 120.0


@dataclass(slots=True)
class Tally:
    """What became of the connections that waited."""

    held: int = 0
    let_through: int = 0
    left: int = 0
    refused: int = 0


@dataclass(slots=True, eq=False)
class _Held:
    connection: socket.socket
    since: float
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    half_closed: bool = False


class Lobby:
    """What all guards of a keeper share, and the connections that went through to masters."""

    def __init__(self) -> None:
        self.hang_ups = HangUps()
        self._holder = Holder()
        self._through: set[ControlSocket] = set()
        # Held connections whose client has ended its sending: is it gone as well?
        self._doubted: dict[_Held, Guard] = {}
        self._doubting: asyncio.TimerHandle | None = None
        self._joined: set[asyncio.Task[None]] = set()

    async def pass_on(self, control: ControlSocket) -> None:
        """Keeps `control` open until its connection ends, though the keeper may be killed."""
        self._through = {other for other in self._through if not other.closed.is_set()} | {control}
        if await self._holder.keep(control.connection):
            control.close()
            self._through.discard(control)

    async def join(self, client: socket.socket, listen: Address) -> None:
        """Joins `client` to a master's own listener. Raises OSError."""
        server = await _connect(listen)
        task = asyncio.create_task(_relay(client, server))
        self._joined.add(task)
        task.add_done_callback(self._joined.discard)

    def doubt(self, held: _Held, guard: Guard) -> None:
        """Has `guard` drop `held` once its client is gone. One look serves all that wait for it."""
        self._doubted[held] = guard
        self._look_after(SOON)

    def trust(self, held: _Held) -> None:
        """Ends `doubt`."""
        self._doubted.pop(held, None)

    def _look_after(self, seconds: float) -> None:
        if self._doubting is None:
            self._doubting = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        self._doubting = None
        owned = owned_connections()
        for held, guard in list(self._doubted.items()):
            if client_is_gone(held.connection, owned):
                guard.drop_gone(held)
        if self._doubted:  # nothing tells when a client closes the rest
            self._look_after(LOOK)

    async def close(self) -> None:
        if self._doubting is not None:
            self._doubting.cancel()
        self.hang_ups.close()
        self._holder.close()
        for task in self._joined:
            task.cancel()
        await asyncio.gather(*self._joined, return_exceptions=True)


class Guard:
    """The guard of one `forward`, whose target may change.

    `page` makes what a browser that waits is shown, for a forward that carries HTTP. `came` is called with each
    connection that has to wait; `mode` is that of a Unix socket.
    """

    def __init__(
        self,
        forward: Forward,
        hold: Hold,
        lobby: Lobby,
        tally: Tally,
        page: Callable[[], bytes] | None = None,
        came: Callable[[], object] = lambda: None,
    ) -> None:
        self.forward = forward
        self.hold = hold
        self.mode = MODE
        self._lobby = lobby
        self._tally = tally
        self.page = page
        self._came = came
        self._listeners: dict[Address, socket.socket] = {}
        # Copies of what the master listens with.
        self._copies: dict[Address, socket.socket] = {}
        self._held: list[_Held] = []
        # Those that are with a master just now, which has not said yet whether it takes them.
        self._leaving: set[_Held] = set()
        self._paused = False
        self._is_closed = False

    @property
    def holds(self) -> tuple[Address, ...]:
        """The addresses that it listens on."""
        return tuple(self._listeners)

    @property
    def waiting(self) -> int:
        """How many connections wait, those included that are being handed over."""
        return len(self._leaving.union(self._held))

    def take(self, listen: Address, *, from_master: bool) -> bool:
        """Listens on `listen`. Whether that could be had; `from_master`: a master is letting it go just now."""
        self._is_closed = False
        if listen in self._listeners:
            return True
        listener = self._copies.pop(listen, None)
        if listener is not None:
            pass  # nobody had to be kept waiting
        elif listen.path:
            listener = _bound_path(listen, self.mode, from_master=from_master)
        else:
            listener = _bound(listen, SPIN if from_master else 0.0)
        if listener is None:
            return False
        listener.setblocking(False)
        self._listeners[listen] = listener
        if not self._paused:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)
        return True

    def keep_copy(self, listen: Address, copy: socket.socket) -> None:
        """Gives the guard a copy of the socket with which the master listens: see listeners.py."""
        if listen in self._copies or listen in self._listeners:
            copy.close()
        else:
            self._copies[listen] = copy

    def set_mode(self, mode: int, at_master: Collection[Address]) -> None:
        """Gives its Unix sockets that mode, those at which a master listens too."""
        self.mode = mode
        for listen in {*self._listeners, *at_master}:
            if listen.path and Path(listen.path).is_socket():
                with contextlib.suppress(OSError):
                    Path(listen.path).chmod(mode)

    def let_go(self, listen: Address) -> None:
        """Stops listening. Who has come by now is held; the next one must find a master there."""
        listener = self._listeners.pop(listen, None)
        if listener is None:
            return
        asyncio.get_running_loop().remove_reader(listener)
        self._accept_all(listener, limit=None)
        listener.close()

    def close(self) -> None:
        """Gives everything up, and hangs up on whoever waits."""
        self._is_closed = True
        for listen in self.holds:
            self.let_go(listen)
            if listen.path:
                Path(listen.path).unlink(missing_ok=True)
        for copy in self._copies.values():
            copy.close()
        self._copies.clear()
        for held in list(self._held):
            self._drop(held)

    async def let_through(self, master: Master) -> None:
        """Hands everybody who waits to `master`. Raises MasterError when it is gone; who wasn't, waits on."""
        turns = asyncio.Semaphore(AT_ONCE)
        owned = owned_connections()

        async def hand_over(held: _Held) -> None:
            async with turns:
                self._leaving.add(held)
                try:
                    await self._hand_over(held, master, owned)
                finally:
                    self._leaving.discard(held)

        results = await asyncio.gather(*(hand_over(held) for held in list(self._held)), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _hand_over(self, held: _Held, master: Master, owned: Owned) -> None:
        if held not in self._held:
            return
        if held.half_closed and client_is_gone(held.connection, owned):
            self.drop_gone(held)
            return
        target = self.forward.target
        if target is not None and (not target.path or master.takes_unix_targets):
            await self._give(held, target, master)
            return
        # From here on the relay sees the client's end.
        self._release(held)
        try:
            listen = self.forward.listeners[0]
            await self._lobby.join(held.connection, listen._replace(host=_REACHABLE.get(listen.host, listen.host)))
        except OSError:
            held.connection.close()
            self._tally.refused += 1
        else:
            self._tally.let_through += 1

    async def _give(self, held: _Held, target: Address, master: Master) -> None:
        control = await _connected(master)
        if held not in self._held:  # it left meanwhile
            control.close()
            return
        self._release(held)
        descriptor = held.connection.fileno()
        try:
            await control.start_stdio_forward(target, (descriptor, descriptor), CONNECTING)
        except ForwardRefused:  # as with plain ssh: accepted, then closed
            self._tally.refused += 1
            control.close()
        except MasterError:
            control.close()
            if self._is_closed:
                held.connection.close()
            else:
                self._keep(held)
            raise
        except BaseException:
            control.close()
            held.connection.close()
            raise
        else:
            self._tally.let_through += 1
            await self._lobby.pass_on(control)
        held.connection.close()  # the master has its own; ours would keep the client from seeing the end

    def _accept(self, listener: socket.socket) -> None:
        self._accept_all(listener, self.hold.most)

    def _accept_all(self, listener: socket.socket, limit: int | None) -> None:
        while limit is None or len(self._held) < limit:
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # it has gone already
                continue
            except OSError:  # no descriptors are left: looking again at once would be for nothing
                self._pause()
                asyncio.get_running_loop().call_later(LOOK, self._resume)
                return
            self._tally.held += 1
            connection.setblocking(False)
            self._keep(_Held(connection, time.monotonic()))
            self._came()
        self._pause()

    def _keep(self, held: _Held) -> None:
        loop = asyncio.get_running_loop()
        self._held.append(held)
        left = max(0.0, held.since + self.hold.seconds - time.monotonic())
        held.timers = [loop.call_later(left, self._drop, held)]
        if self.page is not None:
            held.timers.append(loop.call_later(BROWSER_WAITS, self._look_at, held))
        self._lobby.hang_ups.watch(held.connection, lambda: self._ended(held))

    def _release(self, held: _Held) -> None:
        """Watches it no more; it isn't closed."""
        self._held.remove(held)
        for timer in held.timers:
            timer.cancel()
        self._lobby.hang_ups.forget(held.connection)
        self._lobby.trust(held)
        self._resume()

    def _drop(self, held: _Held) -> None:
        self._release(held)
        held.connection.close()

    def drop_gone(self, held: _Held) -> None:
        """Hangs up on a client that has gone away."""
        self._tally.left += 1
        self._drop(held)

    def _ended(self, held: _Held) -> None:
        """The client has ended its sending: it may be gone as well, or wait for an answer."""
        held.half_closed = True
        self._lobby.doubt(held, self)

    def _look_at(self, held: _Held) -> None:
        """Shows a browser the waiting room; looks again at what hasn't said yet what it is."""
        assert self.page is not None
        try:
            head = held.connection.recv(waiting_room.LONGEST_HEAD + 1, socket.MSG_PEEK)
        except OSError:
            head = b""
        match waiting_room.is_navigation(head):
            case None:
                held.timers.append(asyncio.get_running_loop().call_later(LOOK, self._look_at, held))
            case True:
                with contextlib.suppress(OSError):
                    held.connection.recv(len(head))  # unread, it would make the page's end a reset
                    held.connection.send(self.page())
                    held.connection.shutdown(socket.SHUT_WR)
                self._drop(held)
            case False:
                pass

    def _pause(self) -> None:
        """Leaves further clients to the kernel's queue, and to TCP's patience after that."""
        if not self._paused:
            self._paused = True
            for listener in self._listeners.values():
                asyncio.get_running_loop().remove_reader(listener)

    def _resume(self) -> None:
        if self._paused and len(self._held) < self.hold.most:
            self._paused = False
            for listener in self._listeners.values():
                asyncio.get_running_loop().add_reader(listener, self._accept, listener)


def beside(listen: Address) -> Address:
    """Where a Unix socket is made before it is moved into its place: so its path is never without a listener."""
    return listen._replace(path=f"{listen.path}{BESIDE}")


def move_into_place(listen: Address, mode: int) -> None:
    """Puts the socket made `beside` the place of `listen` there. One that has been moved already stays."""
    made = Path(beside(listen).path)
    with contextlib.suppress(FileNotFoundError):
        if mode != MODE:  # else as ssh has made it: the user may have set a StreamLocalBindMask
            made.chmod(mode)
        made.rename(listen.path)


def _bound(listen: Address, spin: float) -> socket.socket | None:
    host = "::" if listen.host == "*" and socket.has_ipv6 else listen.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, listen.host != "*")
    end = time.monotonic() + spin
    while True:
        # Looked at first: whoever was kept from running until then tries once more.
        is_last = time.monotonic() >= end
        try:
            listener.bind(("" if host == "*" else host, listen.port))
            listener.listen(BACKLOG)
        except OSError:
            if is_last:
                listener.close()
                return None
            continue
        return listener


def _bound_path(listen: Address, mode: int, *, from_master: bool) -> socket.socket | None:
    """A listener moved over a master's socket, or a stale one. Whatever else is there stays."""
    place, made = Path(listen.path), Path(beside(listen).path)
    if os.path.lexists(place) and not (is_stale(place) or (from_master and place.is_socket())):
        return None
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if is_stale(made):
            made.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            listener.bind(str(made))
        finally:
            os.umask(mask)
        listener.listen(BACKLOG)
        made.chmod(mode)
        made.rename(place)
    except OSError:
        listener.close()
        return None
    return listener


async def _connected(master: Master) -> ControlSocket:
    try:
        return await ControlSocket.connect(master.socket)
    except OSError as error:
        raise MasterError(f"the master is gone: {error.strerror}") from None


async def _connect(listen: Address) -> socket.socket:
    family = socket.AF_UNIX if listen.path else socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    server.setblocking(False)
    try:
        async with asyncio.timeout(CONNECTING):
            end = listen.path or (listen.host, listen.port)
            await asyncio.get_running_loop().sock_connect(server, end)
    except BaseException:
        server.close()
        raise
    return server


async def _relay(client: socket.socket, server: socket.socket) -> None:
    """Carries bytes both ways until both sides have ended."""
    client.setblocking(False)
    with client, server, contextlib.suppress(OSError):
        async with asyncio.TaskGroup() as ways:
            ways.create_task(_carry(client, server))
            ways.create_task(_carry(server, client))


async def _carry(source: socket.socket, drain: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await loop.sock_recv(source, 256 * 1024):
            await loop.sock_sendall(drain, data)
    with contextlib.suppress(OSError):
        drain.shutdown(socket.SHUT_WR)
