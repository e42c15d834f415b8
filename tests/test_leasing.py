"""Tunnels for programs: what they give, and that nothing of them outlives the program, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import holdfast as api
from holdfast import client, leasing
from holdfast.control import Status
from holdfast.errors import HoldfastError, LoginNeeded, TookTooLong, UsageError
from holdfast.events import Kind
from tests.conftest import Run, Web, get, is_open, tunnel
from tests.sshd import Sshd, free_port, wait_for
from tests.test_up import masters

Open = Callable[..., "leasing.Tunnel"]


@pytest.fixture
def lab(
    holdfast: Run, sshd: Sshd, environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    """Opens a tunnel to the test's host, in a process whose keeper is the test's; all are closed afterwards."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    opened: list[leasing.Tunnel] = []

    def open_it(*forwards: int | str, **more: object) -> leasing.Tunnel:
        opened.append(api.tunnel("lab", *forwards, options=("-F", str(sshd.config)), **more))  # type: ignore[arg-type]
        return opened[-1]

    yield open_it
    for each in opened:
        each.close()


def known() -> list[str]:
    return [found["name"] for found in client.ask(Status(()), timeout=20)]


def keeper_of(home: Path) -> psutil.Process:
    (keeper,) = (
        each
        for each in psutil.process_iter(["cmdline"])
        if "holdfast.keeper" in (each.info["cmdline"] or [])
        and str(home) in each.environ().get("HOLDFAST_RUNTIME_DIR", "")
    )
    return keeper


