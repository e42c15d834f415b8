"""How long `holdfast jupyter` takes on a connection that is there, beside what people type instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.sshd import wait_for

from bench.commands import Times, quietly, section
from bench.report import Section, at_most
from bench.rig import PYTHON, Holdfast, Rig

ROUNDS = 9
# Runtime files of servers that don't run any more.
FILES = 20


def measure(rig: Rig, holdfast: Holdfast) -> list[Section]:
    runtime = rig.far_home / ".local/share/jupyter/runtime"
    leave_files(runtime)
    rig.start(
        [PYTHON, "-m", "jupyter_server", "--no-browser", "--allow-root", f"--ServerApp.root_dir={rig.far_home}"],
        HOME=str(rig.far_home),
        JUPYTER_RUNTIME_DIR=str(runtime),
    )
    wait_for(lambda: len(list(runtime.glob("jpserver-*.json"))) > FILES, "the notebook server", 40)
    config = ("-F", str(rig.sshd.config))
    socket = str(rig.home / "master")
    rig.run([*rig.ssh, "-fNTM", "-S", socket, "lab"])
    there = [*rig.ssh, "-S", socket, "lab"]
    holdfast.run("jupyter", *config, "lab", "--no-browser")
    sessions = rig.sshd.log.read_text().count("Starting session")
    holdfast.run("jupyter", "lab", "--list")
    asked = rig.sshd.log.read_text().count("Starting session") - sessions
    commands: dict[str, Callable[[], object]] = {
        "holdfast jupyter lab": lambda: holdfast.run("jupyter", "lab", "--no-browser"),
        "holdfast jupyter lab --list": lambda: holdfast.run("jupyter", "lab", "--list"),
        "ssh over a master, true": lambda: rig.run([*there, "true"]),
        "ssh over a master, jupyter server list": lambda: rig.run([*there, f"{PYTHON} -m jupyter_server list"]),
    }
    times: Times = {name: [] for name in commands}
    for _ in range(ROUNDS):
        leave_files(runtime)  # `jupyter server list` deletes them
        for name, command in commands.items():
            times[name].append(quietly(command))
    rig.run([*rig.ssh, "-S", socket, "-O", "exit", "lab"])
    found = section(
        f"A notebook's URL over a connection that is there, beside {FILES} dead servers' files, ms", times
    )
    found.goals = [
        at_most("holdfast jupyter, warm", [1000 * value for value in times["holdfast jupyter lab"]], 400, "ms"),
        at_most(f"sessions for --list with {FILES} runtime files", [asked], 1, ""),
    ]
    return [found]


def leave_files(runtime: Path) -> None:
    """Leaves what FILES servers that were killed leave behind."""
    runtime.mkdir(parents=True, exist_ok=True)
    for number in range(FILES):
        record = {"pid": 4_000_000 + number, "port": 8888, "root_dir": "/gone", "token": "", "base_url": "/"}
        (runtime / f"jpserver-{record['pid']}.json").write_text(json.dumps(record))
