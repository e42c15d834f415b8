"""The multiplexing protocol: bytes against PROTOCOL.mux, hostile bytes, and a real master."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.forward import Address, Forward, Kind, parse
from holdfast.openssh import mux
from holdfast.openssh.mux import Client, ProtocolError, Type
from tests.sshd import Sshd, free_port, wait_for


def u32(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def string(data: bytes) -> bytes:
    return u32(len(data)) + data


def frame(body: bytes) -> bytes:
    return u32(len(body)) + body


HELLO = frame(u32(1, 4))


def greeted() -> Client:
    client = Client()
    client.receive_data(HELLO)
    return client


# --- what is sent ---


def test_the_first_packet_is_a_hello_of_version_four() -> None:
    assert Client().hello() == bytes.fromhex("00000008 00000001 00000004")


def test_an_alive_check_is_its_type_and_number() -> None:
    request = Client().alive_check()
    assert request == mux.Request(1, bytes.fromhex("00000008 10000004 00000001"), 0)


def test_terminate_is_its_type_and_number() -> None:
    assert Client().terminate().packet == bytes.fromhex("00000008 10000005 00000001")


def test_stop_listening_is_its_type_and_number() -> None:
    assert Client().stop_listening().packet == bytes.fromhex("00000008 10000009 00000001")


def test_requests_are_numbered_from_one_upwards() -> None:
    client = Client()
    requests = [client.alive_check(), client.new_session("true"), client.terminate()]
    assert [request.number for request in requests] == [1, 2, 3]
    assert [request.packet[8:12] for request in requests] == [u32(1), u32(2), u32(3)]


UNIX = 0xFFFFFFFE


@pytest.mark.parametrize(
    ("text", "kind", "fields"),
    [
        ("127.0.0.1:8888:db:80", Kind.LOCAL, u32(1) + string(b"127.0.0.1") + u32(8888) + string(b"db") + u32(80)),
        ("[::1]:8888:[::1]:80", Kind.LOCAL, u32(1) + string(b"::1") + u32(8888) + string(b"::1") + u32(80)),
        ("127.0.0.1:1:/x", Kind.LOCAL, u32(1) + string(b"127.0.0.1") + u32(1) + string(b"/x") + u32(UNIX)),
        ("/é %h:/y", Kind.LOCAL, u32(1) + string(b"/\xc3\xa9 %h") + u32(UNIX) + string(b"/y") + u32(UNIX)),
        ("0:db:80", Kind.REMOTE, u32(2) + string(b"localhost") + u32(0) + string(b"db") + u32(80)),
        ("8888", Kind.REMOTE, u32(2) + string(b"localhost") + u32(8888) + string(b"socks") + u32(0)),
        ("127.0.0.1:1080", Kind.DYNAMIC, u32(3) + string(b"127.0.0.1") + u32(1080) + string(b"socks") + u32(0)),
    ],
)
def test_a_forward_is_opened_and_closed_with_the_same_five_fields(text: str, kind: Kind, fields: bytes) -> None:
    forward = parse(text, kind)
    client = Client()
    assert client.open_forward(forward, forward.listen).packet == frame(u32(0x10000006, 1) + fields)
    assert client.close_forward(forward, forward.listen).packet == frame(u32(0x10000007, 2) + fields)


def test_a_forward_is_opened_on_the_listener_that_is_named() -> None:
    forward = parse("8888")
    packet = Client().open_forward(forward, forward.listeners[1]).packet
    assert string(b"::1") + u32(8888) in packet
    assert b"localhost" not in packet


def test_a_session_has_no_terminal_and_no_forwarding_and_needs_three_descriptors() -> None:
    flags = u32(0, 0, 0, 0, 0xFFFFFFFF)
    body = u32(0x10000002, 1) + string(b"") + flags + string(b"") + string(b"exec cat")
    assert Client().new_session("exec cat") == mux.Request(1, frame(body), 3)


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        (Address("db", 80), string(b"db") + u32(80)),
        (Address("::1", 80), string(b"::1") + u32(80)),
        (Address(path="/run/x.sock"), string(b"/run/x.sock") + u32(UNIX)),
    ],
)
def test_a_stdio_forward_names_its_target_and_needs_two_descriptors(target: Address, fields: bytes) -> None:
    request = Client().stdio_forward(target)
    assert request == mux.Request(1, frame(u32(0x10000008, 1) + string(b"") + fields), 2)


def test_a_nul_is_never_sent() -> None:
    client, path = Client(), Address(path="/run/\0")
    with pytest.raises(ProtocolError, match="NUL"):
        client.new_session("true\0")
    with pytest.raises(ProtocolError, match="NUL"):
        client.stdio_forward(path)
    with pytest.raises(ProtocolError, match="NUL"):
        client.open_forward(Forward(Kind.LOCAL, path, path), path)


def test_the_longest_request_is_what_a_master_accepts() -> None:
    around = len(Client().new_session("").packet) - 4
    longest = mux.LONGEST_PACKET - around
    assert len(Client().new_session("x" * longest).packet) == 4 + 256 * 1024
    with pytest.raises(ProtocolError, match=str(256 * 1024 + 1)):
        Client().new_session("x" * (longest + 1))


# --- what is received ---

REPLIES = [
    (u32(0x80000001, 7), mux.Ok(7)),
    (u32(0x80000002, 7) + string(b"denied"), mux.Refused(7, "denied")),
    (u32(0x80000003, 7) + string(b"Port forwarding failed"), mux.Refused(7, "Port forwarding failed")),
    (u32(0x80000003, 7) + string(b"\xff"), mux.Refused(7, "�")),
    (u32(0x80000003, 7) + string(b""), mux.Refused(7, "")),
    (u32(0x80000004, 3, 255), mux.SessionExited(3, 255)),
    (u32(0x80000005, 7, 4242), mux.Alive(7, 4242)),
    (u32(0x80000006, 7, 3), mux.SessionOpened(7, 3)),
    (u32(0x80000007, 7, 40001), mux.RemotePort(7, 40001)),
    (u32(0x80000008, 3), mux.TtyRefused(3)),
]
ALL_BYTES = HELLO + b"".join(frame(body) for body, _ in REPLIES)
ALL_REPLIES = [mux.Hello(4, {}), *(reply for _, reply in REPLIES)]


@pytest.mark.parametrize(("body", "reply"), REPLIES)
def test_a_reply_is_read(body: bytes, reply: mux.Reply) -> None:
    assert greeted().receive_data(frame(body)) == [reply]


def test_replies_in_one_chunk_are_read_in_their_order() -> None:
    assert Client().receive_data(ALL_BYTES) == ALL_REPLIES


def test_replies_are_read_byte_by_byte() -> None:
    client = Client()
    assert [reply for byte in ALL_BYTES for reply in client.receive_data(bytes([byte]))] == ALL_REPLIES


@given(st.lists(st.integers(0, len(ALL_BYTES)), max_size=8))
def test_replies_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    client, ends = Client(), sorted([0, *cuts, len(ALL_BYTES)])
    chunks = [ALL_BYTES[start:end] for start, end in pairwise(ends)]
    assert [reply for chunk in chunks for reply in client.receive_data(chunk)] == ALL_REPLIES


def test_the_hello_tells_its_extensions() -> None:
    body = u32(1, 4) + string(b"info") + string(b"0") + string(b"more") + string(b"\xff\0")
    assert Client().receive_data(frame(body)) == [mux.Hello(4, {"info": b"0", "more": b"\xff\0"})]


@pytest.mark.parametrize(("body", "reply"), REPLIES)
def test_nothing_is_taken_before_the_hello(body: bytes, reply: mux.Reply) -> None:
    with pytest.raises(ProtocolError, match="greeted"):
        Client().receive_data(frame(body))


def test_a_second_hello_is_refused() -> None:
    with pytest.raises(ProtocolError, match="greeted twice"):
        greeted().receive_data(HELLO)


@pytest.mark.parametrize("version", [0, 3, 5, 0xFFFFFFFF])
def test_another_version_is_refused_with_both_numbers(version: int) -> None:
    with pytest.raises(ProtocolError, match=f"version {version} .* not 4"):
        Client().receive_data(frame(u32(1, version)))


@pytest.mark.parametrize("kind", [0, 2, 0x80000000, 0x80000009, 0x8000000F, 0x90000001, *(0x10000002, 0x10000004)])
def test_an_unknown_type_is_refused_with_its_number(kind: int) -> None:
    with pytest.raises(ProtocolError, match=f"{kind:#010x}"):
        greeted().receive_data(frame(u32(kind, 1)))


def test_an_oversized_packet_is_refused_before_its_body_arrives() -> None:
    with pytest.raises(ProtocolError, match="262145 bytes"):
        greeted().receive_data(u32(256 * 1024 + 1))


def test_a_packet_of_the_longest_size_is_waited_for() -> None:
    client, text = greeted(), b"x" * (mux.LONGEST_PACKET - 12)
    packet = frame(u32(0x80000003, 1) + string(text))
    assert client.receive_data(packet[:-1]) == []
    assert client.receive_data(packet[-1:]) == [mux.Refused(1, text.decode())]


@pytest.mark.parametrize("body", [HELLO[4:], *(body for body, _ in REPLIES)])
def test_a_body_cut_short_anywhere_is_refused(body: bytes) -> None:
    for size in range(len(body)):
        client = Client() if body == HELLO[4:] else greeted()
        with pytest.raises(ProtocolError, match="too early"):
            client.receive_data(frame(body[:size]))


@pytest.mark.parametrize("body", [body for body, _ in REPLIES])
def test_trailing_bytes_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="too long"):
        greeted().receive_data(frame(body + b"\0"))


def test_a_hello_with_a_name_but_no_value_is_refused() -> None:
    with pytest.raises(ProtocolError, match="too early"):
        Client().receive_data(frame(u32(1, 4) + string(b"info")))


def test_a_string_longer_than_its_packet_is_refused() -> None:
    with pytest.raises(ProtocolError, match="too early"):
        greeted().receive_data(frame(u32(0x80000003, 1, 0xFFFFFFFF) + b"short"))


TYPES = st.sampled_from([*Type, 0, 0x8000000F, 0xFFFFFFFF])
BODIES = st.builds(lambda kind, rest: u32(kind) + rest, TYPES, st.binary(max_size=40))
# Frames whose announced size is the body's, or isn't.
FRAMES = st.one_of(
    st.binary(max_size=40),
    BODIES.map(frame),
    st.builds(lambda size, body: u32(size) + body, st.integers(0, 0xFFFFFFFF), BODIES),
)


@given(st.booleans(), st.lists(FRAMES, max_size=5))
def test_hostile_bytes_end_in_a_protocol_error_and_nothing_else(is_greeted: bool, frames: list[bytes]) -> None:
    client = greeted() if is_greeted else Client()
    with contextlib.suppress(ProtocolError):
        for data in frames:
            client.receive_data(data)


# --- a real master ---


class Driver:
    """A blocking socket around a Client."""

    def __init__(self, path: Path) -> None:
        self.client = Client()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self.socket.sendall(self.client.hello())
        self._replies: list[mux.Reply] = []

    def reply(self) -> mux.Reply:
        while not self._replies:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self._replies += self.client.receive_data(data)
        return self._replies.pop(0)

    def ask(self, request: mux.Request, descriptors: Sequence[int] = ()) -> mux.Reply:
        self.socket.sendall(request.packet)
        assert len(descriptors) == request.descriptors
        for descriptor in descriptors:
            socket.send_fds(self.socket, [b"\0"], [descriptor])
        return self.reply()


class Service:
    """Answers each connection to `address` with what it received, in capitals, once the sender has ended."""

    def __init__(self, path: Path | None = None) -> None:
        self._listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self._listener.bind(str(path) if path else ("127.0.0.1", 0))
        self._listener.listen()
        name = self._listener.getsockname()
        self.address = Address(path=name) if path else Address("127.0.0.1", name[1])
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.sendall(read_all(connection).upper())

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def exchange(address: Address, data: bytes) -> bytes:
    """Sends `data` to `address`, ends, and returns what comes back."""
    with socket.socket(socket.AF_UNIX if address.path else socket.AF_INET) as connection:
        connection.settimeout(10)
        connection.connect(address.path or (address.host, address.port))
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return read_all(connection)


class TestRealMaster:
    @pytest.fixture
    def master(self, sshd: Sshd, home: Path) -> Iterator[subprocess.Popen[bytes]]:
        argv = ["ssh", "-F", str(sshd.config), "-M", "-N", "-S", str(home / "ctl"), "lab"]
        with (home / "master.log").open("wb") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=log)
        wait_for((home / "ctl").exists, "the control socket")
        yield process
        process.kill()
        process.wait()

    @pytest.fixture
    def driver(self, master: subprocess.Popen[bytes], home: Path) -> Iterator[Driver]:
        made = Driver(home / "ctl")
        hello = made.reply()
        assert isinstance(hello, mux.Hello)
        yield made
        made.socket.close()

    @pytest.fixture
    def service(self) -> Iterator[Service]:
        made = Service()
        yield made
        made.close()

    def test_says_hello_before_it_is_asked(self, master: subprocess.Popen[bytes], home: Path) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(home / "ctl"))
            (hello,) = Client().receive_data(connection.recv(65536))
        assert isinstance(hello, mux.Hello)
        assert hello.version == 4

    def test_tells_its_own_pid(self, driver: Driver, master: subprocess.Popen[bytes]) -> None:
        assert driver.ask(driver.client.alive_check()) == mux.Alive(1, master.pid)

    def test_carries_a_local_tcp_forward_until_it_is_closed(self, driver: Driver, service: Service) -> None:
        listen = Address("127.0.0.1", free_port())
        forward = Forward(Kind.LOCAL, listen, service.address)
        assert driver.ask(driver.client.open_forward(forward, listen)) == mux.Ok(1)
        assert exchange(listen, b"hello") == b"HELLO"
        assert driver.ask(driver.client.close_forward(forward, listen)) == mux.Ok(2)
        with pytest.raises(ConnectionRefusedError):
            exchange(listen, b"")

    def test_carries_a_local_forward_between_unix_sockets(self, driver: Driver, home: Path) -> None:
        service = Service(home / "far %h.sock")
        listen = Address(path=str(home / "near ü.sock"))
        forward = Forward(Kind.LOCAL, listen, service.address)
        assert driver.ask(driver.client.open_forward(forward, listen)) == mux.Ok(1)
        assert exchange(listen, b"hello") == b"HELLO"
        assert driver.ask(driver.client.close_forward(forward, listen)) == mux.Ok(2)
        service.close()

    def test_carries_a_dynamic_forward(self, driver: Driver, service: Service) -> None:
        listen = Address("127.0.0.1", free_port())
        forward = Forward(Kind.DYNAMIC, listen, None)
        assert driver.ask(driver.client.open_forward(forward, listen)) == mux.Ok(1)
        with socket.create_connection((listen.host, listen.port), 10) as connection:
            connection.sendall(b"\x05\x01\x00")  # SOCKS 5, no authentication
            assert connection.recv(2, socket.MSG_WAITALL) == b"\x05\x00"
            connection.sendall(b"\x05\x01\x00\x01\x7f\0\0\x01" + struct.pack(">H", service.address.port))
            assert connection.recv(10, socket.MSG_WAITALL)[:2] == b"\x05\x00"
            connection.sendall(b"hello")
            connection.shutdown(socket.SHUT_WR)
            assert read_all(connection) == b"HELLO"

    def test_tells_the_port_that_the_server_chose_and_closes_it_by_port_zero(
        self, driver: Driver, service: Service
    ) -> None:
        listen = Address("localhost", 0)
        forward = Forward(Kind.REMOTE, listen, service.address)
        reply = driver.ask(driver.client.open_forward(forward, listen))
        assert isinstance(reply, mux.RemotePort)
        assert exchange(Address("127.0.0.1", reply.port), b"hello") == b"HELLO"
        assert driver.ask(driver.client.close_forward(forward, listen)) == mux.Ok(2)

    def test_refuses_a_local_port_that_is_taken(self, driver: Driver, service: Service) -> None:
        forward = Forward(Kind.LOCAL, service.address, Address("127.0.0.1", 1))
        reply = driver.ask(driver.client.open_forward(forward, service.address))
        assert reply == mux.Refused(1, "Port forwarding failed")

    def test_refuses_a_remote_port_that_is_taken(self, driver: Driver, service: Service) -> None:
        forward = Forward(Kind.REMOTE, service.address, Address("127.0.0.1", 1))
        reply = driver.ask(driver.client.open_forward(forward, service.address))
        assert isinstance(reply, mux.Refused)
        assert str(service.address.port) in reply.reason

    def test_refuses_to_close_what_is_not_open(self, driver: Driver) -> None:
        forward = parse("127.0.0.1:9:db:80")
        assert isinstance(driver.ask(driver.client.close_forward(forward, forward.listen)), mux.Refused)

    def test_runs_a_session_over_descriptors_until_its_input_ends(self, driver: Driver) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(10)
        with tempfile.TemporaryFile() as errors, ours:
            request = driver.client.new_session("exec cat")
            reply = driver.ask(request, [theirs.fileno(), theirs.fileno(), errors.fileno()])
            theirs.close()
            assert isinstance(reply, mux.SessionOpened)
            ours.sendall(b"echo\0\xff")
            ours.shutdown(socket.SHUT_WR)
            assert read_all(ours) == b"echo\0\xff"
            assert driver.reply() == mux.SessionExited(reply.session, 0)
        with pytest.raises(EOFError):
            driver.reply()

    def test_tells_the_exit_status_of_a_session(self, driver: Driver) -> None:
        with Path(os.devnull).open("r+b") as null:
            reply = driver.ask(driver.client.new_session("exit 7"), [null.fileno()] * 3)
        assert isinstance(reply, mux.SessionOpened)
        assert driver.reply() == mux.SessionExited(reply.session, 7)

    def test_carries_bytes_over_a_stdio_forward(self, driver: Driver, service: Service) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(10)
        with ours:
            reply = driver.ask(driver.client.stdio_forward(service.address), [theirs.fileno()] * 2)
            theirs.close()
            assert isinstance(reply, mux.SessionOpened)
            ours.sendall(b"hello")
            ours.shutdown(socket.SHUT_WR)
            assert read_all(ours) == b"HELLO"

    def test_refuses_a_stdio_forward_to_a_port_where_nobody_listens(self, driver: Driver) -> None:
        with Path(os.devnull).open("r+b") as null:
            reply = driver.ask(driver.client.stdio_forward(Address("127.0.0.1", free_port())), [null.fileno()] * 2)
        assert reply == mux.Refused(1, "Session open refused by peer")

    def test_stops_listening_and_goes_on(self, driver: Driver, home: Path) -> None:
        assert driver.ask(driver.client.stop_listening()) == mux.Ok(1)
        assert not (home / "ctl").exists()
        assert isinstance(driver.ask(driver.client.alive_check()), mux.Alive)

    def test_ends_when_told_to_terminate(
        self, driver: Driver, master: subprocess.Popen[bytes], home: Path
    ) -> None:
        driver.socket.sendall(driver.client.terminate().packet)
        try:
            while True:
                assert driver.reply() == mux.Ok(1)
        except (EOFError, ConnectionResetError):
            pass
        master.wait(10)
        assert not (home / "ctl").exists()
