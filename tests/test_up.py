"""`holdfast up` and `down`, as a user runs them, against a real sshd."""

from __future__ import annotations

import concurrent.futures
import getpass
import json
import socket
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.conftest import Run, Web, get, is_open, tunnel
from tests.sshd import Sshd, free_port, wait_for


def ssh(sshd: Sshd, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ssh", "-F", str(sshd.config), *words],
        capture_output=True,
        text=True,
        timeout=20,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def masters(home: Path) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["cmdline"]
        and process.info["cmdline"][0] == "ssh"
        and str(home) in " ".join(process.info["cmdline"])
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def test_the_classic_recipe_is_done_by_up_status_and_down(holdfast: Run, sshd: Sshd, home: Path, web: Web) -> None:
    sshd.configure(f"ControlPath {home}/cm-%r@%h")
    port = free_port()

    up = holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}")  # ssh -fNTML ... lab

    assert (up.returncode, up.stderr) == (0, "")
    assert up.stdout == f"http://localhost:{port} -> 127.0.0.1:{web.port} on lab\n"
    assert get(port) == b"hello"
    assert get(port, host="localhost") == b"hello"

    status = holdfast("status", "lab", "--json")  # ssh -TO check lab

    assert status.returncode == 0
    assert tunnel(status)["state"] == "up"
    assert f"(pid={tunnel(status)['master_pid']})" in ssh(sshd, "-O", "check", "lab").stderr
    assert ssh(sshd, "lab", "echo over the same master").stdout == "over the same master\n"

    down = holdfast("down", "lab")  # ssh -TO exit lab

    assert (down.returncode, down.stdout) == (0, "lab is down\n")
    assert not is_open(port)
    assert masters(home) == []
    assert not any(home.glob("cm-*"))
    assert ssh(sshd, "-O", "check", "lab").returncode == 255


def test_the_forward_listens_on_both_loopback_addresses(holdfast: Run, sshd: Sshd, web: Web) -> None:
    port = free_port()
    holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}")
    assert get(port, host="127.0.0.1") == get(port, host="::1") == b"hello"


def test_doing_it_again_changes_nothing(holdfast: Run, sshd: Sshd, web: Web) -> None:
    words = ("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}")
    first = holdfast(*words)
    before = tunnel(holdfast("status", "--json"))
    again = holdfast(*words)
    after = tunnel(holdfast("status", "--json"))
    assert again.stdout == first.stdout
    for status in (before, after):
        for measured in ("rtt_ms", "sent_bytes", "received_bytes"):
            status.pop(measured)
    assert after == before


def test_a_second_tunnel_to_the_same_host_uses_the_same_master(
    holdfast: Run, sshd: Sshd, web: Web, home: Path
) -> None:
    one, two = free_port(), free_port()
    holdfast("up", "-F", str(sshd.config), "lab", f"{one}:{web.port}")
    holdfast("up", "-F", str(sshd.config), "lab", f"{two}:{web.port}", "--name", "second")
    assert get(one) == get(two) == b"hello"
    assert len(masters(home)) == 1
    holdfast("down", "lab")
    assert not is_open(one)
    assert get(two) == b"hello"


def test_a_forward_is_added_to_and_taken_from_a_running_tunnel(holdfast: Run, sshd: Sshd, web: Web) -> None:
    one, two = free_port(), free_port()
    holdfast("up", "-F", str(sshd.config), "lab", f"{one}:{web.port}")
    added = holdfast("up", "lab", f"{two}:{web.port}")
    assert f"localhost:{one} ->" in added.stdout
    assert f"localhost:{two} ->" in added.stdout
    assert get(two) == b"hello"
    taken = holdfast("down", "lab", str(one))
    assert taken.stdout == f"lab: {one} closed\n"
    assert not is_open(one)
    assert get(two) == b"hello"


def test_without_a_forward_the_tunnel_gets_those_it_had(holdfast: Run, sshd: Sshd, web: Web) -> None:
    port = free_port()
    holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}")
    holdfast("down", "lab")
    assert holdfast("up", "lab").returncode == 0
    assert get(port) == b"hello"


