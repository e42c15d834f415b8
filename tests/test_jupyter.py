"""`jupyter`, `open` and `logs --remote` as a user has them: real servers, new and old, behind a real sshd.

Both sides are this machine, so a server's own port is never free here; where it has to be, there is a network.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from jupyter_server import __version__ as jupyter_version

from tests import test_notebook
from tests.conftest import Run, is_open, tunnel
from tests.jupyters import (
    LAB3,
    NEWEST,
    NOTEBOOK6,
    Jupyter,
    all_ended,
    kill_with_children,
    needs,
    runtime_dir,
    started_in,
    visit,
)
from tests.network import Network, network
from tests.sshd import Sshd, wait_for
from tests.test_far_side import path_of
from tests.test_foreground import Typed, finish, typed

__all__ = ["network", "typed"]

Ask = Callable[..., "subprocess.CompletedProcess[str]"]

# Servers of users who have one each: a name, and what it is made with.
WAYS: dict[str, dict[str, Any]] = {
    "lab": {"app": "jupyterlab"},
    "lab3": {"app": "jupyterlab", "prefix": LAB3},
    "notebook6": {"app": "notebook", "prefix": NOTEBOOK6},
    "base_url": {"app": "jupyterlab", "options": ["--ServerApp.base_url=/user/ann"]},
    "password": {"app": "jupyterlab", "options": ["--PasswordIdentityProvider.hashed_password={password}"]},
    "socket": {"options": ["--sock={home}/s"]},
    "tls": {"options": ["--certfile={home}/cert.pem", "--keyfile={home}/key.pem"]},
    "hub": {"options": ["--ServerApp.base_url=/user/ann/"], "JUPYTERHUB_SERVICE_PREFIX": "/user/ann/"},
}


class Users:
    """The homes of users over there, each with a server that was started when this was made."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.servers = {name: self._start(name, **way) for name, way in WAYS.items() if _is_possible(way)}

    def home(self, name: str) -> Path:
        return self._place / name

    def _start(self, name: str, options: list[str] | None = None, **way: Any) -> Jupyter:
        home = self.home(name)
        home.mkdir()
        if name == "tls":
            make_certificate(home)
        filled = [option.format(home=home, password=hashed("secret")) for option in options or []]
        return Jupyter(home, *filled, **way)


def _is_possible(way: Mapping[str, Any]) -> bool:
    return bool((way.get("prefix", NEWEST) / "bin" / "python").exists())


def make_certificate(directory: Path) -> None:
    """A certificate and its key, made by nobody in particular: cert.pem and key.pem."""
    names = ("-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem"))
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    words = ["openssl", "req", "-x509", *curve, "-nodes", "-days", "2", "-subj", "/CN=localhost", *names]
    subprocess.run(words, check=True, capture_output=True)


@functools.cache
def hashed(password: str) -> str:
    from jupyter_server.auth.security import passwd

    return str(passwd(password, algorithm="sha1"))  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def users() -> Iterator[Users]:
    place = Path(tempfile.mkdtemp(prefix="hfu"))
    made = Users(place)
    with all_ended(place):
        yield made
        with ThreadPoolExecutor() as threads:
            list(threads.map(Jupyter.close, made.servers.values()))
    shutil.rmtree(place)


@pytest.fixture
def ask(holdfast: Run, sshd: Sshd) -> Ask:
    """Runs `holdfast jupyter lab ...`."""
    return functools.partial(holdfast, "jupyter", "-F", str(sshd.config), "lab")


@pytest.fixture
def own(home: Path) -> Iterator[Path]:
    """The home of the user over there, whose login shell finds jupyter. What starts in it ends with the test."""
    for profile in (".profile", ".zprofile"):
        (home / profile).write_text(f"PATH={NEWEST}/bin:$PATH\n")
    (home / ".tcshrc").write_text(f"set path = ({NEWEST}/bin $path)\n")
    (home / ".config" / "fish").mkdir(parents=True)
    (home / ".config" / "fish" / "config.fish").write_text(f"set -x PATH {NEWEST}/bin $PATH\n")
    with all_ended(home):
        yield home


