"""The command `holdfast`: finds the subcommand, and is the one place that catches, prints and exits.

A subcommand's module is imported when it is asked for, so that `status` pays for nothing else.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from typing import NoReturn

import click

from holdfast.errors import Exit, HoldfastError, UsageError
from holdfast.version import __version__

# Each subcommand and where it is. To add one: a function in a module of this folder, and its line here.
COMMANDS = {
    "up": "holdfast.cli.up:up",
    "status": "holdfast.cli.status:status",
    "ui": "holdfast.cli.ui:ui",
    "down": "holdfast.cli.up:down",
    "restart": "holdfast.cli.up:restart",
    "jupyter": "holdfast.cli.jupyter:jupyter",
    "open": "holdfast.cli.jupyter:open_again",
    "config": "holdfast.cli.config:config",
    "save": "holdfast.cli.config:save",
    "apply": "holdfast.cli.apply:apply",
    "import": "holdfast.cli.importing:import_tunnels",
    "logs": "holdfast.cli.logs:logs",
    "events": "holdfast.cli.events:events",
    "wait": "holdfast.cli.waiting:wait",
    "metrics": "holdfast.cli.metrics:metrics_command",
    "alias": "holdfast.cli.shell:alias",
    "completion": "holdfast.cli.shell:completion",
    "doctor": "holdfast.cli.doctor:doctor",
    "keeper": "holdfast.cli.keeper:keeper",
    "service": "holdfast.cli.service:service",
    "demo": "holdfast.cli.demo:demo",
}


# There is no room for what is printed.
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Commands(click.Group):
    """A group whose subcommands are imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            near = difflib.get_close_matches(cmd_name, COMMANDS, 1)
            hint = f"did you mean holdfast {near[0]}" if near else "holdfast --help"
            raise UsageError(f"there is no command '{cmd_name[:60]}'", hint)
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="holdfast %(version)s")
def holdfast() -> None:
    """Keeps SSH port forwards alive in the background.

    \b
      holdfast up lab        the notebook on lab is at http://localhost:8888
      holdfast status        what is true, proven by a round trip
      holdfast down lab      ends it
    """


def run() -> NoReturn:
    """The console script's entry."""
    _open_streams()
    sys.exit(main(sys.argv[1:]))


def main(words: list[str]) -> int:
    """Runs one command line; the exit code."""
    if sys.platform == "win32":
        complain("Windows' OpenSSH has no ControlMaster, which holdfast is built on", "inside WSL it should work")
        return Exit.FAILED
    try:
        code = holdfast.main(args=words, prog_name="holdfast", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except HoldfastError as error:
        complain(error.message, error.hint)
        return error.exit_code
    except click.UsageError as error:
        complain(_lower(error.format_message()), _usage_hint(error))
        return Exit.USAGE
    except TimeoutError:
        complain("the keeper did not answer in time", "what it was doing: holdfast logs; or holdfast doctor")
        return Exit.FAILED
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough, as in `holdfast logs | head`
        drop_output()
        return Exit.FAILED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            drop_output()
            complain(f"can't write what was asked for: {error.strerror}", "is the disk full? df -h")
            return Exit.FAILED
        complain(f"this is a bug in holdfast: {type(error).__name__}: {error}", _save_traceback())
        return Exit.BUG


def complain(message: str, hint: str = "") -> None:
    """A line for the user on stderr, or one for each of several mistakes, and one with what to try."""
    for line in message.split("\n"):
        click.echo(f"holdfast: {line}", err=True)
    if hint:
        click.echo(f"holdfast: hint: {hint}", err=True)


def _open_streams() -> None:
    """Has a stream that was closed, as by `>&-`, lead nowhere: else what is opened next would be taken for it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "w" if number else "r"))


def drop_output() -> None:
    """Has what is left to be printed go nowhere, once the reader has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage_hint(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx else "holdfast"
    return f"{path} --help"


def _lower(message: str) -> str:
    return (message[:1].lower() + message[1:]).removesuffix(".")


def _save_traceback() -> str:
    import platform
    import traceback

    from holdfast import paths

    text = f"holdfast {__version__}, {platform.platform()}, Python {platform.python_version()}\n"
    try:
        paths.crash_log().touch(mode=0o600)
        paths.crash_log().write_text(text + traceback.format_exc())
    except (OSError, HoldfastError):
        return traceback.format_exc()
    return f"please report it, with {paths.crash_log()}"
