"""`alias` and `completion`: what goes into a shell's start-up file."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from holdfast.cli.completing import complete_host
from holdfast.cli.main import holdfast
from holdfast.control import check_host, default_name

SHELLS = click.Choice(["bash", "zsh", "fish"])


@click.command(short_help="print shell aliases for a host: lab-up, lab-status, lab-down")
@click.argument("host", shell_complete=complete_host)
@click.option("--shell", type=SHELLS, help="the shell they are for (default: yours)")
def alias(host: str, shell: str | None) -> None:
    """Prints three aliases, to be added to the shell's start-up file."""
    name = default_name(check_host(host))
    commands = {"up": host, "status": name, "down": name}
    for verb, argument in commands.items():
        line = shlex.quote(f"holdfast {verb} {shlex.quote(argument)}")
        joint = " " if (shell or _own_shell()) == "fish" else "="
        click.echo(f"alias {name}-{verb}{joint}{line}")


@click.command(short_help="print the shell's completion of holdfast's commands, tunnels and hosts")
@click.argument("shell", type=SHELLS, required=False)
def completion(shell: str | None) -> None:
    """Prints the script that makes Tab complete commands, tunnels and hosts.

    \b
      bash   eval "$(holdfast completion bash)"      in ~/.bashrc
      zsh    eval "$(holdfast completion zsh)"       in ~/.zshrc
      fish   holdfast completion fish | source       in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    chosen = get_completion_class(shell or _own_shell())
    assert chosen is not None
    click.echo(chosen(holdfast, {}, "holdfast", "_HOLDFAST_COMPLETE").source())


def _own_shell() -> str:
    name = Path(os.environ.get("SHELL", "bash")).name
    return name if name in SHELLS.choices else "bash"