def at_home(sshd: Sshd, home: Path) -> None:
    """From now on the user over there has this home."""
    sshd.stop()
    sshd.start(f"SetEnv HOME={home}")


def printed_url(done: subprocess.CompletedProcess[str]) -> str:
    """The URL that a command printed, and nothing else, as it ought to."""
    assert done.returncode == 0, done.stderr
    (url,) = done.stdout.splitlines()
    return url


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def status(holdfast: Run) -> dict[str, Any]:
    """The only forward of the only tunnel, in `status`."""
    (forward,) = tunnel(holdfast("status", "--json"))["forwards"]
    return dict(forward)


def version_at(port: int) -> str:
    """What the server here says; whoever is held meanwhile has patience until another server has started."""
    with urllib.request.urlopen(f"http://localhost:{port}/api", timeout=90) as response:
        return str(json.load(response)["version"])


# Servers that run.


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("lab", "/lab"),
        pytest.param("lab3", "/lab", marks=needs(LAB3)),
        pytest.param("notebook6", "/tree", marks=needs(NOTEBOOK6)),
        ("base_url", "/user/ann/lab"),
    ],
)
def test_a_running_server_is_found_and_its_url_logs_the_browser_in(
    ask: Ask, holdfast: Run, sshd: Sshd, users: Users, name: str, path: str
) -> None:
    server = users.servers[name].ready()
    at_home(sshd, users.home(name))
    url = printed_url(ask())
    assert urlsplit(url).path == path
    assert parse_qs(urlsplit(url).query) == {"token": [server.token]}
    seen = visit(url)
    assert (seen.status, urlsplit(seen.url).path) == (200, path)
    assert f"username-localhost-{port_of(url)}" in seen.cookies
    forward = status(holdfast)
    assert forward["state"] == "up"
    assert forward["url"] == f"http://localhost:{port_of(url)}{server.record['base_url']}"
    assert forward["notebook"]["pid"] == server.pid


def test_a_server_with_a_password_is_said_to_have_one_and_its_url_has_no_token(
    ask: Ask, sshd: Sshd, users: Users
) -> None:
    users.servers["password"].ready()
    at_home(sshd, users.home("password"))
    done = ask()
    url = printed_url(done)
    assert urlsplit(url).query == ""
    assert "asks for the password that you gave it" in done.stderr
    assert urlsplit(visit(url).url).path == "/login"


def test_a_server_with_a_certificate_is_opened_by_https(ask: Ask, sshd: Sshd, users: Users) -> None:
    users.servers["tls"].ready()
    at_home(sshd, users.home("tls"))
    url = printed_url(ask())
    assert url.startswith("https://localhost:")
    assert visit(url).status == 200


def test_a_server_on_a_socket_is_reached_at_jupyters_own_port_or_the_next(
    ask: Ask, sshd: Sshd, users: Users
) -> None:
    users.servers["socket"].ready()
    at_home(sshd, users.home("socket"))
    with taken(8888):
        url = printed_url(ask())
    assert 8888 < port_of(url) < 8988
    assert visit(url).status == 200


def test_a_server_of_a_jupyterhub_is_refused_and_left_to_the_hub(ask: Ask, sshd: Sshd, users: Users) -> None:
    server = users.servers["hub"].ready()
    at_home(sshd, users.home("hub"))
    done = ask()
    assert done.returncode == 1
    assert f"the server in {server.directory} on lab belongs to a JupyterHub" in done.stderr
    assert server.token not in done.stdout + done.stderr


def test_where_no_server_runs_the_hint_is_to_start_one(ask: Ask, own: Path) -> None:
    done = ask()
    assert done.returncode == 1
    assert "no notebook server of yours runs on lab" in done.stderr
    assert "holdfast: hint: holdfast jupyter lab --start" in done.stderr


