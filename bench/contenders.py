"""The ways to a port over there. Each gives the local port that leads to it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from tests.sshd import free_port, wait_for

from bench.rig import PYTHON, Holdfast, Rig, end, listens

Way = Callable[[Rig, int], int]


def ssh(*options: str) -> Way:
    """`ssh -NTL`, in the foreground so that its pid is known; -f changes nothing for the bytes."""

    def way(rig: Rig, target: int) -> int:
        port = free_port()
        rig.start([*rig.ssh, "-NT", *options, "-L", _forward(port, target), "lab"])
        return _ready(port, "ssh")

    return way


def ssh_with_session(rig: Rig, target: int) -> int:
    """The same ssh with a session open beside the forward: what holdfast does, done by hand."""
    path = rig.home / f"{target}.m"
    port = ssh("-M", "-S", str(path), "-c", "aes128-gcm@openssh.com")(rig, target)
    rig.start([*rig.ssh, "-S", str(path), "lab", "exec cat"])
    wait_for(lambda: b"Starting session" in rig.sshd.log.read_bytes(), "the session")
    return port


def autossh(rig: Rig, target: int) -> int:
    port = free_port()
    words = ["autossh", "-M", "0", *rig.ssh[1:], "-NT", "-L", _forward(port, target), "lab"]
    rig.start(words, AUTOSSH_GATETIME="0")
    return _ready(port, "autossh")


def sshtunnel(rig: Rig, target: int) -> int:
    """The Python library, in a process of its own."""
    port = free_port()
    words = [str(rig.sshd.port), str(rig.sshd.user_key), str(port), str(target)]
    rig.start([PYTHON, "-m", "bench.contenders", *words])
    return _ready(port, "sshtunnel")


def boring(rig: Rig, target: int) -> int:
    port, home = free_port(), rig.home
    (home / "boring.toml").write_text(
        "keep_alive = 15\n"
        "[[tunnels]]\n"
        f'name = "t1"\nlocal = "127.0.0.1:{port}"\nremote = "127.0.0.1:{target}"\nhost = "lab"\n'
    )
    environment = {
        "BORING_CONFIG": str(home / "boring.toml"),
        "BORING_SSH_CONFIG": str(rig.sshd.config),
        "BORING_SOCK": str(home / "boring.sock"),
        "BORING_LOG_FILE": str(home / "boring.log"),
    }
    rig.stack.callback(_end_owner, home / "boring.sock")
    rig.run([str(_boring()), "open", "t1"], environment=environment)
    return _ready(port, "boring")


def ways(holdfast: Holdfast) -> tuple[dict[str, Way], list[str]]:
    """The contenders that are here, in the order in which they take turns; and what isn't here."""
    found: dict[str, Way] = {
        "direct": lambda _, target: target,
        "holdfast": lambda _, target: holdfast.forward(target),
        "ssh -NTL": ssh(),
        "ssh with a session": ssh_with_session,
        "sshtunnel": sshtunnel,
    }
    is_there = shutil.which("ssh-channels-hub")
    missing = [f"ssh-channels-hub is {'here, but not driven by this benchmark' if is_there else 'not installed'}"]
    if shutil.which("autossh"):
        found["autossh"] = autossh
    else:
        missing.append("autossh is not installed")
    if _boring().is_file():
        found["boring"] = boring
    else:
        missing.append("boring is not here (HOLDFAST_BENCH_BORING names its program)")
    return found, missing


def _boring() -> Path:
    return Path(os.environ.get("HOLDFAST_BENCH_BORING", ""))


def _end_owner(path: Path) -> None:
    """Ends the daemon that listens on the Unix socket `path`."""
    with contextlib.suppress(psutil.Error):
        for pid in {found.pid for found in psutil.net_connections("unix") if str(found.laddr) == str(path)}:
            if pid:
                end(pid)


def _forward(port: int, target: int) -> str:
    return f"127.0.0.1:{port}:127.0.0.1:{target}"


def _ready(port: int, who: str) -> int:
    wait_for(lambda: listens(port), f"{who} to listen")
    return port


@contextlib.contextmanager
def _forwarder(server: str, key: str, local: str, target: str) -> Iterator[None]:
    import sshtunnel as library

    with library.SSHTunnelForwarder(
        ("127.0.0.1", int(server)),
        ssh_username=os.environ.get("USER") or subprocess.getoutput("id -un"),
        ssh_pkey=key,
        ssh_config_file=None,
        allow_agent=False,
        host_pkey_directories=[],
        local_bind_address=("127.0.0.1", int(local)),
        remote_bind_address=("127.0.0.1", int(target)),
    ):
        yield


if __name__ == "__main__":
    with _forwarder(*sys.argv[1:]):
        sys.stdin.read()
