"""A link's ports: each is always listened on, by the serving master or else by its guard.

Whoever decides calls `serve`; the ports follow as fast as they can, one at a time: so a client of `localhost`,
which has two addresses, always finds one of them. Remote forwards, whose answers come from the far side, are never
in the way of local ones.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from holdfast.errors import HoldfastError, MasterError
from holdfast.forward import Kind
from holdfast.keeper import far_sockets, forwarding, journal, processes
from holdfast.keeper.forwarding import OpenForward, Withheld
from holdfast.keeper.guard import MODE
from holdfast.keeper.states import ForwardState
from holdfast.openssh.master import Master

if TYPE_CHECKING:
    from holdfast.keeper.link import Attempt, Link

# Seconds until a port that could not be had is tried again; and one over there, for as long as the connection that
# was lost is likely to have it still (a dead-man's switch takes 13 s; a server without one may take two hours).
RETRY = 10.0
RETRY_REMOTE = 2.0
# Seconds that a link is young for this purpose.
YOUNG = 60.0
# Seconds until the guard tries again for a port that it could not take.
RETAKE = 1.0


class Ports:
    """Works for as long as the link is wanted. `changed` is called when what status shows is different."""

    def __init__(self, link: Link, changed: Callable[[], None]) -> None:
        self._link = link
        self._changed = changed
        self._serving: Attempt | None = None
        self._hands = (_Hand(Kind.LOCAL, Kind.DYNAMIC), _Hand(Kind.REMOTE))
        self._tasks = asyncio.TaskGroup()
        # Those whose waiting connections are being let through.
        self._letting: set[OpenForward] = set()

    def serve(self, attempt: Attempt | None) -> None:
        """From now on the ports belong to that attempt's master; None: to the guards."""
        self._serving = attempt
        self.open_wanted()

    def take_over(self) -> None:
        """Has the guards listen at once: the master that did has just gone, and who connects now is refused."""
        for forward in self._link.forwards:
            if forward.guard is not None and forward.master is not None and forward.master.control.closed.is_set():
                for listen in forward.listening:
                    forward.guard.take(listen, from_master=True)
        self.serve(None)

    def open_wanted(self) -> None:
        """Opens the link's forwards that aren't open yet, soon."""
        for hand in self._hands:
            hand.wanted.set()

    async def run(self) -> None:
        """Sees to the ports until cancelled; then nothing is closed."""
        async with self._tasks:
            for hand in self._hands:
                self._tasks.create_task(self._keep(hand))

    async def close(self, forward: OpenForward) -> None:
        """Closes a forward that is no longer among the link's. Its connections stay."""
        for hand in self._hands:
            if forward.forward.kind in hand.kinds:
                async with hand.turn:
                    await self._close(forward)

    async def _close(self, forward: OpenForward) -> None:
        """Also removes what sshd leaves of a Unix socket over there."""
        attempt, master, path = self._serving, forward.master, forward.forward.listen.path
        was_open = bool(forward.listening)
        await forwarding.close_forward(forward)
        if not (was_open and path and forward.forward.kind is Kind.REMOTE) or attempt is None or master is None:
            return
        if attempt.master is master and not attempt.is_late:
            await far_sockets.remove_stale(master, self._link.host, path, attempt.beat)

    async def look_again(self) -> None:
        """Finds out anew about the forwards whose target may have come or gone since."""
        attempt = self._serving
        master = attempt.master if attempt else None
        if attempt is None or master is None or attempt.is_late:
            return
        was_refused = "open failed" in master.read_log(attempt.log_start)
        attempt.log_start = master.log_size()
        doubtful = [own for own in self._link.forwards if was_refused or own.state is not ForwardState.UP]
        listened = [own for own in doubtful if own.listening and own.master is master]
        await asyncio.gather(*(self._probe(attempt, master, own) for own in listened))

    async def _keep(self, hand: _Hand) -> None:
        while True:
            hand.wanted.clear()
            attempt = self._serving
            master = attempt.master if attempt else None
            settled = True
            for forward in list(self._link.forwards):
                if forward.forward.kind not in hand.kinds:
                    continue
                async with hand.turn:
                    if forward in self._link.forwards and not await self._settle(forward, attempt, master):
                        settled = False
                if self._serving is not attempt:
                    break
            self._changed()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if settled else self._retry(hand)):
                    await hand.wanted.wait()

    def _retry(self, hand: _Hand) -> float:
        if self._serving is None:
            return RETAKE
        return RETRY_REMOTE if Kind.REMOTE in hand.kinds and self._is_young() else RETRY

    def _is_young(self) -> bool:
        return asyncio.get_running_loop().time() < self._link.up_at + YOUNG

    async def _settle(self, forward: OpenForward, attempt: Attempt | None, master: Master | None) -> bool:
        """Gives the forward's ports to whom they belong. Whether that is done."""
        try:
            if forward.master is not None and (forward.master is not master or not forward.is_open):
                await forwarding.hold(forward)
            if forward.moves_to is not None:
                await self._take_back(forward, master)
                forward.move()
            if attempt is None or master is None:
                return await forwarding.hold(forward)
            if forward.withheld is not None:
                return await self._withhold(forward, forward.withheld, master)
            if forward.is_open:
                return self._nobody_waits(forward, master)
            await self._open(forward, attempt, master)
        except (HoldfastError, OSError):  # no port is free, too
            return False
        if forward.listening:
            self._tasks.create_task(self._after_opening(forward, attempt, master))
        return forward.is_open

    async def _open(self, forward: OpenForward, attempt: Attempt, master: Master) -> None:
        """Has the master listen. Raises MasterError, OSError."""
        # A master from before this keeper's time has what it had.
        after_loss = self._is_young() and attempt.known is None
        host, path = self._link.host, forward.forward.listen.path
        may_lead_to_itself = attempt.leads_home and not forward.was_open
        if may_lead_to_itself and await forwarding.leads_to_itself(master, forward):
            if forward.asked.listen.port:
                forward.found(
                    ForwardState.REFUSED,
                    f"{host} is this machine, where {forward.forward.listen} would lead to itself",
                    f"use another port here: 0:{forward.forward.target}",
                )
                return
            forward.listen_on(processes.free_port(forward.forward.listeners))
            await forwarding.hold(forward)
        await forwarding.open_forward(master, forward, host, after_loss=after_loss)
        forward.was_open = forward.was_open or bool(forward.listening)
        if forward.forward.kind is not Kind.REMOTE or not path:
            return
        if forward.state is ForwardState.REFUSED and await far_sockets.remove_stale(
            master, host, path, attempt.beat
        ):
            await forwarding.open_forward(master, forward, host)
        if forward.listening and forward.mode != MODE:
            await far_sockets.set_mode(master, host, path, forward.mode)

    async def _withhold(self, forward: OpenForward, why: Withheld, master: Master) -> bool:
        """Has the guard listen, whatever the master could do. Whether it does."""
        is_held = await (self._take_back(forward, master) if why.reason else forwarding.hold(forward))
        if why.reason and (is_held or forward.state is not ForwardState.PORT_TAKEN):
            forward.found(ForwardState.NO_SERVICE, why.reason, why.hint)
        return is_held or not why.reason

    async def _take_back(self, forward: OpenForward, master: Master | None) -> bool:
        """Has the guard listen, also where a keeper before this one had the master do so. Whether it does."""
        if await forwarding.hold(forward):
            return True
        if master is None:
            return False
        await forwarding.open_forward(master, forward, self._link.host)  # asked again, it is ours to close
        return bool(forward.listening) and await forwarding.hold(forward)

    def _nobody_waits(self, forward: OpenForward, master: Master) -> bool:
        """Whether all who waited have been let through; tries again with those who couldn't be."""
        if forward.guard is None or not forward.guard.waiting:
            return True
        if forward not in self._letting:
            self._tasks.create_task(self._let_through(forward, master))
        return False

    async def _after_opening(self, forward: OpenForward, attempt: Attempt, master: Master) -> None:
        forwarding.copy_listeners(master, forward)
        await asyncio.gather(self._let_through(forward, master), self._probe_and_tell(attempt, master, forward))
        self._changed()

    async def _probe_and_tell(self, attempt: Attempt, master: Master, forward: OpenForward) -> None:
        await self._probe(attempt, master, forward)
        self._changed()  # whoever has asked for it waits

    async def _let_through(self, forward: OpenForward, master: Master) -> None:
        guard = forward.guard
        if guard is not None and guard.waiting:
            journal.note(f"{self._link.host}: {guard.waiting} connections waited for {forward.forward.listen}")
            self._letting.add(forward)
            try:
                await guard.let_through(master)
            except (MasterError, OSError):
                self.open_wanted()
            finally:
                self._letting.discard(forward)

    async def _probe(self, attempt: Attempt, master: Master, forward: OpenForward) -> None:
        with contextlib.suppress(MasterError, OSError, IndexError):  # the port may be taken back meanwhile
            await forwarding.probe(master, forward, self._link.host, attempt.beat)
        if forward.master is None and forward.withheld is None:  # it was taken back meanwhile
            forward.found(ForwardState.CLOSED)


class _Hand:
    """What sees to the forwards of some kinds, one at a time."""

    def __init__(self, *kinds: Kind) -> None:
        self.kinds = kinds
        self.wanted = asyncio.Event()
        self.turn = asyncio.Lock()
