"""Start at login: against a real `systemd --user` where one can run, and the texts for launchd."""

from __future__ import annotations

import concurrent.futures
import getpass
import os
import plistlib
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath

import psutil
import pytest

from holdfast.cli import installing
from holdfast.cli.launchd import Launchd
from holdfast.errors import HoldfastError
from holdfast.service import (
    AGENTS,
    KEEPER,
    LINKS,
    LOGIN,
    SOCKET,
    Program,
    agent_pid,
    is_fleeting,
    is_ours,
    kept,
    launchd_agents,
    properties,
    python_of,
    python_of_agent,
    systemd_units,
)
from tests.accounts import account, make_environment, needs_accounts
from tests.conftest import Run, Web, _keepers, get, say_nothing_of_others, tunnel
from tests.reader import DOCUMENTS, as_shown, blocks, compare
from tests.sshd import Sshd, free_port, wait_for
from tests.systemd import UserManager, why_not

UNITS = (SOCKET, KEEPER, LOGIN)
needs_systemd = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture
def manager(home: Path, environment: Mapping[str, str]) -> Iterator[UserManager]:
    """A session with systemd."""
    say_nothing_of_others(home)
    running = UserManager(home, environment)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def folder(home: Path) -> Path:
    """Where the user's units are."""
    return home / ".config" / "systemd" / "user"


def main_pid(manager: UserManager) -> int:
    return int(manager.property(KEEPER, "MainPID"))


def variables(manager: UserManager) -> list[bytes]:
    """What the service's keeper has in its environment."""
    return Path(f"/proc/{main_pid(manager)}/environ").read_bytes().split(b"\0")


def up(manager: UserManager, sshd: Sshd, web: Web) -> tuple[int, int]:
    """A tunnel to `web`: its port, and its master's pid."""
    port = free_port()
    brought = tunnel(manager.holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}", "--json"))
    return port, brought["master_pid"]


