"""What the system counts: connections at a port, those that have ended, the bytes of one."""

from __future__ import annotations

import os
import socket
from collections import Counter
from pathlib import Path

import psutil
import pytest

from holdfast.forward import Address
from holdfast.keeper import counters
from holdfast.keeper.counters import Connection
from tests.sshd import wait_for

pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="this system has no /proc/net")


def known() -> list[Connection]:
    found = counters.tcp_connections(ended=True)
    assert found is not None
    return found


def traffic(inode: int) -> counters.Traffic | None:
    return next(end.traffic for end in known() if end.inode == inode)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_open_connections_are_counted_where_they_were_taken(host: str) -> None:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        port = server.getsockname()[1]
        listen = Address(host, port)

        def count() -> int:
            return counters.connections_of([listen], known(), Counter(), "~")

        assert count() == 0
        with socket.create_connection((host, port)), socket.create_connection((host, port)):
            assert count() == 2
        assert counters.connections_of([Address("*", port)], known(), Counter(), "") in (
            0,
            2,
        )


def test_a_listener_on_every_address_has_the_connections_to_each() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            found = known()
            assert counters.connections_of([Address("*", port)], found, Counter(), "~") == 1
            assert counters.connections_of([Address("127.0.0.2", port)], found, Counter(), "~") == 0


def test_a_connection_that_has_ended_is_remembered_with_its_age() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        listen = Address("127.0.0.1", server.getsockname()[1])
        assert counters.last_use([listen], known()) is None
        client = socket.create_connection((listen.host, listen.port))
        taken, _ = server.accept()
        assert counters.last_use([listen], known()) == 0.0
        client.close()
        taken.close()
    ago = counters.last_use([listen], known())
    assert ago is not None
    assert 0 <= ago < 20
    assert not [
        end for end in counters.tcp_connections() or () if listen.port in (end.local.port, end.remote.port)
    ]
    wait_for(lambda: (counters.last_use([listen], known()) or 0) > ago, "it to grow old")


def test_connections_to_unix_sockets_are_counted_by_path(tmp_path: Path) -> None:
    path = tmp_path / "a b.sock~"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        listen = Address(path=str(path).removesuffix("~"))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            server.accept()[0].close()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            accepted, _ = server.accept()
            with accepted:
                assert counters.connections_of([listen], [], counters.unix_connections(), "~") == 1
        assert counters.connections_of([listen], [], counters.unix_connections(), "~") == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_bytes_of_a_connection_are_those_that_went_over_it(host: str) -> None:
    with (
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server,
        socket.create_connection(server.getsockname()[:2]) as client,
    ):
        taken, _ = server.accept()
        with taken:
            client.sendall(b"x" * 1000)
            taken.sendall(b"y" * 300)
            wait_for(lambda: len(client.recv(300, socket.MSG_PEEK)) == 300, "the bytes")
            wait_for(lambda: len(taken.recv(1000, socket.MSG_PEEK)) == 1000, "the bytes")
            inode = os.fstat(client.fileno()).st_ino
            # The kernel counts the client's SYN as a byte.
            wait_for(lambda: traffic(inode) == (1001, 300), "them to be acknowledged")


def test_the_connection_that_a_process_opened_first_is_its_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        own = psutil.Process()
        with socket.create_connection(server.getsockname()):
            ends = [end for end in own.net_connections("tcp") if end.status != psutil.CONN_LISTEN]
            first = min(ends, key=lambda end: end.fd).fd
            assert counters.own_connection(own.pid, is_direct=True) == os.fstat(first).st_ino
    assert counters.own_connection(2**22 - 1, is_direct=True) is None
