"""A real `systemd --user` for the tests, also where systemd hasn't booted: in a cgroup and mounts of its own.

What runs in there sees the same files and the same network, but for /sys/fs/cgroup, /run/systemd and who lingers.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.sshd import wait_for

SYSTEMD = Path("/lib/systemd/systemd")
_MOUNTS = """
mount -t tmpfs tmpfs /run/systemd && mkdir /run/systemd/system || exit 1
mkdir -p /var/lib/systemd/linger && mount -t tmpfs tmpfs /var/lib/systemd/linger || exit 1
umount -l /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 1
"""


def why_not() -> str:
    """Why no instance of systemd can be run here, or ''."""
    if os.getuid() != 0:
        return "needs root, for mounts of its own"
    if not SYSTEMD.exists() or not shutil.which("nsenter"):
        return "needs systemd and util-linux"
    return "" if _cgroups() else "needs cgroup v2"


def _cgroups() -> Path | None:
    """Where the second version of cgroups is mounted."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next((Path(place) for _, place, kind, *_ in mounts if kind == "cgroup2"), None)


class UserManager:
    """`systemd --user` at home in `home`, and commands beside it: of `user`, else of who runs the tests.

    `python` is the one that has holdfast, for that user.
    """

    def __init__(
        self, home: Path, environment: Mapping[str, str], *, user: str = "", python: str = sys.executable
    ) -> None:
        self.home = home
        self.user = user
        self.python = python
        self.runtime = home / "xdg"
        self.environment = {
            **environment,
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "SYSTEMD_LOG_TARGET": "console",
        }
        self.log = home / "systemd.log"
        self._cgroup: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def _as_user(self) -> list[str]:
        """What to put before a command line."""
        return ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--init-groups"] if self.user else []

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, target: str = "basic.target") -> None:
        """A session begins, and brings `target` up."""
        found = _cgroups()
        assert found is not None
        self.runtime.mkdir(mode=0o700, exist_ok=True)
        self._cgroup = found / f"hf-{self.home.name}"
        self._cgroup.mkdir()
        if self.user:
            for path in (self.runtime, self._cgroup, *self._cgroup.glob("cgroup.*")):
                shutil.chown(path, self.user, self.user)
        script = (
            f"echo $$ > {shlex.quote(str(self._cgroup / 'cgroup.procs'))} && exec unshare --mount --cgroup sh -c "
        )
        inner = f"{_MOUNTS} exec {shlex.join([*self._as_user, str(SYSTEMD)])} --user --unit={target}"
        # What it starts writes to where it writes to: what would be the journal.
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", script + shlex.quote(inner)],
                env={
                    **self.environment,
                    "SYSTEMD_LOG_LEVEL": "info",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(lambda: self.systemctl("is-active", target).stdout == "active\n", f"{target}; see {self.log}")

    def stop(self) -> None:
        """The session ends, and with it all that runs in there, as logind has it."""
        cgroup = self._cgroup
        if self._process is None or cgroup is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.systemctl("exit")
            self._process.wait(10)
        (cgroup / "cgroup.kill").write_text("1")
        self._process.wait(10)
        wait_for(lambda: "populated 0" in (cgroup / "cgroup.events").read_text(), "its processes to end")
        for folder, _, _ in os.walk(cgroup, topdown=False):
            Path(folder).rmdir()
        self._process = None

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in there, as from a terminal of that session."""
        assert self._cgroup is not None
        terminal = self._cgroup / "terminal"
        terminal.mkdir(exist_ok=True)
        enter = f'echo $$ > {shlex.quote(str(terminal))}/cgroup.procs; exec nsenter -t {self.pid} -m -C "$@"'
        return subprocess.run(
            ["sh", "-c", enter, "sh", *self._as_user, *words],
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def holdfast(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.python, "-m", "holdfast", *words, **more)

    def systemctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("systemctl", "--user", *words)

    def property(self, unit: str, name: str) -> str:
        """What systemd says of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit).stdout.strip()