@pytest.fixture(scope="module")
def two(users: Users) -> Iterator[dict[str, Jupyter]]:
    """Two servers of one user, in `one` and `two` of the home."""
    home = users.home("two")
    home.mkdir()
    made = {name: Jupyter(home, directory=home / name) for name in ("one", "two")}
    yield {name: server.ready() for name, server in made.items()}
    for server in made.values():
        server.close()


@pytest.fixture
def at_two(sshd: Sshd, users: Users, two: dict[str, Jupyter]) -> dict[str, Jupyter]:
    at_home(sshd, users.home("two"))
    return two


def test_of_two_servers_none_is_guessed_and_both_are_named(ask: Ask, at_two: dict[str, Jupyter]) -> None:
    done = ask()
    assert done.returncode == 2
    assert done.stdout == ""
    assert "2 notebook servers of yours run on lab" in done.stderr
    assert all(f"--port {server.port}" in done.stderr for server in at_two.values())


@pytest.mark.parametrize("name", ["one", "two"])
def test_of_two_servers_the_one_on_the_port_or_in_the_directory_is_opened(
    ask: Ask, at_two: dict[str, Jupyter], name: str
) -> None:
    server = at_two[name]
    by_port, by_directory = ask("--port", str(server.port)), ask("--dir", name)
    assert f"?token={server.token}" in printed_url(by_port)
    assert printed_url(by_directory) == printed_url(by_port)


def test_at_a_terminal_a_person_chooses_among_two_servers(
    typed: Typed, sshd: Sshd, at_two: dict[str, Jupyter]
) -> None:
    terminal = typed("jupyter", "-F", str(sshd.config), "lab", "--no-browser")
    terminal.expect(rf"(\d)  {at_two['two'].directory}  \(")
    assert isinstance(terminal.match, re.Match)
    number = terminal.match[1]
    terminal.expect("which one")
    terminal.sendline(number)
    terminal.expect(f"token={at_two['two'].token}")
    assert finish(terminal) == 0


def test_list_shows_the_servers_and_json_what_a_script_needs_to_use_them(
    ask: Ask, at_two: dict[str, Jupyter]
) -> None:
    table = ask("--list")
    assert table.returncode == 0, table.stderr
    for server in at_two.values():
        (row,) = [line for line in table.stdout.splitlines() if str(server.directory) in line]
        assert str(server.port) in row
        assert str(server.pid) in row
        assert server.token not in table.stdout + table.stderr
    listed = json.loads(ask("--list", "--json").stdout)
    assert listed["version"] == 1
    found = {record["port"]: record for record in listed["servers"]}
    for server in at_two.values():
        assert found.pop(server.port) == {
            "url": f"http://127.0.0.1:{server.port}/",
            "base_url": "/",
            "port": server.port,
            "socket": None,
            "address": "127.0.0.1",
            "secure": False,
            "token": server.token,
            "password": False,
            "directory": str(server.directory),
            "version": jupyter_version,
            "pid": server.pid,
            "hub": False,
        }
    assert not found


def test_list_names_the_socket_of_a_server_that_has_no_port(ask: Ask, sshd: Sshd, users: Users) -> None:
    users.servers["socket"].ready()
    at_home(sshd, users.home("socket"))
    (record,) = json.loads(ask("--json").stdout)["servers"]
    assert (record["port"], record["url"], record["address"]) == (None, None, None)
    assert record["socket"] == f"{users.home('socket')}/s"


def test_the_file_of_a_server_that_was_killed_is_not_listed_and_stays(ask: Ask, own: Path) -> None:
    with Jupyter(own).ready() as server:
        (file,) = runtime_dir(own).glob("jpserver-*.json")
        server.kill()
    listed = ask("--list")
    assert str(server.directory) not in listed.stdout
    assert "no notebook server of yours runs on lab" in listed.stderr
    assert json.loads(ask("--json").stdout)["servers"] == []
    assert file.exists()


# Secrets.


