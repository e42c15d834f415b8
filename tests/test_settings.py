"""What `ssh -G` prints, read as real ssh prints it."""

from __future__ import annotations

import getpass
import subprocess
from pathlib import Path

import pytest

from holdfast.errors import UsageError
from holdfast.forward import Forward, Kind, parse
from holdfast.openssh.settings import Settings, preferences


def settings(config: Path, *lines: str, options: tuple[str, ...] = ()) -> Settings:
    """What real ssh says of the host `lab` whose block has `lines`."""
    config.write_text("\n  ".join(["Host lab", "HostName lab.example.com", *lines]) + "\n")
    return show("-F", str(config), *options)


def show(*options: str) -> Settings:
    argv = ["ssh", *options, "-G", "--", "lab"]
    printed = subprocess.run(argv, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    return Settings(printed.stdout)


@pytest.fixture(scope="module")
def baseline() -> Settings:
    return show("-F", "none")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config"


def test_a_key_is_read_as_printed_and_one_that_is_missing_is_empty(config: Path) -> None:
    found = settings(config, "Port 2222", "User ann")
    assert found.get("hostname") == "lab.example.com"
    assert found.get("port") == "2222"
    assert found.get("user") == "ann"
    assert not found.get("proxycommand")


def test_the_first_of_several_values_is_the_one(config: Path) -> None:
    assert settings(config, "IdentityFile /one", "IdentityFile /two").get("identityfile") == "/one"


@pytest.mark.parametrize("text", ["", "\n\n", "lonely", "key  two  spaces \n\x00 \x1b"])
def test_text_that_is_no_setting_harms_nobody(text: str) -> None:
    found = Settings(text)
    assert found.control_path is None
    assert list(found.local_forwards()) == []


@pytest.mark.parametrize(
    ("line", "forward"),
    [
        ("8888 localhost:8888", "8888:localhost:8888"),
        ("8888 127.0.0.1:80", "8888:127.0.0.1:80"),
        ("127.0.0.1:8888 db:80", "127.0.0.1:8888:db:80"),
        ("localhost:8888 db:80", "localhost:8888:db:80"),
        ("[::1]:8888 [::1]:80", "[::1]:8888:[::1]:80"),
        ("8888 [2001:db8::1]:80", "8888:[2001:db8::1]:80"),
        ("*:8888 db:80", "*:8888:db:80"),
        ("8888 /run/x.sock", "8888:/run/x.sock"),
        ("127.0.0.1:8888 /run/x.sock", "127.0.0.1:8888:/run/x.sock"),
        ("/run/x.sock db:80", "/run/x.sock:db:80"),
        ("/run/x.sock /run/y.sock", "/run/x.sock:/run/y.sock"),
        ('8888 "/run/a b.sock"', "8888:/run/a b.sock"),
    ],
)
def test_a_local_forward_line_becomes_that_forward(config: Path, line: str, forward: str) -> None:
    assert list(settings(config, f"LocalForward {line}").local_forwards()) == [parse(forward)]


def test_local_forward_lines_keep_their_order_and_others_are_left_out(config: Path) -> None:
    found = settings(
        config,
        "LocalForward 8002 db:80",
        "RemoteForward 9000 db:80",
        "DynamicForward 1080",
        "LocalForward 8001 db:80",
    )
    assert list(found.local_forwards()) == [parse("8002:db:80"), parse("8001:db:80")]


def test_local_forward_lines_are_local_forwards(config: Path) -> None:
    (forward,) = settings(config, "LocalForward 8888 db:80").local_forwards()
    assert isinstance(forward, Forward)
    assert forward.kind is Kind.LOCAL


def test_a_line_that_holdfast_cannot_open_is_an_error_that_quotes_it(config: Path) -> None:
    found = settings(config, "LocalForward :8888 db:80")
    with pytest.raises(
        UsageError, match=r"'LocalForward \[\]:8888 \[db\]:80' in your ssh configuration"
    ) as raised:
        list(found.local_forwards())
    assert raised.value.hint


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("/tmp/%h", "/tmp/lab.example.com"),
        ("/tmp/%r@%h:%p", "/tmp/ann@lab.example.com:2222"),
        ("/tmp/%n", "/tmp/lab"),
        ("/tmp/%%", "/tmp/%"),
        ("${HOLDFAST_TEST}/ctl", "/from/the/environment/ctl"),
        ("~/ctl", str(Path(f"~{getpass.getuser()}/ctl").expanduser())),
        ('"/tmp/a b"', "/tmp/a b"),
    ],
)
def test_the_control_path_is_expanded(config: Path, monkeypatch: pytest.MonkeyPatch, line: str, path: str) -> None:
    monkeypatch.setenv("HOLDFAST_TEST", "/from/the/environment")
    assert settings(config, "User ann", "Port 2222", f"ControlPath {line}").control_path == Path(path)


