"""A rig whose client and server are apart: each in its own network namespace, with a router between them."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.network import Network
from tests.sshd import make_key

from bench.rig import Rig


@contextlib.contextmanager
def rig_apart(*options: str) -> Iterator[tuple[Network, Rig]]:
    """Leaves no process, file or namespace behind. `options` are the server's sshd's; NotPossible without root.

    What the rig starts runs where it is started from: in `network.client.call` or in `network.server.call`.
    """
    home = Path(tempfile.mkdtemp(prefix="hb"))
    try:
        for name in ("host", "user"):
            make_key(home / name)
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "USER") if name in os.environ}
        with Network(home, home, environment, *options) as network:
            made = Rig(home, network.sshd, environment)
            with made.stack:
                yield network, made
    finally:
        shutil.rmtree(home, ignore_errors=True)