def program(sshd: Sshd, port: int, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """A program that has opened a tunnel, and waits to be told to end."""
    source = (
        "import sys, holdfast\n"
        f"with holdfast.tunnel('lab', {port}, options=('-F', {str(sshd.config)!r})) as t:\n"
        "    print(t.port, flush=True)\n    sys.stdin.read()\n"
    )
    return started(source, environment)


def started(source: str, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    words = [sys.executable, "-W", "ignore", "-c", source]
    return subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def told_port(running: subprocess.Popen[str]) -> int:
    assert running.stdout is not None
    return int(running.stdout.readline())


def end(running: subprocess.Popen[str]) -> None:
    assert running.stdin is not None
    assert running.stdout is not None
    running.stdin.close()
    running.stdout.close()
    running.wait(20)


def test_a_tunnel_is_there_inside_the_with_and_gone_after_it(lab: Open, web: Web, home: Path) -> None:
    with lab(web.port) as t:
        assert get(t.port, host=t.host) == b"hello"
        assert t.url == f"http://localhost:{t.port}"
        assert t.state == t.status()["state"] == "up"
        assert known() == ["lab"]
    assert not is_open(t.port)
    assert known() == []
    wait_for(lambda: not masters(home), "the master to end")
    assert repr(t).endswith("closed>")


def test_a_port_is_the_same_here_if_it_is_free_and_another_one_if_not(lab: Open, web: Web) -> None:
    here = free_port()
    with socket.create_server(("127.0.0.2", here)), lab(f"0:127.0.0.2:{here}") as same, lab(web.port) as other:
        assert same.port == here
        assert other.port != web.port
    with lab(f"{here}:{web.port}") as exact:
        assert exact.port == here
        assert get(here) == b"hello"


def test_several_forwards_are_told_in_the_order_in_which_they_were_asked_for(
    lab: Open, web: Web, home: Path
) -> None:
    here, path = free_port(), home / "a.sock"
    with lab(f"{here}:{web.port}"):
        with lab(f"{path}:{web.port}", f"{here}:{web.port}", web.port, dynamic=[0]) as t:
            first, second, third, socks = t.endpoints
            assert (first.path, first.port, first.url) == (str(path), 0, None)
            assert second.port == third.port == here
            assert t.path == str(path)
            assert is_open(socks.port)
        assert is_open(here)


def test_the_same_tunnel_asked_for_twice_is_shared_until_the_last_lets_go(
    lab: Open, sshd: Sshd, web: Web, environment: Mapping[str, str]
) -> None:
    running = program(sshd, web.port, environment)
    try:
        with lab(web.port) as t:
            assert t.port == told_port(running)
            assert t.status()["forwards"][0]["leases"] == 2
        assert get(t.port) == b"hello"
    finally:
        end(running)
    wait_for(lambda: not known(), "the forward to be closed")


def test_a_killed_program_leaves_nothing(
    lab: Open, sshd: Sshd, web: Web, environment: Mapping[str, str], home: Path
) -> None:
    running = program(sshd, web.port, environment)
    try:
        port = told_port(running)
        assert get(port) == b"hello"
        running.kill()
    finally:
        end(running)
    wait_for(lambda: not is_open(port), "the port to be closed")
    wait_for(lambda: not masters(home), "the master to end")


def test_a_tunnel_that_was_brought_up_by_hand_is_shared_and_stays(
    lab: Open, holdfast: Run, sshd: Sshd, web: Web
) -> None:
    port = free_port()
    holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}")
    with lab(web.port) as t:
        assert t.port == port
    assert get(port) == b"hello"
    assert tunnel(holdfast("status", "--json"))["forwards"][0]["leases"] == 0


def test_what_is_brought_up_by_hand_after_a_program_had_it_stays(
    lab: Open, holdfast: Run, sshd: Sshd, web: Web
) -> None:
    with lab(f"{free_port()}:{web.port}") as t:
        holdfast("up", "-F", str(sshd.config), "lab", f"{t.port}:{web.port}")
    assert get(t.port) == b"hello"


def test_a_programs_forwards_are_not_what_up_remembers(lab: Open, holdfast: Run, sshd: Sshd, web: Web) -> None:
    own, leased = free_port(), free_port()
    holdfast("up", "-F", str(sshd.config), "lab", f"{own}:{web.port}")
    with lab(f"{leased}:{web.port}"):
        holdfast("down", "lab")
    with lab(f"{leased}:{web.port}"):
        back = tunnel(holdfast("up", "lab", "--json"))
        assert {forward["listen"] for forward in back["forwards"] if forward["kept"]} == {f"localhost:{own}"}
    assert not is_open(leased)
    assert get(own) == b"hello"


def test_another_tunnel_of_that_name_does_not_stand_in_a_programs_way(
    lab: Open, holdfast: Run, sshd: Sshd, web: Web
) -> None:
    holdfast("up", "-F", str(sshd.config), "-o", "Compression=yes", "lab", f"{free_port()}:{web.port}")
    with lab(web.port) as t, lab(web.port) as same:
        assert t.name == same.name == "lab-2"
        assert t.port == same.port
        assert get(t.port) == b"hello"


def test_a_name_that_is_remembered_for_another_host_is_no_programs_second_name(
    lab: Open, holdfast: Run, sshd: Sshd, web: Web
) -> None:
    for name in ("lab-2", "lab"):
        up = ("up", "-F", str(sshd.config), "-o", "Compression=yes", "lab", f"{free_port()}:{web.port}")
        assert holdfast(*up, "--name", name).returncode == 0
    holdfast("down", "lab-2")
    with lab(web.port) as t:
        assert t.name == "lab-3"


def test_up_of_a_remembered_tunnel_never_adds_to_what_a_program_calls_by_its_name(
    lab: Open, holdfast: Run, sshd: Sshd, web: Web
) -> None:
    port = free_port()
    holdfast("up", "-F", str(sshd.config), "-o", "Compression=yes", "lab", f"{port}:{web.port}", "--name", "db")
    holdfast("down", "db")
    with lab(web.port, name="db"):
        refused = holdfast("up", "db")
        assert refused.returncode == 2
        assert f"the tunnel 'db' is up already, and goes to -F {sshd.config} lab" in refused.stderr
        assert not is_open(port)
    back = tunnel(holdfast("up", "db", "--json"))
    assert "Compression=yes" in back["options"]
    assert get(port) == b"hello"


def test_two_programs_that_open_at_once_each_get_what_they_asked_for(lab: Open, sshd: Sshd, web: Web) -> None:
    plain = ("-F", str(sshd.config))
    other = (*plain, "-o", "Compression=yes")
    lab(web.port).close()
    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(api.tunnel, "lab", web.port, options=options) for options in (plain, other)]
        for opening, options in zip(asked, (plain, other), strict=True):
            with opening.result() as t:
                assert tuple(t.status()["options"]) == options


def test_two_targets_on_one_port_number_get_a_port_each(lab: Open) -> None:
    port = free_port()
    with (
        socket.create_server(("127.0.0.2", port)),
        socket.create_server(("127.0.0.3", port)),
        lab(f"0:127.0.0.2:{port}", f"0:127.0.0.3:{port}") as t,
    ):
        one, two = t.endpoints
        assert one.port == port != two.port
        assert t.state == "up"
    with pytest.raises(UsageError, match="can't lead to"):
        lab(f"{port}:127.0.0.2:1", f"{port}:127.0.0.3:1")