@pytest.mark.parametrize("lines", [[], ["ControlPath none"], ["ControlMaster auto"], ["ControlPath relative"]])
def test_without_a_control_path_there_is_none(config: Path, lines: list[str]) -> None:
    assert settings(config, *lines).control_path is None


@pytest.mark.parametrize(
    ("lines", "hop"),
    [
        ([], "lab.example.com:22"),
        (["Port 2222"], "lab.example.com:2222"),
        (["ProxyJump bastion"], "bastion"),
        (["ProxyJump ann@bastion:2222,second"], "ann@bastion:2222"),
        (["ProxyJump none"], "lab.example.com:22"),
        (["ProxyCommand none"], "lab.example.com:22"),
        (["ProxyCommand nc %h %p"], "nc %h %p"),
    ],
)
def test_the_first_hop_is_the_machine_that_is_really_connected_to(
    config: Path, lines: list[str], hop: str
) -> None:
    assert settings(config, *lines).first_hop == hop


@pytest.mark.parametrize(
    ("lines", "jump"),
    [
        ([], ""),
        (["ProxyJump none"], ""),
        (["ProxyJump bastion"], "bastion"),
        (["ProxyJump ann@bastion:2222,second"], "ann@bastion:2222,second"),
        (["ProxyCommand nc %h %p"], ""),
    ],
)
def test_the_jump_hosts_are_told_the_nearest_first(config: Path, lines: list[str], jump: str) -> None:
    assert settings(config, *lines).proxy_jump == jump


def test_two_hosts_behind_one_bastion_share_their_first_hop(config: Path) -> None:
    one = settings(config, "ProxyJump bastion").first_hop
    assert settings(config, "Port 2222", "ProxyJump bastion,other").first_hop == one


OURS = {"ServerAliveInterval": "30", "ServerAliveCountMax": "30", "ConnectTimeout": "15", "IPQoS": "none"}


def test_a_silent_configuration_gets_all_of_ours(config: Path, baseline: Settings) -> None:
    assert preferences(settings(config), baseline, has_aes=False) == OURS


@pytest.mark.parametrize(
    ("line", "without"),
    [
        ("ServerAliveCountMax 9", ["ServerAliveCountMax"]),
        ("ConnectTimeout 60", ["ConnectTimeout"]),
        ("IPQoS throughput", ["IPQoS"]),
    ],
)
def test_what_the_users_file_sets_is_not_set_by_us(
    config: Path, baseline: Settings, line: str, without: list[str]
) -> None:
    expected = {name: value for name, value in OURS.items() if name not in without}
    assert preferences(settings(config, line), baseline, has_aes=False) == expected


def test_the_users_own_alive_interval_is_said_again_and_its_count_left_alone(
    config: Path, baseline: Settings
) -> None:
    ours = preferences(settings(config, "ServerAliveInterval 60"), baseline, has_aes=False)
    assert ours["ServerAliveInterval"] == "60"
    assert "ServerAliveCountMax" not in ours


def test_what_the_user_says_on_the_command_line_counts_as_their_own(config: Path, baseline: Settings) -> None:
    found = settings(config, options=("-o", "ConnectTimeout=60", "-o", "Ciphers=aes256-ctr"))
    assert not {"ConnectTimeout", "Ciphers"} & set(preferences(found, baseline, has_aes=True))


def test_aes_gcm_comes_first_where_the_processor_has_aes_and_no_cipher_is_lost_or_added(
    config: Path, baseline: Settings
) -> None:
    ciphers = preferences(settings(config), baseline, has_aes=True)["Ciphers"].split(",")
    assert all("gcm" in cipher for cipher in ciphers[:2])
    assert sorted(ciphers) == sorted(baseline.get("ciphers").split(","))
    rest = [cipher for cipher in baseline.get("ciphers").split(",") if "gcm" not in cipher]
    assert ciphers[2:] == rest


def test_ciphers_are_left_alone_where_the_processor_has_no_aes(config: Path, baseline: Settings) -> None:
    assert "Ciphers" not in preferences(settings(config), baseline, has_aes=False)


@pytest.mark.parametrize("line", ["aes256-ctr", "^aes256-ctr", "-aes128-gcm@openssh.com"])
def test_ciphers_are_left_alone_where_the_user_names_them(config: Path, baseline: Settings, line: str) -> None:
    assert "Ciphers" not in preferences(settings(config, f"Ciphers {line}"), baseline, has_aes=True)


def test_real_ssh_takes_what_we_prefer(config: Path, baseline: Settings) -> None:
    ours = preferences(settings(config), baseline, has_aes=True)
    options = [word for name, value in ours.items() for word in ("-o", f"{name}={value}")]
    taken = show("-F", "none", *options)
    assert {name: taken.get(name.lower()) for name in ours} == {**ours, "IPQoS": "none none"}


def test_an_ssh_that_prints_no_ciphers_is_told_none() -> None:
    assert preferences(Settings(""), Settings(""), has_aes=False) == OURS
