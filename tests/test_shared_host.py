"""On a host that is shared, nobody else reaches the user's notebook server, its token, or what its kernels say.

Everything is real: two accounts, an sshd that lets one of them in, Jupyter in a home with an awkward path, and the
other one, who tries.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
from jupyter_server.auth.security import passwd

from tests.accounts import (
    DROWN,
    FORGE,
    LISTEN,
    SUBSCRIBE,
    WATCH,
    Account,
    Attack,
    account,
    inode_of,
    make_environment,
    needs_accounts,
    record_of,
    records,
)
from tests.conftest import Run, Web, get, is_open, tunnel
from tests.sshd import Sshd, free_port, wait_for
from tests.test_notebook import Jupyter, call, run_code, run_on_kernel

pytestmark = needs_accounts

COOKIE = "Cookie: username-localhost-8888=a-cookie-that-logs-in"
# Where the victim works, in their home.
WORK = "it's for work"
# A mark as holdfast makes them; what it makes each time can only be guessed.
GUESSED = "0123456789abcdef"


class SharedHost(NamedTuple):
    """A host with two accounts, as the victim reaches it: `holdfast ... lab`. `python` can be run by both."""

    directory: Path
    victim: Account
    attacker: Account
    python: Path
    sshd: Sshd

    @property
    def config(self) -> tuple[str, str]:
        return ("-F", str(self.sshd.config))

    @property
    def start(self) -> tuple[str, ...]:
        """The words after `holdfast` that start a server."""
        environment = self.python.parent.parent
        return ("jupyter", "lab", "--start", "--env", f"venv:{environment}", "--no-browser", *self.config)

    def attack(self, program: str, *arguments: str) -> Attack:
        return Attack(self.attacker, self.python, program, *arguments)

    @contextlib.contextmanager
    def service(self, port: int, host: str = "127.0.0.1", **environment: str) -> Iterator[subprocess.Popen[str]]:
        """A program of the victim's own that listens there, and answers as a Jupyter Server does."""
        process = self.victim.start(str(self.python), "-c", LISTEN, host, str(port), environment=environment)
        try:
            wait_for(lambda: is_open(port, host), "the victim's program to listen")
            yield process
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def shared_host(keys: Path) -> Iterator[SharedHost]:
    with contextlib.ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="hfs"))
        stack.callback(shutil.rmtree, directory)
        directory.chmod(0o755)
        number = os.getpid() % 1_000_000
        victim = stack.enter_context(account(f"hfann{number}", directory / "ann o'hara's home"))
        attacker = stack.enter_context(account(f"hfbob{number}", directory / "bob"))
        # As earlier versions of Jupyter, and umasks, have left it.
        made = victim.run("mkdir", "-p", str(records(victim.home)), str(victim.home / WORK))
        assert made.returncode == 0, made.stderr
        records(victim.home).chmod(0o755)
        python = make_environment(directory / "environment")
        (directory / "sshd").mkdir()
        sshd = Sshd(directory / "sshd", keys, user=victim.name).start()
        stack.callback(sshd.stop)
        yield SharedHost(directory, victim, attacker, python, sshd)


@contextlib.contextmanager
def laptop(host: SharedHost) -> Iterator[Run]:
    """Runs holdfast on a machine that then forgets all about it: what the fixture does, for a whole module."""
    directory = host.directory / f"laptop-{secrets.token_hex(2)}"
    directory.mkdir(0o700)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "USER") if name in os.environ}
    places = {f"HOLDFAST_{name}_DIR": str(directory / name.lower()) for name in ("RUNTIME", "STATE")}

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "holdfast", *words],
            env={**kept, **places, "PYTHONWARNINGS": "error", **more},
            capture_output=True,
            text=True,
            timeout=90,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    try:
        yield run
    finally:
        run("down", "--all")
        run("keeper", "stop")
        wait_for(lambda: not _runs_with(directory), "the keeper to end")


def _runs_with(directory: Path) -> bool:
    found = psutil.process_iter(["cmdline"])
    return any(str(directory) in " ".join(process.info["cmdline"] or []) for process in found)


class Server(NamedTuple):
    """A server that holdfast has started. `place` is where its own files are; `witnessed` is what the attacker saw
    of all command lines while it was started."""

    pid: int
    place: Path
    token: str
    witnessed: str


def start(host: SharedHost, *words: str) -> Server:
    """Has holdfast start a server, while the attacker looks on."""
    known = host.victim.files_in_tmp()
    with laptop(host) as holdfast, host.attack(WATCH) as watch:
        started = holdfast(*host.start, *words)
    assert started.returncode == 0, started.stderr
    (place,) = (path for path in host.victim.files_in_tmp() - known if path.name.startswith("holdfast-"))
    return Server(int((place / "pid").read_text()), place, (place / "token").read_text(), watch.found)


class Taken(NamedTuple):
    """Names like ours that somebody else had taken when the server was started: what was in and at them."""

    names: tuple[Path, ...]
    before: list[tuple[Path, int]]
    after: list[tuple[Path, int]]


@pytest.fixture(scope="module")
def started(shared_host: SharedHost, tls_server: Server) -> tuple[Server, Taken]:
    directory, link = (Path(tempfile.gettempdir()) / f"holdfast-{letter * 8}" for letter in "bc")

    def state() -> list[tuple[Path, int]]:
        return [(path, path.lstat().st_ino) for path in sorted([directory, link, *directory.iterdir()])]

    try:
        script = 'mkdir "$1"; echo 1 > "$1/pid"; echo words > "$1/run"; ln -s "$3" "$2"'
        arguments = (str(directory), str(link), str(shared_host.victim.home))
        assert shared_host.attacker.run("sh", "-c", script, "sh", *arguments).returncode == 0
        before = state()
        server = start(shared_host, "--dir", WORK)
        return server, Taken((directory, link), before, state())
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        link.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def server(started: tuple[Server, Taken]) -> Server:
    """Lab where the victim works, as holdfast starts it: on a socket. The last test ends it."""
    return started[0]


