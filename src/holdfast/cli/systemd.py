"""The service by the user's systemd: units written, enabled and started; the answers of systemctl."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

from holdfast import paths
from holdfast.cli import installing
from holdfast.cli.doctor import Finding
from holdfast.errors import HoldfastError
from holdfast.service import KEEPER, LINKS, LOGIN, SOCKET, Program, is_ours, properties, python_of, systemd_units

UNITS = (SOCKET, KEEPER, LOGIN)
# Where logind notes whose systemd runs without a login session.
LINGER = Path("/var/lib/systemd/linger")
NOT_BROUGHT_UP = "the tunnels that start at login did not come up"


class Systemd:
    """The user's own instance of systemd."""

    def __init__(self) -> None:
        self._runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
        self._folder = self._find_folder()

    def _find_folder(self) -> Path:
        """Where the user's units are. Systemd doesn't know an XDG_CONFIG_HOME that only a shell's files set."""
        usual = Path.home() / ".config" / "systemd" / "user"
        chosen = Path(os.environ.get("XDG_CONFIG_HOME") or "")
        if not chosen.is_absolute():
            return usual
        folder = chosen / "systemd" / "user"
        try:
            read = properties(self._systemctl("show", "--property=UnitPath").stdout).get("UnitPath", "")
        except HoldfastError:  # there is no systemd
            return folder
        return usual if str(usual) in read and str(folder) not in read else folder

    def install(self, program: Program) -> Iterator[str]:
        self._demand()
        texts = systemd_units(program, paths.service_socket(), self._runtime)
        changed = installing.write({self._folder / name: text for name, text in texts.items()})
        yield from (f"wrote {path}" for path in changed)
        self._do("daemon-reload")
        self._do("enable", *UNITS)
        if changed or self._show(KEEPER)["ActiveState"] != "active":
            self._systemctl("reset-failed", *UNITS)  # else it may not start so soon after failing
            self._do("restart", SOCKET, KEEPER)
        yield f"the keeper runs (pid {self._show(KEEPER)['MainPID']}), and will from every login on"
        if self._systemctl("start", LOGIN).returncode:
            yield f"{NOT_BROUGHT_UP}; {_journal(LOGIN)}; by hand: holdfast up --login"
        if changed:
            yield from self._told()

    def remove(self) -> Iterator[str]:
        installed = [name for name in UNITS if is_ours(installing.read(self._folder / name))]
        if not installed:
            yield "the service is not installed"
            return
        reachable = self._is_reachable()
        if reachable:
            self._do("disable", "--now", *installed)
        deleted = installing.delete(self._folder / name for unit in installed for name in (LINKS[unit], unit))
        yield from (f"deleted {path}" for path in deleted)
        if reachable:
            self._do("daemon-reload")
            self._systemctl("reset-failed", *installed)
        yield "holdfast no longer starts at login; tunnels stay up"

    def findings(self) -> Iterator[Finding]:
        unit = self._folder / KEEPER
        text = installing.read(unit)
        if not is_ours(text):
            yield Finding(False, "the service is not installed", "holdfast service install")
            return
        yield Finding(True, f"installed in {unit}")
        yield from installing.program_findings(unit, python_of(text))
        if not self._is_reachable():
            yield Finding(
                False, "your systemd can't be reached from here", "log in anew, or: loginctl user-status"
            )
            return
        for name in (SOCKET, KEEPER, LOGIN):
            if self._show(name)["UnitFileState"] != "enabled":
                yield Finding(False, f"{name} does not start at login", "holdfast service install")
        yield from installing.keeper_findings(int(self._show(KEEPER)["MainPID"]))
        if self._show(SOCKET)["ActiveState"] != "active":
            yield Finding(False, f"{SOCKET} doesn't listen", f"{_journal(SOCKET)}; then holdfast service install")
        if self._show(LOGIN)["ActiveState"] == "failed":
            yield Finding(False, NOT_BROUGHT_UP, f"{_journal(LOGIN)}; by hand: holdfast up --login")
        yield self._linger()

    def _told(self) -> Iterator[str]:
        """What a person should know about a service, once."""
        linger = self._linger()
        yield f"{linger.text}; {linger.hint}" if linger.hint else linger.text
        if not self._knows_agent():
            yield (
                "an ssh-agent that only your session knows is unknown to the service until you say "
                "`holdfast up` in that session"
            )

    def _knows_agent(self) -> bool:
        return "\nSSH_AUTH_SOCK=" in f"\n{self._systemctl('show-environment').stdout}"

    def _linger(self) -> Finding:
        name = pwd.getpwuid(os.getuid()).pw_name
        if (LINGER / name).exists():
            return Finding(True, "it runs from boot on, and goes on when you log out (linger is on)")
        hint = f"to have it from boot to shutdown: loginctl enable-linger {name}"
        return Finding(
            True, "it runs while you are logged in, and tunnels end with your last session (linger is off)", hint
        )

    def _demand(self) -> None:
        answer = self._systemctl("show", "--property=Version")
        if answer.returncode:
            raise installing.without_manager(f"your systemd can't be reached: {_why(answer)}")

    def _is_reachable(self) -> bool:
        try:
            self._demand()
        except HoldfastError:
            return False
        return True

    def _show(self, unit: str) -> dict[str, str]:
        wanted = {"ActiveState": "", "MainPID": "0", "UnitFileState": ""}
        shown = self._systemctl("show", f"--property={','.join(wanted)}", unit)
        return {**wanted, **properties(shown.stdout)}

    def _do(self, *words: str) -> None:
        answer = self._systemctl(*words)
        if answer.returncode:
            hint = f"{_journal(KEEPER)}; or {paths.keeper_log()}"
            raise HoldfastError(f"systemctl --user {' '.join(words)}: {_why(answer)}", hint)

    def _systemctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        # Under cron, su and sudo nothing says where the user's systemd is.
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(self._runtime), "LC_ALL": "C.UTF-8"}
        return installing.ask(["systemctl", "--user", *words], environment)


def _why(answer: subprocess.CompletedProcess[str]) -> str:
    return next(iter(answer.stderr.strip().splitlines()), f"exit status {answer.returncode}")


def _journal(unit: str) -> str:
    return f"journalctl --user -e -u {unit}"