def test_without_a_forward_a_new_tunnel_gets_the_hosts_own_localforward_lines(
    holdfast: Run, sshd: Sshd, web: Web
) -> None:
    one, two = free_port(), free_port()
    sshd.configure(
        f"LocalForward {one} 127.0.0.1:{web.port}", f"LocalForward 127.0.0.1:{two} localhost:{web.port}"
    )
    up = holdfast("up", "-F", str(sshd.config), "lab")
    assert up.returncode == 0, up.stderr
    assert get(one) == get(two) == b"hello"


def test_a_localforward_line_in_the_config_does_not_get_in_the_way(holdfast: Run, sshd: Sshd, web: Web) -> None:
    port, theirs = free_port(), free_port()
    sshd.configure(
        f"LocalForward {theirs} 127.0.0.1:1", "ExitOnForwardFailure yes", f"RemoteForward {sshd.port} localhost:1"
    )
    assert holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}").returncode == 0
    assert get(port) == b"hello"
    assert not is_open(theirs)


@pytest.mark.parametrize(
    "line",
    [
        "ControlPersist 1",
        "RemoteCommand sleep 1",
        "RequestTTY force",
        "LogLevel QUIET",
        "ForkAfterAuthentication yes",
    ],
)
def test_a_hostile_line_in_the_config_is_harmless(holdfast: Run, sshd: Sshd, web: Web, line: str) -> None:
    port = free_port()
    sshd.configure(line)
    assert holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}").returncode == 0
    assert get(port) == b"hello"


def test_the_users_own_ignoreunknown_still_counts(holdfast: Run, sshd: Sshd, web: Web) -> None:
    sshd.configure("IgnoreUnknown UseKeychain", "UseKeychain yes")
    assert holdfast("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}").returncode == 0


def test_any_free_port_is_chosen_once_and_kept(holdfast: Run, sshd: Sshd, web: Web) -> None:
    chosen = tunnel(holdfast("up", "-F", str(sshd.config), "lab", f"0:{web.port}", "--json"))["forwards"][0]["url"]
    again = tunnel(holdfast("up", "lab", f"0:{web.port}", "--json"))
    assert [forward["url"] for forward in again["forwards"]] == [chosen]
    holdfast("down", "lab")
    assert tunnel(holdfast("up", "lab", "--json"))["forwards"][0]["url"] == chosen


def test_a_service_that_is_not_there_yet_is_told_and_the_tunnel_stays_up(holdfast: Run, sshd: Sshd) -> None:
    port, target = free_port(), free_port()
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{target}")
    assert up.returncode == 0
    assert f"nothing listens at 127.0.0.1:{target} on lab yet" in up.stderr
    assert tunnel(holdfast("status", "--json"))["state"] == "no service"
    with socket.create_server(("127.0.0.1", target)):
        assert tunnel(holdfast("status", "--json"))["state"] == "up"


def test_a_service_on_the_other_loopback_address_is_hinted_at(holdfast: Run, sshd: Sshd) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as service:
        target = service.getsockname()[1]
        port = free_port()
        up = holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{target}")
        assert f"holdfast up lab {port}:[::1]:{target}" in up.stderr


def test_unix_sockets_work_at_either_end(holdfast: Run, sshd: Sshd, web: Web, home: Path) -> None:
    here, there, port = home / "here.sock", home / "there.sock", free_port()
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(str(there))
        service.listen()
        up = holdfast(
            "up", "-F", str(sshd.config), "lab", f"{here}:127.0.0.1:{web.port}", f"{port}:{there}", "--json"
        )
        assert [forward["state"] for forward in tunnel(up)["forwards"]] == ["up", "up"]
        assert is_open(port)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(here))
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.makefile("rb").read().endswith(b"hello")
    assert is_open(port)  # the connection that the far side refuses
    assert tunnel(holdfast("status", "--json"))["forwards"][1]["state"] == "no service"
    holdfast("down", "lab")
    assert not here.exists()


