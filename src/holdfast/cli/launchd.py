"""The service by macOS's launchd: two agents, for the keeper and for the login set; the answers of launchctl."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from holdfast.cli import installing
from holdfast.cli.doctor import Finding
from holdfast.errors import HoldfastError
from holdfast.service import AGENTS, Program, agent_pid, is_ours, launchd_agents, python_of_agent

# launchctl's exit status for an agent that isn't loaded.
NOT_LOADED = (3, 113)
# Seconds that an agent may take to end.
ENDING = 15


class Launchd:
    """The launchd of the user's desktop session."""

    def __init__(self) -> None:
        self._log = Path.home() / "Library" / "Logs" / "holdfast.log"
        self._domain = f"gui/{os.getuid()}"
        self._files = {label: Path.home() / "Library" / "LaunchAgents" / f"{label}.plist" for label in AGENTS}

    def install(self, program: Program) -> Iterator[str]:
        agents = launchd_agents(program, str(self._log))
        changed = installing.write({self._files[label]: text for label, text in agents.items()})
        yield from (f"wrote {path}" for path in changed)
        for label, path in self._files.items():
            if path in changed or not self._is_loaded(label):
                self._unload(label)
                self._do("bootstrap", self._domain, str(path))
        yield "the keeper runs, and will from every login on"
        yield f"what it says is in {self._log}; it ends, and tunnels with it, when you log out"

    def remove(self) -> Iterator[str]:
        installed = [label for label, path in self._files.items() if is_ours(installing.read(path))]
        if not installed:
            yield "the service is not installed"
            return
        for label in installed:
            self._unload(label)
        deleted = installing.delete(self._files[label] for label in installed)
        yield from (f"deleted {path}" for path in deleted)
        yield "holdfast no longer starts at login; tunnels stay up"

    def findings(self) -> Iterator[Finding]:
        keeper = self._files[AGENTS[0]]
        text = installing.read(keeper)
        if not is_ours(text):
            yield Finding(False, "the service is not installed", "holdfast service install")
            return
        yield Finding(True, f"installed in {keeper}")
        yield from installing.program_findings(keeper, python_of_agent(text))
        for label in AGENTS:
            if not self._is_loaded(label):
                yield Finding(False, f"launchd doesn't know {label}", "holdfast service install")
        shown = installing.ask(["launchctl", "print", f"{self._domain}/{AGENTS[0]}"]).stdout
        yield from installing.keeper_findings(agent_pid(shown))

    def _is_loaded(self, label: str) -> bool:
        return installing.ask(["launchctl", "print", f"{self._domain}/{label}"]).returncode == 0

    def _unload(self, label: str) -> None:
        self._do("bootout", f"{self._domain}/{label}", fine=NOT_LOADED)
        deadline = time.monotonic() + ENDING  # it answers before the agent has ended
        while self._is_loaded(label) and time.monotonic() < deadline:
            time.sleep(0.1)

    def _do(self, *words: str, fine: tuple[int, ...] = ()) -> None:
        answer = installing.ask(["launchctl", *words])
        if answer.returncode and answer.returncode not in fine:
            why = answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"]
            raise HoldfastError(f"launchctl {' '.join(words)}: {why[0]}", "do it on the desktop, not over ssh")
