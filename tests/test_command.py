"""The command lines of ssh, and that real ssh takes them as they are meant."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from holdfast.openssh import command
from holdfast.openssh.settings import Settings
from tests.sshd import free_port

OPTIONS = ["-F", "/some/config", "-o", "Compression=yes", "-p", "2222", "-i", "/key", "-J", "bastion", "-l", "ann"]


def master(
    options: Sequence[str] = (),
    *,
    host: str = "lab",
    in_terminal: bool = False,
    in_dialogue: bool = False,
    defaults: Mapping[str, str] | None = None,
    socket: str = "/run/ctl",
) -> list[str]:
    return command.master(
        host,
        options,
        Path(socket),
        Path("/log"),
        in_terminal=in_terminal,
        in_dialogue=in_dialogue,
        defaults=defaults or {},
    )


def values(argv: Sequence[str], name: str) -> list[str]:
    """What `argv` gives the option `name` with -o, in order."""
    pairs = [word.partition("=") for word in argv if "=" in word]
    return [value for key, _, value in pairs if key == name]


def shown(argv: list[str]) -> Settings:
    """What real ssh makes of `argv`; fails when it refuses any of it."""
    run = [argv[0], "-G", *argv[1:]]
    ran = subprocess.run(run, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert ran.returncode == 0, ran.stderr
    return Settings(ran.stdout)


IN_TERMINAL = pytest.mark.parametrize("in_terminal", [False, True])


@IN_TERMINAL
def test_two_dashes_stand_before_the_host_and_nothing_after_it(in_terminal: bool) -> None:
    argv = master(OPTIONS, in_terminal=in_terminal, defaults={"IPQoS": "none"})
    assert argv[-2:] == ["--", "lab"]
    assert argv.count("--") == 1


def test_the_settings_of_a_host_are_asked_for_with_two_dashes_before_it() -> None:
    argv = command.show_settings("-oProxyCommand=id", OPTIONS)
    assert argv[-3:] == ["-G", "--", "-oProxyCommand=id"]
    assert argv[-3 - len(OPTIONS) : -3] == OPTIONS


@IN_TERMINAL
def test_the_users_options_come_in_their_order_after_ours_and_before_what_we_prefer(in_terminal: bool) -> None:
    argv = master(OPTIONS, in_terminal=in_terminal, defaults={"Compression": "no"})
    start = argv.index("-F")
    assert argv[start : start + len(OPTIONS)] == OPTIONS
    assert argv.index("ControlPersist=no") < start
    assert argv.index("Compression=no") > start


def test_without_a_terminal_ssh_never_asks_and_stays_a_child_that_says_when_it_is_ready() -> None:
    argv = master()
    assert values(argv, "BatchMode") == ["yes"]
    assert values(argv, "ForkAfterAuthentication") == ["no"]
    assert values(argv, "PermitLocalCommand") == ["yes"]
    assert values(argv, "LocalCommand") == ["echo ready"]
    assert "-f" not in argv


def test_in_a_dialogue_ssh_may_ask_once_for_a_password_and_stays_a_child_that_says_when_it_is_ready() -> None:
    argv = master(["-F", "none"], in_dialogue=True)
    found = shown(argv)
    assert found.get("batchmode") == "no"
    assert found.get("numberofpasswordprompts") == "1"
    assert [word for word in argv if word not in master(["-F", "none"])] == ["NumberOfPasswordPrompts=1"]


def test_in_a_terminal_ssh_may_ask_and_then_goes_into_the_background() -> None:
    argv = master(in_terminal=True)
    assert "-f" in argv
    assert not values(argv, "BatchMode")
    assert not values(argv, "ForkAfterAuthentication")
    assert not values(argv, "LocalCommand")
    assert values(argv, "PermitLocalCommand") == ["no"]


@pytest.mark.parametrize("name", command.RECENT)
def test_an_option_that_this_ssh_does_not_know_is_left_out(name: str) -> None:
    argv = command.master("lab", [], Path("/c"), Path("/l"), in_terminal=False, defaults={}, unknown=[name])
    assert values(master(), name)
    assert not values(argv, name)
    assert len(argv) == len(master()) - 2


@IN_TERMINAL
def test_no_option_of_ours_is_given_twice(in_terminal: bool) -> None:
    names = [word.partition("=")[0] for word in master(in_terminal=in_terminal) if "=" in word]
    assert len(names) == len(set(names))


def test_a_percent_sign_in_the_path_of_the_socket_is_doubled() -> None:
    argv = master(socket="/run/100%h %C")
    assert argv[argv.index("-S") + 1] == "/run/100%%h %%C"


@IN_TERMINAL
@pytest.mark.parametrize("path", ["/run/ctl", "/run/100%h", "/run/%%", "/run/a b", "/run/ü"])
def test_real_ssh_puts_the_socket_exactly_where_it_is_told(path: str, in_terminal: bool) -> None:
    argv = master(["-F", "none"], socket=path, in_terminal=in_terminal)
    assert shown(argv).get("controlpath") == path


@IN_TERMINAL
def test_real_ssh_takes_every_option(in_terminal: bool) -> None:
    options = ["-F", "none", *OPTIONS[2:]]
    found = shown(master(options, in_terminal=in_terminal, defaults={"IPQoS": "none", "ConnectTimeout": "15"}))
    assert found.get("user") == "ann"
    assert found.get("port") == "2222"
    assert found.get("proxyjump") == "bastion"
    assert found.get("connecttimeout") == "15"
    assert found.get("controlmaster") == "true"


def test_real_ssh_lets_the_users_own_options_win_over_what_we_prefer() -> None:
    found = shown(master(["-F", "none", "-o", "ConnectTimeout=99"], defaults={"ConnectTimeout": "15"}))
    assert found.get("connecttimeout") == "99"


# --- through jump hosts, with nobody there to ask ---


def proxy_of(options: Sequence[str]) -> list[str]:
    """The words of the ProxyCommand in `options`, as a shell splits them."""
    (proxy,) = values(options, "ProxyCommand")
    return shlex.split(proxy)


def test_without_a_jump_host_the_options_are_the_users() -> None:
    assert command.unattended(OPTIONS[:-4], "") == OPTIONS[:-4]


def test_a_jump_host_is_reached_by_an_ssh_that_never_asks_and_tells_how_far_its_connect_has_come() -> None:
    proxy = proxy_of(command.unattended(OPTIONS, "ann@bastion:2222"))
    assert proxy[:3] == ["ssh", "-F", "/some/config"]
    assert values(proxy, "BatchMode") == ["yes"]
    assert values(proxy, "LogVerbose") == ["sshconnect.c:ssh_connect_direct():*"]
    assert proxy[-4:] == ["-W", "[%h]:%p", "--", "ssh://ann@bastion:2222"]
    assert "-J" not in proxy


def test_of_several_jump_hosts_the_last_is_reached_through_those_before_it() -> None:
    proxy = proxy_of(command.unattended((), "first,second,third"))
    assert proxy[proxy.index("-J") + 1] == "first,second"
    assert proxy[-1] == "ssh://third"


def test_the_users_options_stay_but_for_the_jump_hosts_that_they_name() -> None:
    options = command.unattended(OPTIONS, "bastion")
    assert options[2:] == [word for word in OPTIONS if word not in ("-J", "bastion")]


def test_an_ssh_that_can_not_tell_how_far_a_connect_has_come_is_not_asked_to() -> None:
    assert not values(proxy_of(command.unattended((), "bastion", ["LogVerbose"])), "LogVerbose")


@pytest.mark.parametrize(
    ("jump", "user", "host", "port"),
    [
        ("bastion", "", "bastion", "22"),
        ("ann@bastion:2222", "ann", "bastion", "2222"),
        ("first,ann@second", "ann", "second", "22"),
        ("ssh://ann@bastion:2222", "ann", "bastion", "2222"),
    ],
)
def test_real_ssh_takes_the_way_through_a_jump_host_and_so_does_the_one_that_it_runs(
    jump: str, user: str, host: str, port: str
) -> None:
    argv = master(command.unattended(["-F", "none", "-J", "as-it-was"], jump))
    (proxy,) = values(argv, "ProxyCommand")
    assert shown(argv).get("proxycommand") == proxy
    inner = shown(shlex.split(re.sub("%([hp%])", lambda found: {"h": "lab", "p": "22"}.get(found[1], "%"), proxy)))
    assert inner.get("user") == user or not user
    assert (inner.get("hostname"), inner.get("port"), inner.get("batchmode")) == (host, port, "yes")


@pytest.mark.parametrize("jump", [False, True])
def test_real_ssh_tells_that_it_asks_for_a_connection_and_not_that_it_has_one_before_it_has(
    tmp_path: Path, jump: bool
) -> None:
    hop = f"127.0.0.1:{free_port()}"
    options = ["-F", "none", "-o", "ConnectTimeout=5", "-p", str(free_port())]
    through = command.unattended(options, hop) if jump else options
    with (tmp_path / "log").open("ab") as log:
        argv = command.master(
            "localhost", through, tmp_path / "c", tmp_path / "log", in_terminal=False, defaults={}
        )
        ended = subprocess.run(argv, stdin=subprocess.DEVNULL, stderr=log, check=False, timeout=20)
    said = (tmp_path / "log").read_text()
    assert ended.returncode == 255
    assert command.CONNECTING in said
    assert command.CONNECTED not in said


HOSTILE = """
Host *
  HostName 127.0.0.1
  ControlPersist 10m
  ControlMaster auto
  ControlPath /tmp/theirs
  RemoteCommand rm -rf /
  LocalForward 8888 localhost:8888
  RemoteForward 9999 localhost:9999
  DynamicForward 1080
  Tunnel yes
  RequestTTY force
  LogLevel QUIET
  ForkAfterAuthentication yes
  StdinNull yes
  SessionType subsystem
  ExitOnForwardFailure yes
  GatewayPorts yes
  PermitLocalCommand no
  LocalCommand rm -rf /
  BatchMode no
  ForwardAgent yes
  ForwardX11 yes
