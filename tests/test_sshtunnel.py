"""Programs written for sshtunnel do what they did: its documented examples, and what its own tests ask for."""

from __future__ import annotations

import contextlib
import gc
import inspect
import logging
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import HoldfastError
from holdfast.sshtunnel import (
    ArgumentRefused,
    BaseSSHTunnelForwarderError,
    HandlerSSHTunnelForwarderError,
    SSHTunnelForwarder,
    create_logger,
    open_tunnel,
)
from holdfast.sshtunnel_arguments import forwards, key_files, proxy_options, specification
from tests.conftest import Run, Web, get, is_open, tunnel
from tests.sshd import Sshd, free_port, make_key, wait_for

paramiko: Any = pytest.importorskip("paramiko", reason="sshtunnel, of the group bench, brings it")

LOG = logging.getLogger("tests.sshtunnel")
THERE = ("127.0.0.1", 5432)

Open = Callable[..., SSHTunnelForwarder]


@pytest.fixture(autouse=True)
def _all_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, LOG.name)


@pytest.fixture
def lab(holdfast: Run, sshd: Sshd, environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Open:
    """`open_tunnel` to the test's host, in a process whose keeper is the test's."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def open_it(*arguments: Any, **more: Any) -> SSHTunnelForwarder:
        where = () if arguments or "ssh_address_or_host" in more else ("lab",)
        return open_tunnel(*where, *arguments, ssh_config_file=sshd.config, logger=LOG, **more)

    return open_it


def to(**more: Any) -> SSHTunnelForwarder:
    """A forwarder that is never started."""
    return SSHTunnelForwarder(
        **{"ssh_address_or_host": "lab", "remote_bind_address": THERE, "logger": LOG, **more}
    )


@contextlib.contextmanager
def paramikos(command: str) -> Iterator[Any]:
    """paramiko's object for a proxy's command, which it runs at once."""
    proxy = paramiko.ProxyCommand(command)
    yield proxy
    with proxy.process as process:
        process.kill()


# What is refused, before anything is started


@pytest.mark.parametrize(
    ("given", "way_out"),
    [
        ({"ssh_password": "secret"}, "holdfast up lab 0:5432"),
        (
            {"ssh_password": "secret", "ssh_port": 2222, "ssh_username": "ann"},
            "holdfast up lab -l ann -p 2222 0:5432",
        ),
        ({"ssh_private_key_password": "secret"}, "ssh-add KEYFILE"),
        ({"ssh_pkey": object()}, "ssh-add KEYFILE"),
        ({"ssh_pkey": paramiko.ECDSAKey.generate()}, "ssh_pkey can't be a ECDSAKey"),
        ({"ssh_host_key": "lab ssh-ed25519 AAAA"}, "ssh lab"),
        ({"ssh_proxy": object()}, "ProxyJump"),
        ({"ssh_address_or_host": None}, "('lab', 22)"),
        ({"ssh_address_or_host": "lab; reboot"}, "name it as you would for ssh"),
        ({"ssh_username": "-oProxyCommand=reboot"}, "man ssh"),
        ({"ssh_port": 65536}, "from 1 to 65535"),
        ({"remote_bind_address": None}, "remote_bind_address"),
        ({"remote_bind_address": ("127.0.0.1",)}, "('127.0.0.1', 5432)"),
        ({"remote_bind_address": "a.sock"}, "('127.0.0.1', 5432)"),
        ({"remote_bind_addresses": [THERE]}, "Use one of them"),
        ({"local_bind_address": ("", 1), "local_bind_addresses": [("", 1)]}, "Use one of them"),
        ({"local_bind_addresses": [("", 1), ("", 2)]}, "local_bind_addresses > remote_bind_addresses"),
        ({"local_bind_address": ("example.com", 1)}, "write an IP address"),
        ({"i_do_not_exist": 0}, "Unknown arguments"),
    ],
)
def test_what_ssh_can_not_use_is_a_value_error_that_names_the_way_out(given: dict[str, Any], way_out: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        to(**given)
    assert isinstance(caught.value, ArgumentRefused)
    assert isinstance(caught.value, BaseSSHTunnelForwarderError)
    assert isinstance(caught.value, HoldfastError)
    assert way_out in str(caught.value) == caught.value.value
    assert "secret" not in str(caught.value)


def test_a_passphrase_is_refused_with_the_command_for_that_key(keys: Path) -> None:
    for name in ("ssh_private_key_password", "ssh_password"):
        with pytest.raises(ArgumentRefused, match=f"{name}.*ssh-add {keys}/user"):
            to(ssh_pkey=str(keys / "user"), **{name: "secret"})


@pytest.mark.parametrize("name", ["ssh_address", "ssh_host"])
def test_a_host_by_its_old_name_is_taken_with_a_warning_but_not_beside_the_new_one(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"'{name}' is DEPRECATED use 'ssh_address_or_host'") as told:
        assert "lab2" in repr(to(ssh_address_or_host=None, **{name: ("lab2", 22)}))
    assert {warning.filename for warning in told} == {to.__code__.co_filename}
    with pytest.warns(DeprecationWarning, match=name), pytest.raises(ValueError, match="only use one of them"):
        to(**{name: "lab2"})


def test_the_other_old_names_are_taken_with_a_warning(keys: Path) -> None:
    with pytest.warns(DeprecationWarning, match="'ssh_private_key' is DEPRECATED use 'ssh_pkey'"):
        assert to(ssh_private_key=keys / "user").ssh_pkeys == [str(keys / "user")]
    with pytest.warns(DeprecationWarning, match="use 'mute_exceptions' instead"):
        to(raise_exception_if_any_forwarder_have_a_problem=False)
    with pytest.warns(DeprecationWarning, match="'block_on_close' is DEPRECATED"):
        open_tunnel("lab", remote_bind_address=THERE, block_on_close=True)


# What the arguments become


@pytest.mark.parametrize(
    ("local", "remote", "written"),
    [
        (("", 0), ("127.0.0.1", 8888), "0:8888"),
        (("localhost", 9999), ("127.0.0.1", 8888), "9999:8888"),
        (("127.0.0.1", 9999), ("127.0.0.1", 8888), "127.0.0.1:9999:127.0.0.1:8888"),
        (("", 1), ("db", 2), "localhost:1:db:2"),
        (("0.0.0.0", 1), ("::1", 2), "0.0.0.0:1:[::1]:2"),
        (("::1", 1), "/run/a:b.sock", "[::1]:1:/run/a\\:b.sock"),
        ("/tmp/a.sock", ("127.0.0.1", 2), "/tmp/a.sock:127.0.0.1:2"),
    ],
)
def test_a_pair_of_addresses_is_a_forward_that_up_would_take(local: Any, remote: Any, written: str) -> None:
    (forward,) = forwards([local], [remote])
    assert specification(forward) == written
    host, port = ("", 0) if isinstance(local, str) else local
    assert forward.listen == (
        host or ("localhost" if port or not forward.listen.path else ""),
        port,
        forward.listen.path,
    )


def test_a_proxy_is_a_command_or_another_address_for_the_same_host() -> None:
    with paramikos("cat - '%h'") as command:
        assert proxy_options(command, "lab", 22, enabled=True) == ["-o", "ProxyCommand=cat - %%h"]
        assert command.process.wait(5) == -signal.SIGTERM  # it isn't needed: ssh starts its own
    assert proxy_options("nc %h %p", "lab", None, enabled=True) == ["-o", "ProxyCommand=nc %h %p"]
    words = ("-o", "HostName=10.0.0.1", "-o", "Port=2222", "-o")
    assert proxy_options(("10.0.0.1", 2222), "lab", None, enabled=True) == [*words, "HostKeyAlias=lab"]
    assert proxy_options(("10.0.0.1", 2222), "lab", 23, enabled=True) == [*words, "HostKeyAlias=[lab]:23"]
    assert proxy_options("nc %h %p", "lab", None, enabled=False) == ["-o", "ProxyCommand=none"]


def test_keys_are_those_that_are_there(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    key, other = make_key(home / "id_ed25519"), home / "id_rsa.pub"
    other.touch()
    assert key_files(key, [home], LOG) == [str(key), str(key)]
    assert key_files(None, None, LOG) == []
    assert caplog.messages == []
    assert key_files("not_there", [home / "nowhere"], LOG) == []
    assert caplog.messages == ["Private key file not found: not_there"]


def test_a_configuration_that_is_not_there_is_told_of_and_counts_as_none(caplog: pytest.LogCaptureFixture) -> None:
    forwarder = to(ssh_config_file="not_existing_file")
    assert caplog.messages == ["Could not read SSH configuration file: not_existing_file"]
    assert (forwarder.ssh_host, forwarder.ssh_port) == ("lab", 22)
    assert to(ssh_config_file=None, ssh_port=2222, ssh_username="ann").ssh_username == "ann"


def test_a_logger_is_given_a_level_and_a_handler_once() -> None:
    name = "tests.sshtunnel.own"
    own = logging.getLogger(name)
    assert create_logger(own, "TRACE") is own
    assert create_logger(own) is own
    assert (own.level, len(own.handlers), own.handlers[0].level) == (1, 1, 1)
    assert create_logger().name == "sshtunnel.SSHTunnelForwarder"
    own.handlers.clear()


@pytest.mark.parametrize(
    ("port", "options"), [("2222", ("-p", "2222")), (2222, ("-p", "2222")), ("", ()), (None, ())]
)
def test_a_port_may_be_text_as_the_environment_has_it(port: int | str | None, options: tuple[str, ...]) -> None:
    assert to(ssh_port=port)._options == options


def test_a_port_that_is_no_number_is_refused() -> None:
    with pytest.raises(ArgumentRefused):
        to(ssh_port="ssh")


# What happens


def test_sshtunnels_first_three_examples_work_with_a_key(lab: Open, sshd: Sshd, web: Web, holdfast: Run) -> None:
    server = lab(
        ("lab", sshd.port),
        ssh_username=sshd_user(sshd),
        ssh_pkey=str(sshd.user_key),
        compression=True,
        allow_agent=False,
        set_keepalive=2.0,
        threaded=False,
        remote_bind_address=("127.0.0.1", web.port),
        local_bind_address=("127.0.0.1", free_port()),
    )
    with pytest.raises(BaseSSHTunnelForwarderError, match="Server is not started"):
        server.local_bind_port  # noqa: B018 - it raises
    assert server.tunnel_bindings == {}
    assert (server.is_active, server.is_alive) == (False, False)
    server.start()
    assert (server.is_active, server.is_alive) == (True, True)
    assert get(server.local_bind_port) == b"hello"
    assert server.local_bind_address == (server.local_bind_host, server.local_bind_port)
    assert (server.ssh_host, server.ssh_port, server.ssh_username) == ("127.0.0.1", sshd.port, sshd_user(sshd))
    assert tunnel(holdfast("status", "--json"))["options"] == [
        *("-F", str(sshd.config), "-l", sshd_user(sshd), "-p", str(sshd.port), "-i", str(sshd.user_key)),
        *("-o", "Compression=yes", "-o", "IdentityAgent=none"),
    ]
    port = server.local_bind_port
    server.close()
    assert not is_open(port)
    assert (server.is_active, server.is_alive, server.tunnel_is_up) == (False, False, {})


def sshd_user(sshd: Sshd) -> str:
    return next(
        line.split()[1] for line in sshd.config.read_text().splitlines() if line.strip().startswith("User ")
    )


def test_sshtunnels_fourth_example_a_tunnel_in_a_tunnel_works(lab: Open, sshd: Sshd, web: Web) -> None:
    sshd.configure("Host localhost", f"IdentityFile {sshd.user_key}", "NoHostAuthenticationForLocalhost yes")
    with lab(remote_bind_address=("127.0.0.1", sshd.port)) as first:
        inner = ("localhost", first.local_bind_port)
        with lab(ssh_address_or_host=inner, remote_bind_address=("127.0.0.1", web.port)) as second:
            assert get(second.local_bind_port) == b"hello"


def test_the_command_that_the_refusal_of_a_password_names_is_what_the_program_then_finds_up(
    lab: Open, sshd: Sshd, web: Web, holdfast: Run
) -> None:
    wanted = {"ssh_username": sshd_user(sshd), "remote_bind_address": ("127.0.0.1", web.port)}
    with pytest.raises(ArgumentRefused) as caught:
        lab(**wanted, ssh_password="secret")
    _, _, words = caught.value.hint.partition("in a terminal: holdfast ")
    shown = tunnel(holdfast(*shlex.split(words), "--json"))
    with lab(**wanted) as server:
        found = tunnel(holdfast("status", "--json"))
        assert (found["name"], found["master_pid"]) == (shown["name"], shown["master_pid"])
        assert get(server.local_bind_port) == b"hello"
    (left,), (before,) = (each["forwards"] for each in (tunnel(holdfast("status", "--json")), shown))
    assert (left["listen"], left["kept"], left["leases"]) == (before["listen"], True, 0)


def test_several_tunnels_are_told_of_each_by_itself(
    lab: Open, web: Web, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead, path, here = ("127.0.0.1", free_port()), str(home / "web.sock"), free_port()
    alive = ("127.0.0.1", web.port)
    with lab(
        remote_bind_addresses=[alive, dead, alive],
        local_bind_addresses=[("localhost", here), ("127.0.0.1", free_port()), path],
        skip_tunnel_checkup=False,
    ) as server:
        first, second, third = server.local_bind_addresses
        assert (first, third) == (("127.0.0.1", here), path)
        assert server.local_bind_hosts == ["127.0.0.1"] * 2
        assert server.local_bind_ports == [here, second[1]]
        for name in ("port", "host", "address"):
            with pytest.raises(BaseSSHTunnelForwarderError, match=f"Use .local_bind_{name}"):
                getattr(server, f"local_bind_{name}")
        assert server.tunnel_is_up == {first: True, second: False, path: True}
        assert server.tunnel_bindings == {alive: path}
        web.shutdown()
        web.server_close()
        server.check_tunnels()
        assert set(server.tunnel_is_up.values()) == {False}
        assert not server.local_is_up(first)
        assert f"Tunnel to {alive} is DOWN" in caplog.messages
        server.start()
        assert "Already started!" in caplog.messages


def test_a_program_with_very_many_descriptors_can_check_its_tunnels(
    lab: Open, sshd: Sshd, web: Web, environment: Mapping[str, str]
) -> None:
    source = f"""
import os, resource
from holdfast.sshtunnel import SSHTunnelForwarder
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
many = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
with SSHTunnelForwarder("lab", "{sshd.config}", remote_bind_address=("127.0.0.1", {web.port})) as server:
    assert server.local_is_up(server.local_bind_address)
"""
    subprocess.run([sys.executable, "-c", source], env=environment, check=True, timeout=30)


def test_a_restart_is_a_new_connection_on_the_same_port(lab: Open, web: Web, holdfast: Run) -> None:
    with lab(remote_bind_address=("127.0.0.1", web.port), local_bind_address=("127.0.0.1",)) as server:
        port, master = server.local_bind_port, tunnel(holdfast("status", "--json"))["master_pid"]
        server.restart()
        assert server.local_bind_port == port
        assert tunnel(holdfast("status", "--json"))["master_pid"] != master
        assert get(port) == b"hello"


def test_a_restart_of_what_another_shares_is_on_the_same_addresses(lab: Open, web: Web) -> None:
    wanted = {"remote_bind_address": ("127.0.0.1", web.port)}
    with lab(**wanted) as one, lab(**wanted) as other:
        assert one.local_bind_port == other.local_bind_port
        one.restart()
        assert one.local_bind_port == other.local_bind_port
        other.restart()
        assert is_open(one.local_bind_port, "::1")
        assert get(one.local_bind_port) == b"hello"


def test_a_restart_that_failed_is_on_the_same_port_the_next_time(lab: Open, sshd: Sshd, web: Web) -> None:
    with lab(remote_bind_address=("127.0.0.1", web.port)) as server:
        port = server.local_bind_port
        sshd.stop()
        server.start_timeout = 0.5
        with pytest.raises(BaseSSHTunnelForwarderError, match="is not reached"):
            server.restart()
        sshd.start()
        server.start_timeout = 60
        server.restart()
        assert server.local_bind_port == port


def test_an_outage_ends_by_itself_and_the_port_is_the_same(lab: Open, sshd: Sshd, web: Web) -> None:
    with lab(remote_bind_address=("127.0.0.1", web.port)) as server:
        port = server.local_bind_port
        sshd.stop()
        wait_for(lambda: not server.is_active, "the outage to be known")
        assert server.is_alive
        sshd.start()
        assert get(port) == b"hello"
        wait_for(lambda: server.is_active, "its end to be known")
        assert server.local_bind_port == port


def test_a_proxy_command_is_used(lab: Open, sshd: Sshd, web: Web) -> None:
    words = ["ssh", "-F", str(sshd.config), "-W", f"127.0.0.1:{sshd.port}", "lab"]
    with (
        paramikos(shlex.join(words)) as through,
        lab(ssh_proxy=through, remote_bind_address=("127.0.0.1", web.port)) as server,
    ):
        assert get(server.local_bind_port) == b"hello"
        assert server.ssh_proxy is through


def test_every_address_is_listened_on_only_where_that_is_written(
    lab: Open, web: Web, holdfast: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with lab(remote_bind_address=("127.0.0.1", web.port), local_bind_address=("", free_port())) as server:
        assert server.local_bind_host == "127.0.0.1"
        assert server.local_is_up(("localhost", server.local_bind_port))
        assert not server.local_is_up(("127.0.0.2", server.local_bind_port))
    everywhere = ("0.0.0.0", free_port())
    with lab(remote_bind_address=("127.0.0.1", web.port), local_bind_address=everywhere) as server:
        assert server.local_bind_port == everywhere[1]
        assert server.local_is_up(("127.0.0.1", everywhere[1]))
        assert get(server.local_bind_port) == b"hello"
        assert tunnel(holdfast("status", "--json"))["forwards"][0]["exposed"]
    assert f"Other machines can connect to 0.0.0.0:{everywhere[1]}" in caplog.messages


def test_what_goes_wrong_is_raised_or_logged_and_leaves_nothing(
    lab: Open, sshd: Sshd, holdfast: Run, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = {"remote_bind_address": ("127.0.0.1", free_port()), "local_bind_address": ("127.0.0.1", free_port())}
    with (
        pytest.raises(HandlerSSHTunnelForwarderError, match="nothing listens"),
        lab(**nobody, skip_tunnel_checkup=False),
    ):
        pass
    unreachable = lab(("lab", free_port()), **nobody)
    unreachable.start_timeout = 0.5
    with pytest.raises(BaseSSHTunnelForwarderError, match=r"is not reached after 0\.5 s"):
        unreachable.start()
    sshd.authorized_keys.write_text("")
    with pytest.raises(BaseSSHTunnelForwarderError, match=rf"holdfast up lab -F {sshd.config} 127.0.0.1:"):
        lab(**nobody).start()
    caplog.clear()
    with lab(**nobody, mute_exceptions=True) as muted:
        assert not muted.is_alive
        assert "holdfast up lab" in caplog.messages[-1]
        muted.stop()
        assert caplog.messages[-1] == "Server is not started. Please .start() first!"
    assert tunnels_in(holdfast) == []


def tunnels_in(holdfast: Run) -> list[str]:
    return holdfast("status", "--short").stdout.split()


def test_a_forwarder_that_is_forgotten_is_closed(lab: Open, web: Web, caplog: pytest.LogCaptureFixture) -> None:
    server = lab(remote_bind_address=("127.0.0.1", web.port))
    server.start()
    port = server.local_bind_port
    del server
    gc.collect()
    assert not is_open(port)
    assert any("you didn't call the .stop()" in message for message in caplog.messages)


def test_a_forwarder_that_the_tunnels_own_thread_finds_forgotten_is_closed(
    lab: Open, sshd: Sshd, web: Web
) -> None:
    server: Any = lab(remote_bind_address=("127.0.0.1", web.port))
    server.start()
    server.itself = server  # only the garbage collector finds it, in whichever thread it happens to run
    port, tunnel = server.local_bind_port, server._tunnel
    wait_for(lambda: tunnel._known is not None, "the first look")
    tunnel._add_listener(lambda _: gc.collect())
    gc.disable()
    try:
        del server
        sshd.drop_connections()
        wait_for(lambda: not is_open(port), "its port to be closed", 30)
    finally:
        gc.enable()
    wait_for(lambda: not tunnel._thread.is_alive(), "its thread to end", 30)


def test_a_program_that_forgets_to_stop_ends_at_once(
    lab: Open, sshd: Sshd, web: Web, environment: Mapping[str, str]
) -> None:
    source = f"""
from holdfast.sshtunnel import SSHTunnelForwarder
server = SSHTunnelForwarder("lab", "{sshd.config}", remote_bind_address=("127.0.0.1", {web.port}))
server.start()
print(server.local_bind_port)
"""
    ran = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True, timeout=15, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    wait_for(lambda: not is_open(int(ran.stdout)), "its port to be closed")


def test_what_sshtunnel_has_is_here_in_the_same_order() -> None:
    original = pytest.importorskip("sshtunnel").SSHTunnelForwarder
    there, here = (list(inspect.signature(each).parameters) for each in (original, SSHTunnelForwarder))
    assert here[: len(there) - 2] == there[:-2]
    assert {name for name in dir(original) if not name.startswith("_")} - set(dir(SSHTunnelForwarder)) == {
        *("get_agent_keys", "get_keys", "read_private_key_file"),  # they give paramiko's objects
    }