class CommandLines(threading.Thread):
    """Reads the command line of every process here, again and again."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[bytes] = set()
        self._is_over = threading.Event()

    def __enter__(self) -> CommandLines:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.join()

    def have(self, word: str) -> bool:
        return any(word.encode() in line for line in self._seen)

    def run(self) -> None:
        while not self._is_over.wait(0.01):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    self._seen.add(path.read_bytes())


def test_a_token_is_in_no_log_no_file_no_status_and_no_command_line(
    ask: Ask, holdfast: Run, sshd: Sshd, home: Path, own: Path
) -> None:
    with CommandLines() as lines:
        url = printed_url(ask("--start", "--command", "server"))
        (left,) = started_in(home)
        token = str(left.record["token"])
        assert token in url
        shown = [holdfast("status").stdout, holdfast("status", "--json").stdout, holdfast("logs").stdout]
        shown += [ask("--list").stdout, holdfast("logs", "-F", str(sshd.config), "lab", "--remote").stdout]
        holdfast("down", "lab")
        assert token in printed_url(holdfast("open", "lab"))
    assert lines.have("holdfast.keeper")
    assert lines.have(str(left.directory))
    assert not lines.have(token)
    assert all(shown)
    assert not any(token in text for text in shown)
    kept = [path for place in ("run", "state") for path in (home / place).rglob("*") if path.is_file()]
    assert any(str(left.pid) in path.read_text(errors="replace") for path in kept)
    assert [path for path in kept if token.encode() in path.read_bytes()] == []


# Starting and ending.


@pytest.mark.parametrize(
    ("words", "says", "path"),
    [
        ((), "started JupyterLab 4", "/lab"),
        pytest.param(("--env", f"venv:{LAB3}"), "started JupyterLab 3.6", "/lab", marks=needs(LAB3)),
        pytest.param(
            ("--env", f"venv:{NOTEBOOK6}"), "started Jupyter Notebook 6", "/tree", marks=needs(NOTEBOOK6)
        ),
    ],
)
def test_a_server_is_started_once_where_nobody_else_reaches_it(
    ask: Ask, home: Path, own: Path, words: tuple[str, ...], says: str, path: str
) -> None:
    first = ask("--start", *words)
    url = printed_url(first)
    assert says in first.stderr
    assert "on a Unix socket that only you can reach" in first.stderr
    assert visit(url).url.partition("?")[0].endswith(path)
    second = ask("--start", *words)
    assert printed_url(second) == url
    assert f"a notebook server runs in {home} on lab already" in second.stderr
    (left,) = started_in(home)
    assert left.directory.stat().st_mode & 0o777 == 0o700
    assert (left.directory / "s").stat().st_mode & 0o777 == 0o600
    assert left.record["port"] == 0


def test_of_two_commands_at_once_one_starts_a_server_and_the_other_finds_it(
    ask: Ask, home: Path, own: Path
) -> None:
    with ThreadPoolExecutor() as threads:
        done = list(threads.map(lambda _: ask("--start", "--command", "server"), range(2)))
    assert printed_url(done[0]) == printed_url(done[1])
    assert len(started_in(home)) == 1


def test_a_server_is_started_in_the_directory_that_is_named(ask: Ask, home: Path, own: Path) -> None:
    (home / "my work").mkdir()
    printed_url(ask("--start", "--command", "server", "--dir", "my work"))
    (left,) = started_in(home)
    assert left.record["root_dir"] == str(home / "my work")


def test_what_can_not_be_started_is_said_with_what_could_be(ask: Ask, home: Path, own: Path) -> None:
    missing = ask("--start", "--dir", "nowhere")
    assert missing.returncode == 1
    assert f"there is no directory {home}/nowhere" in missing.stderr
    unknown = ask("--start", "--env", "venv:/nowhere")
    assert unknown.returncode == 1
    assert "there is no environment 'venv:/nowhere'" in unknown.stderr
    assert started_in(home) == []


def test_a_server_started_with_tls_is_reached_and_another_certificate_in_its_place_is_not(
    ask: Ask, home: Path, own: Path
) -> None:
    first = ask("--start", "--command", "server", "--tls")
    url = printed_url(first)
    assert url.startswith("https://localhost:")
    assert visit(url).status == 200
    (left,) = started_in(home)
    shown = subprocess.run(
        ["openssl", "x509", "-in", str(left.directory / "cert.pem"), "-noout", "-fingerprint", "-sha256"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.strip().partition("=")[2].replace(":", "").lower() in first.stderr
    assert printed_url(ask()) == url

    make_certificate(home)
    with Jupyter(home, f"--certfile={home}/cert.pem", f"--keyfile={home}/key.pem").ready() as other:
        (left.directory / "pid").write_text(str(other.pid))  # as if it were the one that was started
        kill_with_children(left.pid)
        done = ask()
    assert done.returncode == 1
    assert done.stdout == ""
    assert "the server's certificate has the fingerprint" in done.stderr


def test_what_plain_tcp_means_is_said_when_a_server_is_started_on_it(ask: Ask, home: Path, own: Path) -> None:
    done = ask("--start", "--command", "server", "--tcp")
    (left,) = started_in(home)
    assert visit(printed_url(done)).status == 200
    assert left.record["port"]
    assert "it listens on plain TCP: every user there can connect to it" in done.stderr
    assert "holdfast: hint: holdfast doctor lab tells more" in done.stderr


def test_stop_spares_a_busy_kernel_unless_forced_and_leaves_nothing_behind(
    ask: Ask, holdfast: Run, home: Path, own: Path
) -> None:
    url = printed_url(ask("--start", "--command", "server"))
    (left,) = started_in(home)
    jupyter = test_notebook.Jupyter(port_of(url), str(left.record["token"]))
    kernel = test_notebook.call(jupyter.port, jupyter, "POST", "/api/kernels")["id"]

    def run_long_cell() -> None:
        with contextlib.suppress(Exception):  # its connection ends, in one way or another
            test_notebook.run_code(jupyter.port, jupyter, kernel, "import time; time.sleep(600)")

    def is_busy() -> bool:
        found = test_notebook.call(jupyter.port, jupyter, "GET", f"/api/kernels/{kernel}")
        return str(found["execution_state"]) == "busy"

    cell = threading.Thread(target=run_long_cell)
    cell.start()
    try:
        wait_for(is_busy, "the kernel to be busy", 30)
        spared = ask("--stop")
        assert spared.returncode == 1
        assert "1 kernel is busy, and would lose its work: python3" in spared.stderr
        assert "holdfast jupyter lab --stop --force" in spared.stderr
        assert is_busy()
        forced = ask("--stop", "--force")
        assert forced.returncode == 0, forced.stderr
        assert f"the notebook server in {home} on lab has ended" in forced.stdout
    finally:
        kill_with_children(left.pid)
        cell.join()
    assert started_in(home) == []
    assert not left.directory.exists()
    assert "no tunnels" in holdfast("status").stderr


def test_stop_ends_a_server_that_its_user_has_started(ask: Ask, own: Path) -> None:
    with Jupyter(own).ready() as server:
        reaping = threading.Thread(target=server.process.wait)  # as its shell does
        reaping.start()
        done = ask("--stop")
        assert done.returncode == 0, done.stderr
        reaping.join(10)
        assert server.process.returncode == 0


def test_stop_says_how_to_end_a_server_whose_kernels_only_its_password_would_show(
    ask: Ask, sshd: Sshd, users: Users
) -> None:
    server = users.servers["password"].ready()
    at_home(sshd, users.home("password"))
    done = ask("--stop")
    assert done.returncode == 1
    assert "holdfast jupyter lab --stop --force" in done.stderr
    assert server.process.poll() is None


def test_the_log_over_there_is_shown_without_tokens(
    ask: Ask, holdfast: Run, sshd: Sshd, home: Path, own: Path
) -> None:
    remote = functools.partial(holdfast, "logs", "-F", str(sshd.config), "lab", "--remote")
    printed_url(ask("--start", "--command", "server"))
    (left,) = started_in(home)
    with (left.directory / "log").open("a") as log:
        log.write(f"http://localhost:8888/lab?token={left.record['token']}\nthe last line\n")
    shown = remote().stdout
    assert {"http://localhost:8888/lab?token=...", "the last line"} <= set(shown.splitlines())
    assert left.record["token"] not in shown
    assert len(remote("-n", "1").stdout.splitlines()) == 1


@pytest.mark.parametrize("shell", ["fish", "tcsh", "zsh"])
def test_a_server_is_started_and_found_by_whatever_login_shell(
    ask: Ask, sshd: Sshd, home: Path, own: Path, shell: str
) -> None:
    path = path_of(shell)
    sshd.stop()
    sshd.start(f"SetEnv HOME={home} SHELL={path}", f'ForceCommand exec {path} -c "$SSH_ORIGINAL_COMMAND"')
    first = ask("--start", "--command", "server")
    url = printed_url(first)
    assert f"from {NEWEST}, " in first.stderr
    assert printed_url(ask()) == url
    assert visit(url).status == 200


# The port here.


@contextlib.contextmanager
def taken(port: int) -> Iterator[None]:
    """Something else listens on the port here, if nothing did."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        yield