def test_the_same_forward_asked_for_twice_in_one_call_is_told_twice(lab: Open, web: Web) -> None:
    with lab(web.port, web.port) as t:
        one, two = t.endpoints
        assert one == two


def test_a_port_is_the_same_after_a_loss_though_clients_come_all_the_time(lab: Open, sshd: Sshd) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.2", port)) as server, lab(f"0:127.0.0.2:{port}") as t:
        assert t.port == port
        stop = threading.Event()

        def knock() -> None:
            while not stop.is_set():
                is_open(port)

        def let_in() -> None:
            with contextlib.suppress(OSError):
                while True:
                    server.accept()[0].close()

        threads = [threading.Thread(target=each) for each in (knock, let_in)]
        for thread in threads:
            thread.start()
        try:
            sshd.drop_connections()
            wait_for(lambda: t.status()["drops"] == 1 and t.status()["state"] == "up", "the tunnel to be back")
        finally:
            stop.set()
            server.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
        assert t.status()["forwards"][0]["listen"] == f"localhost:{port}"


def test_a_host_that_was_once_brought_up_with_options_is_reached_with_them_by_all(
    lab: Open, holdfast: Run, sshd: Sshd, web: Web, kill_keeper: Callable[[], None], home: Path
) -> None:
    client.connect().close()
    holdfast("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}")
    holdfast("down", "lab")
    with api.tunnel("lab", web.port) as one, api.tunnel("lab", web.port) as two:
        assert (one.name, one.port) == (two.name, two.port)
        before = masters(home)
        kill_keeper()
        wait_for(lambda: (home / "state" / "keeper.lock").read_text(), "another keeper")
        wait_for(lambda: one.status()["forwards"][0]["leases"] == 2, "the leases to be had again")
        assert masters(home) == before


def test_a_program_with_very_many_descriptors_can_start_a_keeper(
    holdfast: Run, sshd: Sshd, web: Web, environment: Mapping[str, str]
) -> None:
    source = (
        "import os, resource, holdfast\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "many = [os.open('/dev/null', os.O_RDONLY) for _ in range(1100)]\n"
        f"holdfast.tunnel('lab', {web.port}, options=('-F', {str(sshd.config)!r})).close()\n"
    )
    subprocess.run([sys.executable, "-c", source], env=environment, check=True, timeout=30)


def test_a_program_without_stdin_stdout_and_stderr_can_start_a_keeper(
    holdfast: Run, sshd: Sshd, web: Web, environment: Mapping[str, str]
) -> None:
    source = (
        "import os, holdfast\n"
        "os.closerange(0, 3)\n"
        f"holdfast.tunnel('lab', {web.port}, options=('-F', {str(sshd.config)!r})).close()\n"
    )
    subprocess.run([sys.executable, "-c", source], env=environment, check=True, timeout=30)


def test_a_tunnel_outlives_its_keeper_on_the_same_port(
    lab: Open, web: Web, kill_keeper: Callable[[], None], home: Path
) -> None:
    with lab(web.port) as t:
        before = masters(home)
        kill_keeper()
        assert get(t.port) == b"hello"
        wait_for(lambda: (home / "state" / "keeper.lock").read_text(), "another keeper")
        wait_for(lambda: t.status()["forwards"][0]["leases"] == 1, "the lease to be had again")
        assert get(t.port) == b"hello"
        assert masters(home) == before
    assert known() == []
    assert not is_open(t.port)