@pytest.fixture(scope="module")
def tls_server(shared_host: SharedHost) -> Server:
    """Lab in a directory of the victim's, on TCP with TLS; its runtime directory is one that wasn't there."""
    home = shared_host.victim.home
    assert shared_host.victim.run("mkdir", str(home / "tls")).returncode == 0
    (home / ".bash_profile").write_text('export JUPYTER_RUNTIME_DIR="$HOME/of-its-own"\n')
    try:
        started = start(shared_host, "--dir", "tls", "--tls")
    finally:
        (home / ".bash_profile").unlink()
    return started


class Opened(NamedTuple):
    """What `holdfast jupyter --no-browser` has printed: the port here, and the token, if there is one."""

    port: int
    token: str


def opened(result: subprocess.CompletedProcess[str]) -> Opened:
    assert result.returncode == 0, result.stderr
    url = urlsplit(result.stdout.strip())
    return Opened(url.port or 0, parse_qs(url.query).get("token", [""])[0])


def open_notebook(holdfast: Run, host: SharedHost, *words: str) -> Opened:
    return opened(holdfast("jupyter", "lab", "--no-browser", *host.config, *words))


class Desk(NamedTuple):
    """A laptop at which the server's page is open, with a kernel that runs."""

    holdfast: Run
    page: Jupyter
    kernel: str

    def run(self, code: str) -> str:
        """What the kernel prints."""
        return run_code(self.page.port, self.page, self.kernel, code)


@pytest.fixture(scope="module")
def desk(shared_host: SharedHost, server: Server) -> Iterator[Desk]:
    with laptop(shared_host) as holdfast:
        page = Jupyter(*open_notebook(holdfast, shared_host, "--dir", WORK))
        made = Desk(holdfast, page, call(page.port, page, "POST", "/api/kernels")["id"])
        assert made.run("print('begun')") == "begun\n"
        yield made


class Plain(NamedTuple):
    """A server that its user has started without holdfast."""

    port: int
    token: str
    process: subprocess.Popen[str]
    log: Path

    def die(self) -> None:
        """Without a chance to take back what it has announced."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def plain_server(
    host: SharedHost, *options: str, token: str | None = None, wait: bool = True, **environment: str
) -> Iterator[Plain]:
    """A Jupyter Server on plain TCP, in a directory of the victim's of its own."""
    root = host.victim.home / f"plain-{secrets.token_hex(3)}"
    assert host.victim.run("mkdir", str(root)).returncode == 0
    token = secrets.token_hex(16) if token is None else token
    port, log = free_port(), host.directory / f"{root.name}.log"
    with log.open("w") as output:
        process = host.victim.start(
            *(str(host.python), "-m", "jupyter_server", "--no-browser", f"--port={port}"),
            *("--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}", *options),
            environment={"JUPYTER_TOKEN": token, **environment} if token else environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    plain = Plain(port, token, process, log)
    try:
        if wait:
            wait_until_it_answers(plain)
        yield plain
    finally:
        plain.die()
        for left in records(host.victim.home).glob(f"jpserver-{process.pid}*"):
            left.unlink()


def wait_until_it_answers(plain: Plain) -> None:
    def answers() -> bool:
        assert plain.process.poll() is None, plain.log.read_text()
        with contextlib.suppress(OSError):
            return bool(get(plain.port, "/api"))
        return False

    wait_for(answers, "Jupyter to answer", 40)


def visit(port: int, seconds: int = 1) -> subprocess.CompletedProcess[str]:
    """What a browser with a cookie gets at the port here."""
    address = f"http://localhost:{port}/api/contents"
    command = ["curl", "-s", "--max-time", str(seconds), "-H", COOKIE, address]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def why_not(holdfast: Run) -> str:
    """What `status` says is the matter with the only forward."""
    (forward,) = tunnel(holdfast("status", "lab", "--json"))["forwards"]
    return str(forward["reason"] or "")


def is_known_to_be_gone(holdfast: Run) -> bool:
    return "does not run on lab any more" in why_not(holdfast)


# What is the server's own.


def test_nobody_else_connects_to_the_servers_socket(shared_host: SharedHost, server: Server) -> None:
    assert connect(shared_host.victim, shared_host, server) == "connected"
    assert "Permission denied" in connect(shared_host.attacker, shared_host, server)


def test_the_socket_is_closed_to_others_even_in_an_open_directory(shared_host: SharedHost, server: Server) -> None:
    with opened_to_all(server.place):
        assert "Permission denied" in connect(shared_host.attacker, shared_host, server)


def connect(who: Account, host: SharedHost, server: Server) -> str:
    program = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1]); print('connected')"
    result = who.run(str(host.python), "-c", program, str(server.place / "s"))
    return result.stdout.strip() or result.stderr


@contextlib.contextmanager
def opened_to_all(directory: Path) -> Iterator[None]:
    """As by a user who knows no better."""
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o755)
    try:
        yield
    finally:
        directory.chmod(0o700)