def test_the_port_here_is_the_same_after_down_and_another_while_it_is_taken(
    ask: Ask, holdfast: Run, sshd: Sshd, users: Users
) -> None:
    server = users.servers["lab"].ready()
    at_home(sshd, users.home("lab"))
    url = printed_url(ask())
    port = port_of(url)
    assert server.port < port < server.port + 100  # the server's own is taken, by the server
    holdfast("down", "lab")
    assert not is_open(port)
    assert printed_url(ask()) == url
    holdfast("down", "lab")
    with taken(port):
        other = printed_url(ask())
        assert port_of(other) != port
        assert visit(other).status == 200


def test_open_brings_a_tunnel_up_again_and_asks_for_the_token_anew(
    ask: Ask, holdfast: Run, sshd: Sshd, users: Users
) -> None:
    users.servers["lab"].ready()
    at_home(sshd, users.home("lab"))
    url = printed_url(ask())
    assert printed_url(holdfast("open", "lab")) == url
    holdfast("down", "lab")
    assert printed_url(holdfast("open", "lab")) == url
    assert visit(url).status == 200


def test_the_port_here_is_the_servers_own_where_that_is_free(network: Network, home: Path) -> None:
    def port_for(*options: str) -> tuple[Jupyter, int]:
        with Jupyter(home, *options, before=network.server.prefix).ready() as server:
            done = network.holdfast("jupyter", "-F", str(network.config), "lab")
            network.holdfast("down", "lab")
            return server, port_of(printed_url(done))

    server, port = port_for()
    assert port == server.port
    assert port_for(f"--sock={home}/s", "--ServerApp.base_url=/other")[1] == 8888


