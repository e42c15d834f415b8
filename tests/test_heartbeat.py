"""Heartbeats through real masters and real accounts of every kind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from holdfast.errors import MasterError
from holdfast.forward import Address, Forward, Kind
from holdfast.openssh import heartbeat
from holdfast.openssh.control_socket import ControlSocket
from holdfast.openssh.heartbeat import ForwardHeartbeat, Heartbeat, HeartbeatEnded, SessionHeartbeat
from tests.network import Network, network_or_skip
from tests.sshd import Sshd, wait_for

Use = Callable[[Callable[[Heartbeat], Awaitable[None]]], None]


@pytest.fixture
def start(sshd: Sshd, home: Path) -> Iterator[Callable[..., Use]]:
    """Restarts sshd with some options and gives a function that runs another with a heartbeat through it."""
    processes: list[subprocess.Popen[bytes]] = []

    def prepare(*options: str) -> Use:
        sshd.stop()
        sshd.start(*options)
        process = subprocess.Popen(["ssh", "-F", str(sshd.config), "-MN", "-S", str(home / "ctl"), "lab"])
        processes.append(process)
        wait_for((home / "ctl").exists, "the control socket")

        async def run(use: Callable[[Heartbeat], Awaitable[None]]) -> None:
            control = await ControlSocket.connect(home / "ctl")
            found, round_trip = await heartbeat.start(home / "ctl", 5)
            assert 0 < round_trip < 5
            try:
                await use(found)
            finally:
                found.close()
                control.close()

        return lambda use: asyncio.run(run(use))

    yield prepare
    for process in processes:
        process.kill()
        process.wait(10)


def cats(sshd: Sshd) -> list[int]:
    return sessions(sshd, "cat")


def switches(sshd: Sshd) -> list[int]:
    return sessions(sshd, "bash", "zsh", "ksh", "mksh")


def sessions(sshd: Sshd, *names: str) -> list[int]:
    """The pids of the sessions' processes that are called so."""
    found = []
    for pid in sshd.descendants():
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).name() in names:
                found.append(pid)
    return found


async def until_the_session_answers(found: Heartbeat) -> None:
    assert isinstance(found, SessionHeartbeat)
    while not found._echo.last:
        await asyncio.sleep(0.01)


def test_a_session_is_used_where_there_is_one_and_leaves_no_process(start: Callable[..., Use], sshd: Sshd) -> None:
    async def use(found: Heartbeat) -> None:
        await until_the_session_answers(found)
        assert found.fast_path
        assert found.pace == heartbeat.PACE
        assert found.switch is None
        for _ in range(100):
            await found.beat(5)
        assert len(cats(sshd)) == 1

    start()(use)
    wait_for(lambda: not cats(sshd), "cat to leave")


