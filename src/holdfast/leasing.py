"""Tunnels for programs: leased from the keeper, so that nothing of them outlives the program, however it ends.

A lease is a connection to the keeper that stays open. A thread listens there: it takes in what changes, and when
the keeper goes away it asks the next one for the same forwards, on the same ports.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from holdfast import client
from holdfast.config.users import of_user
from holdfast.control import (
    Answer,
    ForwardStatus,
    Release,
    Status,
    TunnelStatus,
    Up,
    check_host,
    check_name,
    check_options,
    encode_forward,
)
from holdfast.errors import HoldfastError, KeeperError, LoginNeeded, TookTooLong, UsageError
from holdfast.events import Event, Known
from holdfast.forward import Forward, Kind, build, parse, parse_address

if TYPE_CHECKING:
    import asyncio

Result = TypeVar("Result")

# Seconds from one try to be given the forwards by a new keeper to the next.
_PAUSE = 1.0
# Seconds that the keeper may take to close the forwards.
_CLOSING = 20.0
# The states in which a tunnel won't work by itself. In any other it does, or holds who connects until it does.
_IN_VAIN = ("needs login", "failed", "port taken", "refused")


class Endpoint(NamedTuple):
    """Where a forward is, for a program here. `url` is None where a browser has no business."""

    host: str
    port: int
    path: str
    url: str | None


class Tunnel:
    """An open tunnel. It heals by itself, and its ports stay the same, until `close` or the end of the program.

    To be had from `holdfast.tunnel`; a context manager that closes it.
    """

    def __init__(self, request: Up, timeout: float) -> None:
        self._request = request
        self._process = os.getpid()
        self._closing = threading.Event()
        self._released = threading.Event()
        # What is known of it; and who is to be told of what happens, of the end by None.
        self._known: Known | None = None
        self._tell_of: list[Callable[[Event | None], object]] = []
        # Taken twice where the garbage collector, which may run at any time, closes what is left of events.
        self._lock = threading.RLock()
        self._connection, leased = _lease(request, timeout)
        self.name = leased["name"]
        self._first_state = leased["state"]
        self._forwards = leased["forwards"]
        # What the tunnel of that name really goes by: the next keeper is asked for exactly that.
        self._host, self._options = leased["host"], tuple(leased["options"])
        self._thread = threading.Thread(target=self._listen, name=f"holdfast {self.name}", daemon=True)
        self._thread.start()

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where each of its forwards is, in the order in which they were asked for."""
        return tuple(_endpoint(forward) for forward in self._forwards)

    @property
    def host(self) -> str:
        """The address to connect to, on this machine; '' for a Unix socket."""
        return self.endpoints[0].host

    @property
    def port(self) -> int:
        """The port to connect to; the same for as long as the tunnel is open. 0 for a Unix socket."""
        return self.endpoints[0].port

    @property
    def path(self) -> str:
        """The Unix socket to connect to, or ''."""
        return self.endpoints[0].path

    @property
    def url(self) -> str:
        """The address of what is behind it, for HTTP. Raises UsageError for what doesn't speak that."""
        url = self.endpoints[0].url
        if url is None:
            raise UsageError(f"{self._forwards[0]['listen']} has no URL", "use its host and port")
        return url

    @property
    def state(self) -> str:
        """Its state as it is known here: nobody is asked."""
        if self._known is None:
            return self._first_state
        found = self._known.tunnels.get(self.name)
        return found["state"] if found else "down"

    def status(self, timeout: float = 30.0) -> TunnelStatus:
        """What is true of it, proven by a round trip, as `holdfast status --json` prints it.

        Raises HoldfastError, also when somebody took it down; TookTooLong after `timeout` seconds.
        """
        try:
            (found,) = client.ask(Status((self.name,)), timeout=timeout)
        except TimeoutError:
            raise TookTooLong(f"the keeper did not answer within {timeout:g} s", "holdfast doctor") from None
        return found

    def events(self) -> Iterator[Event]:
        """What happens to it from now on, as it happens, until it is closed."""
        heard: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._add_listener(heard.put)
        return self._heard(heard)

    def _heard(self, heard: queue.SimpleQueue[Event | None]) -> Iterator[Event]:
        try:
            while (event := heard.get()) is not None:
                yield event
        finally:
            self._remove_listener(heard.put)

    def aevents(self) -> AsyncGenerator[Event, None]:
        """As `events`, for asyncio: to be called where its loop runs."""
        import asyncio

        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[Event | None] = asyncio.Queue()

        def hear(event: Event | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(heard.put_nowait, event)

        self._add_listener(hear)
        return self._aheard(heard, hear)

    async def _aheard(
        self, heard: asyncio.Queue[Event | None], hear: Callable[[Event | None], object]
    ) -> AsyncGenerator[Event, None]:
        try:
            while (event := await heard.get()) is not None:
                yield event
        finally:
            self._remove_listener(hear)

    def _add_listener(self, tell: Callable[[Event | None], object]) -> None:
        with self._lock:
            self._tell_of.append(tell)
            if self._closing.is_set():
                tell(None)

    def _remove_listener(self, tell: Callable[[Event | None], object]) -> None:
        with self._lock:
            self._tell_of.remove(tell)

    def close(self) -> None:
        """Gives it up, and returns once what nobody else wants is closed. Closing it again does nothing."""
        if os.getpid() != self._process:  # a child has no part in it, and its lock may be held for ever
            return
        with self._lock:
            if self._closing.is_set():
                return
            self._closing.set()
        # At the program's end its thread doesn't run any more; in that thread, where the garbage collector may
        # close what nobody has any more, nobody else would hear the answer.
        if sys.is_finalizing() or threading.current_thread() is self._thread:
            self._connection.hang_up()
            return
        try:
            with contextlib.suppress(KeeperError, OSError):
                self._connection.send(Release())
                self._released.wait(_CLOSING)
        finally:  # also when the program is interrupted while it waits
            self._connection.hang_up()
        self._thread.join()
        self._connection.close()

    def __enter__(self) -> Tunnel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        ends = ", ".join(f"{forward['listen']} -> {forward['target']}" for forward in self._forwards)
        return f"<holdfast tunnel {self.name}: {ends}, {'closed' if self._closing.is_set() else self.state}>"

    def _listen(self) -> None:
        """The thread: takes in what the keeper tells, until the tunnel is closed."""
        try:
            while not self._released.is_set():
                try:
                    self._take(self._connection.receive(None))
                except KeeperError:
                    if self.state == "down":  # somebody wanted it so
                        return
                    if self._closing.is_set():
                        _have_a_keeper()
                        return
                    self._lease_again()
        finally:
            self._released.set()
            self._connection.close()
            with self._lock:
                self._closing.set()
                for tell in list(self._tell_of):
                    tell(None)

    def _take(self, answer: Answer) -> None:
        if "error" in answer:
            raise KeeperError(answer["error"]["message"], answer["error"]["hint"])
        if "done" in answer:
            self._released.set()
        elif "changes" in answer:
            if self._known is None:
                known = Known()
                known.learn(answer["changes"], _now())
                self._known = known  # what there was from the beginning is no news
            else:
                self._tell(self._known.learn(answer["changes"], _now()))

    def _tell(self, events: list[Event]) -> None:
        with self._lock:
            for tell in list(self._tell_of):
                for event in events:
                    tell(event)

    def _lease_again(self) -> None:
        """Has the next keeper, which is started if need be, hold what the one before it held."""
        self._connection.close()
        forwards = tuple(map(encode_forward, forwards_of(self)))
        request = self._request._replace(
            host=self._host, options=self._options, name=self.name, forwards=forwards, wait=False
        )
        while not self._closing.wait(0):
            try:
                self._connection, _ = _lease(request, client.START)
            except (HoldfastError, OSError):
                self._closing.wait(_PAUSE)
            else:
                if self._closing.is_set():  # `close` has hung up on the one before, and waits
                    self._connection.hang_up()
                return


def _lease(request: Up, timeout: float) -> tuple[client.Connection, TunnelStatus]:
    """The connection that is the lease, and the tunnel with those of its forwards that it is for.

    Raises HoldfastError where they can't be had, or not within `timeout` seconds.
    """
    last: list[TunnelStatus] = []
    connection = client.connect()
    try:
        (leased,) = client.answer_of(connection, request, timeout, last.append)
        if request.wait:
            _check_works(leased)
    except TimeoutError:
        connection.close()
        reason = last[-1]["reason"] if last else None
        raise TookTooLong(
            f"{request.host} is not reached after {timeout:g} s{f': {reason}' if reason else ''}",
            "give it more time: timeout=120; or see: holdfast logs",
        ) from None
    except BaseException:
        connection.close()
        raise
    return connection, leased


def _have_a_keeper() -> None:
    """Starts one if there is none: it gives up what programs held that have left since the one before it."""
    with contextlib.suppress(HoldfastError, OSError):
        client.connect().close()


def _check_works(leased: TunnelStatus) -> None:
    """Raises HoldfastError for the first of its forwards that can't be had."""
    for forward in leased["forwards"]:
        if forward["state"] in _IN_VAIN:
            reason = forward["reason"] or leased["reason"] or f"{leased['host']} is {forward['state']}"
            hint = forward["hint"] or leased["hint"] or ""
            raise LoginNeeded(reason, hint) if forward["state"] == "needs login" else HoldfastError(reason, hint)


def _endpoint(forward: ForwardStatus) -> Endpoint:
    listen = parse_address(forward["listen"])
    # Both of `localhost` are ours; to some database drivers that name means a Unix socket.
    host = "127.0.0.1" if listen.host in ("localhost", "*") else listen.host
    return Endpoint(host, listen.port, listen.path, forward["url"])


def forwards_of(tunnel: Tunnel) -> tuple[Forward, ...]:
    """Its forwards as they became: who asks for them gets the same ones, on the same ports."""
    return tuple(map(_forward, tunnel._forwards))


def _forward(forward: ForwardStatus) -> Forward:
    target = parse_address(forward["target"]) if forward["target"] else None
    return build(Kind(forward["kind"]), parse_address(forward["listen"]), target, forward["listen"])


def _wanted(text: int | str, kind: Kind) -> Forward:
    """A forward as it was asked for. Raises UsageError."""
    if kind is Kind.LOCAL and isinstance(text, int):
        return parse(f"0:{text}")
    return parse(str(text), kind)


def _now() -> datetime:
    return datetime.now().astimezone()


# The lease ends with the parent, not with its last child.
os.register_at_fork(after_in_child=client.abandon_all)


def tunnel(
    host: str,
    *forwards: int | str,
    remote: Sequence[int | str] = (),
    dynamic: Sequence[int | str] = (),
    name: str = "",
    options: Sequence[str] = (),
    expose: bool = False,
    timeout: float = 60.0,
) -> Tunnel:
    """Opens a tunnel to `host`, and returns once that is proven. `host` is whatever ssh takes, or a tunnel of the
    user's configuration, whose host, options and forwards count then.

    Each of `forwards` is a port over there, as an int: it gets the same one here if that is free, else any other.
    Or it is, as a str, what `holdfast up` takes: "9999:8888", "5432:db:5432", "8888:/run/x.sock". `remote` and
    `dynamic` are those of ssh's -R and -D. Without any: those that it had, else the host's own, else 8888.
    `options` are ssh's, as words: ("-J", "bastion"). `expose` allows listening where other machines can connect.

    A forward that the keeper has already is shared, and stays for those who had it. Nobody is asked anything.
    Raises UsageError, LoginNeeded, TookTooLong after `timeout` seconds, or another HoldfastError.
    """
    with _hints_in_tracebacks():
        return Tunnel(_request(host, forwards, remote, dynamic, name, options, expose=expose), timeout)


@contextlib.contextmanager
def _hints_in_tracebacks() -> Iterator[None]:
    """Nobody else shows a program's user what to try."""
    try:
        yield
    except HoldfastError as error:
        if error.hint:
            error.add_note(f"hint: {error.hint}")
        raise


def _request(
    host: str,
    forwards: Sequence[int | str],
    remote: Sequence[int | str],
    dynamic: Sequence[int | str],
    name: str,
    options: Sequence[str],
    *,
    expose: bool,
) -> Up:
    """What is asked of the keeper. Raises UsageError."""
    wanted = [_wanted(text, Kind.LOCAL) for text in forwards]
    wanted += [_wanted(text, Kind.REMOTE) for text in remote]
    wanted += [_wanted(text, Kind.DYNAMIC) for text in dynamic]
    request = Up(
        host=check_host(host),
        name=check_name(name) if name else "",
        options=check_options(client.absolute(options)),
        forwards=tuple(encode_forward(forward) for forward in wanted),
        environment=client.environment(),
        terminal=False,
        wait=True,
        expose=expose,
        lease=True,
    )
    return _as_configured(request)


def _as_configured(request: Up) -> Up:
    """The request with what the user's configuration says of a tunnel of that name. Raises UsageError."""
    described = next((tunnel for tunnel in of_user() if tunnel.name == request.host), None)
    if described is None:
        return request
    from holdfast.config.reading import merged_options

    return request._replace(
        host=described.host,
        name=request.name or described.name,
        options=merged_options(request.options, described.options),
        forwards=request.forwards or tuple(map(encode_forward, described.forwards)),
        expose=request.expose or described.expose,
        upkeep=described.whole_upkeep,
        origin=described.origin,
    )


@contextlib.asynccontextmanager
async def atunnel(
    host: str,
    *forwards: int | str,
    remote: Sequence[int | str] = (),
    dynamic: Sequence[int | str] = (),
    name: str = "",
    options: Sequence[str] = (),
    expose: bool = False,
    timeout: float = 60.0,
) -> AsyncIterator[Tunnel]:
    """`tunnel` for asyncio: opened and closed beside the event loop. See `Tunnel.aevents`."""
    import asyncio

    opening = _Opening(
        functools.partial(
            tunnel,
            host,
            *forwards,
            remote=remote,
            dynamic=dynamic,
            name=name,
            options=options,
            expose=expose,
            timeout=timeout,
        )
    )
    try:
        opened = await _beside(opening.run)
    except asyncio.CancelledError:
        opening.give_up()
        raise
    try:
        yield opened
    finally:
        await _beside(opened.close)


async def _beside(work: Callable[[], Result]) -> Result:
    """What `work` returns or raises, in a thread of its own; who is cancelled meanwhile leaves it to itself.

    The loop's threads may all be waiting for what goes through the tunnel, and `asyncio.run` waits for them.
    """
    import asyncio
    from concurrent.futures import Future

    done: Future[Result] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(result)

    threading.Thread(target=run, name="holdfast beside", daemon=True).start()
    return await asyncio.wrap_future(done)


class _Opening:
    """A tunnel that is being opened in a thread, for somebody who may go away meanwhile."""

    def __init__(self, open_it: Callable[[], Tunnel]) -> None:
        self._open_it = open_it
        self._lock = threading.Lock()
        self._opened: Tunnel | None = None
        self._is_given_up = False

    def run(self) -> Tunnel:
        opened = self._open_it()
        with self._lock:
            self._opened = opened
            is_given_up = self._is_given_up
        if is_given_up:
            opened.close()
        return opened

    def give_up(self) -> None:
        """Has it closed, now or as soon as it is open. Doesn't wait for that."""
        with self._lock:
            self._is_given_up = True
        if self._opened is not None:
            threading.Thread(target=self._opened.close).start()