def test_nobody_else_lists_or_enters_the_servers_directory(shared_host: SharedHost, server: Server) -> None:
    for command in ('ls "$1"', 'cd "$1"', 'touch "$1/x"'):
        tried = shared_host.attacker.run("sh", "-c", command, "sh", str(server.place))
        assert tried.returncode != 0, command
        assert tried.stdout == ""
        assert "ermission denied" in tried.stderr or "can't cd" in tried.stderr


def test_nobody_else_reads_what_a_start_leaves(shared_host: SharedHost, server: Server) -> None:
    left = {path.name for path in server.place.iterdir() if path.is_file()}
    assert left >= {"token", "run", "log", "jupyter", "pid", "facts", "directory", "runtime-dir"}
    for name in left:
        assert_unreadable(shared_host, server.place / name)
    with opened_to_all(server.place):
        for name in left:
            assert_unreadable(shared_host, server.place / name)


def test_nobody_else_reads_the_key_of_a_certificate(shared_host: SharedHost, tls_server: Server) -> None:
    file = tls_server.place / "key.pem"
    assert_unreadable(shared_host, file)
    with opened_to_all(tls_server.place):
        assert_unreadable(shared_host, file)


def assert_unreadable(host: SharedHost, file: Path) -> None:
    assert file.read_text()
    read = host.attacker.run("cat", str(file))
    assert (read.returncode, read.stdout) == (1, "")
    assert "Permission denied" in read.stderr


def test_nobody_else_reads_what_jupyter_writes_about_a_server_even_in_an_open_runtime_directory(
    shared_host: SharedHost, server: Server, desk: Desk
) -> None:
    place = records(shared_host.victim.home)
    assert place.stat().st_mode & 0o777 == 0o755
    assert shared_host.attacker.run("ls", str(place)).returncode == 0
    files = [place / f"jpserver-{server.pid}.json", place / f"jpserver-{server.pid}-open.html"]
    assert all(server.token in file.read_text() for file in files)
    for file in (*files, place / f"kernel-{desk.kernel}.json", place / "jupyter_cookie_secret"):
        assert_unreadable(shared_host, file)


def test_a_runtime_directory_that_comes_into_being_with_a_server_is_closed(
    shared_host: SharedHost, tls_server: Server
) -> None:
    place = Path((tls_server.place / "runtime-dir").read_text())
    assert place.name == "of-its-own"
    assert place.stat().st_mode & 0o777 == 0o700
    assert shared_host.attacker.run("ls", str(place)).stdout == ""


def test_names_that_somebody_has_taken_before_are_not_used_for_a_start(
    shared_host: SharedHost, started: tuple[Server, Taken], tls_server: Server
) -> None:
    server, taken = started
    assert server.place not in taken.names
    assert server.place.stat().st_uid == shared_host.victim.uid
    assert taken.after == taken.before
    assert tls_server.place.exists()
    assert records(shared_host.victim.home).exists()


# The token on its way.


def test_others_see_the_token_nowhere_while_a_server_starts(server: Server) -> None:
    assert f"{server.place}/jupyter {server.place} socket" in server.witnessed
    assert "holdfast jupyter lab --start" in server.witnessed
    assert server.token not in server.witnessed


def test_the_token_is_in_no_command_line_and_environment_once_a_server_runs(
    shared_host: SharedHost, server: Server, desk: Desk
) -> None:
    listed = shared_host.attacker.run("ps", "auxwwe").stdout
    assert str(server.place) in listed
    assert desk.kernel in listed
    assert server.token not in listed
    # Not even where only the user could read it: whatever they start would hand it on.
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid():
                assert server.token not in str(process.environ()), process


class FakeBrowser(NamedTuple):
    """Stands for a browser: it notes with what it was started, and, once it may go there, where that leads."""

    home: Path

    @property
    def command(self) -> str:
        program = self.home / "browser"
        program.write_text(
            f'#!/bin/sh\ncd {self.home}\necho "$1" > asked.new; mv asked.new asked\n'
            "while sleep 0.1; [ ! -e may ]; do :; done\n"  # in no hurry, so that lists of processes show it
            'curl -s -o /dev/null -w "%{redirect_url}" "$1" > led.new; mv led.new led\n'
        )
        program.chmod(0o700)
        return f"{program} %s &"

    def allow(self) -> None:
        (self.home / "may").touch()

    @property
    def asked(self) -> str:
        file = self.home / "asked"
        return file.read_text().strip() if file.exists() else ""

    @property
    def led(self) -> str:
        file = self.home / "led"
        return file.read_text() if file.exists() else ""


@pytest.mark.parametrize("words", [("jupyter", "lab"), ("open", "lab")])
def test_whoever_reads_command_lines_while_a_browser_is_opened_gets_neither_the_token_nor_to_the_page(
    shared_host: SharedHost, server: Server, desk: Desk, home: Path, words: tuple[str, ...]
) -> None:
    wanted = [*words, *shared_host.config, "--dir", WORK] if "jupyter" in words else words
    browser = FakeBrowser(home)
    stolen: list[subprocess.CompletedProcess[str]] = []
    with (
        shared_host.attack(WATCH) as watch,
        meanwhile(lambda: desk.holdfast(*wanted, BROWSER=browser.command)) as run,
    ):
        try:
            wait_for(lambda: browser.asked, "the browser to be started", 30)
            stolen += [shared_host.attacker.run("curl", "-s", "-i", browser.asked) for _ in range(2)]
        finally:
            browser.allow()
        assert opened(run()).token == server.token
        wait_for(lambda: browser.led, "the browser to be led on")
    assert [(one.returncode != 0, one.stdout) for one in stolen] == [(True, "")] * 2
    assert f"token={server.token}" in browser.led
    assert f"holdfast {' '.join(words)}" in watch.found
    assert browser.asked in watch.found
    assert server.token not in watch.found