def be_newer(folder: Path) -> None:
    """Has a holdfast that is started with this PYTHONPATH be a version to come."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text("import holdfast.version\nholdfast.version.__version__ = '99.0'\n")


@needs_systemd
def test_install_starts_the_keeper_by_systemd_and_again_changes_nothing(
    manager: UserManager, folder: Path, home: Path
) -> None:
    installed = manager.holdfast("service", "install")
    assert installed.returncode == 0, installed.stderr
    assert [line for line in installed.stdout.splitlines() if line.startswith("wrote")] == [
        f"wrote {folder / name}" for name in UNITS
    ]
    assert _keepers(home) == [main_pid(manager)]
    assert {manager.property(name, "UnitFileState") for name in UNITS} == {"enabled"}
    assert stat.S_IMODE((home / "run" / "service.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "run").stat().st_mode) == 0o700
    assert manager.property(KEEPER, "StatusText") == f"listens at {home}/run/service.sock"
    again = manager.holdfast("service", "install")
    assert "wrote" not in again.stdout
    assert f"the keeper runs (pid {_keepers(home)[0]})" in again.stdout
    told = manager.holdfast("service", "status")
    assert "this holdfast" in told.stdout
    assert f"the keeper runs (pid {main_pid(manager)})" in told.stdout
    assert "loginctl enable-linger" in told.stdout
    assert told.returncode == 0, told.stdout


@needs_systemd
def test_a_commands_keeper_makes_way_for_the_services_and_remove_gives_it_back(
    manager: UserManager, sshd: Sshd, web: Web, home: Path, folder: Path
) -> None:
    port, master = up(manager, sshd, web)
    folder.mkdir(parents=True)
    (folder / "mine.service").write_text("[Service]\nExecStart=/bin/true\n")
    (before,) = _keepers(home)
    manager.holdfast("service", "install")
    assert _keepers(home) == [main_pid(manager)] != [before]
    after = tunnel(manager.holdfast("status", "--json"))
    assert (after["state"], after["master_pid"]) == ("up", master)
    removed = manager.holdfast("service", "remove")
    assert removed.returncode == 0, removed.stderr
    assert [path.name for path in folder.rglob("*") if path.is_file() or path.is_symlink()] == ["mine.service"]
    assert not (home / "run" / "service.sock").exists()
    assert manager.property(KEEPER, "LoadState") == "not-found"
    (own,) = _keepers(home)  # what is up is looked after
    assert tunnel(manager.holdfast("status", "--json"))["master_pid"] == master
    assert get(port) == b"hello"
    assert _keepers(home) == [own]
    assert "is not installed" in manager.holdfast("service", "remove").stdout
    assert manager.holdfast("service", "status").returncode == 3


@needs_systemd
def test_the_service_stops_and_crashes_without_a_tunnel_noticing_and_commands_bring_it_back(
    manager: UserManager, sshd: Sshd, web: Web, home: Path
) -> None:
    manager.holdfast("service", "install")
    port, master = up(manager, sshd, web)
    for word in Path(f"/proc/{master}/environ").read_text().split("\0"):
        assert not word.startswith(("NOTIFY_SOCKET", "LISTEN_")), word
    manager.systemctl("stop", KEEPER)
    assert _keepers(home) == []
    assert get(port) == b"hello"
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        results = list(pool.map(lambda _: manager.holdfast("status", "--json"), range(5)))
    assert {tunnel(result)["master_pid"] for result in results} == {master}
    assert _keepers(home) == [main_pid(manager)]
    killed = main_pid(manager)
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: main_pid(manager) not in (0, killed), "systemd to start it again")
    assert tunnel(manager.holdfast("status", "--json"))["master_pid"] == master
    assert _keepers(home) == [main_pid(manager)]
    manager.systemctl("restart", KEEPER, SOCKET)
    assert tunnel(manager.holdfast("status", "--json"))["master_pid"] == master
    assert _keepers(home) == [main_pid(manager)]
    stopped = manager.holdfast("keeper", "stop")
    assert stopped.returncode == 0
    assert _keepers(home) == []
    assert get(port) == b"hello"
    assert manager.property(SOCKET, "ActiveState") == "active"


@needs_systemd
def test_after_an_upgrade_the_services_keeper_is_the_newer_one(
    manager: UserManager, sshd: Sshd, web: Web, home: Path, folder: Path
) -> None:
    code = home / "code"
    manager.holdfast("service", "install")
    (folder / f"{KEEPER}.d").mkdir()
    (folder / f"{KEEPER}.d" / "test.conf").write_text(f"[Service]\nEnvironment=PYTHONPATH={code}\n")
    manager.systemctl("daemon-reload")
    _, master = up(manager, sshd, web)
    old = main_pid(manager)
    be_newer(code)
    after = tunnel(manager.holdfast("status", "--json", PYTHONPATH=str(code)))
    assert after["master_pid"] == master
    assert _keepers(home) == [main_pid(manager)] != [old]
    assert "holdfast 99.0" in manager.holdfast("doctor").stdout  # it names a keeper that is another version


@needs_systemd
def test_a_service_of_an_older_holdfast_is_passed_over_once(manager: UserManager, home: Path) -> None:
    code = home / "code"
    be_newer(code)
    manager.holdfast("service", "install")
    assert manager.holdfast("up", "nowhere.invalid", "0:8888", "--no-wait", PYTHONPATH=str(code)).returncode == 0
    (newer,) = _keepers(home)
    assert newer != main_pid(manager)
    manager.holdfast("status", PYTHONPATH=str(code))
    assert _keepers(home) == [newer]
    told = manager.holdfast("service", "status", PYTHONPATH=str(code))
    assert f"the keeper (pid {newer}) is not the service's" in told.stdout
    assert told.returncode == 3


@needs_systemd
def test_a_service_that_can_not_start_is_told_and_keeps_no_command_from_working(
    manager: UserManager, home: Path, folder: Path
) -> None:
    manager.holdfast("service", "install")
    unit = folder / KEEPER
    unit.write_text(unit.read_text().replace(f'"{installing.lasting_python()}"', f'"{home}/gone/python"'))
    manager.systemctl("daemon-reload")
    manager.systemctl("stop", KEEPER)
    brought = manager.holdfast("up", "nowhere.invalid", "0:8888", "--no-wait")
    assert brought.returncode == 0, brought.stderr
    wait_for(lambda: len(_keepers(home)) == 1, "the only keeper")
    told = manager.holdfast("service", "status")
    assert f"starts {home}/gone/python, which is gone" in told.stdout
    assert told.returncode == 3
    mended = manager.holdfast("service", "install")
    assert f"wrote {unit}" in mended.stdout
    assert _keepers(home) == [main_pid(manager)]


@needs_systemd
def test_the_next_login_starts_the_keeper_and_a_mistake_in_the_configuration_stops_nothing(
    manager: UserManager, sshd: Sshd, web: Web, home: Path, folder: Path
) -> None:
    config, port = home / ".config" / "holdfast" / "config.toml", free_port()
    config.parent.mkdir(parents=True)
    config.write_text(
        f'[tunnels.web]\nhost = "lab"\nforwards = ["{port}:{web.port}"]\nstart = "login"\n'
        f'ssh = ["-F", "{sshd.config}"]\n'
    )
    manager.holdfast("service", "install")
    wait_for(lambda: manager.holdfast("status", "web").returncode == 0, "the login set")
    assert get(port) == b"hello"
    manager.holdfast("down", "web")
    manager.systemctl("restart", KEEPER)
    assert manager.holdfast("status", "web").returncode == 3  # it was taken down, and stays so
    manager.stop()
    manager.start("default.target")
    wait_for(lambda: manager.holdfast("status", "web").returncode == 0, "the login set")
    assert get(port) == b"hello"
    manager.stop()
    config.write_text("nonsense = \n")
    (folder / f"{LOGIN}.d").mkdir()  # without a journal here
    (folder / f"{LOGIN}.d" / "test.conf").write_text(f"[Service]\nStandardError=append:{home}/journal\n")
    manager.start("default.target")
    wait_for(lambda: manager.property(LOGIN, "ActiveState") == "failed", "the complaint")
    assert _keepers(home) == [main_pid(manager)]
    assert str(config) in (home / "journal").read_text()
    assert manager.holdfast("service", "status").returncode == 3


@needs_systemd
def test_a_unit_that_somebody_else_wrote_is_left_alone(manager: UserManager, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / KEEPER).write_text("[Service]\nExecStart=/bin/true\n")
    for word in ("install", "remove", "status"):
        manager.holdfast("service", word)
        assert [path.name for path in folder.iterdir()] == [KEEPER], word
        assert (folder / KEEPER).read_text() == "[Service]\nExecStart=/bin/true\n"
    refused = manager.holdfast("service", "install")
    assert refused.returncode == 1
    assert "was not written by holdfast" in refused.stderr


@needs_systemd
def test_variables_reach_the_keeper_as_they_are_and_linger_is_told(manager: UserManager, home: Path) -> None:
    odd = "a b  'c' \"d\" %h \\e $HOME ünï \rf"
    installed = manager.holdfast("service", "install", HOLDFAST_ODD=odd)
    assert installed.returncode == 0, installed.stderr
    assert f"HOLDFAST_ODD={odd}".encode() in variables(manager)
    assert "linger is off" in installed.stdout
    manager.run("touch", "/var/lib/systemd/linger/root")
    assert "linger is on" in manager.holdfast("service", "status").stdout
    if not Path(f"/run/user/{os.getuid()}/systemd").exists():  # as under cron
        unreachable = manager.holdfast("service", "status", XDG_RUNTIME_DIR="")
        assert "your systemd can't be reached" in unreachable.stdout
        assert (unreachable.returncode, unreachable.stderr) == (3, "")


@needs_systemd
def test_units_go_where_systemd_looks_though_a_shell_has_its_configuration_elsewhere(
    manager: UserManager, folder: Path, home: Path
) -> None:
    for config in (str(home / "elsewhere"), "elsewhere"):
        installed = manager.holdfast("service", "install", XDG_CONFIG_HOME=config)
        assert installed.returncode == 0, installed.stderr
        assert f"wrote {folder / KEEPER}" in installed.stdout
        assert f"XDG_CONFIG_HOME={config}".encode() in variables(manager)
        assert manager.holdfast("service", "status", XDG_CONFIG_HOME=config).returncode == 0
        assert manager.holdfast("service", "remove", XDG_CONFIG_HOME=config).returncode == 0
        assert not list(folder.rglob("holdfast*"))


def test_what_a_unit_can_not_have_in_it_is_refused_before_anything_is_written(holdfast: Run, home: Path) -> None:
    refused = holdfast("service", "install", HOME=str(home), HOLDFAST_ODD="\udcff")
    assert refused.returncode == 1
    assert "HOLDFAST_ODD is not in UTF-8" in refused.stderr
    assert not (home / ".config").exists()


def test_without_a_systemd_that_answers_the_way_out_is_told_and_nothing_is_written(
    holdfast: Run, home: Path
) -> None:
    for more in ({"XDG_RUNTIME_DIR": str(home / "none")}, {"PATH": str(home)}):
        refused = holdfast("service", "install", HOME=str(home), **more)
        assert refused.returncode == 1
        assert "up --login --no-wait" in refused.stderr
        assert "crontab" in refused.stderr
    assert not (home / ".config").exists()
    assert holdfast("service", "status", HOME=str(home)).returncode == 3
    assert "is not installed" in holdfast("service", "remove", HOME=str(home)).stdout


def test_units_are_what_systemd_expects_however_odd_the_paths(home: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze")
    place = home / "o d%h$x"
    place.mkdir()
    (place / "python").symlink_to(sys.executable)
    program = Program(str(place / "python"), {"PATH": '/a b:/c"d%\\'})
    for name, text in systemd_units(program, place / "service.sock", PurePath("/run/user/1")).items():
        (home / name).write_text(text)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--user", *(str(home / name) for name in UNITS)],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(home), "HOME": str(home)},
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert str(home) not in checked.stderr
    assert python_of((home / KEEPER).read_text()) == str(place / "python")


def test_a_path_that_systemd_does_not_take_is_refused() -> None:
    with pytest.raises(HoldfastError, match="o'neil"):
        systemd_units(PROGRAM._replace(python="/home/o'neil/bin/python"), PurePath("/r/s"), PurePath("/r"))


PROGRAM = Program("/opt/h/bin/python", {"PATH": "/usr/bin:/opt/<b>"})


def test_the_socket_is_named_as_systemd_knows_the_runtime_directory() -> None:
    inside = systemd_units(PROGRAM, PurePath("/run/user/7/holdfast/service.sock"), PurePath("/run/user/7"))
    assert "\nListenStream=%t/holdfast/service.sock\n" in inside[SOCKET]
    elsewhere = systemd_units(PROGRAM, PurePath("/tmp/100%/service.sock"), PurePath("/run/user/7"))
    assert "\nListenStream=/tmp/100%%/service.sock\n" in elsewhere[SOCKET]


def test_masters_are_not_killed_with_the_service_nor_by_one_that_takes_too_much_memory() -> None:
    keeper = systemd_units(PROGRAM, PurePath("/r/s"), PurePath("/r"))[KEEPER]
    assert {"KillMode=process", "OOMPolicy=continue", "Type=notify"} <= set(keeper.splitlines())


def test_each_unit_that_is_written_can_be_removed_with_its_link() -> None:
    units = systemd_units(PROGRAM, PurePath("/r/s"), PurePath("/r"))
    assert units.keys() == LINKS.keys()
    for name, text in units.items():
        assert is_ours(text)
        assert f"\nWantedBy={LINKS[name].removesuffix(f'.wants/{name}')}\n" in text


def test_agents_are_property_lists_that_start_at_login_and_end_no_master() -> None:
    agents = launchd_agents(PROGRAM, "/l")
    assert tuple(agents) == AGENTS
    keeper, login = (plistlib.loads(text.encode()) for text in agents.values())
    for label, text, agent in zip(AGENTS, agents.values(), (keeper, login), strict=True):
        assert is_ours(text)
        assert python_of_agent(text) == "/opt/h/bin/python"
        assert (agent["Label"], agent["RunAtLoad"], agent["AbandonProcessGroup"]) == (label, True, True)
        assert agent["StandardErrorPath"] == "/l"
        assert agent["EnvironmentVariables"] == {"PATH": "/usr/bin:/opt/<b>"}
    assert keeper["ProgramArguments"][1:] == ["-P", "-m", "holdfast", "keeper", "run", "--take-over"]
    assert keeper["KeepAlive"] == {"SuccessfulExit": False}
    assert login["ProgramArguments"][1:] == ["-P", "-m", "holdfast", "up", "--login", "--no-wait"]
    assert "KeepAlive" not in login


@pytest.mark.parametrize(
    "text", ["", "nonsense", "<plist>", "<plist><dict/></plist>", "[Service]\nExecStart=/bin/x"]
)
def test_what_is_not_ours_names_no_interpreter(text: str) -> None:
    assert python_of(text) == python_of_agent(text) == ""
    assert not is_ours(text)


def test_launchd_is_asked_to_load_what_is_new_and_only_that(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a launchctl that remembers what it was told; the real one is on macOS only."""
    fake, told = home / "bin" / "launchctl", home / "told"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\necho "$@" >> {told}\nlabel=${{2##*/}}\ncase $1 in\n'
        f'bootstrap) label=${{3##*/}}; touch "{home}/${{label%.plist}}.loaded";;\n'
        f'bootout) rm "{home}/$label.loaded" 2>/dev/null || exit 3;;\n'
        f'print) test -e "{home}/$label.loaded" || exit 113; printf "x = {{\\n\\tpid = 77\\n}}\\n";;\nesac\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HOLDFAST_RUNTIME_DIR", str(home / "run"))
    monkeypatch.setenv("HOLDFAST_STATE_DIR", str(home / "state"))
    agents = home / "Library" / "LaunchAgents"
    first, again = ([*Launchd().install(PROGRAM)] for _ in range(2))
    assert [line for line in first if line.startswith("wrote")] == [
        f"wrote {agents}/{label}.plist" for label in AGENTS
    ]
    assert not any(line.startswith("wrote") for line in again)
    loads = [line for line in told.read_text().splitlines() if line.startswith("bootstrap")]
    assert loads == [f"bootstrap gui/{os.getuid()} {agents}/{label}.plist" for label in AGENTS]
    assert [finding.text for finding in Launchd().findings() if not finding.good] == [
        f"{agents}/holdfast.keeper.plist starts /opt/h/bin/python, which is gone",
        "the keeper doesn't run",
    ]
    assert [*Launchd().remove()][-1] == "holdfast no longer starts at login; tunnels stay up"
    assert [*agents.iterdir()] == [*home.glob("*.loaded")] == []
    assert [*Launchd().remove()] == ["the service is not installed"]


def test_only_what_the_service_needs_of_the_session_is_kept() -> None:
    session = {"PATH": "/b", "HOLDFAST_CONFIG": "/c", "XDG_STATE_HOME": "", "SECRET_TOKEN": "x", "TERM": "y"}
    assert kept(session) == {"PATH": "/b", "HOLDFAST_CONFIG": "/c"}


@pytest.mark.parametrize(
    ("python", "fleeting"),
    [
        ("/home/ann/.cache/uv/archive-v0/Zx81/bin/python", True),
        ("/home/ann/.cache/uv/environments-v2/x/bin/python", True),
        ("/home/ann/.local/share/pipx/.cache/1a2b/bin/python", True),
        ("/home/ann/.cache/pipx/1a2b/bin/python", True),
        ("/home/ann/.local/share/pipx/venvs/holdfast/bin/python", False),
        ("/home/ann/.local/share/uv/tools/holdfast/bin/python", False),
        ("/home/ann/.cache/pypoetry/virtualenvs/x/bin/python", False),
        ("/usr/bin/python3", False),
    ],
)
def test_an_interpreter_in_a_cache_is_known(python: str, fleeting: bool) -> None:
    assert is_fleeting(PurePath(python)) is fleeting


def test_answers_of_the_managers_are_read() -> None:
    assert properties("A=1\nB=x=y\n\nC=\nnonsense") == {"A": "1", "B": "x=y", "C": ""}
    assert agent_pid("gui/501/holdfast.keeper = {\n\tstate = running\n\tpid = 412\n}") == 412
    assert agent_pid("state = waiting") == 0


@needs_systemd
@needs_accounts
def test_who_is_not_root_has_a_service_of_their_own(home: Path, keys: Path, web: Web) -> None:
    home.chmod(0o755)
    place = home / "sshd"
    place.mkdir()
    with account(f"hfsvc{os.getpid() % 1_000_000}", home / "ann") as ann:
        server = Sshd(place, keys, user=ann.name)
        server.user_key = Path(shutil.copy(keys / "user", ann.home))
        server.configure()
        shutil.chown(server.user_key, ann.name, ann.name)
        python = make_environment(home / "environment")
        running = UserManager(ann.home, ann.environment(), user=ann.name, python=str(python))
        try:
            server.start()
            running.start()
            installed = running.holdfast("service", "install")
            assert installed.returncode == 0, installed.stderr
            assert f"loginctl enable-linger {ann.name}" in installed.stdout
            port = free_port()
            up = running.holdfast("up", "-F", str(server.config), "lab", f"{port}:{web.port}")
            assert up.returncode == 0, up.stderr
            keeper = psutil.Process(main_pid(running))
            assert keeper.uids().real == ann.uid
            keeper.kill()
            wait_for(lambda: main_pid(running) not in (0, keeper.pid), "systemd to start it again")
            assert get(port) == b"hello"
            assert running.holdfast("status", "lab").returncode == 0
            assert running.holdfast("service", "status").returncode == 0
            assert running.holdfast("service", "remove").returncode == 0
            assert running.holdfast("down", "--all").returncode == 0
        finally:
            running.stop()
            server.stop()


def has_a_mistake(manager: UserManager) -> None:
    """The service is installed, and the login set can't come up: there is a mistake in the file."""
    config = manager.home / ".config" / "holdfast" / "config.toml"
    config.parent.mkdir(exist_ok=True)
    config.write_text("[tunnels.lab]\nstart = 1\n")
    manager.holdfast("service", "install")
    manager.systemctl("restart", LOGIN)


@needs_systemd
@pytest.mark.parametrize("page", ["service.md", "commands.md"])
def test_what_the_documents_show_of_the_service_is_what_it_does(
    page: str, manager: UserManager, home: Path
) -> None:
    names = {
        str(Path(installing.lasting_python())): "/home/ann/.local/share/pipx/venvs/holdfast/bin/python",
        str(home): "/home/ann",
        f"enable-linger {getpass.getuser()}": "enable-linger ann",
    }
    shown = [
        (block.heading, step)
        for block in blocks((DOCUMENTS / page).read_text())
        for step in block._replace(mark="").steps
        if step.command.startswith("holdfast service ")
    ]
    assert shown
    for heading, step in shown:
        fails = heading == "holdfast service status"
        if fails:
            has_a_mistake(manager)
        done = manager.run("bash", "-c", f"exec 2>&1; {sys.executable} -m {step.command}")
        compare(step._replace(code=3 if fails else 0), as_shown(done.stdout, names), done.returncode)
