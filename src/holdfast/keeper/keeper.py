"""The keeper: which tunnels are wanted, which links carry them, and what to do about it.

All but what is for restarts and for looking is a decision: see decisions.py.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import itertools
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from holdfast import paths
from holdfast.control import LONGEST_NAME, Run, Up, Upkeep, check_name, check_upkeep, default_name
from holdfast.errors import Exit, HoldfastError, UsageError
from holdfast.forward import Forward, Kind, parse
from holdfast.jupyter.servers import Notebook
from holdfast.keeper import journal, placing, processes
from holdfast.keeper.counting import count
from holdfast.keeper.decisions import Decisions
from holdfast.keeper.driving import Driver, guarded
from holdfast.keeper.forwarding import Lease, OpenForward
from holdfast.keeper.guard import Guard, Hold, Lobby
from holdfast.keeper.idling import Idling
from holdfast.keeper.journal import Saved, SavedForward, SavedTunnel
from holdfast.keeper.link import Known, Link, Terminal
from holdfast.keeper.notebooks import Follower
from holdfast.keeper.notices import Notices
from holdfast.keeper.placing import PortsHere
from holdfast.keeper.saving import saved_masters, saved_tunnel
from holdfast.keeper.states import LinkEvent, LinkState
from holdfast.keeper.tunnel import Tunnel
from holdfast.keeper.watch import Change, watch
from holdfast.openssh.settings import Settings

DEFAULT_FORWARD = parse("8888")
# Seconds for which a link stays after a program was run over it, for the next one, where no tunnel needs it.
LINGER = 45.0
# Seconds for which connections to a notebook wait by default: JupyterLab shows a dialogue when one ends.
NOTEBOOK_HOLD = 900
# Seconds for which a program's forwards stay after a keeper's end, until it has asked this one for them.
GRACE = 10.0


class _Before(NamedTuple):
    """What asking for a tunnel may change of it: what is remembered under its name, and of what it has."""

    past: SavedTunnel | None
    origin: str
    upkeep: Upkeep
    only_leased: list[OpenForward]


class Keeper:
    def __init__(self) -> None:
        self.tunnels: dict[str, Tunnel] = {}
        self.decisions = Decisions(self._note_changes, self._save)
        self._past: dict[str, SavedTunnel] = {}
        self._links: dict[tuple[str, tuple[str, ...]], Link] = {}
        self._lobby = Lobby()
        self._notices = Notices(journal.note)
        self.ports_here = PortsHere(self.tunnels)
        self._idling = Idling(self.tunnels, lambda link: self.decisions.ask_later(lambda: self._rest(link)))
        self.notebooks = Follower(lambda: list(self._links.values()), self.decisions.ask_later, self._record)
        self._saved = Saved()
        self._tasks = asyncio.TaskGroup()
        self._driver = Driver(self.tunnels, self.decisions, self._idling, self.notebooks, self._tasks)

    async def run(self) -> None:
        """Brings up what was wanted, then decides what the queue brings, until cancelled. Masters outlive it."""
        try:
            async with self._tasks:
                self._tasks.create_task(guarded(watch(self._nudge_later)))
                self._tasks.create_task(guarded(self.notebooks.run()))
                self._idling.start(self._tasks)
                self._start_links()
                await self.decisions.consume()
        finally:
            await self._lobby.close()

    def _start_links(self) -> None:
        for link in self._links.values():
            self._driver.recover(link)
            if link.forwards:
                self._ask_for(link, or_adopt=bool(link.known))
            elif link.known or link.draining:  # it was being taken down when the keeper before this one died
                self._driver.end(link)

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
        if self._goes_elsewhere(request, known):
            if name in self.tunnels:
                goes_to = " ".join([*known.options, known.host])
                raise UsageError(
                    f"the tunnel '{name}' is up already, and goes to {goes_to}",
                    f"give this one another name with --name, or first: holdfast down {name}",
                )
            return known._replace(host=request.host, options=request.options, forwards=())
        return known

    def _find_beside(self, request: Up, name: str) -> SavedTunnel:
        """A program's tunnel where that of its host's name is another one: what it had, or a new one."""
        name = name[: LONGEST_NAME - 6]
        for number in itertools.count(2):
            beside = self.tunnels.get(f"{name}-{number}")
            if beside is None:
                break
            known = saved_tunnel(beside, wanted=True)
            if not self._goes_elsewhere(request, known):
                return known
        return SavedTunnel(
            f"{name}-{number}", request.host, request.options, request.environment, True, forwards=()
        )

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

    def want(
        self,
        found: SavedTunnel,
        forwards: Sequence[Forward],
        environment: dict[str, str],
        settings: Settings | None = None,
        terminal: Terminal | None = None,
        upkeep: Upkeep | None = None,
        notebook: Notebook | None = None,
        running: Sequence[int] = (),
        lease: Lease | None = None,
        origin: str = "",
    ) -> Tunnel:
        """Brings the tunnel up, with `forwards` besides those it has. Raises UsageError, and changes nothing.

        `settings` is what ssh would use, if the caller has just found out; a person can log in at `terminal`;
        `upkeep` is how it is to be kept, None for as before; `notebook` is what the only forward leads to, and
        `running` are the pids of all that run there. `lease`: the forwards are wanted until `release`, no longer.
        """
        tunnel = self.tunnels.get(found.name)
        if notebook is not None:
            forwards = [self.ports_here.for_notebook(forwards[0], notebook, found, tunnel, running)]
        asked = {forward: tunnel and tunnel.own(forward, or_like=lease is not None) for forward in forwards}
        added = [forward for forward, own in asked.items() if own is None]
        kept_as = upkeep or check_upkeep(found.upkeep)
        placing.check_lazy(found.name, kept_as, [*added, *(tunnel.plain_forwards if tunnel else [])])
        for forward in added:
            self.ports_here.check_overlap(forward)
        prepared: dict[Forward, OpenForward] = {}
        for forward in added:
            beside = [own.forward for own in prepared.values()]
            placing.check_beside(forward, beside)
            prepared[forward] = self.ports_here.prepare(forward, found, notebook, lease, beside)
        if tunnel is None:
            tunnel = Tunnel(found.name, self._link_to(found.host, found.options), check_upkeep(found.upkeep))
            self.tunnels[found.name] = tunnel
        known = [own for own in asked.values() if own]
        before = _Before(
            self._past.get(found.name), tunnel.origin, tunnel.upkeep, [own for own in known if not own.kept]
        )
        if lease is None:
            self._past.pop(found.name, None)
            tunnel.origin = origin or tunnel.origin
        for forward in forwards:  # asked for twice, it is told twice
            (asked[forward] or prepared[forward]).claim(lease)
        if upkeep is not None:
            tunnel.upkeep = upkeep
        for own in tunnel.forwards:  # its notebook may be another one, too
            self._guarded_forward(tunnel, own)
        opened = [self._guarded_forward(tunnel, own) for own in prepared.values()]
        link = tunnel.link
        link.switch = self._may_switch(link)
        link.take_environment(environment)
        link.settings = settings if link.state is LinkState.DOWN else None
        link.terminals += [terminal] if terminal else []
        self._stop_lingering(link)
        tunnel.forwards += opened
        link.forwards += opened
        self._ask_for(link)
        if notebook is None and any(own.notebook for own in opened):
            self.notebooks.withhold(link)
        self.notebooks.look(link)
        if link.ports is not None:
            link.ports.open_wanted()
        undo = functools.partial(self._take_back, tunnel, opened, before)
        self.decisions.undo_by(undo if lease is None else functools.partial(self.release, lease))
        return tunnel

    def _take_back(self, tunnel: Tunnel, opened: list[OpenForward], before: _Before) -> None:
        """Has the tunnel be as it was before it was asked for."""
        if before.past is not None:
            self._past[tunnel.name] = before.past
        tunnel.origin, tunnel.upkeep = before.origin, before.upkeep
        for own in before.only_leased:
            own.kept = False
        for own in tunnel.forwards:
            self._guarded_forward(tunnel, own)
        self._take_away(tunnel, opened)

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

    def _ask_for(self, link: Link, *, or_adopt: bool = False) -> None:
        """A tunnel wants the link: now, or when somebody connects. `or_adopt`: one of its masters may live."""
        is_at_rest = link.state in (LinkState.DOWN, LinkState.IDLE)
        lazily = is_at_rest and self._idling.is_lazy(link) and not or_adopt
        self._driver.apply(link, LinkEvent.LAZILY_WANTED if lazily else LinkEvent.WANTED)

    def _came(self, link: Link) -> None:
        """Somebody waits for a port; where the link is idle, they have been waited for."""
        if link.state is LinkState.IDLE:
            self.decisions.ask_later(lambda: self._wake(link))

    def _wake(self, link: Link) -> None:
        if link.state is LinkState.IDLE:
            self._driver.apply(link, LinkEvent.WANTED)

    def _rest(self, link: Link) -> None:
        """Nobody has used it for a while; unless that has just changed, it ends until somebody comes."""
        if self._idling.allowed(link):
            self._driver.apply(link, LinkEvent.UNUSED)

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

    def restart(
        self, names: Iterable[str], environment: dict[str, str], terminal: Terminal | None
    ) -> list[Tunnel]:
        """Gives the tunnels a new connection; other tunnels to the same host get it as well."""
        chosen = [self.get(name) for name in names]
        for link in {tunnel.link: None for tunnel in chosen}:
            link.take_environment(environment)
            link.terminals += [terminal] if terminal else []
            self._driver.apply(link, LinkEvent.RESTARTED)
        return chosen

    def named(self, names: Iterable[str]) -> list[Tunnel]:
        """Those of these names that are wanted just now; no names: all."""
        return [tunnel for name in names or list(self.tunnels) if (tunnel := self.tunnels.get(name))]

    def serves(self, found: SavedTunnel) -> bool:
        """Whether there is a connection already that it would go over."""
        link = self._links.get((found.host, found.options))
        return link is not None and link.state is LinkState.UP

    async def count(self) -> None:
        """Has the tunnels show what the system has counted by now."""
        await asyncio.to_thread(count, {tunnel.link for tunnel in self.tunnels.values()})

    def get(self, name: str) -> Tunnel:
        """The tunnel of that name. Raises HoldfastError, with the name that may be meant."""
        if name in self.tunnels:
            return self.tunnels[name]
        if name in self._past:
            raise HoldfastError(f"the tunnel '{name}' is down", f"holdfast up {name}", Exit.NOT_UP)
        near = difflib.get_close_matches(name, self.tunnels, 1)
        hint = f"did you mean {near[0]}" if near else "see what there is: holdfast status"
        raise HoldfastError(f"there is no tunnel '{name[:60]}'", hint)

    def forget_terminal(self, terminal: Terminal) -> None:
        """Asks nobody at `terminal` any more."""
        for link in self._links.values():
            link.terminals = [other for other in link.terminals if other is not terminal]

    def _take_away(self, tunnel: Tunnel, forwards: Sequence[OpenForward]) -> list[asyncio.Task[None]]:
        """Ends some forwards of a tunnel, it when it has no others, and its link when that has no other tunnel."""
        link = tunnel.link
        tunnel.forwards = [forward for forward in tunnel.forwards if forward not in forwards]
        if not tunnel.forwards:
            journal.record(tunnel.name, "taken down")
            del self.tunnels[tunnel.name]
        if not self._is_needed(link):
            self._let_down(link)
            return [link.releasing] if link.releasing else []
        link.forwards = [forward for forward in link.forwards if forward not in forwards]
        link.switch = self._may_switch(link)
        if link.ports is None:
            return []
        return [self._tasks.create_task(guarded(link.ports.close(forward))) for forward in forwards]

    def visit(self, request: Run, terminal: Terminal | None) -> Link:
        """The link over which the request's program is to be run, kept for it until `leave`."""
        link = self._link_to(*self._far_end(request.host, request.options))
        link.take_environment(request.environment)
        link.terminals += [terminal] if terminal else []
        link.visits += 1
        self._stop_lingering(link)
        self._driver.apply(link, LinkEvent.WANTED)
        return link

    def _far_end(self, host: str, options: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        """The host and options that are meant: those of a known tunnel of that name, if none others are given."""
        known = self._known(host) or self._known(default_name(host))
        if known and host in (known.host, known.name) and options in ((), known.options):
            return known.host, known.options
        return host, options

    def leave(self, visited: Iterable[Link]) -> None:
        """Ends visits. A link that nothing else needs stays for the next one, if it is up."""
        for link in visited:
            link.visits -= 1
            if self._is_needed(link):
                continue
            if link.state is LinkState.UP:
                self._linger(link)
            else:
                self._let_down(link)

    def _linger(self, link: Link) -> None:
        loop = asyncio.get_running_loop()
        link.lingering = loop.call_later(
            LINGER, lambda: self.decisions.ask_later(lambda: self._end_lingering(link))
        )

    def end_visits(self) -> list[asyncio.Task[None]]:
        """Ends the links that only stay for a next visit; what to wait for."""
        lingering = [link for link in self._links.values() if link.lingering]
        for link in lingering:
            self._end_lingering(link)
        return [link.releasing for link in lingering if link.releasing]

    @property
    def is_idle(self) -> bool:
        """Whether it could end, and nobody would miss it."""
        return not self.tunnels and not any(link.visits or link.lingering for link in self._links.values())

    def _end_lingering(self, link: Link) -> None:
        if link.lingering and not self._is_needed(link):
            self._let_down(link)

    def _is_needed(self, link: Link) -> bool:
        """Whether a tunnel or a program goes over it."""
        return link.visits > 0 or any(tunnel.link is link for tunnel in self.tunnels.values())

    def _stop_lingering(self, link: Link) -> None:
        if link.lingering:
            link.lingering.cancel()
            link.lingering = None

    def _let_down(self, link: Link) -> None:
        """Ends a link that nothing needs any more."""
        self._stop_lingering(link)
        self._driver.apply(link, LinkEvent.UNWANTED)
        link.forwards = []

    def _record(self, forward: OpenForward, text: str) -> None:
        """Tells in its tunnel's log what happened to a forward."""
        for tunnel in self.tunnels.values():
            if forward in tunnel.forwards:
                journal.record(tunnel.name, text)

    def _known(self, name: str) -> SavedTunnel | None:
        if name in self.tunnels and (self.tunnels[name].is_kept or name not in self._past):
            return saved_tunnel(self.tunnels[name], wanted=True)
        return self._past.get(name)

    def _link_to(self, host: str, options: tuple[str, ...]) -> Link:
        return self._links.setdefault((host, options), Link(host, options, {}))

    def _guarded_forward(self, tunnel: Tunnel, forward: OpenForward) -> OpenForward:
        """`forward` with the guard that holds its port as is wished; one that listens over there has none."""
        upkeep = tunnel.upkeep
        forward.mode = upkeep.mode
        if forward.forward.kind is not Kind.REMOTE:
            longest = upkeep.hold_for
            if forward.notebook and longest == Upkeep().hold_for:
                longest = NOTEBOOK_HOLD
            hold = Hold(upkeep.hold, float(longest))
            is_http = upkeep.http or forward.notebook is not None
            page = functools.partial(tunnel.waiting_page, forward) if is_http else None
            if forward.guard is None:
                came = functools.partial(self._came, tunnel.link)
                forward.guard = Guard(forward.forward, hold, self._lobby, forward.tally, came=came)
            if forward.guard.mode != upkeep.mode:
                forward.guard.set_mode(upkeep.mode, forward.listening)
            forward.guard.hold, forward.guard.page = hold, page
        return forward

    def _may_switch(self, link: Link) -> bool:
        return all(tunnel.upkeep.switch for tunnel in self.tunnels.values() if tunnel.link is link)

    def _nudge_later(self, change: Change) -> None:
        self.decisions.ask_later(lambda: self._driver.nudge(self._links.values(), change))

    def _note_changes(self) -> None:
        for key, link in list(self._links.items()):
            self._idling.watch(link)
            if link.is_gone and not self._is_needed(link):
                del self._links[key]
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
            control_path = Path(master.control_path) if master.control_path else None
            known = Known(Path(master.socket), control_path, master.attended, master.draining)
            self._link_to(master.host, master.options).known.append(known)
        for record in saved.tunnels:
            if not record.wanted:
                self._past[record.name] = record
                continue
            link = self._link_to(record.host, record.options)
            tunnel = Tunnel(
                record.name, link, check_upkeep(record.upkeep), origin=record.origin, drops=record.drops
            )
            tunnel.outages, tunnel.down_seconds = record.outages, record.down_seconds
            tunnel.forwards = [self._restored(tunnel, saved) for saved in record.forwards]
            tunnel.link.environment = record.environment
            tunnel.link.forwards += tunnel.forwards
            self.tunnels[record.name] = tunnel
            tunnel.is_restored = tunnel.link.is_restored = True
            if record.up_since:
                tunnel.told, tunnel.since = LinkState.UP.value, datetime.fromisoformat(record.up_since)
        for link in self._links.values():
            link.switch = self._may_switch(link)
        self._saved = saved

    def _restored(self, tunnel: Tunnel, saved: SavedForward) -> OpenForward:
        """What a program held stays for a while: the program asks for it again."""
        own = OpenForward(saved.asked, saved.forward, notebook=saved.notebook, kept=saved.kept)
        own.chosen_port, own.was_open = saved.chosen_port, True
        if not own.kept:
            grace = Lease()
            own.leases.add(grace)
            loop = asyncio.get_running_loop()
            loop.call_later(GRACE, self.decisions.ask_later, functools.partial(self.release, grace))
        return self._guarded_forward(tunnel, own)

    async def _save(self) -> None:
        past = list(self._past.values())[-journal.LONGEST_MEMORY :]
        masters = [saved for link in self._links.values() for saved in saved_masters(link)]
        wanted = [saved_tunnel(tunnel, wanted=True) for tunnel in self.tunnels.values()]
        now = Saved((*past, *wanted), tuple(masters))
        if now != self._saved:
            await asyncio.to_thread(journal.save, now)
            self._saved = now