@contextlib.contextmanager
def meanwhile(
    run: Callable[[], subprocess.CompletedProcess[str]],
) -> Iterator[Callable[[], subprocess.CompletedProcess[str]]]:
    """Runs it beside what is in the block, which can ask for its result."""
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor() as pool:
        yield pool.submit(run).result


# Directories and files that look like ours.


class LookAlike(NamedTuple):
    """What of the attacker's looks like ours, full of lies, and of links to the victim's own files.

    `pids` are those of programs of the victim's own that listen, of which it would make servers.
    """

    place: Path
    pids: set[int]


@pytest.fixture
def look_alike(shared_host: SharedHost, server: Server) -> Iterator[LookAlike]:
    """In /tmp, and in a runtime directory of the victim's into which everybody can write."""
    victim, attacker = shared_host.victim, shared_host.attacker
    place = Path(tempfile.gettempdir()) / "holdfast-aaaaaaaa"
    shared, private = victim.home / "everybodys", victim.home / "private"
    script = 'mkdir -m 777 "$1"; echo "private words" > "$2"'
    assert victim.run("sh", "-c", script, "sh", str(shared), str(private)).returncode == 0
    own = record_of(victim.home, server.pid)
    with contextlib.ExitStack() as stack:
        ports = [free_port() for _ in range(4)]
        victims = [
            stack.enter_context(shared_host.service(port, JUPYTER_RUNTIME_DIR=str(shared))).pid for port in ports
        ]
        texts = [json.dumps({**own, "sock": "", "port": port, "token": "forged"}) for port in ports]
        forged, linked, shown, guessed = victims
        lines = ["1"]
        for pid, port, text, head in zip(
            (shown, guessed), ports[2:], texts[2:], ("@", f"@{GUESSED} "), strict=True
        ):
            inode = inode_of(port)
            listener = f" 0: 0100007F:{port:04X} 0:0 0A 0 0 0 {victim.uid} 0 {inode}"
            lines += [f"{head}server {pid} yes no no {inode}", text, f"{head}tcp", listener]
            lines += [f"{head}certificate {pid}", f"{head}uid {attacker.uid}"]
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        (announced,) = written(victim.home / "announced", texts[1])
        assert victim.run(*announced).returncode == 0
        for command in (
            ("mkdir", str(place)),
            ("mkdir", str(place / "runtime")),
            *written(place / "pid", "\n".join(lines)),
            *written(place / "runtime" / f"jpserver-{forged}.json", texts[0]),
            *written(shared / f"jpserver-{forged}.json", texts[0]),
            *written(shared / f"jpserver-{os.getpid()}.json", "\n".join(lines)),
            ("ln", "-s", str(private), str(place / "log")),
            ("ln", "-s", str(private), str(place / "cert.pem")),
            ("ln", "-s", str(victim.home / "announced"), str(place / "runtime" / f"jpserver-{linked}.json")),
            ("ln", "-s", str(victim.home / "announced"), str(shared / f"jpserver-{linked}.json")),
        ):
            done = attacker.run(*command)
            assert done.returncode == 0, done.stderr
        yield LookAlike(place, set(victims))
    shutil.rmtree(shared)


def written(path: Path, text: str) -> Iterator[tuple[str, ...]]:
    """The command that writes it."""
    yield ("sh", "-c", 'printf "%s\\n" "$2" > "$1"', "sh", str(path), text)


def servers_in(listed: subprocess.CompletedProcess[str]) -> set[int]:
    """Their pids."""
    return {one["pid"] for one in json.loads(listed.stdout)["servers"]}


def test_no_server_is_listed_that_somebody_elses_files_and_links_tell_of(
    shared_host: SharedHost, look_alike: LookAlike, server: Server, desk: Desk
) -> None:
    found = servers_in(desk.holdfast("jupyter", "lab", "--list", "--json", *shared_host.config))
    assert server.pid in found
    assert not found & look_alike.pids


def test_a_file_of_somebody_elses_choice_does_not_pass_for_the_log(
    shared_host: SharedHost, look_alike: LookAlike, server: Server, holdfast: Run
) -> None:
    logged = holdfast("logs", "lab", "--remote", *shared_host.config)
    assert logged.returncode == 0, logged.stderr
    assert "private words" not in logged.stdout


def test_the_log_that_is_shown_has_no_token_in_it(server: Server, desk: Desk) -> None:
    logged = desk.holdfast("logs", "lab", "--remote", "--lines", "1000")
    assert "is running at" in logged.stdout
    assert server.token not in logged.stdout


# What kernels say.


def test_nobody_else_hears_what_the_kernels_of_a_server_that_holdfast_started_say(
    shared_host: SharedHost, server: Server, desk: Desk
) -> None:
    secret = secrets.token_hex(8)
    with shared_host.attack(SUBSCRIBE, str(shared_host.victim.uid)) as attack:
        for _ in range(3):
            assert desk.run(f"print('{secret}')") == f"{secret}\n"
    assert '"listened to": 0' not in attack.found
    assert secret not in attack.found


def test_everybody_hears_what_a_kernel_that_others_started_says(
    shared_host: SharedHost, careless: Careless
) -> None:
    """Or else the test above could not fail."""
    secret = secrets.token_hex(8)
    with shared_host.attack(SUBSCRIBE, str(shared_host.victim.uid)) as attack:
        for _ in range(2):
            assert run_on_kernel(careless.kernel, f"print('{secret}')") == f"{secret}\n"
    assert secret in attack.found