@pytest.mark.parametrize("option", ["MaxSessions 0", "ForceCommand /bin/false", "ForceCommand sleep 60"])
def test_an_account_without_a_shell_is_proven_by_forwards(
    start: Callable[..., Use], option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(found: Heartbeat) -> None:
        assert isinstance(found, ForwardHeartbeat) == (option == "MaxSessions 0")
        assert found.fast_path != (option == "MaxSessions 0")
        monkeypatch.setattr(heartbeat, "SLOWEST_SHELL", 0)
        assert found.pace == heartbeat.PACE_OF_FORWARDS
        for _ in range(20):
            await found.beat(5)

    start(option)(use)


@pytest.mark.parametrize("option", ["AllowTcpForwarding no", "DisableForwarding yes"])
def test_a_refusal_to_forward_is_a_sign_of_life_too(start: Callable[..., Use], option: str) -> None:
    async def use(found: Heartbeat) -> None:
        await found.beat(5)

    start("MaxSessions 0", option)(use)


def test_forward_heartbeats_leave_no_listener_and_no_line_in_the_servers_log(
    start: Callable[..., Use], sshd: Sshd
) -> None:
    async def use(found: Heartbeat) -> None:
        before = sshd.log.read_text()
        for _ in range(50):
            await found.beat(5)
        assert sshd.log.read_text() == before
        await until(lambda: not listening(), "the last listener to be closed")

    def listening() -> bool:
        serving = [psutil.Process(pid) for pid in sshd.descendants()]
        return any(end.status == "LISTEN" for process in serving for end in process.net_connections())

    start("MaxSessions 0", "LogLevel INFO")(use)


def test_output_of_login_files_is_passed_over(start: Callable[..., Use]) -> None:
    async def use(found: Heartbeat) -> None:
        await until_the_session_answers(found)
        await found.beat(5)

    start("ForceCommand head -c 300000 /dev/zero; printf '\\nholdfast x\\nno newline: '; echo; exec cat")(use)


def test_a_session_that_is_killed_over_there_is_told_as_ended(start: Callable[..., Use], sshd: Sshd) -> None:
    async def use(found: Heartbeat) -> None:
        await until_the_session_answers(found)
        for pid in cats(sshd):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(HeartbeatEnded):
            await found.beat(5)

    start()(use)


def test_a_frozen_server_is_late_and_answers_again_when_it_thaws(start: Callable[..., Use], sshd: Sshd) -> None:
    async def use(found: Heartbeat) -> None:
        await until_the_session_answers(found)
        frozen = sshd.descendants()
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(MasterError, match=r"no heartbeat came back within 0\.2 s"):
                await found.beat(0.2)
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        await found.beat(5)

    start()(use)


def listens_on(network: Network, port: int) -> bool:
    """Whether something on the server does."""
    sockets = network.server.call(Path("/proc/thread-self/net/tcp").read_text)
    return f":{port:04X} 00000000:0000 0A" in sockets


class SlowLine:
    """A relay to a port here that delivers everything `delay` seconds later, each way."""

    def __init__(self, port: int) -> None:
        self.delay = 0.0
        self._target = port
        self._carried: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._carried:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._carried += writer, far_writer
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                loop.call_later(self.delay, writer.write, data)


async def until(condition: Callable[[], object], what: str, seconds: float = 15) -> None:
    """Returns once `condition()` is true; fails the test, saying `what` was waited for, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def armed(
    sshd: Sshd, *options: str, direct: bool, prefix: Sequence[str] = ()
) -> AsyncIterator[tuple[SessionHeartbeat, Path]]:
    """A heartbeat whose switch is armed, over a new master with some options, and where its control socket is.

    `prefix` is put before the master's command line.
    """
    path = sshd.home / f"ctl{len(options)}{direct:d}"
    process = subprocess.Popen([*prefix, "ssh", "-F", str(sshd.config), *options, "-MN", "-S", str(path), "lab"])
    try:
        await until(path.exists, "the control socket")
        control = await ControlSocket.connect(path)
        found, _ = await heartbeat.start(path, 5, switch=True, direct=direct)
        try:
            assert isinstance(found, SessionHeartbeat)
            await until(lambda: found.switch == 13, "the switch to be armed")
            yield found, path
        finally:
            found.close()
            control.close()
    finally:
        process.kill()
        process.wait(10)


async def lives_for(seconds: float, found: Heartbeat, path: Path) -> None:
    """Waits that long for the master at `path` to end, which it must not, nor lose its far side."""
    control = await ControlSocket.connect(path)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await control.closed.wait()
    control.close()
    await found.beat(5)


def test_a_switch_that_the_far_side_has_not_is_not_told_of(sshd: Sshd, start: Callable[..., Use]) -> None:
    async def use(found: Heartbeat) -> None:
        await until_the_session_answers(found)
        assert found.switch is None

    start("ForceCommand exec cat")(use)


def test_killing_the_keeper_ends_the_session_over_there_but_not_the_master(sshd: Sshd) -> None:
    keeper = """
        import asyncio, sys
        from pathlib import Path
        from holdfast.openssh import heartbeat
        from holdfast.openssh.control_socket import ControlSocket

        async def run(path):
            control = await ControlSocket.connect(path)
            found, _ = await heartbeat.start(path, 5, switch=True, direct=False)
            while not found.switch:
                await asyncio.sleep(0.01)
            print("armed", flush=True)
            await asyncio.sleep(60)

        asyncio.run(run(Path(sys.argv[1])))
        """

    async def run() -> None:
        async with armed(sshd, direct=False) as (found, path):
            command = [sys.executable, "-c", textwrap.dedent(keeper), str(path)]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == b"armed\n"
                assert len(switches(sshd)) == 2
                process.kill()
            await until(lambda: len(switches(sshd)) == 1, "the killed keeper's session to leave")
            await found.beat(5)

    asyncio.run(run())


def test_the_switch_with_its_real_figures_goes_off_after_a_cut_and_only_then(
    sshd: Sshd, home: Path, keys: Path, environment: Mapping[str, str]
) -> None:
    async def a_silent_cut_frees_remote_ports(network: Network) -> None:
        async with armed(network.sshd, direct=True, prefix=network.client.prefix) as (found, path):
            control = await ControlSocket.connect(path)
            anywhere = Address("127.0.0.1", 0)
            port = await control.open_forward(Forward(Kind.REMOTE, anywhere, Address("127.0.0.1", 9)), anywhere, 5)
            control.close()
            assert port is not None
            assert listens_on(network, port)
            await found.beat(5)
            network.drop()
            began = time.monotonic()
            await until(lambda: not listens_on(network, port), "the remote port to be free", 20)
            assert 11 < time.monotonic() - began < 15

    async def a_stopped_keeper_costs_no_link() -> None:
        async with armed(sshd, direct=True) as (found, path):
            transport = found._echo._transport
            assert transport is not None
            transport.pause_reading()
            asyncio.get_running_loop().call_later(20, transport.resume_reading)
            await lives_for(20, found, path)

    async def questions_are_answered_over_a_slow_line() -> None:
        line = SlowLine(sshd.port)
        async with line as port, armed(sshd, *through(port), direct=False) as (found, path):
            line.delay = 1
            await lives_for(20, found, path)
            line.delay = 0

    def through(port: int) -> tuple[str, ...]:
        return "-p", str(port), "-o", f"HostKeyAlias=[127.0.0.1]:{sshd.port}"

    async def run(network: Network) -> None:
        async with asyncio.TaskGroup() as together:
            together.create_task(a_silent_cut_frees_remote_ports(network))
            together.create_task(a_stopped_keeper_costs_no_link())
            together.create_task(questions_are_answered_over_a_slow_line())

    (home / "far").mkdir()
    with network_or_skip(home / "far", keys, environment) as network:
        asyncio.run(run(network))