# Following.


class Followed:
    """A server that a tunnel leads to, and that is ended and started again. To be used with `with`."""

    def __init__(self, ask: Ask, home: Path) -> None:
        self._home = home
        self.server = Jupyter(home).ready()
        try:
            self.port = port_of(printed_url(ask()))
        except BaseException:
            self.server.close()
            raise

    def __enter__(self) -> Followed:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()

    def restart(self, port: int | None = None) -> None:
        """The server ends, and its user starts another: on another port, unless told."""
        self.server.close()
        self.start(port)

    def start(self, port: int | None = None) -> None:
        self.server = Jupyter(self._home, port=port).ready()

    def leads_on(self, holdfast: Run) -> bool:
        """Whether status says that the tunnel leads to where the server is now."""
        forward = status(holdfast)
        return (
            (forward["state"], forward["notebook"]["pid"]) == ("up", self.server.pid)
            and forward["target"] == f"127.0.0.1:{self.server.port}"
            and forward["url"] == f"http://localhost:{self.port}/"
        )

    def token_is_right(self) -> bool:
        """Whether what answers here is the server that runs now: it knows its own token."""
        headers = {"Authorization": f"token {self.server.token}"}
        request = urllib.request.Request(f"http://localhost:{self.port}/api/status", headers=headers)
        with urllib.request.urlopen(request, timeout=20) as response:
            return bool(response.status == 200)