# What doctor and up say.


def line_with(text: str, *parts: str) -> str:
    """The only line that has all of these in it."""
    lines = [line for line in text.splitlines() if all(part in line for part in parts)]
    assert len(lines) == 1, f"{parts} is in {len(lines)} lines of:\n{text}"
    return lines[0]


@pytest.fixture(scope="module")
def contented(shared_host: SharedHost, tls_server: Server, desk: Desk) -> str:
    """What `holdfast doctor lab` says while nothing is wrong, and names of the attacker's mislead whoever believes
    what they say or lead to."""
    victim, temporary = shared_host.victim, Path(tempfile.gettempdir())
    link = temporary / "holdfast-bbbbbbbb"
    with contextlib.ExitStack() as stack:
        port = free_port()
        process = stack.enter_context(shared_host.service(port))
        record = json.dumps({"port": port, "token": "", "root_dir": "forged"})
        listener = f" 0: 0100007F:{port:04X} 0:0 0A 0 0 0 {victim.uid} 0 {inode_of(port)}"
        forging = [
            f"holdfast-x\n{head}server {process.pid} yes no no {inode_of(port)}\n{record}\n{head}tcp\n{listener}\n"
            for head in ("@", f"@{GUESSED} ")
        ]
        names = [temporary / name for name in (*forging, "holdfast-\n@uid 0\n", "holdfast-\n@me me\n")]
        stack.callback(link.unlink, missing_ok=True)
        for name in names:
            stack.callback(shutil.rmtree, name, ignore_errors=True)
        script = 'ln -s "$1" "$2"; runtime=$3; shift 3; for name; do mkdir "$name"; ln -s "$runtime" "$name"; done'
        arguments = (victim.home, link, records(victim.home), *names)
        made = shared_host.attacker.run("sh", "-c", script, "sh", *map(str, arguments))
        assert (made.returncode, made.stderr) == (0, "")
        place = records(victim.home)
        place.chmod(0o700)
        stack.callback(place.chmod, 0o755)
        stack.enter_context(shared_host.attacker.logged_in())
        return desk.holdfast("doctor", "lab", *shared_host.config).stdout


def test_doctor_is_content_with_what_holdfast_has_started(
    shared_host: SharedHost, contented: str, server: Server
) -> None:
    assert line_with(contented, f"{server.place}/s").startswith("ok")
    assert line_with(contented, f"{shared_host.victim.home}/tls ", "over TLS").startswith("ok")
    assert line_with(contented, "kernels' traffic on lab is encrypted").startswith("ok")
    # The two accounts are on the machine that stands for the laptop as well.
    wrong = [line for line in contented.splitlines() if line.startswith("wrong")]
    assert [line for line in wrong if "every user of this machine can" not in line] == []


def test_doctor_gives_no_advice_about_what_somebody_else_has_put_there(contented: str) -> None:
    assert "asks for its token" in contented
    assert "holdfast-bbbbbbbb" not in contented
    assert "holdfast-x" not in contented


def test_doctor_believes_nothing_that_the_name_of_a_directory_says(contented: str) -> None:
    assert "asks for its token" in contented
    assert "forged" not in contented


class Careless(NamedTuple):
    """What `holdfast doctor lab` says while the victim has done everything wrong; and that, which goes on.

    `kernel` is the connection file of one that was started alone.
    """

    text: str
    without_token: Plain
    with_empty_password: Plain
    with_password: Plain
    kernel: Path

    @property
    def servers(self) -> tuple[Plain, ...]:
        return self.without_token, self.with_empty_password, self.with_password


def settings_with_password(host: SharedHost, password: str) -> str:
    """Jupyter's settings, as `jupyter server password` writes them; the directory."""
    directory = host.victim.home / f"settings-{password or 'empty'}"
    hashed = passwd(password, algorithm="sha1")  # type: ignore[no-untyped-call]
    settings = {"PasswordIdentityProvider": {"hashed_password": hashed}, "IdentityProvider": {"token": ""}}
    assert host.victim.run("mkdir", str(directory)).returncode == 0
    (directory / "jupyter_server_config.json").write_text(json.dumps(settings))
    return str(directory)


