"""A real PostgreSQL for tests: on 127.0.0.1 and on a Unix socket, without passwords. No trace afterwards.

It doesn't run as root: where the tests do, it runs as `postgres`, the account that Debian's package makes.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from tests.sshd import free_port, wait_for

USER = "ann"
# It keeps nothing for longer than a test: speed is all that counts.
_SETTINGS = ("listen_addresses=127.0.0.1", "fsync=off", "autovacuum=off", "shared_buffers=16MB")


class Postgres(NamedTuple):
    """A server that runs, with the databases that initdb makes. USER is its superuser."""

    port: int
    socket: Path


def programs() -> Path | None:
    """The directory with initdb and postgres, of the newest version that is installed; None without any."""
    found = shutil.which("postgres")
    if found and Path(found).with_name("initdb").exists():
        return Path(found).parent
    versions = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(versions, key=lambda path: int(path.parent.name), default=None)


@contextlib.contextmanager
def running() -> Iterator[Postgres]:
    """A server of its own, from its making to its end."""
    found = programs()
    assert found is not None, "no PostgreSQL is installed"
    home = Path(tempfile.mkdtemp(prefix="hfpg"))
    if os.getuid() == 0:
        account = pwd.getpwnam("postgres")
        os.chown(home, account.pw_uid, account.pw_gid)
        home.chmod(0o755)
    try:
        with (home / "log").open("wb") as log:
            _make(found, home, log)
            with _started(found, home, log) as server:
                yield server
    finally:
        shutil.rmtree(home)


def _make(programs: Path, home: Path, log: IO[bytes]) -> None:
    words = [str(programs / "initdb"), f"--pgdata={home / 'data'}", f"--username={USER}", "--auth=trust"]
    status = _run([*words, "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"], home, log).wait(60)
    assert status == 0, (home / "log").read_text()


@contextlib.contextmanager
def _started(programs: Path, home: Path, log: IO[bytes]) -> Iterator[Postgres]:
    server = Postgres(port := free_port(), home / f".s.PGSQL.{port}")
    settings = (*_SETTINGS, f"port={port}", f"unix_socket_directories={home}")
    process = _run(
        [str(programs / "postgres"), "-D", str(home / "data"), *(f"--{it}" for it in settings)], home, log
    )

    def is_ready() -> bool:
        assert process.poll() is None, (home / "log").read_text()
        return b"ready to accept connections" in (home / "log").read_bytes()

    try:
        wait_for(is_ready, "PostgreSQL to be ready", 60)
        yield server
    finally:
        process.send_signal(signal.SIGQUIT)  # at once: nothing in it is of any worth
        process.wait(20)


def _run(words: Sequence[str], home: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Runs it as whoever `home` belongs to."""
    is_root, owner = os.getuid() == 0, home.stat()
    return subprocess.Popen(
        words,
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        user=owner.st_uid if is_root else None,
        group=owner.st_gid if is_root else None,
        extra_groups=[] if is_root else None,
    )
