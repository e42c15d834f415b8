"""One client's conversation with the keeper: a request, what it takes to fulfil it, and the answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import traceback
from pathlib import Path

from holdfast import paths
from holdfast.control import (
    PROTOCOL,
    Answer,
    Changes,
    Down,
    Follow,
    Greeting,
    LoginEnded,
    LoginOrder,
    Release,
    Request,
    Restart,
    Run,
    Status,
    Stop,
    TunnelStatus,
    Up,
    check_host,
    check_options,
    check_upkeep,
    decode_forward,
    decode_request,
    default_name,
    encode,
    encode_error,
)
from holdfast.errors import Exit, HoldfastError, KeeperError, UsageError
from holdfast.forward import Forward, Kind, parse
from holdfast.jupyter.servers import Notebook
from holdfast.keeper import forwarding, journal, notices
from holdfast.keeper.decisions import Undo
from holdfast.keeper.forwarding import Lease
from holdfast.keeper.journal import SavedTunnel
from holdfast.keeper.keeper import Keeper, Wish
from holdfast.keeper.link import Link, environment_with
from holdfast.keeper.states import LinkState
from holdfast.keeper.tunnel import Tunnel
from holdfast.openssh import master, script, session
from holdfast.openssh.diagnose import Remedy, Trouble
from holdfast.openssh.master import LoginFailed
from holdfast.openssh.settings import Settings
from holdfast.peer import peer_uid
from holdfast.version import __version__

# What is brought up for a host of which nothing is known, and for which nothing is said.
DEFAULT_FORWARD = parse("8888")
# Seconds that a client may take to say what it wants.
PATIENCE = 10.0
# Milliseconds from one count to the next: each is a look at all connections of this machine.
SHORTEST_INTERVAL, LONGEST_INTERVAL = 100, 86_400_000
# What people ask for, as a rule, besides Up.
_BY_PEOPLE = (Run, Down, Restart, Status)
# Seconds that a keeper which has just started gets to find its masters again.
ADOPTION = 5.0
# Seconds that a keeper which is told to stop gives masters that nobody needs; the next keeper ends what is left.
ENDING = 3.0


class Conversation:
    """Also a `link.Terminal`: during an `up` the client can be asked to log in."""

    def __init__(
        self,
        keeper: Keeper,
        stop: asyncio.Event,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._keeper = keeper
        self._decisions = keeper.decisions
        self._links = keeper.links
        self._stop = stop
        self._reader = reader
        self._writer = writer
        # The logins that the client was asked for and hasn't ended: the sockets of the masters they make.
        self._orders: dict[int, Path] = {}
        self._last_order = 0
        # The answer to the one that somebody waits for.
        self._login: asyncio.Future[int] | None = None
        self._broke_off = False
        # What an `up` for a while holds its forwards by, and whether the client has given it up.
        self._lease: Lease | None = None
        self._released = asyncio.Event()

    async def run(self) -> None:
        """Serves one request. Garbage, strangers and clients that go away end it, and harm nobody."""
        try:
            await self._converse()
        except HoldfastError as error:
            self._writer.write(encode_error(error))
        except TimeoutError:
            pass  # it said nothing
        except Exception as error:
            journal.note(traceback.format_exc())
            hint = f"please report it: {paths.keeper_log()}"
            self._writer.write(encode_error(KeeperError(f"this is a bug in the keeper: {error!r}", hint)))
        finally:
            self._links.forget_terminal(self)
            self._writer.close()

    async def _converse(self) -> None:
        if peer_uid(self._writer.get_extra_info("socket")) not in (os.getuid(), 0):
            return
        self._greet()
        request = await self._hear()
        if request is None:
            return
        is_a_persons = not request.lease if isinstance(request, Up) else isinstance(request, _BY_PEOPLE)
        if is_a_persons:  # who has been told of it now; a program, or who only looks on, hasn't
            self._decisions.notice = ""
        answering = asyncio.create_task(self._answer_or_say_why(request))
        listening = asyncio.create_task(self._listen())
        try:
            await asyncio.wait([answering, listening], return_when=asyncio.FIRST_COMPLETED)
            while answering.done() and self._orders and not listening.done():
                await asyncio.wait([listening], timeout=0.1)  # a person is typing, for nobody any more
        finally:
            for task in (answering, listening):
                task.cancel()
            await asyncio.wait([answering, listening])
        if not answering.cancelled():
            self._say(Answer(done=answering.result()))
        with contextlib.suppress(OSError):
            await self._writer.drain()
        if isinstance(request, Stop):
            self._stop.set()

    async def _hear(self) -> Request | None:
        """The request, or None from a client that goes away. Raises KeeperError for what isn't one."""
        try:
            async with asyncio.timeout(PATIENCE):
                line = await self._reader.readline()
        except ValueError:  # StreamReader's word for a line over its limit
            raise KeeperError("the request is too long") from None
        except OSError:
            return None
        return decode_request(line) if line else None

    async def log_in(self, argv: list[str], socket: Path, log: Path) -> int:
        """Has the client run `argv` in its terminal; ssh's exit status. Raises LoginFailed when it goes away."""
        self._last_order += 1
        self._orders[self._last_order] = socket
        self._login = asyncio.get_running_loop().create_future()
        self._say(Answer(login=LoginOrder(number=self._last_order, argv=argv, log=str(log))))
        return await self._login

    async def _listen(self) -> None:
        """Hears the rest of what the client says, until it goes away or talks nonsense."""
        with contextlib.suppress(OSError, ValueError, HoldfastError):
            while line := await self._reader.readline():
                request = decode_request(line)
                if isinstance(request, LoginEnded):
                    await self._end_login(request)
                elif isinstance(request, Release):
                    self._released.set()
        if self._login is not None and not self._login.done():
            self._broke_off = True
            self._login.set_exception(LoginFailed(Trouble("the login was broken off", "", Remedy.LOGIN)))

    async def _end_login(self, ended: LoginEnded) -> None:
        """Hands on how a login went; a master that nobody waits for any more is ended."""
        socket = self._orders.pop(ended.number, None)
        is_current = ended.number == self._last_order and self._login is not None and not self._login.done()
        if is_current and self._login is not None:
            self._login.set_result(ended.status)
        elif socket is not None:
            found = await master.adopt(socket, ours=True)
            if found is not None:
                await master.end(found)

    async def _answer_or_say_why(self, request: Request) -> list[TunnelStatus]:
        """The answer. Raises HoldfastError also for what the system refuses (descriptors, permissions)."""
        try:
            return await self._answer(request)
        except OSError as error:
            what = f" {error.filename}" if error.filename else ""
            raise KeeperError(f"the system refuses{what}: {error.strerror or error}", "holdfast doctor") from None

    async def _answer(self, request: Request) -> list[TunnelStatus]:
        if isinstance(request, Down | Restart | Status):
            await self._find_masters_again(request.names)
        match request:
            case Up(lease=True):
                return await self._up_for_a_while(request)
            case Up():
                return await self._up(request)
            case Down():
                return await self._down(request)
            case Restart():
                return await self._restart(request)
            case Status():
                return await self._status(request)
            case Run():
                return await self._run(request)
            case Follow():
                if request.interval < 0:
                    raise KeeperError(f"{request.interval} can't be an interval")
                await self._find_masters_again(request.names)
                interval = request.interval and min(max(request.interval, SHORTEST_INTERVAL), LONGEST_INTERVAL)
                await self._tell_changes(request.names, interval / 1000)
                return []
            case Stop():
                await self._end(await self._decisions.ask(self._links.end_visits), ENDING)
                return []
            case LoginEnded():
                raise KeeperError("no login was asked for")
            case Release():
                raise KeeperError("there is no lease on this connection")

    async def _find_masters_again(self, names: tuple[str, ...]) -> None:
        """Gives a keeper that has just started the time to adopt what one before it left. No names: all."""
        tunnels = self._keeper.tunnels
        chosen = [tunnels[name] for name in names or tunnels if name in tunnels]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ADOPTION):
                await self._decisions.wait_until(
                    lambda: not any(tunnel.is_being_opened for tunnel in chosen), lambda: None
                )

    async def _up(self, request: Up) -> list[TunnelStatus]:
        check_host(request.host)
        check_options(request.options)
        asked = [decode_forward(fields) for fields in request.forwards]
        found = await self._decisions.ask(lambda: self._keeper.find(request))
        known = self._keeper.tunnels.get(found.name)
        forwards = asked or self._keeper.ports_here.remembered(found)
        settings = None
        # What is asked for over a connection that serves needs nothing of ssh's.
        if not forwards or (known is None and not self._links.serves(found.host, found.options)):
            settings = await _settings(found, request)
            forwards = forwards or list(settings.local_forwards()) or [DEFAULT_FORWARD]
        added = [forward for forward in forwards if known is None or not known.own(forward)]
        for forward in added:
            await asyncio.to_thread(_check, forward, expose=request.expose)
        is_new = known is None
        # A program takes what is up as it is.
        says = bool(request.upkeep) and not (request.lease and known)
        upkeep = check_upkeep({**found.upkeep, **request.upkeep}) if says else None
        notebook = Notebook.decode(request.notebook) if request.notebook else None
        if notebook and len(asked) != 1:
            raise KeeperError("a notebook is behind one forward")
        # The configuration counts for sessions without a desktop as well: there it is noted when it can't be told.
        if (
            request.upkeep.get("notify")
            and not request.origin
            and (reason := notices.why_not(request.environment))
        ):
            raise HoldfastError(reason, "leave --notify out, or do that first")
        wish = Wish(
            forwards,
            request.environment,
            terminal=self if request.terminal and request.wait else None,
            upkeep=upkeep,
            notebook=notebook,
            running=request.running,
            lease=self._lease,
            origin=request.origin,
            settings=settings,
        )

        def want() -> tuple[Tunnel, Undo]:
            now = self._keeper.find(request)  # another client may have brought one of that name up meanwhile
            is_same = (now.host, now.options) == (found.host, found.options)
            return self._keeper.want(now, wish if is_same else wish._replace(settings=None))

        tunnel, take_back = await self._decisions.ask(want)
        if not request.wait:
            return [tunnel.status()]
        try:
            await self._settle([tunnel])
        except asyncio.CancelledError:
            if is_new and self._broke_off and not request.lease:  # as if it had never been asked for
                self._decisions.ask_later(take_back)
            raise
        await _prove([tunnel])
        return [tunnel.status()]

    async def _up_for_a_while(self, request: Up) -> list[TunnelStatus]:
        """Until the client says so, or hangs up. It is told of changes meanwhile."""
        self._lease = lease = Lease()
        try:
            (status,) = await self._up(request)
            tunnel = self._keeper.get(status["name"])
            self._say(Answer(done=[tunnel.status(lease.forwards)]))
            telling = asyncio.create_task(self._tell_changes((tunnel.name,), 0.0))
            releasing = asyncio.create_task(self._released.wait())
            try:
                await asyncio.wait([telling, releasing], return_when=asyncio.FIRST_COMPLETED)
                if not releasing.done():
                    telling.result()
            finally:
                for task in (telling, releasing):
                    task.cancel()
                await asyncio.wait([telling, releasing])
            await self._end(await self._decisions.ask(lambda: self._keeper.release(lease)))
        finally:  # a decision is carried out though its client goes away while it is saved
            self._decisions.ask_later(lambda: self._keeper.release(lease))
        return []

    async def _tell_changes(self, names: tuple[str, ...], interval: float) -> None:
        """Tells of these tunnels, or all, whenever they change, and of their counters every `interval` seconds."""
        told: dict[str, TunnelStatus] = {}
        is_first = True
        with self._decisions.watching() as changed:
            while True:
                if interval:
                    await self._keeper.count()
                now = {tunnel.name: tunnel.status() for tunnel in self._keeper.named(names)}
                different = [status for name, status in now.items() if told.get(name) != status]
                gone = [name for name in told if name not in now]
                if different or gone or is_first:
                    self._say(Answer(changes=Changes(tunnels=different, gone=gone)))
                    await self._writer.drain()
                told, is_first = now, False
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(interval or None):
                        await changed.wait()
                changed.clear()

    async def _down(self, request: Down) -> list[TunnelStatus]:
        names = tuple(self._keeper.tunnels) if request.everything else request.names
        await self._end(
            await self._decisions.ask(lambda: self._keeper.drop(names, request.listens, forget=request.forget))
        )
        if request.everything:
            await self._end(await self._decisions.ask(self._links.end_visits))
        return [tunnel.status() for name in names if (tunnel := self._keeper.tunnels.get(name))]

    async def _end(self, ending: list[asyncio.Task[None]], seconds: float | None = None) -> None:
        if ending:
            await asyncio.wait(ending, timeout=seconds)

    async def _run(self, request: Run) -> list[TunnelStatus]:
        """Has the program's output sent as it comes."""
        check_host(request.host)
        check_options(request.options)
        if len(request.program.encode()) > script.LONGEST_PROGRAM:
            raise KeeperError("the program is too long")
        terminal = self if request.terminal else None
        visited: list[Link] = []
        try:
            # A decision is carried out though its client goes away while it is saved.
            await self._decisions.ask(lambda: visited.append(self._keeper.visit(request, terminal)))
            (link,) = visited
            socket = await self._reach(link)
            self._say(Answer(output=""))  # from here on it runs
            output = session.stream(socket, request.program, link.host, keep_input=request.keep_input)
            async with asyncio.timeout(request.seconds), contextlib.aclosing(output):
                async for text in output:
                    self._say(Answer(output=text))
                    await self._writer.drain()
        except TimeoutError:
            raise HoldfastError(f"{request.host} took longer than {request.seconds} s", "try again") from None
        finally:
            self._decisions.ask_later(lambda: self._links.leave(visited))
        return []

    async def _reach(self, link: Link) -> Path:
        """The control socket of the link's master, once that serves. Raises HoldfastError where it won't."""
        tunnel = Tunnel(default_name(link.host), link)
        await self._settle([tunnel], is_known=False)
        master = link.serving.master if link.serving else None
        if link.state is not LinkState.UP or master is None:
            trouble = link.trouble or Trouble(f"{link.host} is not reached", "try again", Remedy.RETRY)
            needs_login = link.state is LinkState.NEEDS_LOGIN
            raise HoldfastError(trouble.reason, trouble.hint, Exit.NEEDS_LOGIN if needs_login else Exit.FAILED)
        return master.socket

    async def _restart(self, request: Restart) -> list[TunnelStatus]:
        terminal = self if request.terminal else None
        chosen = await self._decisions.ask(
            lambda: self._keeper.restart(request.names, request.environment, terminal)
        )
        await self._settle(chosen)
        return [tunnel.status() for tunnel in chosen]

    async def _status(self, request: Status) -> list[TunnelStatus]:
        names = request.names or tuple(self._keeper.tunnels)
        chosen = await self._decisions.ask(lambda: [self._keeper.get(name) for name in names])
        await _prove(chosen)
        await self._keeper.count()
        await self._links.notebooks.look_again({tunnel.link for tunnel in chosen}, doubt=request.look)
        await self._decisions.ask(lambda: None)  # what the round trips brought has been taken in after this
        return [tunnel.status() for tunnel in chosen]

    async def _settle(self, tunnels: list[Tunnel], *, is_known: bool = True) -> None:
        """Waits until there is an answer for each, telling the client what it waits for.

        `is_known`: they are the keeper's, and no answer is to be had once they aren't any more.
        """
        told: list[TunnelStatus] = []

        def tell() -> None:
            now = [tunnel.status() for tunnel in tunnels]
            for status in now:
                if status not in told:
                    self._say(Answer(progress=status))
            told[:] = now

        def is_gone(tunnel: Tunnel) -> bool:
            return is_known and self._keeper.tunnels.get(tunnel.name) is not tunnel

        await self._decisions.wait_until(
            lambda: all(tunnel.is_settled or is_gone(tunnel) for tunnel in tunnels), tell
        )
        for tunnel in filter(is_gone, tunnels):
            raise HoldfastError(
                f"the tunnel '{tunnel.name}' was taken down meanwhile", f"holdfast up {tunnel.name}"
            )

    def _greet(self) -> None:
        notice = self._decisions.notice
        greeting = Greeting(holdfast=__version__, protocol=PROTOCOL, pid=os.getpid(), notice=notice)
        self._writer.write(encode(greeting))

    def _say(self, answer: Answer) -> None:
        if not self._writer.is_closing():
            self._writer.write(encode(answer))


async def _prove(tunnels: list[Tunnel]) -> None:
    """Asks each link's far side for a sign of life, and looks again at forwards that may have changed."""
    links = list({tunnel.link: None for tunnel in tunnels})
    serving = [link.serving for link in links if link.serving is not None]
    await asyncio.gather(*(attempt.prove() for attempt in serving))
    await asyncio.gather(*(link.ports.look_again() for link in links if link.ports is not None))


def _check(forward: Forward, *, expose: bool) -> None:
    """That a new forward can and may listen. Raises UsageError, HoldfastError."""
    if not forward.listen.is_loopback and not expose:
        where = "over there" if forward.kind is Kind.REMOTE else "on this machine"
        raise UsageError(
            f"{forward.listen} {where} can be reached by other machines, and so can what is behind it",
            "leave the address out to listen on loopback only, or add --expose",
        )
    forwarding.check_listener(forward)


async def _settings(found: SavedTunnel, request: Up) -> Settings:
    """What ssh would use. Raises UsageError for a mistake in the user's configuration or options."""
    try:
        return await master.settings(found.host, found.options, environment_with(request.environment))
    except LoginFailed as failure:
        if failure.trouble is master.NO_SSH:
            raise
        raise UsageError(failure.message, failure.hint) from None
