"""A real sshd for one test: its own keys, its own configuration, no trace afterwards. On loopback unless told."""

from __future__ import annotations

import contextlib
import errno
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


# No system gives clients one of these, so that none is taken before it is used, though other tests run beside.
_PORTS = range(10_000, 32_768)


def free_port() -> int:
    """A port that nobody listens on just now, on either loopback address."""
    while not _is_free(port := secrets.choice(_PORTS)):
        pass
    return port


def _is_free(port: int) -> bool:
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family) as probe:
                probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
    return True


def wait_for(condition: Callable[[], object], what: str, seconds: float = 15) -> None:
    """Returns once `condition()` is true; fails the test, saying `what` was waited for, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.005)


def make_key(path: Path) -> Path:
    """A new ed25519 key without a passphrase at `path`."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, stdin=subprocess.DEVNULL
    )
    return path


class Sshd:
    """sshd on `address`, and the client's configuration by which `ssh -F config lab` gets in.

    `prefix` is put before its command line (`ip netns exec ...`), and `alias` is what the client calls it. `user`
    is whom it lets in, at home in their own home; without, whoever runs the tests, at home in `home`.
    """

    def __init__(
        self,
        home: Path,
        keys: Path,
        *options: str,
        address: str = "127.0.0.1",
        prefix: Sequence[str] = (),
        alias: str = "lab",
        user: str = "",
    ) -> None:
        self.home = home
        self.address = address
        self.prefix = prefix
        self.alias = alias
        self.user = user
        self.port = free_port()
        self.host_key = keys / "host"
        self.user_key = keys / "user"
        self.config = home / "ssh_config"
        self.known_hosts = home / "known_hosts"
        self.authorized_keys = home / "authorized_keys"
        self.log = home / "sshd.log"
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        shutil.copy(keys / "user.pub", self.authorized_keys)
        self.trust(self.host_key)
        self.configure()

    def trust(self, host_key: Path) -> None:
        """Makes `host_key` the one that the client knows for this server."""
        kind, key = host_key.with_suffix(".pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[{self.address}]:{self.port} {kind} {key}\n")

    def configure(self, *lines: str) -> None:
        """Writes the client's configuration: its host, with `lines` added to the block."""
        settings = [
            f"Host {self.alias}",
            f"HostName {self.address}",
            f"Port {self.port}",
            f"User {self.user or getpass.getuser()}",
            f"IdentityFile {self.user_key}",
            "IdentitiesOnly yes",
            "IdentityAgent none",
            f"UserKnownHostsFile {self.known_hosts}",
            "GlobalKnownHostsFile /dev/null",
            *lines,
        ]
        self.config.write_text("\n  ".join(settings) + "\n")

    def start(self, *options: str) -> Sshd:
        """Starts it, with `options` (lines of sshd_config) before those it was made with."""
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        settings = [
            *options,
            *self.options,
            f"ListenAddress {self.address}:{self.port}",
            f"HostKey {self.host_key}",
            f"AuthorizedKeysFile {self.authorized_keys}",
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "LogLevel VERBOSE",
            # The login files of whoever runs the tests are none of their business, nor are they to be killed in
            # the middle (pyenv leaves a lock behind).
            *([] if self.user else [f"SetEnv HOME={self.home}"]),
        ]
        (self.home / "sshd_config").write_text("\n".join(settings) + "\n")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, SSHD, "-D", "-e", "-f", str(self.home / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        seen = self.log.stat().st_size
        wait_for(lambda: b"Server listening" in self.log.read_bytes() or self.process_ended, "sshd to listen", 10)
        assert not self.process_ended, self.log.read_text()[seen:]
        return self

    @property
    def process_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def descendants(self) -> list[int]:
        """The pids of all that serve its connections: sshd processes and what they run."""
        assert self.process is not None
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def drop_connections(self) -> None:
        """Ends every connection, at once; the listener stays."""
        for pid in self.descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ends the listener and every connection, at once."""
        if self.process is None:
            return
        self.drop_connections()
        self.process.kill()
        self.process.wait(10)
        self.process = None
        self.log.write_text("")
