"""The network of namespaces keeps its promises: each fault does what it says, and nothing is left."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest

from tests.conftest import tunnel
from tests.network import Namespace, Network, NotPossible, Plug, network, network_or_skip, sweep, why_not
from tests.sshd import free_port, wait_for

__all__ = ["network"]

needs_namespaces = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def ours() -> list[str]:
    """The namespaces of this process."""
    return [path.name for path in Path("/run/netns").iterdir() if f"hfnet-{os.getpid()}-" in path.name]


def carrier(network: Network) -> str:
    """What the client's kernel says of its cable."""
    (link,) = json.loads(network.client.ip("-json", "link", "show", "router"))
    return str(link["operstate"])


def banner(network: Network, seconds: float) -> bytes:
    """What the server's sshd says first. Raises TimeoutError after `seconds` of silence."""
    with network.connect(network.sshd.port, host=network.SERVER, timeout=seconds) as connection:
        return connection.recv(4)


def ssh(network: Network, *words: str) -> subprocess.CompletedProcess[str]:
    return network.run("ssh", "-F", str(network.config), *words)


def open_session(network: Network) -> subprocess.Popen[str]:
    """An ssh that stays, with a command that runs over there."""
    process = network.popen("ssh", "-F", str(network.config), "lab", "echo here; exec sleep 600")
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


def far_socket(network: Network) -> socket.socket:
    """A UDP socket on the server."""
    far = network.server.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    far.bind((network.SERVER, 0))
    far.settimeout(5)
    return far


def near_socket(network: Network) -> socket.socket:
    """A UDP socket on the client, on its address of today."""
    near = network.client.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    near.bind((network.address, 0))
    near.settimeout(5)
    return near


def test_a_forward_leads_from_the_client_to_the_servers_loopback(network: Network) -> None:
    web, port = network.serve_web(), free_port()
    network.popen("ssh", "-F", str(network.config), "-NT", "-L", f"{port}:127.0.0.1:{web.port}", "lab")
    wait_for(lambda: f":{port}" in network.run("ss", "-Hltn").stdout, "the forward")
    assert network.get(port) == b"hello"


def test_the_port_of_a_forward_is_open_on_the_client_only(network: Network) -> None:
    port = free_port()
    with network.client.call(lambda: socket.create_server(("127.0.0.1", port))):
        network.connect(port).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)


def test_keeper_and_master_stay_on_the_client(network: Network) -> None:
    web, port = network.serve_web(), free_port()
    shown = network.holdfast("up", "lab", f"{port}:{web.port}", "-F", str(network.config), "--json")
    assert tunnel(shown)["state"] == "up"
    assert network.get(port) == b"hello"
    commands = [psutil.Process(pid).cmdline() for pid in network.client.pids()]
    assert any("holdfast.keeper" in words for words in commands)
    assert any(words[0] == "ssh" for words in commands)


@pytest.mark.parametrize("plug", Plug)
def test_the_client_sees_a_cut_and_comes_through_after_it(network: Network, plug: Plug) -> None:
    network.cut(plug)
    wait_for(lambda: carrier(network) == "DOWN", "the client to see the cut")
    network.mend()
    wait_for(lambda: carrier(network) == "UP", "the client to see the cable")
    assert banner(network, 5) == b"SSH-"


@pytest.mark.parametrize(
    ("named", "forth", "back"),
    [((), False, False), (("to_server",), False, True), (("to_client",), True, False)],
    ids=["both ways", "to the server", "to the client"],
)
def test_a_drop_loses_what_goes_its_way_and_the_client_sees_nothing(
    network: Network, named: tuple[str, ...], forth: bool, back: bool
) -> None:
    with near_socket(network) as near, far_socket(network) as far:
        network.drop(**dict.fromkeys(named, True))
        near.sendto(b"during", far.getsockname())
        far.sendto(b"during", near.getsockname())
        assert carrier(network) == "UP"
        network.pass_again()
        near.sendto(b"after", far.getsockname())
        far.sendto(b"after", near.getsockname())
        assert far.recv(10) == (b"during" if forth else b"after")
        assert near.recv(10) == (b"during" if back else b"after")


