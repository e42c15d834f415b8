"""The asyncio driver of the multiplexing protocol, against real masters and against sockets that misbehave."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import MasterError
from holdfast.forward import Address, parse
from holdfast.openssh import control_socket
from holdfast.openssh.control_socket import ControlSocket, ForwardRefused
from tests.conftest import Web, get, is_open
from tests.sshd import Sshd, free_port, wait_for


@pytest.fixture
def master(sshd: Sshd, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real master with its control socket at home/ctl."""
    process = subprocess.Popen(
        ["ssh", "-F", str(sshd.config), "-M", "-N", "-S", str(home / "ctl"), "-E", str(home / "log"), "lab"]
    )
    wait_for((home / "ctl").exists, "the control socket")
    yield process
    process.kill()
    process.wait(10)


@pytest.fixture
def impostor(home: Path) -> Iterator[socket.socket]:
    """A socket at home/ctl that somebody listens on who isn't ssh."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "ctl"))
        listener.listen()
        yield listener


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_pid_is_the_masters_own(master: subprocess.Popen[bytes], home: Path) -> None:
    async def ask() -> int:
        control = await ControlSocket.connect(home / "ctl")
        try:
            return await control.alive()
        finally:
            control.close()

    assert asyncio.run(ask()) == master.pid


def test_forwards_open_and_close_over_one_connection(master: object, home: Path, web: Web) -> None:
    port = free_port()
    forward = parse(f"127.0.0.1:{port}:127.0.0.1:{web.port}")

    async def use() -> None:
        control = await ControlSocket.connect(home / "ctl")
        await control.open_forward(forward, forward.listen, 5)
        assert await asyncio.to_thread(get, port) == b"hello"
        await control.close_forward(forward, forward.listen, 5)
        assert not is_open(port)
        with pytest.raises(ForwardRefused):
            await control.close_forward(forward, forward.listen, 5)
        control.close()

    asyncio.run(use())


def test_a_stdio_forward_carries_bytes_and_a_refused_one_is_refused(master: object, home: Path, web: Web) -> None:
    async def use() -> bytes:
        control = await ControlSocket.connect(home / "ctl")
        ours, theirs = socket.socketpair()
        await control.start_stdio_forward(Address("127.0.0.1", web.port), (theirs.fileno(), theirs.fileno()), 5)
        theirs.close()
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(ours, b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while chunk := await loop.sock_recv(ours, 4096):
            answer += chunk
        control.close()
        refused = await ControlSocket.connect(home / "ctl")
        with pytest.raises(ForwardRefused):
            await refused.start_stdio_forward(Address("127.0.0.1", 1), (0, 1), 5)
        refused.close()
        ours.close()
        return answer

    assert asyncio.run(use()).endswith(b"hello")


def test_the_masters_death_is_told_at_once_and_what_waits_is_ended(
    master: subprocess.Popen[bytes], home: Path
) -> None:
    async def watch() -> None:
        control = await ControlSocket.connect(home / "ctl")
        master.send_signal(signal.SIGSTOP)
        waiting = asyncio.create_task(control.alive())
        await asyncio.sleep(0)
        master.send_signal(signal.SIGKILL)
        async with asyncio.timeout(2):
            await control.closed.wait()
        with pytest.raises(MasterError, match="hung up"):
            await waiting
        with pytest.raises(MasterError):
            await control.alive()

    asyncio.run(watch())


def test_nothing_and_a_stale_socket_are_told_apart(home: Path, impostor: socket.socket) -> None:
    async def connect(path: Path) -> None:
        await ControlSocket.connect(path)

    with pytest.raises(FileNotFoundError):
        asyncio.run(connect(home / "nothing"))
    impostor.close()
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(connect(home / "ctl"))


def test_a_master_that_never_greets_is_given_up(
    home: Path, impostor: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "LOCAL_ANSWER", 0.1)

    async def connect() -> None:
        await ControlSocket.connect(home / "ctl")

    before = descriptors()
    with pytest.raises(MasterError, match="no answer within"):
        asyncio.run(connect())
    assert descriptors() == before


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        struct.pack(">I", 0xFFFFFFFF),
        struct.pack(">III", 8, 1, 3),
        struct.pack(">II", 4, 0x80000001),
        struct.pack(">III", 8, 1, 4) * 2,
    ],
    ids=["text", "oversized", "version 3", "truncated", "two greetings"],
)
def test_one_who_talks_nonsense_ends_in_one_clean_error(home: Path, impostor: socket.socket, said: bytes) -> None:
    def talk() -> None:
        connection, _ = impostor.accept()
        with connection:
            connection.sendall(said)
            connection.recv(1000)

    async def connect() -> None:
        control = await ControlSocket.connect(home / "ctl")
        await control.alive()

    talking = threading.Thread(target=talk)
    talking.start()
    with pytest.raises(MasterError):
        asyncio.run(connect())
    talking.join(10)


def test_the_socket_of_another_user_is_not_spoken_to(home: Path) -> None:
    if os.getuid() != 0 or not Path("/usr/bin/python3").exists():
        pytest.skip("needs root, to be another user, and a Python that others may run")
    home.chmod(0o777)
    code = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]);"
        "s.listen(); os.chmod(sys.argv[1], 0o777); print('listening', flush=True); s.accept()[0].recv(1)"
    )
    other = subprocess.Popen(["/usr/bin/python3", "-c", code, str(home / "ctl")], stdout=subprocess.PIPE)
    assert other.stdout is not None
    try:
        other.stdout.readline()

        async def connect() -> None:
            await ControlSocket.connect(home / "ctl")

        with pytest.raises(MasterError, match="belongs to the user with uid 65534"):
            asyncio.run(connect())
    finally:
        other.kill()
        other.wait(10)
        other.stdout.close()


def test_a_wrong_number_of_descriptors_is_never_sent(master: object, home: Path) -> None:
    async def ask() -> None:
        control = await ControlSocket.connect(home / "ctl")
        try:
            await control.start_session("true", (0,), 1)
        finally:
            control.close()

    with pytest.raises(ValueError, match="3 descriptors are needed"):
        asyncio.run(ask())
