"""What has the keeper run from login on: the texts of systemd's units and of launchd's agents. No I/O.

On systemd these are the socket at which the keeper can always be reached, the keeper, and what brings the login
set up, once a session. That is apart, so that no mistake in the configuration stops the keeper, and no restart of
the keeper brings back what was taken down since.
"""

from __future__ import annotations

import plistlib
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import NamedTuple
from xml.parsers.expat import ExpatError

from holdfast.errors import HoldfastError

SOCKET, KEEPER, LOGIN = "holdfast.socket", "holdfast.service", "holdfast-login.service"
AGENTS = ("holdfast.keeper", "holdfast.login")
# The links that `systemctl enable` makes, as the units ask for them.
LINKS = {
    SOCKET: f"sockets.target.wants/{SOCKET}",
    KEEPER: f"default.target.wants/{KEEPER}",
    LOGIN: f"default.target.wants/{LOGIN}",
}

_KEEPER_WORDS = ("keeper", "run", "--take-over")
LOGIN_WORDS = ("up", "--login", "--no-wait")
_MARK = "Written by: holdfast service install"


class Program(NamedTuple):
    """What is started: this `python`'s holdfast, with these variables."""

    python: str
    environment: Mapping[str, str]

    def words(self, *arguments: str) -> list[str]:
        # -P: a folder named `holdfast` where it happens to run must not be imported.
        return [self.python, "-P", "-m", "holdfast", *arguments]


def kept(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the session in which the service is installed that the service must have, too.

    PATH is for ssh and the programs that its configuration names; the others say where holdfast's files are.
    """
    chosen = ("PATH", "XDG_CONFIG_HOME", "XDG_STATE_HOME")
    return {
        name: value
        for name, value in environment.items()
        if value and (name in chosen or name.startswith("HOLDFAST_"))
    }


def systemd_units(program: Program, socket: PurePath, runtime: PurePath) -> dict[str, str]:
    """Each unit's name and text. `socket` is where to listen, `runtime` what the user's systemd calls %t.

    Raises HoldfastError for a program that systemd would not start.
    """
    listen = (
        f"%t/{_escaped(str(socket.relative_to(runtime)))}"
        if socket.is_relative_to(runtime)
        else _escaped(str(socket))
    )
    environment = "\n".join(
        f"Environment={_quoted(f'{name}={value}')}" for name, value in program.environment.items()
    )
    keeper, login = (_command_line(program.words(*words)) for words in (_KEEPER_WORDS, LOGIN_WORDS))
    return {
        SOCKET: _SOCKET.format(mark=_MARK, listen=listen),
        KEEPER: _KEEPER.format(mark=_MARK, command=keeper, environment=environment),
        LOGIN: _LOGIN.format(mark=_MARK, command=login, environment=environment),
    }


def launchd_agents(program: Program, log: str) -> dict[str, str]:
    """Each agent's label and property list. What they complain of is added to the file `log`."""
    keeper, login = AGENTS
    # Not after exit 0: that is somebody who ended it, and the next command starts it again.
    always: dict[str, object] = {"RunAtLoad": True, "KeepAlive": {"SuccessfulExit": False}, "ExitTimeOut": 10}
    once: dict[str, object] = {"RunAtLoad": True}
    return {
        keeper: _agent(keeper, program, _KEEPER_WORDS, {**always, "StandardErrorPath": log}),
        login: _agent(login, program, LOGIN_WORDS, {**once, "StandardErrorPath": log}),
    }


def is_ours(text: str) -> bool:
    """Whether a unit or an agent was written here, so that it may be replaced or removed."""
    return _MARK in text


def python_of(unit: str) -> str:
    """The interpreter that a unit of ours starts, or ''."""
    found = re.search(r'^ExecStart=:?"([^"]*)"', unit, re.MULTILINE)
    return found[1].replace("%%", "%") if found else ""


def python_of_agent(text: str) -> str:
    """The interpreter that an agent of ours starts, or ''."""
    try:
        return str(plistlib.loads(text.encode())["ProgramArguments"][0])
    except (plistlib.InvalidFileException, ExpatError, KeyError, IndexError, TypeError, ValueError):
        return ""


def is_fleeting(python: PurePath) -> bool:
    """Whether the interpreter is in the cache of uvx or pipx run, where nobody promises that it stays."""
    return bool(re.search(r"/(archive|environments|builds)-v\d+/|/pipx/\.cache/|/\.cache/pipx/", str(python)))


def properties(shown: str) -> dict[str, str]:
    """What `systemctl show` printed."""
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def agent_pid(shown: str) -> int:
    """The pid in what `launchctl print` printed; 0 when the agent doesn't run."""
    found = re.search(r"^\s*pid = (\d+)$", shown, re.MULTILINE)
    return int(found[1]) if found else 0


# Programs that hold keys should be there before anything logs in. Those that aren't installed are ignored.
_SOCKET = """\
# {mark}
[Unit]
Description=Holdfast: where its keeper can be reached

[Socket]
ListenStream={listen}
SocketMode=0600
DirectoryMode=0700
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""

_KEEPER = """\
# {mark}
[Unit]
Description=Holdfast: keeps SSH port forwards alive
Requires=holdfast.socket
After=holdfast.socket ssh-agent.service gpg-agent-ssh.socket gcr-ssh-agent.socket
StartLimitIntervalSec=30
StartLimitBurst=5

[Service]
Type=notify
ExecStart={command}
{environment}
WorkingDirectory=/
# The connections are processes of their own, and outlive the keeper.
KillMode=process
OOMPolicy=continue
Restart=on-failure
RestartSec=500ms
TimeoutStartSec=60
TimeoutStopSec=10

[Install]
WantedBy=default.target
"""

_LOGIN = """\
# {mark}
[Unit]
Description=Holdfast: brings up the tunnels that start at login
Wants=holdfast.socket holdfast.service
After=holdfast.socket holdfast.service ssh-agent.service gpg-agent-ssh.socket gcr-ssh-agent.socket

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={command}
{environment}
WorkingDirectory=/
KillMode=process
TimeoutStartSec=120

[Install]
WantedBy=default.target
"""


def _agent(label: str, program: Program, words: tuple[str, ...], more: Mapping[str, object]) -> str:
    record = {
        "Label": label,
        "ProgramArguments": program.words(*words),
        "EnvironmentVariables": dict(program.environment),
        "WorkingDirectory": "/",
        "AbandonProcessGroup": True,  # the connections are processes of their own, and outlive the keeper
        **more,
    }
    head, _, rest = plistlib.dumps(record).decode().partition("\n")
    return f"{head}\n<!-- {_MARK} -->\n{rest}"


def _command_line(words: list[str]) -> str:
    program, *arguments = words
    if set(program) & set("'\"\\"):
        raise HoldfastError(
            f"systemd starts nothing that has a quote or a backslash in its path: {program}",
            "install holdfast elsewhere",
        )
    # With the colon, systemd leaves a dollar sign alone.
    colon = ":" if "$" in program else ""
    return " ".join([colon + _quoted(program), *arguments])


def _quoted(text: str) -> str:
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    """`text` without systemd's specifiers."""
    return text.replace("%", "%%")
