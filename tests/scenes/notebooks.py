"""docs/notebooks.md: holdfast starts servers in `work` on `lab`, and the reader one of their own in `train`."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

from tests.accounts import account
from tests.jupyters import NEWEST, Jupyter
from tests.reader import Reader, Scene
from tests.sshd import wait_for
from tests.test_notebook import Jupyter as Reached
from tests.test_notebook import call, run_code

# Jupyter lets a configuration choose its kernels' ids: this is the one that the page shows.
NEXT_KERNEL = """
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager

class Manager(AsyncMappingKernelManager):
    def new_kernel_id(self, **_):
        return "574b546f-89ab-4def-8123-456789abcdef"

c.ServerApp.kernel_manager_class = Manager
"""
# Nobody else is on the reader's own machine, whoever else may be on the one that runs the tests (other tests make
# accounts): `doctor` is run where it sees no processes but its own, and no logins, which are told of in /run.
ALONE = f"""#!/bin/sh
[ "$1" = doctor ] || exec {sys.executable} -m holdfast "$@"
exec unshare --pid --fork --mount-proc sh -c 'mount -t tmpfs none /run && exec "$@"' - \
    {sys.executable} -m holdfast "$@"
"""


def own_server(reader: Reader, directory: str, port: int, *options: str) -> None:
    """The reader starts a server over there as people do."""
    place = reader.home / directory
    server = Jupyter(reader.home, *options, directory=place, port=port, before=reader.network.server.prefix)
    reader.running.enter_context(server).ready()
    threading.Thread(target=server.process.wait).start()  # as its shell does


def server_in_work(reader: Reader, *options: str) -> Reached:
    """The server that holdfast has started, or starts, in `work`, as the reader's own machine reaches it."""
    command = " ".join(["holdfast jupyter lab --start --dir work --no-browser", *options])
    url = urlsplit(reader.say(f"{command} 2>/dev/null").strip())
    assert url.port is not None
    return Reached(url.port, parse_qs(url.query)["token"][0])


def kernel_of(reader: Reader, server: Reached) -> str:
    """The id of a new kernel of its, which is ready."""

    def started() -> str:
        kernel = str(call(server.port, server, "POST", "/api/kernels")["id"])
        run_code(server.port, server, kernel, "")
        return kernel

    return reader.network.client.call(started)


def runs_a_server_in_work(reader: Reader) -> None:
    (reader.home / "work" / ".venv").symlink_to(NEWEST)
    reader.stop_serving(8888)
    own_server(reader, "work", 8888, "--ServerApp.default_url=/lab")


def runs_one_in_train_and_one_of_holdfasts_in_work(reader: Reader) -> None:
    """That in `train` listens on all addresses, which is what `doctor` warns of later."""
    reader.say("holdfast jupyter lab --stop")
    own_server(reader, "train", 8890, "--ip=0.0.0.0")
    server_in_work(reader, "--command server")


def runs_none_in_work(reader: Reader) -> None:
    reader.say("holdfast jupyter lab --stop --dir work")


def let_bob_in(reader: Reader) -> None:
    """From now on bob runs something on `lab`. The account is a real one, with a name of this run's own."""
    bob = reader.running.enter_context(account(f"bob{os.getpid() % 100_000}", reader.home / "bob"))
    reader.is_shown_as(bob.name, "bob")
    program = reader.network.server.call(lambda: bob.start("sleep", "600"))
    reader.running.callback(program.communicate)
    reader.running.callback(program.kill)


def shares_lab_with_bob(reader: Reader) -> None:
    kernel_of(reader, server_in_work(reader))
    let_bob_in(reader)
    reader.write("bin/holdfast", ALONE, mode=0o755)


def has_ended_the_one_in_train(reader: Reader) -> None:
    """It had been started anew, on loopback alone, and opened; somebody has asked for its page since."""
    reader.say("holdfast jupyter lab --stop --port 8890 && holdfast down lab")
    own_server(reader, "train", 8890)
    reader.say("holdfast jupyter lab --port 8890 --no-browser")
    reader.say(f"ssh lab {NEWEST}/bin/jupyter-server stop 8890")
    with contextlib.suppress(OSError):
        reader.network.get(8890)
    wait_for(lambda: "does not run" in reader.network.holdfast("status").stdout, "that to be noticed", 30)


def has_started_it_elsewhere(reader: Reader) -> None:
    own_server(reader, "train", 8895)
    reader.network.get(8890, "/api")


def has_a_busy_kernel(reader: Reader) -> None:
    """In `work`, where the only server is now."""
    reader.say("holdfast jupyter lab --stop --port 8895")
    server = server_in_work(reader)
    kernel = kernel_of(reader, server)
    client = reader.network.client

    def run_long_cell() -> None:
        with contextlib.suppress(Exception):  # its connection ends, in one way or another
            client.call(lambda: run_code(server.port, server, kernel, "import time; time.sleep(600)"))

    def is_busy() -> bool:
        found = client.call(lambda: call(server.port, server, "GET", f"/api/kernels/{kernel}"))
        return str(found["execution_state"]) == "busy"

    cell = threading.Thread(target=run_long_cell)
    cell.start()
    reader.running.callback(cell.join)
    wait_for(is_busy, "the kernel to be busy", 30)


def has_a_notebook_open(reader: Reader) -> None:
    reader.write(".jupyter/jupyter_server_config.py", NEXT_KERNEL)
    kernel_of(reader, server_in_work(reader, "--command server"))


SCENES: Mapping[str, Scene] = {
    "Notebooks": Scene(runs_a_server_in_work),
    "Several servers": Scene(runs_one_in_train_and_one_of_holdfasts_in_work),
    "$ holdfast jupyter lab --start --dir work": Scene(runs_none_in_work),
    "$ holdfast jupyter lab --start --dir work --env uv:.": Scene(runs_none_in_work),
    "Safe on a shared host": Scene(shares_lab_with_bob),
    "$ holdfast status": Scene(has_ended_the_one_in_train),
    "$ holdfast logs lab -n 3": Scene(has_started_it_elsewhere),
    "Stopping": Scene(has_a_busy_kernel),
    "Editors and consoles": Scene(has_a_notebook_open),
}
