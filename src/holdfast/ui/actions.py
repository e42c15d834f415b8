"""What the keys do to tunnels. Each of these blocks, for at most `PATIENCE` seconds: to be called in a thread."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from holdfast import client
from holdfast.cli import browser
from holdfast.control import Down, Restart, Up
from holdfast.errors import Exit, HoldfastError
from holdfast.ui.board import Resting

PATIENCE = 60.0
# Seconds that a browser, and the notebook server before it, may take.
OPENING = 90.0


class Actions:
    """`environment` is that of the programs that are run: the user's own, which Textual changes."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)

    def bring_up(self, name: str, resting: Resting | None) -> str:
        """Has the keeper bring it up, or try again at once; what becomes of that, the list tells. Raises
        HoldfastError, TimeoutError."""
        request = Up(name, "", (), (), client.environment(), terminal=False, wait=False, expose=False)
        if resting is not None and resting.origin:
            request = _as_described(resting)
        client.ask(request, timeout=PATIENCE)
        return f"bringing {name} up"

    def take_down(self, name: str) -> str:
        """Raises HoldfastError, TimeoutError."""
        client.ask(Down((name,), (), False), timeout=PATIENCE)
        return f"{name} is down"

    def restart(self, name: str) -> str:
        """Raises HoldfastError, TimeoutError."""
        client.ask(Restart((name,), client.environment(), False), timeout=PATIENCE)
        return f"{name} has a new connection"

    def open_page(self, name: str) -> str:
        """As `holdfast open` does. Raises HoldfastError, TimeoutError."""
        ended = self._run("open", name)
        said = [line.removeprefix("holdfast: ") for line in ended.stderr.splitlines()]
        if ended.returncode:
            hints = [line.removeprefix("hint: ") for line in said if line.startswith("hint: ")]
            told = [line for line in said if not line.startswith("hint: ")]
            raise HoldfastError("\n".join(told) or f"{name} could not be opened", "\n".join(hints))
        if not browser.is_there():
            raise HoldfastError("no browser can be opened from here", f"open it yourself: {ended.stdout.strip()}")
        return "\n".join(said) or f"{name} was opened"

    def log_in(self, name: str) -> int:
        """Runs the login, with all that it asks, in the terminal, which has to be free; the exit code."""
        print(f"\n$ holdfast up {name}", flush=True)
        # Ctrl-C is for the command; this program goes on.
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            return subprocess.run(_command("up", name), env=self._environment, check=False).returncode
        finally:
            signal.signal(signal.SIGINT, before)

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Raises TimeoutError."""
        try:
            return subprocess.run(
                _command(*words),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=OPENING,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError from None


def failed_login(code: int) -> bool:
    """Whether the person should read what the command said before the screen comes back."""
    return code not in (Exit.OK, Exit.INTERRUPTED)


def _command(*words: str) -> Sequence[str]:
    # -P: a folder named `holdfast` where the user happens to be must not be imported.
    return [sys.executable, "-P", "-m", "holdfast", *words]


def _as_described(resting: Resting) -> Up:
    """The request for a tunnel of the configuration, as it is now. Raises HoldfastError."""
    from holdfast.cli import configured
    from holdfast.cli.bringing import request_for

    for tunnel in configured.trusted():
        if tunnel.name == resting.name:
            return request_for(tunnel, wait=False)._replace(terminal=False)
    raise HoldfastError(f"{resting.origin} has no tunnel '{resting.name}' any more", "holdfast config check")
