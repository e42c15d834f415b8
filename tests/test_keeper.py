"""What the keeper promises whatever happens to it, to its masters and to its files."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from holdfast.control import check_upkeep
from holdfast.errors import UsageError
from holdfast.forward import Kind, parse
from holdfast.jupyter.servers import Notebook
from holdfast.keeper.forwarding import OpenForward
from holdfast.keeper.journal import SavedTunnel
from holdfast.keeper.keeper import Keeper, Wish
from holdfast.keeper.tunnel import Tunnel
from tests.conftest import Run, Web, get, is_open, tunnel
from tests.sshd import Sshd, free_port, wait_for
from tests.test_up import masters, ssh

Kill = Callable[[], None]


@pytest.fixture
def port(holdfast: Run, sshd: Sshd, web: Web) -> int:
    """The local port of a tunnel `lab` that is up."""
    chosen = free_port()
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{chosen}:{web.port}")
    assert up.returncode == 0, up.stderr
    return chosen


def test_a_port_that_would_lead_to_itself_does_not_after_the_keepers_death_either(
    holdfast: Run, sshd: Sshd, kill_keeper: Kill
) -> None:
    nobody = free_port()
    assert holdfast("up", "-F", str(sshd.config), "lab", str(nobody)).returncode == 1
    kill_keeper()
    status = holdfast("status")
    assert status.returncode == 3
    assert f"lab is this machine, where localhost:{nobody} would lead to itself" in status.stdout


def test_a_download_survives_the_keepers_death(port: int, kill_keeper: Kill) -> None:
    received: list[bytes] = []
    download = threading.Thread(target=lambda: received.append(get(port, "/big")))
    download.start()
    kill_keeper()
    download.join(30)
    assert len(received[0]) == Web.BIG


def test_new_connections_work_while_no_keeper_runs(port: int, kill_keeper: Kill) -> None:
    kill_keeper()
    assert get(port) == b"hello"


def test_the_next_command_starts_a_keeper_that_adopts_the_master(
    port: int, holdfast: Run, kill_keeper: Kill, home: Path
) -> None:
    before = tunnel(holdfast("status", "--json"))
    kill_keeper()
    after = tunnel(holdfast("status", "--json"))
    assert (after["state"], after["master_pid"]) == ("up", before["master_pid"])
    assert after["since"] == before["since"]
    assert holdfast("down", "lab").returncode == 0
    assert masters(home) == []
    assert not is_open(port)


def test_an_adopted_control_path_goes_with_its_master(
    holdfast: Run, sshd: Sshd, web: Web, kill_keeper: Kill, home: Path
) -> None:
    sshd.configure(f"ControlPath {home}/cm")
    holdfast("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}")
    kill_keeper()
    assert ssh(sshd, "-O", "check", "lab").returncode == 0
    holdfast("down", "lab")
    assert not os.path.lexists(home / "cm")


def test_a_killed_master_is_replaced_at_once(port: int, holdfast: Run) -> None:
    old = tunnel(holdfast("status", "--json"))["master_pid"]
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: tunnel(holdfast("status", "--json"))["state"] == "up", "the tunnel to be back")
    status = tunnel(holdfast("status", "--json"))
    assert status["master_pid"] != old
    assert status["drops"] == 1
    assert get(port) == b"hello"


def test_a_server_that_was_restarted_is_found_again(port: int, holdfast: Run, sshd: Sshd) -> None:
    sshd.stop()
    wait_for(lambda: tunnel(holdfast("status", "--json"))["state"] in ("waiting", "connecting"), "the loss")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(get, port)  # the guard has the port: nobody is refused
        sshd.start()
        assert waiting.result() == b"hello"


def test_a_server_whose_host_key_changed_is_not_gone_back_to(
    port: int, holdfast: Run, sshd: Sshd, keys: Path
) -> None:
    sshd.stop()
    sshd.host_key = keys / "other_host"
    sshd.start()
    wait_for(lambda: tunnel(holdfast("status", "--json"))["state"] == "failed", "the refusal", 60)
    assert "key" in tunnel(holdfast("status", "--json"))["reason"]


def test_ssh_exit_by_hand_brings_a_new_master(holdfast: Run, sshd: Sshd, web: Web, home: Path) -> None:
    sshd.configure(f"ControlPath {home}/cm")
    chosen = free_port()
    holdfast("up", "-F", str(sshd.config), "lab", f"{chosen}:{web.port}")
    assert ssh(sshd, "-O", "exit", "lab").returncode == 0
    wait_for(lambda: tunnel(holdfast("status", "--json"))["state"] == "up", "the tunnel to be back")
    assert ssh(sshd, "-O", "check", "lab").returncode == 0
    assert "ssh -O exit" in holdfast("logs", "lab").stdout


@pytest.fixture
def own_master(sshd: Sshd, web: Web, home: Path) -> int:
    """The port of a forward of a master that the user made by hand, at their own ControlPath."""
    sshd.configure(f"ControlPath {home}/cm")
    chosen = free_port()
    assert ssh(sshd, "-fNTM", "-E", f"{home}/log", "-L", f"{chosen}:127.0.0.1:{web.port}", "lab").returncode == 0
    return chosen


def test_a_master_made_by_hand_is_adopted_and_left_alive(
    holdfast: Run, sshd: Sshd, web: Web, own_master: int, home: Path
) -> None:
    chosen = free_port()
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{chosen}:{web.port}", "--json")
    assert tunnel(up)["adopted"]
    assert len(masters(home)) == 1
    assert get(chosen) == b"hello"
    holdfast("down", "lab")
    assert not is_open(chosen)
    assert get(own_master) == b"hello"
    assert ssh(sshd, "-O", "check", "lab").returncode == 0
    ssh(sshd, "-O", "exit", "lab")


def test_a_forward_that_the_users_master_has_already_is_used_and_left(
    holdfast: Run, sshd: Sshd, web: Web, own_master: int
) -> None:
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{own_master}:{web.port}")
    assert up.returncode == 0, up.stderr
    holdfast("down", "lab")
    assert get(own_master) == b"hello"
    ssh(sshd, "-O", "exit", "lab")


def test_an_adopted_master_that_ends_is_replaced_by_our_own(
    holdfast: Run, sshd: Sshd, web: Web, own_master: int
) -> None:
    chosen = free_port()
    holdfast("up", "-F", str(sshd.config), "lab", f"{chosen}:{web.port}")
    ssh(sshd, "-O", "exit", "lab")
    wait_for(lambda: tunnel(holdfast("status", "--json"))["state"] == "up", "the tunnel to be back")
    assert not tunnel(holdfast("status", "--json"))["adopted"]
    assert get(chosen) == b"hello"


def test_a_stale_socket_at_the_control_path_is_replaced(holdfast: Run, sshd: Sshd, web: Web, home: Path) -> None:
    sshd.configure(f"ControlPath {home}/cm")
    ssh(sshd, "-fNTM", "-E", f"{home}/log", "lab")
    (left,) = masters(home)
    os.kill(left, signal.SIGKILL)
    assert (home / "cm").is_socket()
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}", "--json")
    assert f"(pid={tunnel(up)['master_pid']})" in ssh(sshd, "-O", "check", "lab").stderr


def test_what_lies_at_the_control_path_and_is_no_socket_is_left_alone(
    holdfast: Run, sshd: Sshd, web: Web, home: Path
) -> None:
    (home / "cm").write_text("mine")
    sshd.configure(f"ControlPath {home}/cm")
    assert holdfast("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}").returncode == 0
    holdfast("down", "lab")
    assert (home / "cm").read_text() == "mine"


def test_a_truncated_state_file_is_kept_aside_and_told(
    port: int, holdfast: Run, kill_keeper: Kill, home: Path
) -> None:
    kill_keeper()
    state = home / "state" / "state.json"
    state.write_text(state.read_text()[:100])
    told = holdfast("status")
    assert "could not be read" in told.stderr
    assert len(list((home / "state").glob("state.json.broken-*"))) == 1
    assert get(port) == b"hello"  # whoever works over the master goes on
    assert holdfast("keeper", "stop").returncode == 0
    wait_for(lambda: holdfast("status").returncode == 0, "the next keeper")
    for pid in masters(home):
        os.kill(pid, signal.SIGTERM)


def test_a_full_disk_fails_the_up_and_changes_nothing(
    holdfast: Run, sshd: Sshd, web: Web, home: Path, environment: Mapping[str, str]
) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    small = home / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(small)], check=True)
    try:
        first = free_port()
        state = {"HOLDFAST_STATE_DIR": str(small)}
        assert holdfast("up", "-F", str(sshd.config), "lab", f"{first}:{web.port}", **state).returncode == 0
        with pytest.raises(OSError, match="No space"):
            (small / "filler").write_bytes(b"x" * 65536)
        second = free_port()
        up = holdfast("up", "lab", f"{second}:{web.port}", **state)
        assert up.returncode == 1
        assert "is the disk full" in up.stderr
        wait_for(lambda: not is_open(second), "the port to be closed again")
        assert get(first) == b"hello"
        assert len(tunnel(holdfast("status", "--json", **state))["forwards"]) == 1
        (small / "filler").unlink()
        holdfast("down", "--all", **state)
        holdfast("keeper", "stop", **state)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_login_that_was_under_way_when_the_keeper_died_leaves_no_master(
    holdfast: Run, sshd: Sshd, web: Web, kill_keeper: Kill, home: Path
) -> None:
    sshd.configure(f"ProxyCommand sh -c 'touch {home}/asked; exec sleep 30'")
    holdfast("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}", "--no-wait")
    wait_for(lambda: (home / "asked").exists(), "ssh to be started")
    kill_keeper()
    sshd.configure()
    status = tunnel(holdfast("restart", "lab", "--json"))
    assert status["state"] == "up"
    wait_for(lambda: masters(home) == [status["master_pid"]], "the half-made master to be gone")


@pytest.mark.parametrize(
    ("server", "is_fast"),
    [
        ("MaxSessions 0", False),
        ("MaxSessions 1", True),
        ("ForceCommand /bin/false", True),
        ("ForceCommand cat", True),
    ],
)
def test_an_account_that_may_only_forward_works(
    holdfast: Run, sshd: Sshd, web: Web, server: str, is_fast: bool
) -> None:
    sshd.stop()
    sshd.start(server)
    chosen = free_port()
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{chosen}:{web.port}")
    assert up.returncode == 0, up.stderr
    assert get(chosen) == b"hello"
    status = tunnel(holdfast("status", "--json"))
    assert (status["state"], status["fast_path"]) == ("up", is_fast)
    assert status["rtt_ms"] is not None
    assert ("the fast path is not available" in holdfast("status").stdout) is not is_fast


def test_noise_from_login_files_does_not_matter(holdfast: Run, sshd: Sshd, web: Web) -> None:
    sshd.stop()
    sshd.start("ForceCommand echo welcome; printf 'no newline'; echo; exec cat")
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}", "--json")
    assert tunnel(up)["state"] == "up"


def test_a_frozen_server_is_told_as_stalled_and_thawed_as_up(port: int, holdfast: Run, sshd: Sshd) -> None:
    serving = sshd.descendants()
    for pid in serving:
        os.kill(pid, signal.SIGSTOP)
    try:
        status = tunnel(holdfast("status", "--json"))
        assert status["state"] == "stalled"
        assert "does not answer" in status["reason"]
    finally:
        for pid in serving:
            os.kill(pid, signal.SIGCONT)
    wait_for(lambda: tunnel(holdfast("status", "--json"))["state"] == "up", "the link to be back")
    assert tunnel(holdfast("status", "--json"))["drops"] == 0


def test_a_heartbeat_session_that_is_killed_over_there_costs_nothing(port: int, holdfast: Run, sshd: Sshd) -> None:
    for pid in sshd.descendants():
        if Path(f"/proc/{pid}/comm").read_text().strip() == "cat":
            os.kill(pid, signal.SIGKILL)
    before = tunnel(holdfast("status", "--json"))
    after = tunnel(holdfast("status", "--json"))
    assert (before["state"], after["state"]) == ("up", "up")
    assert after["drops"] == 0
    assert get(port) == b"hello"


def test_two_restarts_at_once_leave_one_master_that_serves(port: int, holdfast: Run, home: Path) -> None:
    pid = tunnel(holdfast("status", "--json"))["master_pid"]
    os.kill(pid, signal.SIGSTOP)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        restarts = [pool.submit(holdfast, "restart", "lab") for _ in range(2)]
        for restart in restarts:
            restart.result()
    wait_for(lambda: tunnel(holdfast("status", "--json"))["state"] == "up", "the tunnel to be up")
    assert masters(home) == [tunnel(holdfast("status", "--json"))["master_pid"]]
    assert get(port) == b"hello"


def test_a_down_that_the_keepers_death_interrupts_is_finished_by_the_next(
    port: int, holdfast: Run, kill_keeper: Kill, home: Path
) -> None:
    pid = tunnel(holdfast("status", "--json"))["master_pid"]
    os.kill(pid, signal.SIGSTOP)
    down = threading.Thread(target=holdfast, args=("down", "lab"))
    down.start()
    state = home / "state" / "state.json"
    wait_for(lambda: '"wanted": false' in state.read_text(), "the wish to be saved")
    kill_keeper()
    down.join()
    os.kill(pid, signal.SIGCONT)
    holdfast("status")
    wait_for(lambda: masters(home) == [], "the master to be gone")
    assert not is_open(port)


def test_a_master_of_ours_that_does_not_answer_a_new_keeper_is_replaced(
    port: int, holdfast: Run, kill_keeper: Kill, home: Path
) -> None:
    pid = tunnel(holdfast("status", "--json"))["master_pid"]
    os.kill(pid, signal.SIGSTOP)
    kill_keeper()
    wait_for(lambda: tunnel(holdfast("status", "--json"))["state"] == "up", "the tunnel to be up", 30)
    assert masters(home) == [tunnel(holdfast("status", "--json"))["master_pid"]]
    assert masters(home) != [pid]
    assert get(port) == b"hello"


def test_what_has_taken_the_place_of_a_listening_socket_is_left_alone(
    holdfast: Run, sshd: Sshd, web: Web, home: Path
) -> None:
    for place in ("file", "folder"):
        path = home / f"{place}.sock"
        holdfast("up", "-F", str(sshd.config), "lab", f"{path}:127.0.0.1:{web.port}", "--name", place)
        path.unlink()
    (home / "file.sock").write_text("precious")
    (home / "folder.sock").mkdir()
    assert holdfast("down", "--all").returncode == 0
    assert (home / "file.sock").read_text() == "precious"
    assert (home / "folder.sock").is_dir()
    assert masters(home) == []


def test_a_shell_that_talks_before_it_obeys_fails_no_login(
    holdfast: Run, sshd: Sshd, web: Web, home: Path
) -> None:
    talkative = home / "shell"
    talkative.write_text('#!/bin/sh\necho "welcome, friend"\nexec /bin/sh "$@"\n')
    talkative.chmod(0o755)
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}", SHELL=str(talkative))
    assert up.returncode == 0, up.stderr


def test_targets_that_swallow_connections_hold_up_neither_status_nor_each_other(
    holdfast: Run, sshd: Sshd, web: Web
) -> None:
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    waiting = []
    for _ in range(4):  # its queue is full: further connections are neither taken nor refused
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(full.getsockname())
        waiting.append(client)
    try:
        target, port = full.getsockname()[1], free_port()
        forwards = [f"{free_port()}:{target}" for _ in range(6)]
        holdfast("up", "-F", str(sshd.config), "lab", *forwards, f"{port}:{web.port}", "--no-wait")
        wait_for(lambda: is_open(port), "the last forward to listen", 5)
        assert holdfast("status").returncode == 3
    finally:
        for client in (*waiting, full):
            client.close()


def test_a_master_that_serves_nobodys_log_stays_small(holdfast: Run, sshd: Sshd, home: Path) -> None:
    port, target = free_port(), free_port()
    holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{target}")
    (log,) = (home / "run" / "m").glob("*.log")
    with log.open("a") as file:
        file.write("x" * 300_000)
    wait_for(lambda: log.stat().st_size < 300_000, "the log to be emptied")


def test_a_notebook_that_can_not_be_had_leaves_the_forward_where_it_leads() -> None:
    before, after = (Notebook(pid, "/home/ann/work", "/", False, "2.21.1") for pid in (1, 2))
    own, remote = (OpenForward(each, each) for each in (parse("8888"), parse("9000:localhost:1", Kind.REMOTE)))
    own.notebook = before
    wish = Wish([parse("8888:8889")], {}, upkeep=check_upkeep({"lazy": 1}), notebook=after, running=[2])

    async def run() -> None:
        keeper = Keeper()
        keeper.tunnels["lab"] = Tunnel("lab", keeper.links.to("lab", ()), forwards=[own, remote])
        with pytest.raises(UsageError, match="can't be lazy"):
            keeper.want(SavedTunnel("lab", "lab", (), {}, True), wish)

    asyncio.run(run())
    assert (own.notebook, own.moves_to) == (before, None)