def test_remote_and_dynamic_forwards_work(holdfast: Run, sshd: Sshd, web: Web) -> None:
    socks = free_port()
    up = holdfast("up", "-F", str(sshd.config), "lab", "-R", f"0:127.0.0.1:{web.port}", "-D", str(socks), "--json")
    remote, dynamic = tunnel(up)["forwards"]
    assert get(int(remote["listen"].rpartition(":")[2])) == b"hello"
    with socket.create_connection(("127.0.0.1", socks), 10) as client:
        client.sendall(b"\x05\x01\x00")
        assert client.recv(2) == b"\x05\x00"
    assert dynamic["state"] == "up"


def test_a_tunnel_of_the_configuration_goes_to_its_host_and_not_to_a_tunnel_of_that_name(
    holdfast: Run, sshd: Sshd, web: Web, home: Path
) -> None:
    holdfast("up", "-F", str(sshd.config), "-o", "Compression=yes", "lab", f"{free_port()}:{web.port}")
    holdfast("down", "lab")
    file = home / "config.toml"
    file.write_text(f'[tunnels.b]\nhost = "lab"\nforwards = ["0:{web.port}"]\nssh = ["-F", "{sshd.config}"]\n')
    up = tunnel(holdfast("up", "b", "--json", HOLDFAST_CONFIG=str(file)))
    assert up["options"] == ["-F", str(sshd.config)]
    assert "nothing to change" in holdfast("apply", HOLDFAST_CONFIG=str(file)).stdout


def test_a_socks_proxy_over_there_reaches_what_this_machine_reaches(holdfast: Run, sshd: Sshd, web: Web) -> None:
    up = holdfast("up", "-F", str(sshd.config), "lab", "-R", "0", "--json")
    (reverse,) = tunnel(up)["forwards"]
    assert (reverse["target"], reverse["state"]) == (None, "up")
    with socket.create_connection(("127.0.0.1", int(reverse["listen"].rpartition(":")[2])), 10) as client:
        client.sendall(b"\x05\x01\x00")
        assert client.recv(2) == b"\x05\x00"
        client.sendall(b"\x05\x01\x00\x01" + socket.inet_aton("127.0.0.1") + web.port.to_bytes(2, "big"))
        assert client.recv(10)[:2] == b"\x05\x00"
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b"200" in client.recv(100)


def test_a_tunnel_listens_on_each_address_that_it_was_given(holdfast: Run, sshd: Sshd, web: Web) -> None:
    ends = [f"127.0.0.2:{free_port()}", f"[::1]:{free_port()}"]
    up = holdfast("up", "-F", str(sshd.config), "lab", *(f"{end}:127.0.0.1:{web.port}" for end in ends), "--json")
    assert [forward["listen"] for forward in tunnel(up)["forwards"]] == ends
    for end in ends:
        host, _, port = end.rpartition(":")
        assert get(int(port), host=host.strip("[]")) == b"hello"


def test_a_remote_forward_that_others_can_reach_needs_expose(holdfast: Run, sshd: Sshd) -> None:
    refused = holdfast("up", "-F", str(sshd.config), "lab", "-R", "*:0:127.0.0.1:1")
    assert refused.returncode == 2
    assert "*:0 over there can be reached by other machines, and so can what is behind it" in refused.stderr
    assert "--expose" in refused.stderr
    sshd.stop()
    sshd.start("GatewayPorts clientspecified")
    allowed = holdfast("up", "-F", str(sshd.config), "lab", "-R", "*:0:127.0.0.1:1", "--expose")
    assert allowed.returncode == 0, allowed.stderr
    assert tunnel(holdfast("status", "--json"))["forwards"][0]["exposed"]
    assert "other machines can reach" in holdfast("status").stdout


def test_a_forward_that_the_server_forbids_is_refused_in_plain_words(holdfast: Run, sshd: Sshd, web: Web) -> None:
    sshd.stop()
    sshd.start("AllowTcpForwarding no")
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}")
    assert up.returncode == 1
    assert f"the sshd of lab forbids forwarding to 127.0.0.1:{web.port}" in up.stderr
    assert tunnel(holdfast("status", "--json"))["state"] == "refused"


