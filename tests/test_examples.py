"""The Python code in the documents, run as it stands there, against real servers behind a real tunnel.

Only the ports are others: those over there are whatever is free.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from tests import postgres
from tests.conftest import Run
from tests.sshd import Sshd, free_port, wait_for

ROOT = Path(__file__).resolve().parent.parent
TRIPS = (("Oslo", 25), ("Bonn", 7), ("Paris", 10))
# A socket or a port in the documents, and which of the servers is there.
PLACES = {
    "/var/run/postgresql/.s.PGSQL.5432": "socket",
    "5432": "postgres",
    "5000": "mlflow",
    "8786": "dask",
    "8888": "web",
    "8080": "web",
}


class Example(NamedTuple):
    """A block of Python in a document, and what it prints, if that is shown."""

    title: str
    code: str
    printed: str | None


def examples(name: str) -> Iterator[Example]:
    document = (ROOT / "docs" / name).read_text()
    for found in re.finditer(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", document, re.M | re.S):
        heading = re.findall(r"^#+ (.*)", document[: found.start()], re.M)[-1]
        line = document.count("\n", 0, found.start()) + 1
        yield Example(f"{name}:{line}: {heading}", found[1], found[2])


EXAMPLES = [*examples("python.md"), *examples("from-sshtunnel.md")]


class Servers:
    """What runs over there. Each is started at once, and waited for when it is needed."""

    def __init__(self, starts: Mapping[str, Callable[[], str]], pool: ThreadPoolExecutor) -> None:
        self._started: dict[str, Future[str]] = {name: pool.submit(start) for name, start in starts.items()}

    def put_into(self, code: str) -> str:
        """`code` with the places where the servers really are. Skips the test where one isn't installed."""

        def place(found: re.Match[str]) -> str:
            name = PLACES[found[0]]
            if name not in self._started:
                pytest.skip(f"needs {name}")
            return self._started[name].result(90)

        return re.sub(r"(?<!\d)(?:{})(?!\d)".format("|".join(map(re.escape, PLACES))), place, code)


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with contextlib.ExitStack() as running:
        home = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="hfex")))
        pool = running.enter_context(ThreadPoolExecutor())
        starts: dict[str, Callable[[], str]] = {
            "mlflow": partial(_start_mlflow, running, home),
            "dask": partial(_start_dask, running, home),
            "web": partial(_start_web, running, home),
        }
        if postgres.programs() is not None:
            database = pool.submit(lambda: running.enter_context(_database()))
            starts |= {
                "postgres": lambda: str(database.result().port),
                "socket": lambda: str(database.result().socket),
            }
        yield Servers(starts, pool)
        pool.shutdown(wait=True)


@contextlib.contextmanager
def _database() -> Iterator[postgres.Postgres]:
    with postgres.running() as server:
        where = partial(psycopg.connect, host="127.0.0.1", port=server.port, user=postgres.USER, autocommit=True)
        with where(dbname="postgres") as connection:
            connection.execute("create database rides")
        with where(dbname="rides") as connection:
            connection.execute("create table trips (city text, km integer)")
            connection.cursor().executemany("insert into trips values (%s, %s)", TRIPS)
        yield server


def _start_web(running: contextlib.ExitStack, home: Path) -> str:
    pages = home / "pages"
    pages.mkdir()
    (pages / "index.html").write_text("hello from lab")
    (pages / "trips.csv").write_text("\n".join(["city,km", *(f"{city},{km}" for city, km in TRIPS)]) + "\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Pages, directory=str(pages)))
    thread = threading.Thread(target=server.serve_forever, args=[0.02])
    thread.start()
    running.callback(server.server_close)
    running.callback(thread.join)
    running.callback(server.shutdown)
    return str(server.server_address[1])


class _Pages(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def _start_dask(running: contextlib.ExitStack, home: Path) -> str:
    port = free_port()
    source = (
        "from dask.distributed import LocalCluster\nimport time\n"
        f"LocalCluster(n_workers=1, processes=False, scheduler_port={port}, dashboard_address=None)\n"
        "print('there', flush=True)\ntime.sleep(600)\n"
    )
    _serve(running, home, "dask", [sys.executable, "-c", source], lambda log: "there" in log)
    return str(port)


def _start_mlflow(running: contextlib.ExitStack, home: Path) -> str:
    port = free_port()
    options = (f"--port={port}", "--workers=1", f"--backend-store-uri=sqlite:///{home}/mlflow.db")
    words = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host=127.0.0.1",
        *options,
        f"--artifacts-destination={home}",
    ]
    _serve(running, home, "mlflow", words, lambda log: "Application startup complete" in log)
    return str(port)


def _serve(
    running: contextlib.ExitStack, home: Path, name: str, words: list[str], is_there: Callable[[str], bool]
) -> None:
    """Runs a server until the end of the tests; returns once its log says that it is there."""
    path = home / f"{name}.log"
    own = {"HOME": str(home), "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with path.open("wb") as log:
        process = subprocess.Popen(
            words,
            env={**os.environ, **own},
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)

    def has_come() -> bool:
        assert process.poll() is None, path.read_text()
        return is_there(path.read_text())

    running.callback(end)
    wait_for(has_come, f"{name} to be there", 90)


@pytest.fixture
def user(environment: Mapping[str, str], home: Path, sshd: Sshd) -> Mapping[str, str]:
    """The environment of somebody whose ssh gets into `lab`."""
    ssh = home / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {sshd.config} "$@"\n')
    ssh.chmod(0o755)
    own = {
        "HOME": str(home),
        "PYTHONWARNINGS": "default",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    return {**environment, **own, "PATH": f"{ssh.parent}:{environment['PATH']}"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.title)
def test_an_example_prints_what_the_document_says_and_leaves_nothing(
    example: Example, servers: Servers, user: Mapping[str, str], holdfast: Run, home: Path
) -> None:
    script = home / "test_example.py"
    script.write_text(servers.put_into(example.code))
    runner = ["-m", "pytest", "-q", "-p", "no:cacheprovider"] if "import pytest" in example.code else []
    ran = subprocess.run(
        [sys.executable, *runner, script],
        env=user,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    if example.printed is not None:
        assert _lines(ran.stdout) == _lines(example.printed)
    wait_for(lambda: json.loads(holdfast("status", "--json").stdout)["tunnels"] == [], "its tunnel to be gone", 5)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def test_there_are_examples_for_each_server() -> None:
    code = "".join(example.code for example in EXAMPLES)
    assert [place for place in PLACES if place not in code] == []
