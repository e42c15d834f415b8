"""What other programs' files become, and that nothing of them is lost in silence."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.cli.importing import _settings
from holdfast.config import reading
from holdfast.config.reading import Described, Start
from holdfast.config.writing import written
from holdfast.errors import HoldfastError
from holdfast.forward import Forward, Kind, parse
from holdfast.importing import autossh, boring, channels_hub, ssh_config, ssh_options
from holdfast.importing.adding import add
from holdfast.importing.found import Found, Remark, told
from holdfast.openssh.settings import Settings
from tests.conftest import Run

PATH = Path("/home/ann/.config/holdfast/config.toml")
L, R, D = Kind.LOCAL, Kind.REMOTE, Kind.DYNAMIC


def described(found: Found) -> list[tuple[str, list[str], tuple[str, ...]]]:
    """Host, forwards and ssh's options of each tunnel."""
    return [(one.host, [shown(own) for own in one.forwards], one.options) for one in found.tunnels]


def shown(forward: Forward) -> str:
    return f"{forward.kind[0].upper()} {written(forward)}"


def texts(found: Found) -> str:
    return "\n".join(told(found.remarks))


# Command lines


@pytest.mark.parametrize(
    ("line", "host", "forwards", "options"),
    [
        ("autossh -M 0 -f -N -L 8888:localhost:8888 lab", "lab", ["L 8888:localhost:8888"], ()),
        ("autossh -M20000:7 -fNT -L8888:localhost:8888 ann@lab", "ann@lab", ["L 8888:localhost:8888"], ()),
        ("ssh -fNTL 8888:localhost:8888 lab", "lab", ["L 8888:localhost:8888"], ()),
        ("ssh lab -NL 9999:db:5432", "lab", ["L 9999:db:5432"], ()),
        ("ssh -N -D1080 -R 2222:localhost:22 -- lab", "lab", ["D 1080", "R 2222:localhost:22"], ()),
        ("ssh -NR 1080 lab", "lab", ["R 1080"], ()),
        ("ssh -NL /tmp/a.sock:/run/b.sock lab", "lab", ["L /tmp/a.sock:/run/b.sock"], ()),
        ("ssh -NL 80:/run/b.sock ssh://ann@lab:22", "ssh://ann@lab:22", ["L 80:/run/b.sock"], ()),
        ("ssh -NL '[::1]:80:[fe80::1]:80' lab", "lab", ["L [::1]:80:[fe80::1]:80"], ()),
        ("ssh -NL 80:web:80 -p2222 -i ~/.ssh/k lab", "lab", ["L 80:web:80"], ("-p", "2222", "-i", "~/.ssh/k")),
        ("ssh -NL 80:web:80 -i $HOME/.ssh/k lab", "lab", ["L 80:web:80"], ("-i", "~/.ssh/k")),
        (
            "ssh -NL 80:web:80 -J a,b -l ann -F /x lab",
            "lab",
            ["L 80:web:80"],
            ("-J", "a,b", "-l", "ann", "-F", "/x"),
        ),
        ("ssh -4CNL 80:web:80 lab", "lab", ["L 80:web:80"], ("-o", "AddressFamily=inet", "-o", "Compression=yes")),
        ("autossh -2 -M 0 -fNL 80:web:80 lab", "lab", ["L 80:web:80"], ()),
        ("ssh -NL 80:web:80 -c aes128-ctr lab", "lab", ["L 80:web:80"], ("-o", "Ciphers=aes128-ctr")),
        ("ssh -NL 80:web:80 -oUser=ann lab", "lab", ["L 80:web:80"], ("-o", "User=ann")),
        ("ssh -NL 80:web:80 -o 'User ann' lab", "lab", ["L 80:web:80"], ("-o", "User=ann")),
        ("ssh -N -o 'LocalForward 80 web:80' -oDynamicForward=1080 lab", "lab", ["L 80:web:80", "D 1080"], ()),
        ("ssh -S /tmp/s -O forward -L 80:web:80 lab", "lab", ["L 80:web:80"], ()),
        ("alias nb='ssh -fNT -L 8888:localhost:8888 lab'", "lab", ["L 8888:localhost:8888"], ()),
        ("nb() { ssh -fNT -L 80:web:80 lab >/dev/null 2>&1; }", "lab", ["L 80:web:80"], ()),
        ('tmux new -d "autossh -M 0 -NL 80:web:80 lab"', "lab", ["L 80:web:80"], ()),
        ("su ann -c \"sh -c 'autossh -NL 80:web:80 lab'\"", "lab", ["L 80:web:80"], ()),
        ("pgrep autossh || sudo -u ann autossh -NL 80:web:80 lab &", "lab", ["L 80:web:80"], ()),
        ("*/5 * * * * ann /usr/bin/autossh -NL 80:web:80 lab", "lab", ["L 80:web:80"], ()),
        ("ann 41 0.0 /usr/lib/autossh/autossh -M 0 -NL 80:web:80 lab", "lab", ["L 80:web:80"], ()),
        ("autossh -N \\\n  -L 80:web:80 \\\n  lab", "lab", ["L 80:web:80"], ()),
        ("autossh -N \\\r\n  -L 80:web:80 lab\r\n", "lab", ["L 80:web:80"], ()),
        ("autossh -NL 80:web:80 lab # don't", "lab", ["L 80:web:80"], ()),
        ("# autossh a \\\nautossh -NL 80:web:80 lab", "lab", ["L 80:web:80"], ()),
        ("AUTOSSH_PATH=/usr/bin/ssh autossh -NL 80:web:80 lab", "lab", ["L 80:web:80"], ()),
    ],
)
def test_a_command_line_becomes_a_tunnel(
    line: str, host: str, forwards: list[str], options: tuple[str, ...]
) -> None:
    assert described(autossh.read(line)) == [(host, forwards, options)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ls -L /tmp",
        "ssh lab",
        "ssh -W db:22 lab",
        "# autossh -L 80:web:80 lab",
        "apt install autossh",
        "sshd: ann@pts/0",
        "autossh -V",
        "ssh -G -L 80:web:80 lab",
        "AUTOSSH=/usr/bin/autossh",
    ],
)
def test_what_makes_no_tunnel_is_passed_over(text: str) -> None:
    assert autossh.read(text) == Found()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("autossh lab", "not taken: it forwards nothing"),
        ("autossh -NL 80:web:80", "not taken: it names no host"),
        ("autossh -NL 80:web:80 $HOST", "not taken: '$HOST' is known to its shell only"),
        ("autossh -NL ${PORT}:web:80 lab", "not taken: '${PORT}' is known to its shell only"),
        ("autossh -NL 80:web:80 'a;b'", "not taken: the host 'a;b' has a ';' in it"),
        ("autossh -NL 80:web:80 -p x lab", "not taken: 'x' is not a port"),
        ("autossh -ZL 80:web:80 lab", "not taken: ssh has no option -Z"),
        ("autossh -NL", "not taken: -L has no value"),
        ("autossh -o nonsense -L 80:web:80 lab", "not taken: -o nonsense is no setting"),
        ("autossh -L 'x lab", "not taken: its quotes don't match"),
        ("autossh -NL web:80 lab", "not taken: none of its forwards can be had"),
        ("ExecStart=/usr/bin/autossh -NL 80:web:80 %i", "not taken: '%i' is known to systemd only"),
        ("ssh -NL 80:web:80 -o ProxyCommand=ssh -W %h:%p bastion lab", "ProxyCommand has lost its quotes"),
        ("ssh -S /tmp/s -O exit lab", "ssh -O exit is left out: holdfast has status, restart and down"),
    ],
)
def test_a_line_that_is_not_taken_is_told_with_its_number_and_the_reason(line: str, said: str) -> None:
    found = autossh.read(f"# first\n{line}\nautossh -NL 80:web:80 good")
    assert [tunnel.host for tunnel in found.tunnels] == ["good"]
    assert texts(found).startswith("line 2: ")
    assert said in texts(found)