def test_a_remote_forward_that_the_server_forbids_is_refused(holdfast: Run, sshd: Sshd) -> None:
    sshd.stop()
    sshd.start("AllowTcpForwarding local")
    up = holdfast("up", "-F", str(sshd.config), "lab", "-R", "0:127.0.0.1:1")
    assert up.returncode == 1
    assert "lab refuses to listen on localhost:0" in up.stderr


def test_a_taken_port_names_the_program_and_starts_nothing(holdfast: Run, sshd: Sshd, web: Web) -> None:
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{web.port}:1")
    assert up.returncode == 1
    me = psutil.Process()
    assert f"port {web.port} on 127.0.0.1 is taken by {me.name()} (pid {me.pid})" in up.stderr
    assert holdfast("status").stderr.startswith("holdfast: no tunnels")


def test_a_port_that_is_taken_on_one_loopback_address_only_is_taken(holdfast: Run, sshd: Sshd, web: Web) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as squatter:
        up = holdfast("up", "-F", str(sshd.config), "lab", f"{squatter.getsockname()[1]}:{web.port}")
    assert up.returncode == 1
    assert "on ::1 is taken by" in up.stderr


def test_a_port_that_leads_elsewhere_already_is_not_taken_over(holdfast: Run, sshd: Sshd, web: Web) -> None:
    port = free_port()
    holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}")
    other = holdfast("up", "lab", f"{port}:1")
    assert other.returncode == 2
    assert f"localhost:{port} leads to 127.0.0.1:{web.port} already, in tunnel 'lab'" in other.stderr
    assert get(port) == b"hello"


def test_an_address_that_others_can_reach_needs_expose(holdfast: Run, sshd: Sshd, web: Web) -> None:
    port = free_port()
    refused = holdfast("up", "-F", str(sshd.config), "lab", f"*:{port}:127.0.0.1:{web.port}")
    assert refused.returncode == 2
    assert "--expose" in refused.stderr
    assert not is_open(port)
    allowed = holdfast("up", "-F", str(sshd.config), "lab", f"*:{port}:127.0.0.1:{web.port}", "--expose")
    assert allowed.returncode == 0
    assert get(port) == b"hello"


def test_a_name_that_goes_elsewhere_is_refused_with_the_way_out(holdfast: Run, sshd: Sshd, web: Web) -> None:
    port = free_port()
    holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}")
    other = holdfast("up", "-F", str(sshd.config), "-p", "1", "lab", f"{free_port()}:1")
    assert other.returncode == 2
    assert "--name" in other.stderr
    assert get(port) == b"hello"


BAD_INPUT = [
    ["up"],
    ["up", ""],
    ["up", "x" * 100_000],
    ["up", "lab", "x" * 100_000],
    ["up", "la\x1bb"],
    ["up", "la\nb"],
    ["up", "--", "-oProxyCommand=touch /tmp/x"],
    ["up", "la%b"],
    ["up", "la'b"],
    ["up", "la b"],
    ["up", "$(id)"],
    ["up", "ann@"],
    ["up", "lab", "0"],
    ["up", "lab", "65536"],
    ["up", "lab", "--", "-1"],
    ["up", "lab", "8888:"],
    ["up", "lab", "1:2:3:4:5"],
    ["up", "lab", "8888", "8888"],
    ["up", "lab", "8888", "-L", "8888:db:1"],
    ["up", "lab", "/:80"],
    ["up", "lab", "/tmp:80"],
    ["up", "lab", "/nowhere/at/all.sock:80"],
    ["up", "lab", "/etc/passwd:80"],
    ["up", "lab", "/" + "x" * 200 + ":80"],
    ["up", "lab", "-D", "/tmp/x"],
    ["up", "lab", "-p", "0"],
    ["up", "lab", "--timeout", "0"],
    ["up", "lab", "--timeout", "nan"],
    ["up", "lab", "--timeout", "inf"],
    ["up", "lab", "nosuchname:0:127.0.0.1:22"],
    ["logs", "x" * 300],
    ["up", "lab", "--name", "8888"],
    ["up", "lab", "--name", "../x"],
    ["up", "lab", "--unknown"],
    ["down"],
    ["down", "8888"],
    ["down", "lab", "--all"],
    ["status", "--what"],
    ["nonsense"],
    ["completion", "csh"],
]


