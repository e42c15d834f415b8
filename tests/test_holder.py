"""The process that keeps connections open when the keeper is killed: alone, and with a real master and sshd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from holdfast.keeper import holder, holding
from holdfast.keeper.holder import Holder
from tests.sshd import Sshd, free_port, wait_for

PROGRAM = str(holding.__file__)


def programs(of: int | None = None) -> list[psutil.Process]:
    """The holding processes that the process `of` (this one, if None) has started."""
    found = []
    for child in psutil.Process(of).children():
        with contextlib.suppress(psutil.Error):
            if PROGRAM in child.cmdline():
                found.append(child)
    return found


def is_gone(process: psutil.Process) -> bool:
    """Whether it has ended, though nobody may have waited for it yet."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def is_asleep(process: psutil.Process) -> bool:
    """Whether it waits, at every one of many looks: it doesn't turn in circles."""
    return {process.status() for _ in range(50)} == {psutil.STATUS_SLEEPING}


def is_open(connection: socket.socket) -> bool:
    """Whether somebody has the other end, and has said nothing."""
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True


def next_program(keeping: Holder) -> None:
    """Makes a holder start another process: it does so when the one it has is dead."""
    (process,) = programs()
    process.kill()
    wait_for(lambda: is_gone(process), "the process to be dead")
    held, other = socket.socketpair()
    with held, other:
        assert asyncio.run(keeping.keep(held))


@pytest.fixture
def keeping() -> Iterator[Holder]:
    """A holder whose processes are gone when the test is over."""
    made = Holder()
    yield made
    started = programs()
    made.close()
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        psutil.wait_procs([process], 5)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection: the one to be held, and the master's."""
    held, other = socket.socketpair()
    with held, other:
        yield held, other


def test_a_connection_is_open_until_its_other_end_hangs_up(
    keeping: Holder, pair: tuple[socket.socket, socket.socket]
) -> None:
    held, other = pair
    assert asyncio.run(keeping.keep(held))
    held.close()
    (process,) = programs()
    other.settimeout(5)
    other.sendall(b"x" * 5_000_000)  # what the master says is read, or this would block
    assert is_open(other)
    assert process.num_fds() == 4
    other.close()
    wait_for(lambda: process.num_fds() == 3, "the connection to be dropped")
    wait_for(lambda: is_asleep(process), "the process to wait for more")


def test_it_stays_until_the_keeper_is_gone_and_the_last_connection_over(keeping: Holder) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    for held, _ in pairs:
        assert asyncio.run(keeping.keep(held))
        held.close()
    (process,) = programs()
    (_, first), (_, second) = pairs
    first.close()
    keeping.close()
    wait_for(lambda: process.num_fds() == 3, "the first connection to be dropped, and the keeper's")
    wait_for(lambda: is_asleep(process), "the process to wait for the other")
    assert is_open(second)
    second.close()
    wait_for(lambda: is_gone(process), "the process to leave")


def test_it_leaves_with_the_keeper_when_it_holds_nothing(
    keeping: Holder, pair: tuple[socket.socket, socket.socket]
) -> None:
    held, other = pair
    assert asyncio.run(keeping.keep(held))
    (process,) = programs()
    other.close()
    keeping.close()
    held.close()
    wait_for(lambda: is_gone(process), "the process to leave")


def test_one_process_holds_all_and_has_nothing_else_of_the_keepers(
    keeping: Holder, pair: tuple[socket.socket, socket.socket]
) -> None:
    assert programs() == []
    with Path("/proc/self/status").open("rb") as opened:
        os.set_inheritable(opened.fileno(), True)
        for _ in range(2):
            assert asyncio.run(keeping.keep(pair[0]))
    (process,) = programs()
    assert process.num_fds() == 5  # its stdin, stdout and stderr, and two connections
    assert {str(Path(f"/proc/{process.pid}/fd/{number}").readlink()) for number in (1, 2)} == {os.devnull}
    assert process.cwd() == "/"
    assert os.getsid(process.pid) == process.pid


def test_what_a_keeper_gave_and_died_before_the_answer_is_held(pair: tuple[socket.socket, socket.socket]) -> None:
    held, other = pair
    keeper, stdin = socket.socketpair()
    with keeper, stdin:
        socket.send_fds(keeper, [b"\0"], [held.fileno()])
        held.close()
        process = subprocess.Popen([sys.executable, "-I", "-S", PROGRAM], stdin=stdin.fileno())
    try:
        other.settimeout(5)
        other.sendall(b"x" * 5_000_000)
        assert is_open(other)
        other.close()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait(10)


def test_it_is_small(keeping: Holder, pair: tuple[socket.socket, socket.socket]) -> None:
    assert asyncio.run(keeping.keep(pair[0]))
    (process,) = programs()
    assert process.memory_full_info().uss < 8_000_000  # with asyncio, 14 MB


def test_500_connections_given_at_once_are_all_kept_and_all_let_go(keeping: Holder) -> None:
    pairs = [socket.socketpair() for _ in range(200)]

    async def give() -> list[bool]:
        # Some twice and more: the test itself must do with 1,024 descriptors.
        return await asyncio.gather(*(keeping.keep(pairs[turn % 200][0]) for turn in range(500)))

    try:
        assert all(asyncio.run(give()))
        (process,) = programs()
        assert process.num_fds() == 503
        keeping.close()
        for _, other in pairs:
            other.shutdown(socket.SHUT_WR)
        wait_for(lambda: is_gone(process), "the process to leave")
    finally:
        for held, other in pairs:
            held.close()
            other.close()