def test_a_forward_that_can_not_be_had_does_not_cost_the_others() -> None:
    found = autossh.read("autossh -L 80:web:80 -L web:81 -L 80:web:82 lab")
    assert described(found) == [("lab", ["L 80:web:80"], ())]
    assert "line 1: a forward is left out: the forward 'web:81' has no target" in texts(found)
    assert "line 1: the second forward on localhost:80 is left out" in texts(found)


@pytest.mark.parametrize("letter", sorted(ssh_options.LEFT_OUT))
def test_an_option_without_a_place_is_told_with_the_reason(letter: str) -> None:
    value = " x" if letter in ssh_options.VALUED else ""
    found = autossh.read(f"ssh -NL 80:web:80 -{letter}{value} lab")
    assert described(found) == [("lab", ["L 80:web:80"], ())]
    assert texts(found) == f"line 1: -{letter}{value} is left out: {ssh_options.LEFT_OUT[letter]}"


@pytest.mark.parametrize("key", sorted(ssh_options.SETTINGS_LEFT_OUT))
def test_a_setting_without_a_place_is_told_with_the_reason(key: str) -> None:
    found = autossh.read(f"ssh -NL 80:web:80 -o {key.upper()}=30 lab")
    assert described(found) == [("lab", ["L 80:web:80"], ())]
    assert texts(found) == f"line 1: -o {key.upper()}=30 is left out: {ssh_options.SETTINGS_LEFT_OUT[key]}"


