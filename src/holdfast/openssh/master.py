"""Starts, adopts and ends masters. With openssh/foreground.py the only module that runs ssh.

Each master of ours has a socket path that was never used before, in a directory that nobody else can enter:
nothing stale can be there. Where the user's configuration names a ControlPath, a symbolic link there leads to
ours, so that `ssh HOST`, `ssh -O check HOST` and `ssh -O exit HOST` work with it as with their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from holdfast import paths
from holdfast.errors import MasterError
from holdfast.openssh import command
from holdfast.openssh.control_socket import ControlSocket
from holdfast.openssh.diagnose import Remedy, Trouble, diagnose
from holdfast.openssh.settings import Settings
from holdfast.peer import is_stale

# Seconds for a login that nobody has to type anything for, jump hosts included.
LOGIN = 60.0
# Seconds for one that asks a person, who may be looking elsewhere.
DIALOGUE = 300.0
# Seconds for `ssh -G`, which runs the user's `Match exec` commands.
SETTINGS = 15.0
# Seconds that a master which has hung up may take to be gone.
DYING = 3.0
# A master's log is emptied in place when it has grown to this many bytes.
LONGEST_LOG = 256 * 1024

NO_SSH = Trouble("ssh is not installed", "sudo apt-get install openssh-client", Remedy.NONE)


class LoginFailed(MasterError):
    """No master could be made. `trouble` says why, and what can help."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.reason, trouble.hint)
        self.trouble = trouble


@dataclass(slots=True)
class Master:
    """A living master. `ours` is False for one that the user made: it is never ended by us, and has no log.

    `takes_unix_targets`: its stdio forwards can lead to Unix sockets, which those before 9.4 take for host names.
    """

    socket: Path
    pid: int
    ours: bool
    control: ControlSocket
    log: Path | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    takes_unix_targets: bool = False

    def read_log(self, start: int = 0) -> str:
        """What it wrote to its log from byte `start` on; empty for a master of the user's."""
        if self.log is None:
            return ""
        try:
            with self.log.open("rb") as file:
                file.seek(start)
                return file.read(LONGEST_LOG).decode(errors="replace")
        except OSError:
            return ""

    def log_size(self) -> int:
        """The log's size in bytes, once it has been emptied if it had grown too long."""
        try:
            size = self.log.stat().st_size if self.log else 0
            if self.log and size > LONGEST_LOG:
                os.truncate(self.log, 0)  # ssh appends, so this is safe while it runs
                return 0
            return size
        except OSError:
            return 0


def new_socket() -> tuple[Path, Path]:
    """The paths of the control socket and the log of a master to be."""
    name = secrets.token_hex(6)
    return paths.masters_dir() / name, paths.masters_dir() / f"{name}.log"


async def settings(host: str, options: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """What ssh would use for `host`. Raises LoginFailed when the user's configuration has a mistake."""
    status, printed, errors = await _run(command.show_settings(host, options), environment, SETTINGS)
    if status != 0:
        raise LoginFailed(diagnose(errors, host)._replace(remedy=Remedy.NONE))
    return Settings(printed)


async def baseline(environment: Mapping[str, str]) -> Settings:
    """ssh's own defaults. They change with ssh only, so they are asked for once. Raises LoginFailed."""
    ssh = shutil.which("ssh", path=environment.get("PATH"))
    if ssh is None:
        raise LoginFailed(NO_SSH)
    key = (ssh, Path(ssh).stat().st_mtime_ns)
    if key not in _baselines:
        _, _, printed = await _run(["ssh", "-V"], environment, SETTINGS)
        if reason := command.too_old(printed.partition(",")[0]):
            raise LoginFailed(Trouble(reason, "update OpenSSH", Remedy.NONE))
        _versions[ssh] = command.parse_version(printed) or command.OLDEST
        _baselines[key] = await settings("localhost", ("-F", "none"), environment)
    return _baselines[key]


_baselines: dict[tuple[str, int], Settings] = {}
_versions: dict[str, tuple[int, int]] = {}


def _takes_unix_targets(environment: Mapping[str, str]) -> bool:
    """For a master of the ssh that is first in the PATH, whose baseline was asked for before."""
    return _versions.get(shutil.which("ssh", path=environment.get("PATH")) or "", command.OLDEST) >= (9, 4)


async def start(
    argv: Sequence[str],
    socket: Path,
    log: Path,
    host: str,
    environment: Mapping[str, str],
    patience: float = LOGIN,
) -> Master:
    """Runs `argv` (see command.master), a master for `host`, for at most `patience` seconds. Raises LoginFailed.

    Ready is what ssh says itself, through LocalCommand, once it is logged in and its socket is there.
    """
    with log.open("ab") as stderr:
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 - returns once ssh runs; its output is awaited
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        except FileNotFoundError:
            raise LoginFailed(NO_SSH) from None
    try:
        async with asyncio.timeout(patience):
            is_ready = await _says_ready(process)
        if not is_ready:
            await _reap(process)
            raise LoginFailed(diagnose(log.read_text(errors="replace"), host))
        control = await ControlSocket.connect(socket)
        pid = await control.alive()
        if pid != process.pid:
            control.close()
            raise MasterError(f"the control socket {socket} belongs to process {pid}, not to {process.pid}")
        return Master(socket, pid, True, control, log, process, _takes_unix_targets(environment))
    except BaseException as error:
        kill_with_children(process.pid)
        await asyncio.to_thread(process.wait)
        _forget(socket, log)
        if isinstance(error, TimeoutError):
            raise LoginFailed(
                Trouble(
                    f"the login on {host} took longer than {patience:g} s", f"ssh -v {host}", Remedy.RETRY_LATER
                )
            ) from None
        raise


def is_unanswered(log: Path) -> bool:
    """Whether the ssh that writes to `log` has asked for a connection which nobody has answered yet.

    Says no where ssh doesn't tell: before 8.5, and behind a ProxyCommand of the user's.
    """
    try:
        said = log.read_text(errors="replace")
    except OSError:
        return False
    return command.CONNECTING in said and command.CONNECTED not in said


async def adopt(socket: Path, *, ours: bool) -> Master | None:
    """The master that lives at `socket`, or None. A stale socket of ours is removed."""
    try:
        control = await ControlSocket.connect(socket)
    except (FileNotFoundError, ConnectionRefusedError):
        if ours:
            _forget(socket, _log_of(socket))
        return None
    except (OSError, MasterError):  # it may live, and not answer
        return None
    try:
        pid = await control.alive()
    except BaseException as error:
        control.close()
        if isinstance(error, MasterError):
            return None
        raise
    return Master(socket, pid, ours, control, _log_of(socket) if ours else None)


async def after_terminal_login(socket: Path, status: int, host: str) -> Master:
    """The master that ssh -f left at `socket` after a person logged in. Raises LoginFailed with ssh's reason."""
    log = _log_of(socket)
    master = await adopt(socket, ours=True) if status == 0 else None
    if master is not None:
        return master
    said = log.read_text(errors="replace") if log.exists() else ""
    _forget(socket, log)
    raise LoginFailed(diagnose(said, host))


async def end(master: Master) -> None:
    """Ends a master of ours, for certain; hangs up on one of the user's."""
    if not master.ours:
        master.control.close()
        return
    try:
        await master.control.terminate()
    except (MasterError, TimeoutError):
        kill_with_children(master.pid)  # verified by its own socket, whose connection is still open
    master.control.close()
    await bury(master)


def kill_with_children(pid: int) -> None:
    """Kills a master of ours, and its ProxyCommand: each master leads a process group of its own."""
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)