@pytest.fixture
def followed(ask: Ask, own: Path) -> Iterator[Followed]:
    with Followed(ask, own) as made:
        yield made


NAVIGATION = {"Accept": "text/html", "Sec-Fetch-Dest": "document", "Sec-Fetch-Mode": "navigate"}


def navigate(port: int) -> tuple[int, str]:
    """The status and the page that a browser is shown."""
    request = urllib.request.Request(f"http://localhost:{port}/tree", headers=NAVIGATION)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_server_that_went_is_told_and_waited_for_and_followed_to_another_port(
    followed: Followed, holdfast: Run
) -> None:
    followed.server.close()
    with contextlib.suppress(OSError):
        version_at(followed.port)  # the one that finds out
    directory = followed.server.directory
    reason = f"the notebook server in {directory} does not run on lab any more"
    wait_for(lambda: status(holdfast)["reason"] == reason, "status to tell")
    told = status(holdfast)
    assert told["state"] == "no service"
    assert told["hint"].endswith(f"holdfast jupyter lab --start --dir {directory}")
    shown, page = navigate(followed.port)
    assert shown == 503
    assert "does not run on lab any more" in page

    with ThreadPoolExecutor() as threads:
        held = threads.submit(version_at, followed.port)
        wait_for(lambda: tunnel(holdfast("status", "--json"))["held"] == 1, "the request to be held")
        followed.start()
        assert held.result(90) == jupyter_version
    wait_for(lambda: followed.leads_on(holdfast), "status to tell that it is back")
    assert followed.token_is_right()


def test_a_server_that_was_restarted_is_found_by_the_request_that_fails(followed: Followed, holdfast: Run) -> None:
    followed.restart()
    with contextlib.suppress(OSError):
        version_at(followed.port)  # the one that finds out
    wait_for(lambda: followed.leads_on(holdfast), "the tunnel to lead to the new port")
    assert followed.token_is_right()


def test_a_server_that_was_restarted_while_the_link_was_down_answers_who_waited(
    followed: Followed, holdfast: Run, sshd: Sshd
) -> None:
    sshd.stop()
    with ThreadPoolExecutor() as threads:
        wait_for(lambda: tunnel(holdfast("status", "--json"))["state"] != "up", "the loss to be noticed")
        held = threads.submit(version_at, followed.port)
        wait_for(lambda: tunnel(holdfast("status", "--json"))["held"] == 1, "the request to be held")
        followed.restart()
        sshd.start()
        assert held.result(90) == jupyter_version
    wait_for(lambda: followed.leads_on(holdfast), "status to tell")
    assert followed.token_is_right()


def test_a_new_token_is_in_the_url_that_open_prints(followed: Followed, holdfast: Run) -> None:
    before = followed.server.token
    followed.restart(followed.server.port)
    assert followed.server.token != before
    url = printed_url(holdfast("open", "lab"))
    assert parse_qs(urlsplit(url).query) == {"token": [followed.server.token]}
    assert port_of(url) == followed.port
    assert visit(url).status == 200


def test_a_keeper_that_was_killed_follows_a_server_that_moved_meanwhile(
    followed: Followed, holdfast: Run, kill_keeper: Callable[[], None]
) -> None:
    kill_keeper()
    followed.restart()
    wait_for(lambda: followed.leads_on(holdfast), "the tunnel to lead to the new port")
    assert followed.token_is_right()


def test_jupyter_finds_the_tunnel_again_for_a_server_that_moved(
    followed: Followed, ask: Ask, holdfast: Run
) -> None:
    followed.restart()
    url = printed_url(ask())
    assert port_of(url) == followed.port
    assert visit(url).status == 200
    assert followed.leads_on(holdfast)