@pytest.mark.parametrize("name", sorted(ssh_options.VARIABLES))
@pytest.mark.parametrize("form", ["export {}=x", "{}=x autossh -NL 80:web:80 lab", 'Environment="A=b" "{}=x"'])
def test_each_variable_of_autossh_is_told_with_the_reason(name: str, form: str) -> None:
    assert f"line 1: {name} is left out: {ssh_options.VARIABLES[name]}" in texts(autossh.read(form.format(name)))


@pytest.mark.parametrize("home", ["~", "$HOME", '"$HOME"', "${HOME}"])
def test_a_socket_in_the_home_directory_has_its_whole_path(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    found = autossh.read(f"ssh -NL {home}/nb.sock:localhost:8888 lab")
    assert described(found) == [("lab", ["L /home/ann/nb.sock:localhost:8888"], ())]


def test_an_option_that_is_given_twice_is_told_once() -> None:
    assert "line 1: -v is left out: " in texts(autossh.read("ssh -v -v -NL 80:web:80 lab"))


def test_every_option_of_ssh_is_known_and_has_exactly_one_fate() -> None:
    fates = [
        *ssh_options.FORWARDS,
        *ssh_options.KEPT,
        *ssh_options.AS_SETTING,
        *ssh_options.AS_WHOLE_SETTING,
        *ssh_options.OURS,
        *ssh_options.LEFT_OUT,
        *ssh_options.NO_TUNNEL,
        ssh_options.EVERYWHERE,
        ssh_options.CONTROL,
        "o",
    ]
    assert sorted(fates) == sorted(ssh_options.VALUED | ssh_options.FLAGS)
    # The synopsis of ssh(1), OpenSSH 10, and what ssh still takes besides.
    synopsis = "2" + "46AaCfGgKkMNnqsTtVvXxYy" + "BbcDEeFIiJLlmOoPpQRSWw"
    assert sorted(synopsis) == sorted(fates)


@pytest.mark.parametrize(
    ("line", "forwards", "exposed"),
    [
        ("ssh -gNL 80:web:80 -D 1080 lab", ["L *:80:web:80", "D *:1080"], True),
        ("ssh -NL 80:web:80 -o GatewayPorts=yes lab", ["L *:80:web:80"], True),
        ("ssh -gNL localhost:80:web:80 lab", ["L 80:web:80"], False),
        ("ssh -gNL 127.0.0.1:80:web:80 lab", ["L 127.0.0.1:80:web:80"], False),
        ("ssh -NL :80:web:80 lab", ["L *:80:web:80"], True),
        ("ssh -NL '*:80:web:80' lab", ["L *:80:web:80"], True),
        ("ssh -gNR 2222:localhost:22 lab", ["R 2222:localhost:22"], False),
        ("ssh -NR :2222:localhost:22 lab", ["R *:2222:localhost:22"], True),
    ],
)
def test_what_other_machines_can_reach_is_allowed_and_told(line: str, forwards: list[str], exposed: bool) -> None:
    found = autossh.read(line)
    assert [shown(own) for own in found.tunnels[0].forwards] == forwards
    assert found.tunnels[0].expose is exposed
    assert ("other machines can connect" in texts(found)) is any("*" in own for own in forwards)


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("ExecStart=/usr/bin/autossh -NL 80:web:80 -i %h/.ssh/k lab", ("-i", "~/.ssh/k")),
        ("ExecStart=-/usr/bin/ssh -NL 80:web:80 lab", ()),
        ("@reboot ann autossh -NL 80:web:80 lab", ()),
        ("ExecStart=autossh -NL 80:web:80 -o 'ProxyCommand=nc %%h 1' lab", ("-o", "ProxyCommand=nc %h 1")),
    ],
)
def test_what_started_by_itself_starts_at_login(line: str, options: tuple[str, ...]) -> None:
    found = autossh.read(line)
    assert [(one.start, one.options) for one in found.tunnels] == [(Start.LOGIN, options)]
    assert 'start = "login"' in texts(found)