@pytest.mark.parametrize("words", BAD_INPUT, ids=lambda words: " ".join(words)[:40])
def test_bad_input_is_one_clear_line_and_starts_nothing(holdfast: Run, home: Path, words: list[str]) -> None:
    result = holdfast(*words)
    assert result.returncode == 2
    message, *hints = result.stderr.splitlines()
    assert message.startswith("holdfast: ")
    assert message.isprintable()
    assert len(message) < 400
    assert all(line.startswith("holdfast: hint: ") for line in hints)
    assert masters(home) == []


def test_a_failed_login_leaves_the_tunnel_listed_with_its_reason(holdfast: Run, sshd: Sshd, home: Path) -> None:
    sshd.known_hosts.write_text("")
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{free_port()}:1")
    assert up.returncode == 1
    assert "host key" in up.stderr
    status = tunnel(holdfast("status", "--json"))
    assert status["state"] == "failed"
    assert "SHA256:" in status["reason"]
    assert holdfast("status").returncode == 3
    assert masters(home) == []


def test_a_host_that_wants_a_person_ends_with_exit_code_4(holdfast: Run, sshd: Sshd) -> None:
    sshd.authorized_keys.write_text("")
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{free_port()}:1")
    assert up.returncode == 4
    assert tunnel(holdfast("status", "--json"))["state"] == "needs login"


def test_a_mistake_in_the_ssh_config_is_told_with_file_and_line(holdfast: Run, sshd: Sshd, home: Path) -> None:
    sshd.configure("NoSuchOption yes")
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{free_port()}:1")
    assert up.returncode == 2
    assert str(sshd.config) in up.stderr
    assert "nosuchoption" in up.stderr.lower()
    assert holdfast("status").stderr.startswith("holdfast: no tunnels")


def test_a_server_that_is_away_is_waited_for_as_long_as_asked(holdfast: Run, sshd: Sshd, web: Web) -> None:
    sshd.stop()
    port = free_port()
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}", "--timeout", "1")
    assert up.returncode == 1
    assert "after 1 s" in up.stderr
    assert "holdfast down lab" in up.stderr
    sshd.start()
    wait_for(lambda: is_open(port), "the tunnel to come up by itself", 60)
    assert get(port) == b"hello"


def test_no_wait_returns_at_once_and_the_tunnel_comes_up(holdfast: Run, sshd: Sshd, web: Web) -> None:
    port = free_port()
    assert holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}", "--no-wait").returncode == 0
    wait_for(lambda: is_open(port), "the tunnel to come up")


def test_restart_makes_a_new_connection(holdfast: Run, sshd: Sshd, web: Web) -> None:
    port = free_port()
    before = tunnel(holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}", "--json"))
    after = tunnel(holdfast("restart", "lab", "--json"))
    assert after["state"] == "up"
    assert after["master_pid"] != before["master_pid"]
    assert get(port) == b"hello"


def test_fifty_ups_and_downs_at_once_leak_nothing(holdfast: Run, sshd: Sshd, web: Web, home: Path) -> None:
    ports = [free_port() for _ in range(25)]

    def work(number: int) -> tuple[int, int]:
        name = f"t{number}"
        up = holdfast(
            "up", "-F", str(sshd.config), "lab", f"{ports[number % 25]}:{web.port}", "--name", name, timeout=110
        )
        down = holdfast("down", name, timeout=110) if up.returncode == 0 else up
        return up.returncode, down.returncode

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        results = list(pool.map(work, range(50)))

    # Of two that want the same port at once, one may have to do without.
    assert all(codes in ((0, 0), (1, 1), (2, 2)) for codes in results)
    assert sum(codes == (0, 0) for codes in results) >= 25
    holdfast("down", "--all")
    assert masters(home) == []
    assert not any(is_open(port) for port in ports)
    assert list((home / "run" / "m").iterdir()) == []