"""

# What must hold whatever the user's file says, and what depends on there being a terminal.
MUST = {
    "controlpersist": "no",
    "controlpath": "/run/ctl",
    "controlmaster": "true",
    "clearallforwardings": "yes",
    "localforward": "",
    "remoteforward": "",
    "dynamicforward": "",
    "tunnel": "false",
    "remotecommand": "",
    "requesttty": "false",
    "sessiontype": "none",
    "exitonforwardfailure": "no",
    "gatewayports": "no",
    "forwardagent": "no",
    "forwardx11": "no",
}
WITHOUT_TERMINAL = {
    "forkafterauthentication": "no",
    "stdinnull": "no",
    "batchmode": "yes",
    "permitlocalcommand": "yes",
    "localcommand": "echo ready",
    "loglevel": "VERBOSE",
}
IN_A_TERMINAL = {
    "loglevel": "INFO",
    "forkafterauthentication": "yes",
    "permitlocalcommand": "no",
    "batchmode": "no",
}


@pytest.mark.parametrize(
    ("in_terminal", "expected"), [(False, MUST | WITHOUT_TERMINAL), (True, MUST | IN_A_TERMINAL)]
)
def test_real_ssh_overrides_a_hostile_configuration(
    tmp_path: Path, in_terminal: bool, expected: dict[str, str]
) -> None:
    config = tmp_path / "config"
    config.write_text(HOSTILE)
    found = shown(master(["-F", str(config)], in_terminal=in_terminal))
    assert {name: found.get(name) for name in expected} == expected


@IN_TERMINAL
def test_options_that_the_users_own_file_says_to_ignore_are_ignored(tmp_path: Path, in_terminal: bool) -> None:
    config = tmp_path / "config"
    config.write_text("IgnoreUnknown UseKeychain\nHost *\n  UseKeychain yes\n")
    asked = ["-F", str(config)]
    assert shown(master(asked, in_terminal=in_terminal)).get("ignoreunknown") == "UseKeychain"


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("OpenSSH_9.2p1 Debian-2+deb12u10, OpenSSL 3.0.22", (9, 2)),
        ("OpenSSH_10.0p2", (10, 0)),
        ("OpenSSH_8.0", (8, 0)),
        ("OpenSSH_10.12p1", (10, 12)),
        ("OpenSSH_for_Windows_8.1p1, LibreSSL 3.0.2", (8, 1)),
        ("OpenSSH_7.9p1\nmore", (7, 9)),
        ("", None),
        ("Sun_SSH_1.1", None),
        ("dropbear_2022.83", None),
        ("OpenSSH_", None),
        ("OpenSSH_9", None),
        ("bash: OpenSSH_9.2p1: command not found", None),
    ],
)
def test_the_version_of_what_ssh_prints_is(printed: str, version: tuple[int, int] | None) -> None:
    assert command.parse_version(printed) == version


def test_the_version_of_this_machines_ssh_is_one_that_was_tested() -> None:
    printed = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr
    version = command.parse_version(printed)
    assert version is not None
    assert version >= command.OLDEST