def test_the_ssh_that_an_autossh_has_started_is_not_a_second_tunnel() -> None:
    """As `ps` prints them, with the loop of forwards by which autossh watches."""
    found = autossh.read(
        "/usr/lib/autossh/autossh -M 20000 -N -L 80:web:80 lab\n"
        "/usr/bin/ssh -L 20000:127.0.0.1:20000 -R 20000:127.0.0.1:20001 -N -L 80:web:80 lab\n"
    )
    assert [shown(own) for one in found.tunnels for own in one.forwards] == ["L 80:web:80"] * 2
    assert add(found.tunnels, "", PATH).names == ("lab",)


def test_where_a_command_prints_to_is_no_part_of_it() -> None:
    assert not autossh.read("autossh -NL 80:web:80 lab >/dev/null 2>&1 &").remarks


def test_a_host_that_nobody_checks_is_told() -> None:
    found = autossh.read("ssh -NL 80:web:80 -o StrictHostKeyChecking=no lab")
    assert found.tunnels[0].options == ("-o", "StrictHostKeyChecking=no")
    assert "with StrictHostKeyChecking=no nobody checks which machine that is" in texts(found)


def test_a_file_that_depends_on_the_folder_is_told() -> None:
    found = autossh.read("ssh -NL 80:web:80 -i keys/id lab")
    assert "line 1: -i keys/id is relative to the folder it was meant for: write the whole path" in texts(found)


# boring


def tunnel(**fields: object) -> str:
    return tomlkit.dumps({"tunnels": [{"name": "dev", "host": "lab", **fields}]})


@pytest.mark.parametrize(
    ("fields", "forward"),
    [
        ({"local": "9000", "remote": "localhost:9000"}, "L 9000:localhost:9000"),
        ({"local": 9000, "remote": "db:5432"}, "L 9000:db:5432"),
        ({"local": "9000", "remote": "9001"}, "L 9000:localhost:9001"),
        ({"local": "127.0.0.1:9000", "remote": ":9001"}, "L 127.0.0.1:9000:localhost:9001"),
        ({"local": "[::1]:9000", "remote": "9000", "mode": "remote"}, "R 9000:[::1]:9000"),
        ({"local": "/tmp/a.sock", "remote": "/tmp/b.sock", "mode": "-R"}, "R /tmp/b.sock:/tmp/a.sock"),
        ({"local": "/tmp/a.sock", "remote": "/tmp/b.sock", "mode": "L"}, "L /tmp/a.sock:/tmp/b.sock"),
        ({"local": "9000", "mode": "socks"}, "D 9000"),
        ({"remote": "9000", "mode": "socks-remote"}, "R 9000"),
    ],
)
def test_each_mode_of_boring_becomes_its_forward(fields: dict[str, object], forward: str) -> None:
    found = boring.read(tunnel(**fields))
    assert described(found) == [("lab", [forward], ())]
    assert not found.remarks