def test_json_has_what_is_documented(holdfast: Run, sshd: Sshd, web: Web) -> None:
    holdfast("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}")
    record = json.loads(holdfast("status", "--json").stdout)
    assert record["version"] == 1
    assert {"name", "host", "state", "reason", "since", "rtt_ms", "drops", "forwards"} <= record["tunnels"][
        0
    ].keys()
    assert {"kind", "listen", "target", "url", "state"} <= record["tunnels"][0]["forwards"][0].keys()


def test_a_jump_host_is_gone_through(holdfast: Run, sshd: Sshd, web: Web) -> None:
    with sshd.config.open("a") as config:
        config.write(f"Host inner\n  HostName localhost\n  ProxyJump lab\n  Port {sshd.port}\n")
        config.write(f"  HostKeyAlias [127.0.0.1]:{sshd.port}\n  User {getpass.getuser()}\n")
        config.write(
            f"  UserKnownHostsFile {sshd.known_hosts}\n  IdentityFile {sshd.user_key}\n  IdentityAgent none\n"
        )
    port = free_port()
    up = holdfast("up", "-F", str(sshd.config), "inner", f"{port}:{web.port}")
    assert up.returncode == 0, up.stderr
    assert get(port) == b"hello"


def test_no_password_is_tried_on_a_jump_host_when_nobody_is_there(holdfast: Run, sshd: Sshd) -> None:
    sshd.authorized_keys.write_text("")
    up = holdfast("up", "-F", str(sshd.config), "-J", "lab", f"{getpass.getuser()}@localhost", f"{free_port()}:1")
    assert up.returncode == 4
    assert "the jump host failed" in up.stderr
    assert "Failed password" not in sshd.log.read_text()


def test_only_the_forward_that_has_a_trouble_is_complained_of(holdfast: Run, sshd: Sshd, web: Web) -> None:
    target = free_port()
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}", f"{free_port()}:{target}")
    assert up.stderr.splitlines()[0] == f"holdfast: nothing listens at 127.0.0.1:{target} on lab yet"
    assert len(up.stderr.splitlines()) == 2


def test_a_slow_login_shell_is_not_waited_for(holdfast: Run, sshd: Sshd, web: Web, home: Path) -> None:
    (home / ".bashrc").write_text(f"touch {home}/started; sleep 60; touch {home}/finished\n")
    port = free_port()
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}", "--json")
    assert tunnel(up)["state"] == "up"
    wait_for(lambda: (home / "started").exists(), "the login shell to be started")
    assert tunnel(holdfast("status", "--json"))["state"] == "up"
    assert get(port) == b"hello"
    assert not (home / "finished").exists()


def test_a_port_where_the_host_belongs_is_noticed(holdfast: Run) -> None:
    result = holdfast("up", "8888")
    assert result.returncode == 2
    assert "holdfast up HOST 8888" in result.stderr


def test_an_address_where_no_port_can_be_had_hangs_nobody(holdfast: Run, sshd: Sshd) -> None:
    up = holdfast("up", "-F", str(sshd.config), "lab", "[::1%nope]:0:127.0.0.1:22")
    assert up.returncode == 1
    assert "no port is free" in up.stderr
    assert holdfast("status").returncode == 0


def test_a_port_that_was_any_is_another_when_it_has_been_taken(holdfast: Run, sshd: Sshd, web: Web) -> None:
    first = tunnel(holdfast("up", "-F", str(sshd.config), "lab", f"0:{web.port}", "--json"))["forwards"][0]["url"]
    holdfast("down", "lab")
    with socket.create_server(("127.0.0.1", int(first.rpartition(":")[2]))):
        again = holdfast("up", "lab", "--json")
    assert again.returncode == 0
    assert tunnel(again)["forwards"][0]["url"] != first
