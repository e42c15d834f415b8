"""`holdfast demo`: the main job, shown with nothing but this machine.

An SSH server and a notebook, both on loopback, play the machine with the data; the commands shown are the real
ones. Everything lives in one temporary directory, with a keeper of its own: the user's tunnels are never touched,
and nothing is left behind, however it ends. `python -m holdfast.demo DIRECTORY` is the SSH server.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import psutil

from holdfast import client
from holdfast.cli.main import complain
from holdfast.cli.render import colour_allowed
from holdfast.control import Down
from holdfast.errors import Exit, HoldfastError, KeeperError
from holdfast.forward import parse
from holdfast.keeper import processes

if TYPE_CHECKING:
    from asyncssh import SSHReader, SSHServerProcess, SSHWriter

# Seconds for whatever is waited for; and for what was told to end, before it is killed.
PATIENCE = 20.0
ENDING = 5.0
_LOOK = 0.01
USUAL_PORT = 8888

# The signals to end that came. They are heeded between two things and never within one: a process that is just
# being started would be nobody's, and nothing may interrupt the tidying up.
_signals: list[int] = []


def main() -> int:
    """Shows it; the exit code. Raises HoldfastError when a step doesn't do what it says."""
    _check_extra()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: _signals.append(got))
    began = time.monotonic()
    with contextlib.ExitStack() as ending:
        home = ending.enter_context(_place())
        server = _start([*_python("holdfast.demo"), str(home)], home / "sshd.log", os.environ, ending)
        notebook = _start_notebook(home, ending)
        ending.callback(_end_keeper)
        try:
            _perform(home, server, notebook)
        except KeyboardInterrupt:
            complain("stopping, and taking everything away")
            raise
    took = time.monotonic() - began
    _tell(f"\nNothing is left of it: keeper, notebook, SSH server, directory. {took:.1f} s in all.")
    _tell("With a machine of yours: holdfast up HOST, then http://localhost:8888")
    return Exit.OK


def _perform(home: Path, server: subprocess.Popen[bytes], notebook: subprocess.Popen[bytes]) -> None:
    """The steps, in order."""
    _tell(click.style("A notebook on another machine, kept within reach", bold=True))
    _tell("\nAn SSH server and a Jupyter Server on 127.0.0.1 play that machine, `lab`.")
    _tell(f"All of it lives in {home}; your own tunnels are not touched.")
    with _step("1. The machine starts, with its notebook."):
        lab = _announcement(home / "lab.json", server, home / "sshd.log")
        info = _announcement(home / f"runtime/jpserver-{notebook.pid}.json", notebook, home / "notebook.log")
        _detail(f"SSH server: asyncssh {lab['asyncssh']}")
        _detail(f"notebook:   Jupyter Server {info['version']}, on 127.0.0.1:{info['port']} over there")
    port = _local_port()
    with _step("2. The tunnel comes up."):
        if port != USUAL_PORT:
            _detail(f"{USUAL_PORT} is taken on this machine; any other port will do")
        _holdfast("up", "lab", f"{port}:{info['port']}", unshown=("-F", lab["config"]))
    with _connected(port) as browser:
        with _step("3. The notebook answers through it."):
            _get(browser, "/api")
            _get(browser, "/api/status", "without its token", expected=403)
            _get(browser, "/api/status", "with its token", token=info["token"])
        with _step("4. Status is proven by a round trip, not remembered."):
            _holdfast("status")
        with _step("5. The keeper is killed. OpenSSH carries the tunnel, so it goes on."):
            _kill_keeper()
            _get(browser, "/api", "same connection")
            with _connected(port) as another:
                _get(another, "/api", "a new one")
        with _step("6. The next command starts another keeper, which adopts the tunnel."):
            _holdfast("status")
            _get(browser, "/api", "still the same one")
    with _step("7. The tunnel is taken down."):
        _holdfast("down", "lab")
        _detail(f"connecting to localhost:{port}: {_refusal(port)}")


@contextlib.contextmanager
def _step(title: str) -> Iterator[None]:
    """Tells what comes, and afterwards how long it took."""
    _heed_signals()
    _tell("\n" + click.style(title, bold=True))
    began = time.monotonic()
    yield
    _detail(click.style(f"{time.monotonic() - began:.2f} s", dim=True))