def test_every_key_of_borings_is_taken_or_told() -> None:
    text = "keep_alive = 60\nother = 1\n" + tunnel(
        Local="9000",
        remote="localhost:9000",
        mode="socks",
        user="ann",
        identity="~/.ssh/id",
        port=2222,
        group="work",
        keep_alive=0,
        more=True,
    )
    found = boring.read(text)
    (own,) = found.tunnels
    assert own == Described(
        "dev", "ann@lab", (parse("9000", D),), ("work",), options=("-p", "2222", "-i", "~/.ssh/id")
    )
    assert texts(found).splitlines() == [
        "'other' isn't known, and left out",
        "dev: keep_alive is left out: holdfast asks the far side every few seconds by itself",
        "dev: 'more' isn't known, and left out",
        "dev: 'remote' is left out: socks has no such end",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tunnels = 1", "'tunnels' is not a list of tables"),
        ("tunnels = [1]", "'tunnels' is not a list of tables"),
        ("[[tunnels]\n", "it is no TOML: "),
        ("a = " + "[" * 5000, "it is no TOML: "),
        ("a = " + "9" * 5000, "it is no TOML: "),
        ("[[tunnels]]\nhost='lab'\nlocal='1'\nremote='1'", "tunnel 1: not taken: it has no 'name'"),
        (tunnel(local="9000"), "dev: not taken: it has no 'remote'"),
        (
            tunnel(local="9000", remote="a.sock"),
            "dev: not taken: its remote is 'a.sock' (a socket needs its whole",
        ),
        (tunnel(local="9000", remote="9000", mode="x"), "dev: not taken: its mode is 'x' (boring has local,"),
        (tunnel(local=["9000"], remote="9000"), "dev: not taken: its 'local' is ['9000'], which is no text"),
        (tunnel(local=True, remote="9000"), "dev: not taken: its 'local' is True, which is no text"),
        (tunnel(local="name:9000", remote="9000"), "dev: not taken: 'name' in the forward"),
        (tunnel(local="9000", remote="9000", port=70000), "dev: not taken: '70000' is not a port"),
        (tunnel(local="9000", remote="9000", user="a b"), "dev: not taken: the host 'a b@lab' has a space in it"),
    ],
)
def test_a_mistake_in_borings_file_is_told(text: str, said: str) -> None:
    found = boring.read(text)
    assert not found.tunnels
    assert said in texts(found)


def test_a_name_that_holdfast_does_not_take_is_changed_and_told() -> None:
    found = boring.read(tunnel(local="1", remote="1", group="größe").replace('"dev"', '"a/b:c"'))
    assert (found.tunnels[0].name, found.tunnels[0].groups) == ("a-b-c", ("gr-e",))
    assert "a/b:c: 'a/b:c' can't be a name here: it becomes a-b-c" in texts(found)


# ssh-channels-hub

NEW = """
ssh_config = "/home/ann/ssh"
more = 1
[[channels]]
name = "db"
hostname = "lab"
direction = "local->remote"
local = " 3306 "
remote = "db.internal:3307"
[[channels]]
name = "web"
hostname = "lab"
direction = "remote->local"
local = "[::1]:80"
remote = "0.0.0.0:8022"
extra = 1
[auth.lab]
password = "secret"
passphrase = "secret"
[reconnection]
max_retries = 3
[web]
port = 9091
"""

OLD = """
[[hosts]]
name = "one"
host = "lab.example.com"
port = 2222
username = "ann"
[hosts.auth]
type = "key"
key_path = "~/.ssh/id"
passphrase = "secret"
[[hosts]]
name = "two"
host = "lab2"
username = "bob"
auth = { type = "password", password = "secret" }
[[channels]]
name = "db"
hostname = "one"
ports = "3306:3307"
[[channels]]
name = "open"
hostname = "two"
channel_type = "direct-tcpip"
ports = "80:81"
dest_host = "::1"
listen_host = "0.0.0.0"
[[channels]]
name = "back"
hostname = "two"
channel_type = "forwarded-tcpip"
ports = "80:8022"
"""


def test_channels_become_tunnels_and_everything_else_is_told() -> None:
    found = channels_hub.read(NEW)
    assert described(found) == [
        ("lab", ["L 3306:db.internal:3307"], ("-F", "/home/ann/ssh")),
        ("lab", ["R 0.0.0.0:8022:[::1]:80"], ("-F", "/home/ann/ssh")),
    ]
    assert [one.name for one in found.tunnels] == ["db", "web"]
    assert "secret" not in texts(found)
    for said in (
        "'more'",
        "auth.lab: passwords",
        "auth.lab: passphrases",
        "reconnection: ",
        "web: left",
        "'extra'",
    ):
        assert said in texts(found)