@pytest.fixture(scope="module")
def careless(shared_host: SharedHost, contented: str) -> Iterator[Careless]:
    victim = shared_host.victim
    empty, good = (settings_with_password(shared_host, password) for password in ("", "good"))
    elsewhere = victim.home / "elsewhere"
    assert victim.run("mkdir", str(elsewhere)).returncode == 0
    told = records(victim.home) / "kernel-plain.json"
    with contextlib.ExitStack() as stack:
        kernel = victim.start(
            *(str(shared_host.python), "-m", "ipykernel_launcher", "-f", str(told)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(told.unlink, missing_ok=True)
        stack.callback(kernel.wait)
        stack.callback(kernel.kill)
        everywhere, here = ("--IdentityProvider.token=", "--ServerApp.ip=0.0.0.0"), "--ServerApp.ip=127.0.0.1"
        started = [
            stack.enter_context(plain_server(shared_host, *options, token="", wait=False, **places))
            for options, places in (
                (everywhere, {}),
                ((here,), {"JUPYTER_CONFIG_DIR": empty}),
                ((here,), {"JUPYTER_CONFIG_DIR": good, "JUPYTER_RUNTIME_DIR": str(elsewhere)}),
            )
        ]
        for plain in started:
            wait_until_it_answers(plain)
        wait_for(lambda: told.exists() and told.read_text().endswith("}"), "the kernel's connection file", 30)
        wait_for(lambda: is_open(json.loads(told.read_text())["iopub_port"]), "the kernel to listen")
        with laptop(shared_host) as holdfast, shared_host.attacker.logged_in():
            result = holdfast("doctor", "lab", *shared_host.config)
        assert result.returncode == 1, result.stderr
        yield Careless(result.stdout, started[0], started[1], started[2], told)


def test_doctor_names_who_else_is_there(shared_host: SharedHost, careless: Careless) -> None:
    line = line_with(careless.text, "others on lab just now: ")
    assert re.search(rf"\b{shared_host.attacker.name}\b", line)
    assert shared_host.victim.name not in line


def test_doctor_finds_a_server_without_a_token(careless: Careless) -> None:
    place = f":{careless.without_token.port})"
    assert line_with(careless.text, place, "has no token").startswith("wrong")


def test_doctor_finds_a_server_on_all_addresses(careless: Careless) -> None:
    place = f":{careless.without_token.port})"
    assert line_with(careless.text, place, "listens on all addresses").startswith("wrong")


def test_doctor_finds_a_server_that_takes_an_empty_password(careless: Careless) -> None:
    place = f":{careless.with_empty_password.port})"
    assert line_with(careless.text, place, "takes an empty password").startswith("wrong")
    assert "has no token" not in "".join(line for line in careless.text.splitlines() if place in line)


def test_doctor_does_not_say_of_a_server_with_a_password_that_it_is_open(careless: Careless) -> None:
    place = f":{careless.with_password.port})"
    lines = [line for line in careless.text.splitlines() if place in line]
    assert lines
    assert not any("runs programs as you" in line for line in lines)


def test_doctor_finds_servers_on_plain_tcp(careless: Careless) -> None:
    for server in careless.servers:
        assert line_with(careless.text, f":{server.port})", "TCP port without TLS").startswith("wrong")


def test_doctor_finds_kernels_whose_traffic_is_not_encrypted(careless: Careless) -> None:
    assert line_with(careless.text, "1 of your kernels", "in the clear").startswith("wrong")


def test_doctor_finds_a_runtime_directory_that_is_open_to_others(
    shared_host: SharedHost, careless: Careless
) -> None:
    place = str(records(shared_host.victim.home))
    assert line_with(careless.text, "others can look into", place).startswith("wrong")


def test_doctor_finds_an_open_runtime_directory_that_only_a_server_knows_of(
    shared_host: SharedHost, careless: Careless
) -> None:
    place = str(shared_host.victim.home / "elsewhere")
    assert line_with(careless.text, "others can look into", place).startswith("wrong")


def test_what_doctor_suggests_for_an_open_directory_closes_it(shared_host: SharedHost, careless: Careless) -> None:
    place = records(shared_host.victim.home)
    assert place.stat().st_mode & 0o077
    told = careless.text.splitlines()
    told = told[told.index(line_with(careless.text, "others can look into", str(place))) :]
    words = shlex.split(told[1].partition("hint: ")[2])
    assert words[:2] == ["ssh", "lab"]
    try:
        done = subprocess.run(["ssh", *shared_host.config, *words[1:]], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert place.stat().st_mode & 0o777 == 0o700
    finally:
        place.chmod(0o755)


def test_a_server_in_an_awkward_directory_is_suggested_in_words_that_a_shell_takes(
    shared_host: SharedHost, server: Server, tls_server: Server, desk: Desk
) -> None:
    asked = desk.holdfast("jupyter", "lab", "--no-browser", *shared_host.config)
    assert asked.returncode == 2
    ways = asked.stderr.splitlines()[-1].partition("say which: ")[2]
    assert str(shared_host.victim.home / WORK) in [word.rstrip(",") for word in shlex.split(ways)]


def test_up_tells_once_that_other_people_can_reach_the_port(shared_host: SharedHost, web: Web) -> None:
    words = ("up", *shared_host.config, "lab")
    with laptop(shared_host) as holdfast, shared_host.attacker.logged_in():
        first = holdfast(*words, f"{free_port()}:{web.port}")
        second = holdfast(*words, f"{free_port()}:{web.port}")
    assert (first.returncode, second.returncode) == (0, 0)
    told, hint = first.stderr.splitlines()
    assert told.endswith(" can connect to that port on lab as well")
    assert re.search(rf"\b{shared_host.attacker.name}\b", told)
    assert not re.search(rf"\b({shared_host.victim.name}|root)\b", told)
    assert hint == "holdfast: hint: holdfast doctor lab"
    assert second.stderr == ""


def test_up_tells_of_nobody_where_nobody_else_is(shared_host: SharedHost, web: Web) -> None:
    others = strangers(shared_host)
    with laptop(shared_host) as holdfast, shared_host.victim.logged_in():
        up = holdfast("up", *shared_host.config, "lab", f"{free_port()}:{web.port}")
    assert up.returncode == 0
    assert "hfbob" not in up.stderr
    assert "hfann" not in up.stderr
    assert others or up.stderr == ""


def strangers(host: SharedHost) -> list[psutil.Process]:
    """What is run by other people than the two: this machine may have some."""
    everything = psutil.process_iter(["uids"])
    people = [one for one in everything if one.info["uids"] and 1000 <= one.info["uids"].real < 60000]
    return [one for one in people if one.info["uids"].real not in (host.victim.uid, host.attacker.uid)]


# Somebody else at its address.


@pytest.fixture
def plain(shared_host: SharedHost) -> Iterator[Plain]:
    """A server of the victim's own on 127.0.0.1, with a token."""
    with plain_server(shared_host, "--ServerApp.ip=127.0.0.1") as running:
        yield running


@pytest.fixture
def spare(shared_host: SharedHost, careless: Careless) -> Iterator[Plain]:
    """A server of the victim's own on 127.0.0.1 that nobody needs any more."""
    for server in (careless.with_empty_password, careless.with_password):
        if server.process.poll() is None:
            yield server
            return
    with plain_server(shared_host, "--ServerApp.ip=127.0.0.1") as running:
        yield running


def test_a_listener_on_the_other_loopback_address_gets_nothing(
    shared_host: SharedHost, careless: Careless, holdfast: Run
) -> None:
    plain = careless.without_token
    with shared_host.attack(LISTEN, "::1", str(plain.port)) as squatter:
        page = open_notebook(holdfast, shared_host, "--port", str(plain.port))
        for host in ("127.0.0.1", "::1", "localhost"):
            assert b"content" in get(page.port, "/api/contents?token=a-token", host=host)
        assert visit(page.port).returncode == 0
        assert opened(holdfast("open", "lab", "--no-browser")) == page
        # Not a name, either, which means ::1 first on some hosts.
        (forward,) = tunnel(holdfast("status", "lab", "--json"))["forwards"]
        assert forward["target"] == f"127.0.0.1:{plain.port}"
    assert squatter.found == ""


def assert_that_holdfast_opens_nothing(holdfast: Run, host: SharedHost, plain: Plain) -> None:
    for words in (("open", "lab"), ("jupyter", "lab", "--port", str(plain.port), *host.config)):
        result = holdfast(*words, "--no-browser")
        assert result.returncode == 1, words
        assert result.stdout == ""
        assert "does not run on lab any more" in result.stderr or "no notebook server of yours" in result.stderr
        assert is_known_to_be_gone(holdfast)


def test_nothing_is_sent_to_whoever_takes_the_port_of_a_server_whose_end_was_noticed(
    shared_host: SharedHost, spare: Plain, holdfast: Run
) -> None:
    page = open_notebook(holdfast, shared_host, "--port", str(spare.port))
    spare.die()
    assert visit(page.port).returncode != 0  # nobody is there: the connection is refused, which is noticed
    wait_for(lambda: is_known_to_be_gone(holdfast), "the server's end to be noticed")
    with shared_host.attack(LISTEN, "127.0.0.1", str(spare.port)) as squatter:
        assert_that_holdfast_opens_nothing(holdfast, shared_host, spare)
        visit(page.port, seconds=3)  # the keeper looks again while somebody waits
    assert squatter.found == ""


def test_nothing_is_sent_to_whoever_was_quicker_than_holdfast_once_that_was_asked_for_the_page(
    shared_host: SharedHost, plain: Plain, holdfast: Run
) -> None:
    page = open_notebook(holdfast, shared_host, "--port", str(plain.port))
    assert page.token == plain.token
    plain.die()
    with shared_host.attack(LISTEN, "127.0.0.1", str(plain.port)) as squatter:
        assert holdfast("jupyter", "lab", "--port", str(plain.port), *shared_host.config).returncode == 1
        assert holdfast("open", "lab", "--no-browser").returncode == 1  # so it is known that it doesn't run
        visit(page.port)
        assert_that_holdfast_opens_nothing(holdfast, shared_host, plain)
    assert squatter.found == ""


@contextlib.contextmanager
def waiting_browser(port: int) -> Iterator[None]:
    """A browser that wants something from the port here, and is held, all the time."""
    address = f"http://127.0.0.1:{port}/api/contents"
    waiting = subprocess.Popen(
        ["curl", "-s", "--max-time", "60", "-H", COOKIE, address], stdout=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: established(waiting.pid), "the browser to be held")
        yield
    finally:
        waiting.kill()
        waiting.wait()


def established(pid: int) -> bool:
    return any(one.status == psutil.CONN_ESTABLISHED for one in psutil.Process(pid).net_connections())


@contextlib.contextmanager
def outage(host: SharedHost) -> Iterator[None]:
    host.sshd.stop()
    try:
        yield
    finally:
        host.sshd.start()


def test_nothing_is_sent_to_whoever_takes_the_port_during_an_outage(
    shared_host: SharedHost, plain: Plain, holdfast: Run
) -> None:
    page = open_notebook(holdfast, shared_host, "--port", str(plain.port))
    with contextlib.ExitStack() as stack:
        with outage(shared_host):
            plain.die()
            stack.enter_context(waiting_browser(page.port))
            squatter = stack.enter_context(shared_host.attack(LISTEN, "127.0.0.1", str(plain.port)))
        holdfast("up", "lab")
        wait_for(lambda: is_known_to_be_gone(holdfast), "the server's end to be noticed", 30)
        visit(page.port)
        assert_that_holdfast_opens_nothing(holdfast, shared_host, plain)
    assert squatter.found == ""


def test_a_stranger_with_very_many_listeners_hides_nothing_and_is_sent_nothing(
    shared_host: SharedHost, spare: Plain, holdfast: Run
) -> None:
    page = open_notebook(holdfast, shared_host, "--port", str(spare.port))
    port = free_port()
    with contextlib.ExitStack() as stack:
        stack.enter_context(shared_host.service(port))  # the far side tells all who listen there
        with outage(shared_host):
            spare.die()
            stack.enter_context(waiting_browser(page.port))
            squatter = stack.enter_context(shared_host.attack(LISTEN, "127.0.0.1", str(spare.port)))
            drowning = [
                stack.enter_context(shared_host.attack(DROWN, str(port), "14500", first))
                for first in ("0", "20000")
            ]
        holdfast("up", "lab")
        wait_for(lambda: is_known_to_be_gone(holdfast), "the server's end to be noticed", 30)
        visit(page.port)
        for attack in drowning:
            attack.end()
        assert squatter.end() == ""


class Hanging(NamedTuple):
    """A server that has announced itself, and lives, but listens no more at its address, `port`, only at another.

    `inode` is that listener's.
    """

    port: int
    inode: int


@pytest.fixture
def hanging(shared_host: SharedHost) -> Iterator[Hanging]:
    port, other = free_port(), free_port()
    with shared_host.service(other) as process:
        told: dict[str, Any] = {"pid": process.pid, "port": port, "token": "its-token", "hostname": "localhost"}
        told |= {"base_url": "/", "root_dir": "/nowhere", "secure": False, "sock": "", "version": "2.21.1"}
        file = records(shared_host.victim.home) / f"jpserver-{process.pid}.json"
        (command,) = written(file, json.dumps(told))
        assert shared_host.victim.run(*command).returncode == 0
        try:
            yield Hanging(port, inode_of(other))
        finally:
            file.unlink()


STRANGE = "1 more can't be used: what listens at their address is not known to be yours"


def assert_that_it_is_not_used(host: SharedHost, hanging: Hanging, holdfast: Run) -> None:
    page = holdfast("jupyter", "lab", "--port", str(hanging.port), "--no-browser", *host.config)
    assert (page.returncode, page.stdout) == (1, "")
    assert f"no notebook server of yours runs on lab on port {hanging.port}" in page.stderr


def test_a_live_server_at_whose_address_a_program_of_somebody_elses_listens_is_not_used(
    shared_host: SharedHost, hanging: Hanging, desk: Desk
) -> None:
    with (
        shared_host.attack(LISTEN, "127.0.0.1", str(hanging.port)) as squatter,
        shared_host.service(hanging.port, "127.0.0.2"),  # so that the far side tells who listens on that port
    ):
        assert_that_it_is_not_used(shared_host, hanging, desk.holdfast)
    assert squatter.found == ""


def test_it_is_told_that_a_program_of_somebody_elses_listens_at_a_live_servers_address(
    shared_host: SharedHost, hanging: Hanging, desk: Desk
) -> None:
    with shared_host.attack(LISTEN, "127.0.0.1", str(hanging.port)) as squatter:
        assert STRANGE in desk.holdfast("jupyter", "lab", "--list", *shared_host.config).stderr
    assert squatter.found == ""


def test_a_live_server_at_whose_address_another_program_of_the_users_listens_is_not_used_and_that_is_told(
    shared_host: SharedHost, hanging: Hanging, desk: Desk
) -> None:
    with Attack(shared_host.victim, shared_host.python, LISTEN, "127.0.0.1", str(hanging.port)) as other:
        assert_that_it_is_not_used(shared_host, hanging, desk.holdfast)
        assert STRANGE in desk.holdfast("jupyter", "lab", "--list", *shared_host.config).stderr
    assert other.found == ""


def test_what_the_kernel_says_of_a_listener_cannot_be_forged_by_the_name_of_a_socket(
    shared_host: SharedHost, hanging: Hanging, desk: Desk
) -> None:
    mark = "00010000 0001 01"  # by which the kernel's list tells those who listen
    ends = f"0: 0100007F:{hanging.port:04X} 0:0 0A 0 0 0 {shared_host.victim.uid} 0 {hanging.inode}"
    # A name has room for 107 characters, and an inode may have ten.
    names = [f"-\n{head}tcp {mark}\n{ends} {mark}" for head in ("@", f"@{GUESSED} ")]
    names += [f"-\n{head}tcp\n0: {ends}" for head in ("@", f"@{GUESSED} ")]
    with (
        shared_host.attack(LISTEN, "0.0.0.0", str(hanging.port)) as squatter,
        shared_host.attack(FORGE, *names),
    ):
        page = desk.holdfast("jupyter", "lab", "--port", str(hanging.port), "--no-browser", *shared_host.config)
    assert (page.returncode, page.stdout) == (1, "")
    assert squatter.found == ""


# The end.


def test_nothing_of_a_server_is_left_when_it_was_stopped(
    shared_host: SharedHost, server: Server, tls_server: Server, desk: Desk
) -> None:
    victim, place = shared_host.victim, records(shared_host.victim.home)
    own = {server.pid, *(child.pid for child in psutil.Process(server.pid).children(recursive=True))}
    before = set(place.iterdir())
    assert len(own) > 1
    assert own <= running(victim)

    stopped = desk.holdfast("jupyter", "lab", "--stop", "--dir", WORK)

    assert stopped.returncode == 0, stopped.stderr
    wait_for(lambda: not own & running(victim), "its processes to be gone", 5)
    assert {path.name for path in before - set(place.iterdir())} == {
        *(f"jpserver-{server.pid}.json", f"jpserver-{server.pid}-open.html", f"kernel-{desk.kernel}.json")
    }
    assert server.place not in victim.files_in_tmp()
    assert tls_server.place in victim.files_in_tmp()
    assert tls_server.pid in running(victim)
    assert not is_open(desk.page.port)


def running(who: Account) -> set[int]:
    return {process.pid for process in who.processes()}