def _holdfast(*words: str, unshown: Sequence[str] = ()) -> None:
    """Runs a command of ours as a user would, and shows it, but for the options that only the demo needs."""
    _detail(click.style(f"$ {' '.join(('holdfast', *words))}", fg="cyan"))
    try:
        done = subprocess.run(
            [*_python("holdfast"), words[0], *unshown, *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            start_new_session=True,  # out of Ctrl-C's reach
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise HoldfastError(f"holdfast {words[0]} took longer than {PATIENCE:g} s", "holdfast doctor") from None
    _heed_signals()
    for line in done.stdout.splitlines():
        _detail(line)
    if done.returncode != Exit.OK:
        raise HoldfastError(f"holdfast {words[0]} ended with {done.returncode}", "holdfast doctor")


@contextlib.contextmanager
def _connected(port: int) -> Iterator[http.client.HTTPConnection]:
    """One connection through the tunnel: broken, it isn't secretly replaced by another."""
    with contextlib.closing(http.client.HTTPConnection("localhost", port, timeout=PATIENCE)) as browser:
        try:
            browser.connect()
        except OSError as error:
            raise HoldfastError(f"can't connect to localhost:{port}: {error}") from None
        browser.auto_open = 0
        yield browser


def _get(
    browser: http.client.HTTPConnection, path: str, how: str = "", *, token: str = "", expected: int = 200
) -> None:
    """Asks the notebook for `path`, and shows what it says. Raises HoldfastError when that isn't `expected`."""
    _heed_signals()
    try:
        browser.request("GET", path, headers={"Authorization": f"token {token}"} if token else {})
        answer = browser.getresponse()
        body = answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise HoldfastError(f"http://localhost:{browser.port}{path} does not answer: {error!r}") from None
    said = body if path == "/api" and answer.status == 200 else f"{answer.status} {answer.reason}"
    _detail(f"GET http://localhost:{browser.port}{path} -> {said}" + (f"  ({how})" if how else ""))
    if answer.status != expected:
        raise HoldfastError(f"the notebook answered {answer.status}, not {expected}")


def _kill_keeper() -> None:
    connection = client.find()
    if connection is None:
        raise HoldfastError("the keeper is not running", "holdfast doctor")
    pid = connection.greeting["pid"]
    _detail(click.style(f"$ kill -9 {pid}", fg="cyan"))
    os.kill(pid, signal.SIGKILL)
    with contextlib.closing(connection), contextlib.suppress(KeeperError):
        connection.receive(ENDING)  # the end of the file, once it is dead


def _refusal(port: int) -> str:
    """The system's words for nobody listening on `port`. Raises HoldfastError when somebody does."""
    try:
        socket.create_connection(("localhost", port), timeout=PATIENCE).close()
    except OSError as error:
        return (error.strerror or str(error)).lower()
    raise HoldfastError(f"something still listens on port {port}")


def _local_port() -> int:
    """The usual one where it is free, else any other."""
    listeners = parse(str(USUAL_PORT)).listeners
    is_free = all(processes.why_not(listen) in (0, *processes.NO_SUCH_ADDRESS) for listen in listeners)
    return USUAL_PORT if is_free else processes.free_port(listeners)


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    """A private directory, where our sockets and state are from now on. No process that knows it outlives it."""
    with tempfile.TemporaryDirectory(prefix="hf-demo-", dir="/tmp") as made:  # sockets need a short path
        os.environ.update(HOLDFAST_RUNTIME_DIR=f"{made}/run", HOLDFAST_STATE_DIR=f"{made}/state")
        try:
            yield Path(made)
        finally:
            deadline = time.monotonic() + ENDING
            while (left := _processes_of(made)) and time.monotonic() < deadline:
                time.sleep(_LOOK)
            for process in left:
                with contextlib.suppress(psutil.Error):
                    complain(f"{process.name()} (pid {process.pid}) was left, and is killed", "please report it")
                    process.kill()


def _processes_of(home: str) -> list[psutil.Process]:
    """The processes that were started with our directories in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOLDFAST_RUNTIME_DIR") == f"{home}/run" and process.pid != os.getpid():
                found.append(process)
    return found


def _end_keeper() -> None:
    """Ends whatever tunnels and keeper there are."""
    with contextlib.suppress(HoldfastError, TimeoutError):  # what is left then is killed
        if client.something_is_wanted():
            client.ask(Down((), (), True), timeout=ENDING)
        if (connection := client.find()) is not None:
            client.stop(connection)


def _start_notebook(home: Path, ending: contextlib.ExitStack) -> subprocess.Popen[bytes]:
    """A Jupyter Server with directories of its own; its token is on no command line."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "PYTHONW"))}
    places = {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    env = {**inherited, **places, "JUPYTER_TOKEN": secrets.token_hex(24)}
    argv = [*_python("jupyter_server"), "--no-browser", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]
    argv += [f"--ServerApp.root_dir={home}", *(["--allow-root"] if os.getuid() == 0 else [])]
    return _start(argv, home / "notebook.log", env, ending)


def _start(
    argv: list[str], log: Path, env: Mapping[str, str], ending: contextlib.ExitStack
) -> subprocess.Popen[bytes]:
    """Starts `argv` out of Ctrl-C's reach; `ending` ends it."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, umask=0o077
        )
    ending.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(ENDING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _heed_signals() -> None:
    if _signals:
        raise KeyboardInterrupt


def _announcement(path: Path, process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    """What `process` says of itself in the JSON file at `path` once it is ready. Raises HoldfastError."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError, ValueError):  # it isn't there yet, or not whole
            said: dict[str, Any] = json.loads(path.read_text())
            return said
        _heed_signals()
        time.sleep(_LOOK)
    last_words = (log.read_text(errors="replace").splitlines() or ["it said nothing"])[-1]
    raise HoldfastError(f"the demo's {log.stem} did not start: {last_words}")


def _check_extra() -> None:
    missing = [name for name in ("asyncssh", "jupyter_server") if not _is_installed(name)]
    if missing:
        raise HoldfastError(f"the demo needs {' and '.join(missing)}", "pip install 'holdfast[demo]'")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _python(module: str) -> list[str]:
    return [sys.executable, "-P", "-m", module]


def _tell(text: str) -> None:
    click.echo(text, color=colour_allowed())


def _detail(text: str) -> None:
    _tell(f"   {text}")


async def _be_lab(home: Path) -> None:
    """Is the SSH server, until it is ended. Its lab.json tells of the configuration by which ssh gets in."""
    import asyncssh

    class Loopback(asyncssh.SSHServer):
        def connection_requested(self, dest_host: str, *_: object) -> bool:
            return dest_host == "127.0.0.1"

    host_key, user_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    user_key.write_private_key(home / "user_key")
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_factory=Loopback,
        server_host_keys=[host_key],
        authorized_client_keys=asyncssh.import_authorized_keys(user_key.export_public_key().decode()),
        process_factory=_run_here,
        encoding=None,
    )
    port = server.get_port()
    (home / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key.export_public_key().decode()}")
    (home / "ssh_config").write_text(
        f"Host lab\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {home}/user_key\n  IdentitiesOnly yes\n"
        f"  IdentityAgent none\n  UserKnownHostsFile {home}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
    )
    (home / "lab.json").write_text(json.dumps({"config": f"{home}/ssh_config", "asyncssh": asyncssh.__version__}))
    await server.wait_closed()


async def _run_here(session: SSHServerProcess[bytes]) -> None:
    """Runs the command that the client asked for, as sshd does; its stderr goes to the log.

    Without `session.redirect`, for when the client hangs up asyncssh 2.24 ends the whole connection over it.
    """
    pipe = subprocess.PIPE
    local = await asyncio.create_subprocess_exec("/bin/sh", "-c", session.command or "", stdin=pipe, stdout=pipe)
    assert local.stdin is not None
    assert local.stdout is not None
    async with asyncio.TaskGroup() as tasks:
        feeding = tasks.create_task(_copy(session.stdin, local.stdin))
        await _copy(local.stdout, session.stdout)
        feeding.cancel()
    session.exit(await local.wait())


async def _copy(
    source: asyncio.StreamReader | SSHReader[bytes], sink: asyncio.StreamWriter | SSHWriter[bytes]
) -> None:
    with contextlib.suppress(OSError):  # whoever reads there is gone
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.write_eof()


if __name__ == "__main__":
    asyncio.run(_be_lab(Path(sys.argv[1])))