def test_a_changed_address_replaces_the_old_one(network: Network) -> None:
    old, new = network.address, network.change_address()
    assert old != new
    assert old not in network.client.ip("address")
    with network.connect(network.sshd.port, host=network.SERVER) as connection:
        assert connection.getsockname()[0] == new
        assert connection.recv(4) == b"SSH-"


def test_a_frozen_server_says_nothing_until_it_is_thawed(network: Network) -> None:
    session = open_session(network)
    network.freeze()
    assert {psutil.Process(pid).status() for pid in network.server.pids()} == {psutil.STATUS_STOPPED}
    with pytest.raises(TimeoutError):
        banner(network, 0.2)
    network.thaw()
    assert banner(network, 5) == b"SSH-"
    assert session.poll() is None


def test_killed_sessions_end_what_they_carry_and_sshd_goes_on(network: Network) -> None:
    session = open_session(network)
    network.kill_sessions()
    assert session.wait(10) == 255
    assert ssh(network, "lab", "true").returncode == 0


def test_after_a_restart_with_another_host_key_ssh_stops(network: Network, keys: Path) -> None:
    network.restart_sshd(host_key=keys / "other_host")
    refused = ssh(network, "lab", "true")
    assert refused.returncode == 255
    assert "HOST IDENTIFICATION HAS CHANGED" in refused.stderr


def test_with_a_jump_host_the_server_is_reached_from_there(
    home: Path, keys: Path, environment: Mapping[str, str]
) -> None:
    with network_or_skip(home, keys, environment, jump=True) as network:
        shown = ssh(network, "lab", "echo $SSH_CONNECTION").stdout
        assert shown.split()[0] == network.JUMP


def test_a_delay_is_added_to_each_round_trip(network: Network) -> None:
    try:
        network.delay(0.4)
    except NotPossible as error:
        pytest.skip(str(error))
    with pytest.raises(TimeoutError):
        network.connect(network.sshd.port, host=network.SERVER, timeout=0.3)


@needs_namespaces
@pytest.mark.parametrize("how", ["a process goes on", "the server is frozen", "the test fails", "building fails"])
def test_nothing_is_left_of_a_network(
    home: Path, keys: Path, environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def use(network: Network) -> None:
        left.append(network.popen("sleep", "600"))
        wait_for(lambda: left[0].pid in network.client.pids(), "the process to be in the namespace")
        if how == "the server is frozen":
            network.freeze()
        if how == "the test fails":
            raise ZeroDivisionError

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    left: list[subprocess.Popen[str]] = []
    if how == "building fails":
        monkeypatch.setattr(Network, "_route_the_client", fail)
        monkeypatch.setattr("tests.sshd.Sshd.start", fail)
    try:
        with Network(home, keys, environment) as network:
            use(network)
    except ZeroDivisionError:
        pass
    assert ours() == []
    assert all(process.returncode is not None for process in left)


@needs_namespaces
def test_left_overs_of_killed_runs_are_swept_and_those_of_living_ones_are_not() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait(10)
    dead, alive = Namespace(f"hfnet-{ended.pid}-1-client"), Namespace(f"hfnet-{os.getpid()}-0-client")
    try:
        dead.add()
        alive.add()
        with subprocess.Popen([*dead.prefix, "sleep", "600"]) as process:
            wait_for(lambda: dead.pids(), "the process to be in the namespace")
            sweep()
            assert process.wait(5) == -9
        assert not Path(f"/run/netns/{dead.name}").exists()
        assert Path(f"/run/netns/{alive.name}").exists()
    finally:
        alive.remove()


@needs_namespaces
def test_a_call_leaves_the_threads_of_the_test_where_they_were(call_reading: Callable[[], str]) -> None:
    namespace = Namespace(f"hfnet-{os.getpid()}-0-client")
    namespace.add()
    try:
        before = call_reading()
        assert namespace.call(call_reading) != before
        assert call_reading() == before
    finally:
        namespace.remove()


@pytest.fixture
def call_reading() -> Callable[[], str]:
    """Reads which network namespace the calling thread is in."""
    return lambda: str(Path("/proc/thread-self/ns/net").readlink())
