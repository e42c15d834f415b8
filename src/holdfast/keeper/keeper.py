"""The keeper: which tunnels are wanted, under which names, with which forwards, and until when.

What changes any of that is asked for as a decision: see decisions.py.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from holdfast import paths
from holdfast.control import LONGEST_NAME, Run, Up, Upkeep, check_name, check_upkeep, default_name
from holdfast.errors import Exit, HoldfastError, UsageError
from holdfast.forward import Forward, Kind
from holdfast.jupyter.servers import Notebook
from holdfast.keeper import journal, placing, processes
from holdfast.keeper.counting import count
from holdfast.keeper.decisions import Decisions, Undo
from holdfast.keeper.forwarding import Lease, OpenForward
from holdfast.keeper.guard import Guard, Hold, Lobby
from holdfast.keeper.journal import Saved, SavedTunnel
from holdfast.keeper.link import Link, Terminal
from holdfast.keeper.links import Links
from holdfast.keeper.notices import Notices
from holdfast.keeper.placing import PortsHere
from holdfast.keeper.saving import restored_master, restored_tunnel, saved_masters, saved_tunnel
from holdfast.keeper.tunnel import Tunnel
from holdfast.openssh.settings import Settings

# Seconds for which connections to a notebook wait by default: JupyterLab shows a dialogue when one ends.
NOTEBOOK_HOLD = 900
# Seconds for which a program's forwards stay after a keeper's end, until it has asked this one for them.
GRACE = 10.0


class Wish(NamedTuple):
    """What somebody wants of a tunnel."""

    forwards: Sequence[Forward]
    # Of the session that it comes from; a person can log in at the terminal.
    environment: dict[str, str]
    terminal: Terminal | None = None
    # How it is to be kept; None for as before.
    upkeep: Upkeep | None = None
    # What the only forward leads to, and the pids of all servers that run there.
    notebook: Notebook | None = None
    running: Sequence[int] = ()
    # With a lease the forwards are wanted until that is released, no longer.
    lease: Lease | None = None
    # The configuration file that describes it, or ''.
    origin: str = ""
    # What ssh would use, if that has just been found out.
    settings: Settings | None = None


class Keeper:
    def __init__(self) -> None:
        self.tunnels: dict[str, Tunnel] = {}
        self.ports_here = PortsHere(self.tunnels)
        self.decisions = Decisions(self._follow_up, self._save)
        self._tasks = asyncio.TaskGroup()
        self.links = Links(self.tunnels, self.decisions, self._tasks)
        # What is remembered of those that are down, or that only programs hold.
        self._past: dict[str, SavedTunnel] = {}
        self._lobby = Lobby()
        self._notices = Notices(journal.note)
        self._saved = Saved()

    async def run(self) -> None:
        """Brings up what was wanted, then decides what the queue brings, until cancelled. Masters outlive it."""
        try:
            async with self._tasks:
                self.links.start()
                await self.decisions.consume()
        finally:
            await self._lobby.close()

    @property
    def is_idle(self) -> bool:
        """Whether it could end, and nobody would miss it."""
        return not self.tunnels and not self.links.are_visited

    def named(self, names: Iterable[str]) -> list[Tunnel]:
        """Those of these names that are wanted just now; no names: all."""
        return [tunnel for name in names or list(self.tunnels) if (tunnel := self.tunnels.get(name))]

    def get(self, name: str) -> Tunnel:
        """The tunnel of that name. Raises HoldfastError, with the name that may be meant."""
        if name in self.tunnels:
            return self.tunnels[name]
        if name in self._past:
            raise HoldfastError(f"the tunnel '{name}' is down", f"holdfast up {name}", Exit.NOT_UP)
        near = difflib.get_close_matches(name, self.tunnels, 1)
        hint = f"did you mean {near[0]}" if near else "see what there is: holdfast status"
        raise HoldfastError(f"there is no tunnel '{name[:60]}'", hint)

    def find(self, request: Up) -> SavedTunnel:
        """What `request` is about: a tunnel that is known, by name or by host, or a new one without forwards.

        Raises UsageError when the name is known, and goes elsewhere; a program that gave none gets another.
        """
        name = request.name or (request.host if self._known(request.host) else default_name(request.host))
        known = self._known(name)
        if request.lease and not request.name and known and self._goes_elsewhere(request, known):
            return self._find_beside(request, name)
        if known is None:
            check_name(name)
            host, options = request.host, request.options
            if not request.origin:  # the configuration means its hosts, never a tunnel of that name
                host, options = self._far_end(host, options)
            return SavedTunnel(name, host, options, request.environment, True, forwards=())
        is_elsewhere = self._goes_elsewhere(request, known)
        up = self.tunnels.get(name)
        # A program may have brought one up under a name that is remembered for another.
        if up is not None and (is_elsewhere or (up.link.host, up.link.options) != (known.host, known.options)):
            goes_to = " ".join([*up.link.options, up.link.host])
            raise UsageError(
                f"the tunnel '{name}' is up already, and goes to {goes_to}",
                f"give this one another name with --name, or first: holdfast down {name}",
            )
        return known._replace(host=request.host, options=request.options, forwards=()) if is_elsewhere else known

    def _find_beside(self, request: Up, name: str) -> SavedTunnel:
        """A program's tunnel where that of its host's name is another one: what it had, or a new one."""

        def is_possible(other: str) -> bool:
            beside = self.tunnels.get(other)
            if beside is None:
                return other not in self._past
            return not self._goes_elsewhere(request, saved_tunnel(beside, wanted=True))

        others = (f"{name[: LONGEST_NAME - 6]}-{number}" for number in itertools.count(2))
        other = next(filter(is_possible, others))
        if other in self.tunnels:
            return saved_tunnel(self.tunnels[other], wanted=True)
        return SavedTunnel(other, request.host, request.options, request.environment, True, forwards=())

    def _goes_elsewhere(self, request: Up, known: SavedTunnel) -> bool:
        """Whether it isn't the tunnel of that name that is meant.

        The configuration says all of its options; and a program doesn't get what only another one has asked for.
        """
        up = self.tunnels.get(known.name)
        is_anothers = request.lease and up is not None and not up.is_kept
        says_options = bool(request.options or request.origin or is_anothers)
        past = self._past.get(known.name)
        options = request.options or (past.options if past and is_anothers else ())
        return request.host not in (known.host, known.name) or (says_options and options != known.options)

    def _known(self, name: str) -> SavedTunnel | None:
        if name in self.tunnels and (self.tunnels[name].is_kept or name not in self._past):
            return saved_tunnel(self.tunnels[name], wanted=True)
        return self._past.get(name)

    def _far_end(self, host: str, options: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        """The host and options that are meant: those of a known tunnel of that name, if none others are given."""
        known = self._known(host) or self._known(default_name(host))
        if known and host in (known.host, known.name) and options in ((), known.options):
            return known.host, known.options
        return host, options

    def want(self, found: SavedTunnel, wish: Wish) -> tuple[Tunnel, Undo]:
        """Brings the tunnel up, with the forwards that are wished for besides its own; and what takes that back,
        unless somebody has asked for it since. Raises UsageError, and has changed nothing then.
        """
        tunnel = self.tunnels.get(found.name)
        asked, added = self._prepare(found, wish, tunnel)
        if tunnel is None:
            tunnel = Tunnel(found.name, self.links.to(found.host, found.options), check_upkeep(found.upkeep))
            self.tunnels[found.name] = tunnel
        tunnel.asked += 1
        undo = self._way_back(tunnel, asked, added, wish.lease)
        for own in asked:  # asked for twice, it is told twice
            own.claim(wish.lease)
            if wish.notebook is not None:
                own.lead_to(wish.notebook, wish.forwards[0].target)
        if wish.lease is None:
            self._past.pop(found.name, None)
            tunnel.origin = wish.origin or tunnel.origin
        tunnel.upkeep = wish.upkeep or tunnel.upkeep
        tunnel.forwards += added
        self._guard(tunnel)  # those that it had, too: they may be kept in another way now, or be a notebook's
        in_doubt = wish.notebook is None and any(own.notebook for own in added)
        self.links.carry(tunnel.link, added, wish.environment, wish.terminal, wish.settings, in_doubt=in_doubt)
        self.decisions.undo_by(undo)
        return tunnel, undo

    def _prepare(
        self, found: SavedTunnel, wish: Wish, tunnel: Tunnel | None
    ) -> tuple[list[OpenForward], list[OpenForward]]:
        """The forwards that are asked for, and those of them that the tunnel lacks. Raises UsageError."""
        forwards = wish.forwards
        if wish.notebook is not None:
            forwards = [self.ports_here.for_notebook(forwards[0], wish.notebook, found, tunnel, wish.running)]
        known = {forward: tunnel and tunnel.own(forward, or_like=wish.lease is not None) for forward in forwards}
        new = [forward for forward, own in known.items() if own is None]
        kept_as = wish.upkeep or check_upkeep(found.upkeep)
        placing.check_lazy(found.name, kept_as, [*new, *(tunnel.plain_forwards if tunnel else [])])
        for forward in new:
            self.ports_here.check_overlap(forward)
        added: dict[Forward, OpenForward] = {}
        for forward in new:
            beside = [own.forward for own in added.values()]
            placing.check_beside(forward, beside)
            added[forward] = self.ports_here.prepare(forward, found, wish.notebook, wish.lease, beside)
        return [known[forward] or added[forward] for forward in forwards], list(added.values())

    def _way_back(
        self, tunnel: Tunnel, asked: Sequence[OpenForward], added: Sequence[OpenForward], lease: Lease | None
    ) -> Undo:
        """What makes the tunnel again what it is now, once it was given what is asked for.

        It does nothing when somebody has asked for the tunnel since.
        """
        if lease is not None:
            return functools.partial(self.release, lease)
        number, origin, upkeep = tunnel.asked, tunnel.origin, tunnel.upkeep
        past = self._past.get(tunnel.name)
        before = [(own, own.kept, own.notebook, own.withheld, own.moves_to) for own in asked if own not in added]

        def undo() -> None:
            if tunnel.asked != number:
                return
            if past is not None:
                self._past[tunnel.name] = past
            tunnel.origin, tunnel.upkeep = origin, upkeep
            for own, kept, notebook, withheld, moves_to in before:
                own.kept, own.notebook, own.withheld, own.moves_to = kept, notebook, withheld, moves_to
            self._guard(tunnel)
            self._take_away(tunnel, added)

        return undo

    def release(self, lease: Lease) -> list[asyncio.Task[None]]:
        """Ends a program's claim, and the forwards that nobody else wants; what to wait for."""
        ending = []
        for tunnel in list(self.tunnels.values()):
            for own in tunnel.forwards:
                own.leases.discard(lease)
            unwanted = [own for own in tunnel.forwards if not (own.kept or own.leases)]
            if unwanted:
                ending += self._take_away(tunnel, unwanted)
        return ending

    def drop(
        self, names: Iterable[str], listens: Sequence[str], *, forget: bool = False
    ) -> list[asyncio.Task[None]]:
        """Takes tunnels down, or their forwards on `listens`; what to wait for. Raises UsageError first of all."""
        chosen = [
            self.get(name) for name in dict.fromkeys(names) if name in self.tunnels or name not in self._past
        ]
        matched = [tunnel.on(listens) for tunnel in chosen]
        for tunnel, forwards in zip(chosen, matched, strict=True):
            is_kept_after = any(own.kept for own in tunnel.forwards if own not in forwards)
            if tunnel.is_kept and not is_kept_after and not forget:
                self._past[tunnel.name] = saved_tunnel(tunnel, wanted=False).without_leases()
        return [
            task
            for tunnel, forwards in zip(chosen, matched, strict=True)
            for task in self._take_away(tunnel, forwards)
        ]

    def _take_away(self, tunnel: Tunnel, forwards: Sequence[OpenForward]) -> list[asyncio.Task[None]]:
        """Ends some forwards of a tunnel, it when it has no others, and its link when that has no other tunnel."""
        tunnel.forwards = [forward for forward in tunnel.forwards if forward not in forwards]
        if not tunnel.forwards:
            journal.record(tunnel.name, "taken down")
            del self.tunnels[tunnel.name]
        return self.links.give_up(tunnel.link, forwards)

    def _guard(self, tunnel: Tunnel) -> None:
        """Has guards hold the tunnel's ports as is wished; what listens over there has none."""
        upkeep = tunnel.upkeep
        for own in tunnel.forwards:
            own.mode = upkeep.mode
            if own.forward.kind is Kind.REMOTE:
                continue
            longest = upkeep.hold_for
            if own.notebook and longest == Upkeep().hold_for:
                longest = NOTEBOOK_HOLD
            hold = Hold(upkeep.hold, float(longest))
            is_http = upkeep.http or own.notebook is not None
            page = functools.partial(tunnel.waiting_page, own) if is_http else None
            if own.guard is None:
                came = functools.partial(self.links.came, tunnel.link)
                own.guard = Guard(own.forward, hold, self._lobby, own.tally, came=came)
            if own.guard.mode != upkeep.mode:
                own.guard.set_mode(upkeep.mode, own.listening)
            own.guard.hold, own.guard.page = hold, page

    def restart(
        self, names: Iterable[str], environment: dict[str, str], terminal: Terminal | None
    ) -> list[Tunnel]:
        """Gives the tunnels a new connection; other tunnels to the same host get it as well."""
        chosen = [self.get(name) for name in names]
        for link in {tunnel.link: None for tunnel in chosen}:
            self.links.restart(link, environment, terminal)
        return chosen

    def visit(self, request: Run, terminal: Terminal | None) -> Link:
        """The link over which the request's program is to be run, kept for it until `links.leave`."""
        link = self.links.to(*self._far_end(request.host, request.options))
        self.links.visit(link, request.environment, terminal)
        return link

    async def count(self) -> None:
        """Has the tunnels show what the system has counted by now."""
        await asyncio.to_thread(count, {tunnel.link for tunnel in self.tunnels.values()})

    def _follow_up(self) -> None:
        """After each decision: tells of the tunnels for which something has changed."""
        self.links.follow_up()
        for tunnel in self.tunnels.values():
            # What was true before a keeper's restart has to be found out again: that is no change.
            tunnel.is_restored = tunnel.is_restored and tunnel.is_being_opened
            told = "" if tunnel.is_restored else tunnel.tell_change()
            if told and tunnel.upkeep.notify:
                notice = self._notices.tell(
                    f"{tunnel.name}: {tunnel.shown}", told, tunnel.link.environment, replaces=tunnel.name
                )
                self._tasks.create_task(notice)

    async def restore(self) -> None:
        """Reads what was wanted, and ends masters that nobody knows. Before `run`."""
        saved, trouble = await asyncio.to_thread(journal.load)
        if trouble:
            self.decisions.notice = trouble
            journal.note(trouble)
        sockets = {master.socket for master in saved.masters}
        # When the file could not be read, whatever runs goes on: somebody may be working over it.
        if not trouble and any(
            path.with_suffix("").as_posix() not in sockets for path in paths.masters_dir().iterdir()
        ):
            await asyncio.to_thread(processes.end_left_over_masters, paths.masters_dir(), sockets)
        for master in saved.masters:
            self.links.to(master.host, master.options).known.append(restored_master(master))
        for record in saved.tunnels:
            if record.wanted:
                self._restore_tunnel(record)
            else:
                self._past[record.name] = record
        self._saved = saved

    def _restore_tunnel(self, record: SavedTunnel) -> None:
        """What programs held stays for a while: they ask for it again."""
        link = self.links.to(record.host, record.options)
        tunnel = self.tunnels[record.name] = restored_tunnel(record, link)
        for own in tunnel.forwards:
            if not own.kept:
                grace = Lease()
                own.leases.add(grace)
                loop = asyncio.get_running_loop()
                loop.call_later(GRACE, self.decisions.ask_later, functools.partial(self.release, grace))
        self._guard(tunnel)
        link.environment = record.environment
        link.forwards += tunnel.forwards
        link.is_restored = True

    async def _save(self) -> None:
        past = list(self._past.values())[-journal.LONGEST_MEMORY :]
        masters = [saved for link in self.links for saved in saved_masters(link)]
        wanted = [saved_tunnel(tunnel, wanted=True) for tunnel in self.tunnels.values()]
        now = Saved((*past, *wanted), tuple(masters))
        if now != self._saved:
            await asyncio.to_thread(journal.save, now)
            self._saved = now