def test_more_than_it_may_hold_is_refused_and_what_it_has_stays(
    keeping: Holder, pair: tuple[socket.socket, socket.socket]
) -> None:
    async def give() -> list[bool]:
        return [await keeping.keep(pair[0]) for _ in range(holding.MOST + 2)]

    assert asyncio.run(give()) == [True] * holding.MOST + [False] * 2
    (process,) = programs()
    assert process.num_fds() == holding.MOST + 3


@pytest.mark.skipif(sys.platform != "linux", reason="another process's limits can be set on Linux only")
def test_without_a_free_descriptor_it_refuses_and_goes_on(
    keeping: Holder, pair: tuple[socket.socket, socket.socket]
) -> None:
    assert asyncio.run(keeping.keep(pair[0]))
    (process,) = programs()
    before = process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (4, before[1]))
    assert not asyncio.run(keeping.keep(pair[0]))
    process.rlimit(psutil.RLIMIT_NOFILE, before)
    assert asyncio.run(keeping.keep(pair[0]))
    assert programs() == [process]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only /proc tells descriptors apart")
def test_one_that_does_not_answer_is_left_to_what_it_has(
    keeping: Holder, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, other = pair
    assert asyncio.run(keeping.keep(held))
    (stopped,) = programs()
    stopped.suspend()
    with monkeypatch.context() as patch:
        patch.setattr(holder, "ANSWERING", 0.1)
        assert not asyncio.run(keeping.keep(held))
    assert asyncio.run(keeping.keep(held))
    assert len(programs()) == 2
    stopped.resume()
    descriptors = Path(f"/proc/{stopped.pid}/fd")
    both = {"3", "4"}  # after those of /dev/null; the keeper's was 0
    wait_for(lambda: {each.name for each in descriptors.iterdir()} == {"1", "2", *both}, "it to hold both alone")
    held.close()
    other.close()
    wait_for(lambda: is_gone(stopped), "the first process to leave")
    next_program(keeping)
    assert not psutil.pid_exists(stopped.pid), "nobody has waited for it"


def test_one_that_was_killed_is_replaced_and_leaves_no_zombie(
    keeping: Holder, pair: tuple[socket.socket, socket.socket]
) -> None:
    assert asyncio.run(keeping.keep(pair[0]))
    (killed,) = programs()
    next_program(keeping)
    (process,) = programs()
    assert process != killed
    assert not psutil.pid_exists(killed.pid)


def test_no_program_is_no_error(
    keeping: Holder, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert not asyncio.run(keeping.keep(pair[0]))


# The keeper's part, to be killed: hands the descriptor it was given to the master, for the far side's port.
KEEPER = """
import asyncio, os, socket, sys
from pathlib import Path
from holdfast.forward import Address
from holdfast.keeper.holder import Holder
from holdfast.openssh.control_socket import ControlSocket

async def main(path, port, descriptor):
    control = await ControlSocket.connect(Path(path))
    await control.start_stdio_forward(Address("127.0.0.1", int(port)), (int(descriptor),) * 2, 5)
    os.close(int(descriptor))
    holder = Holder()
    assert await holder.keep(control._socket)
    control.close()
    print("handed over", flush=True)
    await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def master(sshd: Sshd, home: Path) -> Iterator[Path]:
    """The control socket of a real master."""
    path = home / "ctl"
    process = subprocess.Popen(["ssh", "-F", str(sshd.config), "-M", "-N", "-S", str(path), "lab"])
    wait_for(path.exists, "the control socket")
    yield path
    process.kill()
    process.wait(10)


def talk(near: socket.socket, far: socket.socket, said: bytes) -> None:
    """Says something each way, and checks that it arrives."""
    for sender, receiver in ((near, far), (far, near)):
        sender.sendall(said)
        assert receiver.recv(len(said), socket.MSG_WAITALL) == said


@contextlib.contextmanager
def keeper_that_handed_over(master: Path, port: int, client: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
    keeper = subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(master), str(port), str(client.fileno())],
        stdout=subprocess.PIPE,
        pass_fds=[client.fileno()],
    )
    assert keeper.stdout is not None
    with keeper.stdout as printed:
        try:
            client.close()
            assert printed.readline() == b"handed over\n"
            yield keeper
        finally:
            keeper.kill()
            keeper.wait(10)


@pytest.mark.parametrize("ends_first", ["the client", "the service", "the master"])
def test_a_connection_let_through_outlives_a_killed_keeper(master: Path, ends_first: str) -> None:
    near, client = socket.socketpair()
    with near, socket.create_server(("127.0.0.1", free_port())) as service:
        near.settimeout(10)
        service.settimeout(10)
        with keeper_that_handed_over(master, service.getsockname()[1], client) as keeper:
            far, _ = service.accept()
            far.settimeout(10)
            talk(near, far, b"before")
            (process,) = programs(keeper.pid)
            keeper.send_signal(signal.SIGKILL)
            keeper.wait(10)
        with far:
            for turn in range(20):
                talk(near, far, b"after %d" % turn)
            assert not is_gone(process)
            end(ends_first, near, far, master)
            wait_for(lambda: is_gone(process), "the process to leave")


def end(who: str, near: socket.socket, far: socket.socket, master: Path) -> None:
    """Ends the forwarded connection from one side, as both would in the end."""
    match who:
        case "the client":
            near.close()
            assert far.recv(1) == b""
            far.close()
        case "the service":
            far.close()
            assert near.recv(1) == b""
            near.close()
        case _:
            subprocess.run(
                ["ssh", "-F", os.devnull, "-S", str(master), "-O", "exit", "lab"], check=True, capture_output=True
            )