async def last_words(master: Master, start: int) -> str:
    """What a dying master wrote to its log from byte `start` on. It hangs up first, and says why afterwards."""
    if master.process is not None:
        await _reap(master.process)
    else:
        with contextlib.suppress(TimeoutError, ProcessLookupError):
            async with asyncio.timeout(DYING):
                while True:  # it isn't our child: nothing tells of its end
                    os.kill(master.pid, 0)
                    await asyncio.sleep(0.02)
    return master.read_log(start)


async def bury(master: Master) -> None:
    """Removes what a dead master of ours left: its zombie, its socket, its log."""
    if master.process is not None:
        await _reap(master.process)
    if master.ours:
        _forget(master.socket, _log_of(master.socket))


def link_control_path(control_path: Path, socket: Path) -> bool:
    """Makes the user's `control_path` lead to our master. False when something of the user's is there."""
    if not is_our_link(control_path):
        if is_stale(control_path):
            control_path.unlink(missing_ok=True)
        elif os.path.lexists(control_path):
            return False
    temporary = control_path.with_name(f".{control_path.name[:40]}.{secrets.token_hex(4)}")
    try:
        temporary.symlink_to(socket)
        temporary.rename(control_path)
    except OSError:
        temporary.unlink(missing_ok=True)
        return False
    return True


def unlink_control_path(control_path: Path, socket: Path) -> None:
    """Takes the link away when it leads to `socket`: a dangling one makes ssh run without multiplexing."""
    with contextlib.suppress(OSError):
        if control_path.readlink() == socket:
            control_path.unlink()


def is_our_link(control_path: Path) -> bool:
    """Whether `control_path` is a link that we put there."""
    try:
        return control_path.readlink().parent == paths.masters_dir()
    except OSError:
        return False


async def _run(argv: Sequence[str], environment: Mapping[str, str], timeout: float) -> tuple[int, str, str]:
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    except FileNotFoundError:
        raise LoginFailed(NO_SSH) from None
    try:
        async with asyncio.timeout(timeout):
            printed, errors = await process.communicate()
    except BaseException as error:
        kill_with_children(process.pid)
        await process.wait()
        if not isinstance(error, TimeoutError):
            raise
        raise LoginFailed(
            Trouble(
                f"'{' '.join(argv)}' took longer than {timeout:g} s",
                "a `Match exec` in your ssh_config may be slow",
                Remedy.NONE,
            )
        ) from None
    return process.returncode or 0, printed.decode(errors="replace"), errors.decode(errors="replace")


async def _says_ready(process: subprocess.Popen[bytes]) -> bool:
    """Whether ssh says that it is logged in, before it ends; the user's shell may say other things first."""
    assert process.stdout is not None
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), process.stdout
    )
    try:
        while line := await reader.readline():
            if line.strip() == command.READY:
                return True
        return False
    finally:
        transport.close()


async def _reap(process: subprocess.Popen[bytes]) -> None:
    """Waits for a child that is about to end."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        await asyncio.to_thread(process.wait, DYING)


def _log_of(socket: Path) -> Path:
    return socket.with_name(f"{socket.name}.log")


def _forget(socket: Path, log: Path) -> None:
    socket.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