def test_channels_as_they_were_written_before_are_read_too() -> None:
    found = channels_hub.read(OLD)
    assert described(found) == [
        ("ann@lab.example.com", ["L 3306:3307"], ("-p", "2222", "-i", "~/.ssh/id")),
        ("bob@lab2", ["L 0.0.0.0:80:[::1]:81"], ()),
        ("bob@lab2", ["R 8022:80"], ()),
    ]
    assert [one.expose for one in found.tunnels] == [False, True, False]
    assert "secret" not in texts(found)
    assert "host one: passphrases" in texts(found)
    assert "host two: passwords" in texts(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NEW.replace("local->remote", "sideways"), "db: not taken: its direction is 'sideways'"),
        (NEW.replace('" 3306 "', '"x"'), "db: not taken: 'x' is not an address"),
        (NEW.replace('" 3306 "', '"/tmp/x"'), "db: not taken: '/tmp/x' is no port"),
        (NEW.replace('" 3306 "', "[]"), "db: not taken: its 'local' is [], which is no text"),
        (
            OLD.replace('hostname = "one"', 'hostname = "three"'),
            "db: not taken: there is no host 'three' in the file",
        ),
        (OLD.replace("forwarded-tcpip", "session"), "back: not taken: its channel_type is 'session'"),
        (OLD.replace("3306:3307", "3306"), "db: not taken: its ports are '3306'"),
        ("auth = 1", "'auth' is not a table"),
        ("hosts = 1", "'hosts' is not a list of tables"),
        ("auth = {lab = 1}", "auth.lab: left out: it is not a table"),
    ],
)
def test_a_mistake_in_channels_is_told(text: str, said: str) -> None:
    assert said in texts(channels_hub.read(text))


# ssh_config


def test_the_forward_lines_of_each_host_become_its_tunnel() -> None:
    """What `ssh -G` of OpenSSH 9.2 prints, the oddities too."""
    lab = Settings(
        "localforward 8888 [localhost]:8888\nlocalforward [*]:8889 [::1]:8889\nlocalforward /tmp/a /tmp/b\n"
        "localforward []:8811 [localhost]:22\ndynamicforward /tmp/a\ndynamicforward 1090\n"
        "localforward [localhost]:9001 /tmp/c\ndynamicforward [localhost]:9001\n"
        "remoteforward 1080 [socks]:0\nremoteforward /tmp/x [localhost]:22\nlocalforward web:1 [db]:1\n"
        "dynamicforward 7777\n"
    )
    shared = Settings("dynamicforward 7777\n")
    found = ssh_config.read({"lab": lab, "other": shared}, shared, ("-F", "/x"))
    assert described(found) == [
        (
            "lab",
            [
                *("L 8888:localhost:8888", "L *:8889:[::1]:8889", "L /tmp/a:/tmp/b", "L *:8811:localhost:22"),
                "L 9001:/tmp/c",
                *("R 1080", "R /tmp/x:localhost:22", "D 1090"),
            ],
            ("-F", "/x"),
        )
    ]
    assert "lab: LocalForward web:1:db:1 is left out: 'web' in the forward" in texts(found)
    assert "DynamicForward 7777 stands outside of every Host" in texts(found)
    assert "/tmp/a" not in texts(found)
    assert "9001" not in texts(found)
    assert "lab: the lines stay where they are" in texts(found)


def test_gateway_ports_open_the_forwards_that_name_no_address() -> None:
    lab = Settings("gatewayports yes\nlocalforward 80 [web]:80\nlocalforward [localhost]:81 [web]:81\n")
    found = ssh_config.read({"lab": lab}, Settings(""), ())
    assert described(found) == [("lab", ["L *:80:web:80", "L 81:web:81"], ())]
    assert found.tunnels[0].expose


# What is added to the file


def made(name: str, *forwards: str, host: str = "lab", **fields: Any) -> Described:
    return Described(name, host, tuple(parse(text) for text in forwards), **fields)


def test_a_taken_name_gets_a_number_and_the_tunnel_of_that_name_stays() -> None:
    before = '# mine\n[tunnels.lab]\nforwards = ["80"] # web\n'
    added = add([made("lab", "81"), made("lab", "82")], before, PATH)
    assert added.names == ("lab-2", "lab-3")
    assert added.text.startswith(before)
    assert [one.name for one in reading.parse(added.text, PATH)] == ["lab", "lab-2", "lab-3"]
    assert Remark("lab-2", "the name lab is taken, so it is lab-2 here") in added.remarks


def test_adding_it_again_changes_nothing() -> None:
    found = [made("a", "80", options=("-i", "~/k")), made("b", "81", groups=("work",), start=Start.LOGIN)]
    once = add(found, "[defaults]\nssh = ['-J', 'bastion']\nhttp = true\n", PATH)
    twice = add(found, once.text, PATH)
    assert (twice.names, twice.tables, twice.text, twice.there) == ((), "", once.text, ("a", "b"))