def test_a_newer_command_replaces_the_keeper_of_an_older_program(
    lab: Open, holdfast: Run, web: Web, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import holdfast.version\nholdfast.version.__version__ = '99.0'\n")
    with lab(web.port) as t:
        for _ in range(2):
            assert holdfast("status", PYTHONPATH=str(tmp_path)).returncode == 0
            found = client.find()
            assert found is not None
            found.close()
            assert found.greeting["holdfast"] == "99.0"
        assert get(t.port) == b"hello"


def test_what_a_program_held_that_ended_with_the_keeper_is_given_up(
    lab: Open, sshd: Sshd, web: Web, environment: Mapping[str, str], kill_keeper: Callable[[], None]
) -> None:
    running = program(sshd, web.port, environment)
    port = told_port(running)
    os.kill(running.pid, signal.SIGSTOP)
    kill_keeper()
    running.kill()
    end(running)
    assert known() == ["lab"]  # it may come back
    assert get(port) == b"hello"
    wait_for(lambda: not is_open(port), "the port to be closed", 30)
    assert known() == []


def test_what_is_closed_just_when_the_keeper_is_killed_is_given_up_by_another(
    lab: Open, web: Web, kill_keeper: Callable[[], None], home: Path
) -> None:
    t = lab(web.port)
    keeper = keeper_of(home)
    keeper.suspend()  # what it is told from here on, it never hears
    closing = threading.Thread(target=t.close)
    closing.start()
    wait_for(t._closing.is_set, "it to be closed")
    kill_keeper()
    closing.join(30)
    wait_for(lambda: not is_open(t.port), "the port to be closed", 30)
    wait_for(lambda: not masters(home), "the master to end")


def test_a_lost_connection_heals_and_is_told_as_events(lab: Open, web: Web, sshd: Sshd) -> None:
    with lab(web.port) as t:
        happened = t.events()
        wait_for(lambda: t._known is not None, "the first look")
        sshd.drop_connections()
        states = []
        for event in happened:
            if event.kind is Kind.STATE:
                states.append(event.state)
            if states[-1:] == ["up"]:
                break
        assert states[0] in ("waiting", "connecting")
        assert get(t.port) == b"hello"


def test_events_end_when_the_tunnel_is_closed(lab: Open, web: Web) -> None:
    t = lab(web.port)
    heard: list[object] = []
    happened = t.events()
    listening = threading.Thread(target=lambda: heard.extend(happened))
    listening.start()
    t.close()
    listening.join(10)
    assert not listening.is_alive()
    assert list(t.events()) == []


def test_a_tunnel_that_somebody_takes_down_is_told_as_down(lab: Open, holdfast: Run, web: Web) -> None:
    with lab(web.port) as t:
        wait_for(lambda: t._known is not None, "the first look")
        holdfast("down", "lab")
        wait_for(lambda: t.state == "down", "the news")
        with pytest.raises(HoldfastError, match="there is no tunnel 'lab'"):
            t.status()


def test_a_tunnel_that_somebody_took_down_is_not_brought_back_by_the_next_keeper(
    lab: Open, holdfast: Run, web: Web, kill_keeper: Callable[[], None]
) -> None:
    with lab(web.port) as t:
        wait_for(lambda: t._known is not None, "the first look")
        holdfast("down", "lab")
        wait_for(lambda: t.state == "down", "the news")
        kill_keeper()
        assert list(t.events()) == []
        assert known() == []


def test_a_login_that_needs_a_person_is_an_error_that_says_so(lab: Open, sshd: Sshd) -> None:
    sshd.authorized_keys.write_text("")
    with pytest.raises(LoginNeeded) as raised:
        lab(8888)
    assert "holdfast up" in raised.value.hint
    assert raised.value.__notes__ == [f"hint: {raised.value.hint}"]
    wait_for(lambda: not known(), "it to be given up")


def test_a_host_that_is_not_reached_in_time_is_given_up(lab: Open, sshd: Sshd) -> None:
    sshd.stop()
    with pytest.raises(TookTooLong, match=r"lab is not reached after 1 s: .*refuses"):
        lab(8888, timeout=1)
    with pytest.raises(TimeoutError):
        lab(8888, timeout=0.5)
    wait_for(lambda: not known(), "it to be given up")


@pytest.mark.parametrize("wrong", [70000, "nope", "", "1:2:3:4:5", -1])
def test_what_is_no_forward_is_refused_before_anything_is_started(wrong: int | str) -> None:
    with pytest.raises(UsageError):
        api.tunnel("lab", wrong)


def test_a_service_that_is_not_there_yet_fails_nothing(lab: Open) -> None:
    with lab(f"{free_port()}:{free_port()}") as t:
        assert t.state == "no service"


def test_a_port_that_would_lead_to_itself_is_not_used(lab: Open, holdfast: Run, sshd: Sshd) -> None:
    nobody = free_port()
    with lab(nobody) as t:
        assert t.port != nobody
        assert t.state == "no service"
    up = holdfast("up", "-F", str(sshd.config), "lab", str(nobody))
    assert up.returncode == 1
    assert f"lab is this machine, where localhost:{nobody} would lead to itself" in up.stderr


def test_a_program_does_not_get_what_only_another_one_has_asked_for(lab: Open, web: Web) -> None:
    with lab(web.port, name="mine"), pytest.raises(HoldfastError, match=r"mine.*not"):
        api.tunnel("mine", web.port, timeout=5)


def test_what_is_left_open_at_the_programs_end_does_not_hold_it_up(
    holdfast: Run, sshd: Sshd, web: Web, environment: Mapping[str, str]
) -> None:
    source = (
        "import holdfast\n"
        "def opened():\n"
        f"    with holdfast.tunnel('lab', {web.port}, options=('-F', {str(sshd.config)!r})) as t:\n"
        "        yield t\n"
        "it = opened()\nnext(it)\n"
    )
    subprocess.run([sys.executable, "-c", source], env=environment, check=True, timeout=15)


def test_a_configured_tunnel_is_what_the_file_says(
    lab: Open, sshd: Sshd, web: Web, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = home / "config.toml"
    file.write_text(f'[tunnels.db]\nhost = "lab"\nforwards = ["0:{web.port}"]\nssh = ["-F", "{sshd.config}"]\n')
    monkeypatch.setenv("HOLDFAST_CONFIG", str(file))
    with api.tunnel("db") as t:
        assert (t.name, get(t.port)) == ("db", b"hello")
    file.write_text("[tunnels.db]\nnope = 1\n")
    with pytest.raises(UsageError, match="nope"):
        api.tunnel("db")


def test_what_speaks_no_http_has_no_url(lab: Open) -> None:
    with lab(f"{free_port()}:5432") as t, pytest.raises(UsageError, match="has no URL"):
        assert t.url


def test_closing_twice_does_nothing(lab: Open, web: Web) -> None:
    t = lab(web.port)
    t.close()
    t.close()


def check_port_goes_with_the_parent(source: str, environment: Mapping[str, str]) -> None:
    """Runs a program that tells its port and ends, but for a child, which waits on."""
    running = started(source, environment)
    port = told_port(running)
    running.wait(10)
    wait_for(lambda: not is_open(port), "the port to be closed")
    end(running)


def test_a_forked_child_does_not_keep_the_tunnel_alive(
    holdfast: Run, sshd: Sshd, web: Web, environment: Mapping[str, str]
) -> None:
    source = (
        "import os, sys, time, holdfast\n"
        f"t = holdfast.tunnel('lab', {web.port}, options=('-F', {str(sshd.config)!r}))\n"
        "child = os.fork()\n"
        "if child == 0:\n    t.close(); sys.stdin.read(); os._exit(0)\n"
        "print(t.port, flush=True)\nos._exit(0)\n"
    )
    check_port_goes_with_the_parent(source, environment)


def test_a_child_that_is_forked_while_a_tunnel_is_asked_for_does_not_keep_it_alive(
    holdfast: Run, sshd: Sshd, web: Web, environment: Mapping[str, str]
) -> None:
    source = (
        "import os, signal, sys, threading, time, holdfast\n"
        "from holdfast import client\n"
        "keeper = client.connect()\n"
        "pid = keeper.greeting['pid']\n"
        "os.kill(pid, signal.SIGSTOP)\n"  # it greets nobody
        "before = len(os.listdir('/proc/self/fd'))\n"
        "def work():\n"
        f"    print(holdfast.tunnel('lab', {web.port}, options=('-F', {str(sshd.config)!r})).port, flush=True)\n"
        "opening = threading.Thread(target=work)\n"
        "opening.start()\n"
        "while len(os.listdir('/proc/self/fd')) == before:\n    time.sleep(0.01)\n"
        "child = os.fork()\n"
        "if child == 0:\n    sys.stdin.read(); os._exit(0)\n"
        "os.kill(pid, signal.SIGCONT)\n"
        "opening.join()\n"
        "os._exit(0)\n"
    )
    check_port_goes_with_the_parent(source, environment)


def test_a_child_that_is_forked_while_a_keeper_is_started_keeps_no_other_from_starting(home: Path) -> None:
    lock_file = home / "start.lock"
    waiting, told = os.pipe()
    with client._locked(lock_file, 0):
        child = os.fork()
        if child == 0:
            os.close(told)
            os.read(waiting, 1)
            os._exit(0)
    try:
        with client._locked(lock_file, 0):
            pass
    finally:
        os.close(told)
        os.close(waiting)
        os.waitpid(child, 0)


def test_a_full_disk_leaves_remembered_and_leased_tunnels_as_they_were(
    lab: Open, holdfast: Run, sshd: Sshd, web: Web, home: Path
) -> None:
    own, leased = free_port(), free_port()
    holdfast("up", "-F", str(sshd.config), "lab", f"{own}:{web.port}")
    holdfast("down", "lab")
    keeper = keeper_of(home)
    with lab(f"{leased}:{web.port}") as t:
        keeper.rlimit(psutil.RLIMIT_FSIZE, (0, psutil.RLIM_INFINITY))
        assert "is the disk full" in holdfast("up", "lab", f"{leased}:{web.port}").stderr
        assert not t.status()["forwards"][0]["kept"]
        keeper.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
    assert not is_open(leased)
    assert f"localhost:{own}" in holdfast("up", "lab").stdout


def test_two_hundred_leases_at_once_leak_nothing(lab: Open, web: Web, home: Path) -> None:
    lab(web.port).close()
    keeper = keeper_of(home)
    before = keeper.num_fds()
    threads = threading.active_count()

    def use(number: int) -> bytes:
        with lab(f"0:{web.port}", name=f"t{number % 20}") as t:
            return get(t.port) if number % 10 == 0 else b"hello"

    with ThreadPoolExecutor(50) as pool:
        assert set(pool.map(use, range(200))) == {b"hello"}
    assert known() == []
    wait_for(lambda: not masters(home), "the master to end")
    wait_for(lambda: keeper.num_fds() <= before, f"{keeper.num_fds()} descriptors to be {before} again")
    wait_for(lambda: threading.active_count() <= threads, "the threads to end")


def test_an_asyncio_tunnel_is_there_inside_the_with_and_gone_after_it(lab: Open, sshd: Sshd, web: Web) -> None:
    async def work() -> int:
        async with api.atunnel("lab", web.port, options=("-F", str(sshd.config))) as t:
            assert await asyncio.to_thread(get, t.port) == b"hello"
            happened = t.aevents()
            listening = asyncio.create_task(anext(happened))
            wait_for(lambda: t._known is not None, "the first look")
            await asyncio.to_thread(sshd.drop_connections)
            event = await asyncio.wait_for(listening, 20)
            assert event.tunnel == "lab"
            await happened.aclose()
            return t.port

    port = asyncio.run(work())
    assert not is_open(port)


def test_an_asyncio_tunnel_that_is_given_up_while_it_opens_leaves_nothing(
    lab: Open, sshd: Sshd, web: Web, home: Path
) -> None:
    async def give_up() -> None:
        opening = asyncio.create_task(api.atunnel("lab", web.port, options=("-F", str(sshd.config))).__aenter__())
        await asyncio.sleep(0.05)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    asyncio.run(give_up())
    wait_for(lambda: not known(), "it to be closed")
    wait_for(lambda: not masters(home), "the master to end")


def test_an_asyncio_tunnel_is_left_at_once_though_all_of_the_loops_threads_are_busy(
    lab: Open, sshd: Sshd, web: Web
) -> None:
    async def work() -> None:
        async with api.atunnel("lab", web.port, options=("-F", str(sshd.config))) as t:
            for _ in range(64):  # more than it has
                asyncio.get_running_loop().run_in_executor(None, busy.wait, 30)
            port = t.port
        assert not busy.is_set()
        assert not is_open(port)
        busy.set()

    busy = threading.Event()
    try:
        asyncio.run(asyncio.wait_for(work(), 20))
    finally:
        busy.set()


def test_the_command_line_does_not_pay_for_the_api() -> None:
    said = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import holdfast"], capture_output=True, text=True, check=True
    ).stderr
    assert "holdfast.leasing" not in said
    assert "threading" not in said.partition("holdfast")[2]


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        api.nope  # noqa: B018


def test_everything_that_is_named_is_there() -> None:
    assert all(getattr(api, name) for name in api.__all__)


def test_ports_stay_closed_to_a_lease_that_the_keeper_refuses(lab: Open, sshd: Sshd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(HoldfastError, match="is taken by"):
        lab(f"{taken.getsockname()[1]}:1")
    wait_for(lambda: not known(), "it to be given up")


def test_opening_takes_no_longer_than_its_time_out_says(lab: Open, sshd: Sshd) -> None:
    sshd.stop()
    began = time.monotonic()
    with pytest.raises(TookTooLong):
        lab(8888, timeout=0.3)
    assert time.monotonic() - began < 10