def test_the_same_tunnel_is_known_under_another_name_and_with_another_start() -> None:
    before = '[tunnels.mine]\nhost = "lab"\nforwards = ["80"]\nstart = "demand"\nhttp = true\n'
    added = add([made("lab", "80")], before, PATH)
    assert (added.names, added.there) == ((), ("mine",))
    assert added.remarks == (Remark("lab", "mine is the same tunnel, so it isn't written again"),)


def test_a_group_never_has_the_name_of_a_tunnel() -> None:
    added = add([made("dev", "80", groups=("lab", "dev"))], "[tunnels.lab]\n", PATH)
    (_, dev) = reading.parse(added.text, PATH)
    assert (dev.name, dev.groups) == ("dev-2", ("lab-2", "dev"))
    assert "lab-2: the name" not in added.tables


def test_of_two_that_want_the_same_port_only_one_starts_at_login() -> None:
    both = [made("a", "80", start=Start.LOGIN), made("b", "80", host="lab2", start=Start.LOGIN)]
    added = add(both, "", PATH)
    assert [one.start for one in reading.parse(added.text, PATH)] == [Start.LOGIN, Start.MANUAL]
    assert Remark("b", "a wants 80 too: only one of them can be up") in added.remarks


def test_a_file_with_mistakes_is_not_added_to() -> None:
    with pytest.raises(reading.ConfigError):
        add([made("a", "80")], "[tunnels.lab]\nhots = 'x'\n", PATH)


COMMANDS = """
ssh autossh -N -fNT -M 0 -g -L -R -D -p -i -J -o -O forward -F -- lab ann@lab 8888:localhost:8888 :80:a:80
*:1:2:3 1080 /tmp/a:/tmp/b ServerAliveInterval=3 'LocalForward 1 a:2' StrictHostKeyChecking=no \\ ; & | > "
( $HOME/x $X %h %i ExecStart=ssh @reboot AUTOSSH_POLL=1 alias='ssh -L
"""
WORDS = st.one_of(st.sampled_from([*COMMANDS.split(), "\n", "\\\n"]), st.text(max_size=8))
VALUES = st.recursive(
    st.one_of(
        st.sampled_from(
            ["local", "remote", "socks", "9000", "localhost:1", ":2", "/tmp/a", "lab", "a", "-x", "3:4"]
        ),
        st.text(max_size=8),
        st.integers(-1, 70000),
        st.booleans(),
    ),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)
ENTRY = st.dictionaries(
    st.sampled_from([*boring._KEYS, *channels_hub._CHANNEL_KEYS, *channels_hub._OLD_CHANNEL_KEYS, "x"]), VALUES
)
DOCUMENT = st.dictionaries(
    st.sampled_from(["tunnels", "channels", "hosts", "auth", "ssh_config", "keep_alive"]),
    st.one_of(VALUES, st.lists(ENTRY, max_size=3), ENTRY),
)


def survives(found: Found) -> None:
    """What came out is told in a line each, and can be written and read again as it is."""
    assert all(line.isprintable() for line in told(found.remarks))
    added = add(found.tunnels, "", PATH)
    again = {one.name: one for one in reading.parse(added.text, PATH)}
    assert tuple(again) == added.names
    assert reading.parse(added.tables, PATH) == list(again.values())
    whats = {(one.host, frozenset(one.forwards), one.expose) for one in found.tunnels}
    assert {(one.host, frozenset(one.forwards), one.expose) for one in again.values()} == whats


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=14).map(" ".join))
def test_whatever_the_command_lines_are_what_comes_out_can_be_written(text: str) -> None:
    survives(autossh.read(text))


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(), DOCUMENT.map(tomlkit.dumps)))
def test_whatever_the_toml_is_what_comes_out_can_be_written(text: str) -> None:
    survives(boring.read(text))
    survives(channels_hub.read(text))


@settings(max_examples=100, deadline=None)
@given(st.text() | st.lists(WORDS, max_size=6).map(lambda words: "localforward " + " ".join(words)))
def test_whatever_ssh_prints_what_comes_out_can_be_written(text: str) -> None:
    survives(ssh_config.read({"lab": Settings(text), "x": Settings(text)}, Settings(""), ()))


# The command


@pytest.fixture
def file(home: Path) -> Path:
    """Where the configuration will be."""
    return home / "config" / "config.toml"


def test_the_command_shows_toml_and_tells_the_rest_beside_it(holdfast: Run, home: Path, file: Path) -> None:
    script = home / "tunnels.sh"
    script.write_text("autossh -M 0 -NL 8888:localhost:8888 lab\nautossh -NL 80 $X\n")
    result = holdfast("import", "autossh", str(script), HOLDFAST_CONFIG=str(file))
    assert result.returncode == 0
    assert result.stdout == '[tunnels.lab]\nforwards = ["8888:localhost:8888"]\n'
    assert "holdfast: line 1: -M 0 is left out" in result.stderr
    assert "holdfast: line 2: not taken: '$X'" in result.stderr
    assert not file.exists()


def test_with_write_the_tunnels_are_in_the_file_and_it_stays_a_link(holdfast: Run, home: Path, file: Path) -> None:
    (home / "dotfiles").mkdir()
    real = home / "dotfiles" / "holdfast.toml"
    real.write_text("# mine\n")
    real.chmod(0o640)
    file.parent.mkdir()
    file.symlink_to(real)
    (home / "boring.toml").write_text(tunnel(local="9000", remote="localhost:9000"))
    where = {"HOLDFAST_CONFIG": str(file), "BORING_CONFIG": str(home / "boring.toml")}
    first = holdfast("import", "boring", "--write", **where)
    assert (first.returncode, first.stdout) == (0, f"added to {file}: dev\n")
    assert file.is_symlink()
    assert real.read_text() == '# mine\n\n[tunnels.dev]\nhost = "lab"\nforwards = ["9000:localhost:9000"]\n'
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    second = holdfast("import", "boring", "--write", **where)
    assert (second.returncode, second.stdout) == (0, "")
    assert second.stderr == f"holdfast: already in {file}: dev\n"


def test_the_hosts_of_an_ssh_config_are_asked_of_ssh(holdfast: Run, home: Path, file: Path) -> None:
    (home / "more").write_text("Host lab\n  LocalForward 8888 localhost:8888\n")
    main = home / "ssh_config"
    main.write_text(f"Include {home}/more\nHost none *.org\n  Port 22\nHost *\n  DynamicForward 1080\n")
    result = holdfast("import", "ssh-config", str(main), HOLDFAST_CONFIG=str(file))
    assert result.stdout == f'[tunnels.lab]\nforwards = ["8888:localhost:8888"]\nssh = ["-F", "{main}"]\n'
    assert "DynamicForward 1080 stands outside of every Host" in result.stderr


def test_a_host_line_that_ssh_refuses_is_told_and_the_others_are_taken(
    holdfast: Run, home: Path, file: Path
) -> None:
    main = home / "ssh_config"
    main.write_text("Host lab\n  LocalForward 8888 localhost:8888\nHost a;b\n  LocalForward 1 c:1\n")
    result = holdfast("import", "ssh-config", str(main), HOLDFAST_CONFIG=str(file))
    assert result.returncode == 0
    assert result.stdout.startswith("[tunnels.lab]\n")
    assert "holdfast: a;b: not taken: " in result.stderr


def test_the_command_in_a_hint_can_be_pasted_whatever_the_host_is() -> None:
    with pytest.raises(HoldfastError) as raised:
        _settings("a;b", ("-F", "none"))
    assert raised.value.hint == "ssh -F none -G 'a;b'"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("autossh",), "no tunnel could be taken from standard input"),
        (("boring", "/nowhere"), "can't read /nowhere: No such file or directory"),
        (("ssh-config", "/"), "can't read /: Is a directory"),
        (("ssh-channels-hub", "bad.toml"), "it is no TOML"),
        (("ssh-config", "bad.toml"), "ssh can't read its configuration"),
    ],
)
def test_where_nothing_can_be_taken_it_fails_with_a_hint(
    holdfast: Run, home: Path, file: Path, words: tuple[str, ...], said: str
) -> None:
    (home / "bad.toml").write_text("Host lab\nPort x\n")
    command = [str(home / word) if word == "bad.toml" else word for word in words]
    result = holdfast("import", *command, HOLDFAST_CONFIG=str(file))
    assert result.returncode == 1
    assert said in result.stderr
    assert "holdfast: hint: " in result.stderr
