"""`doctor`: what holdfast needs, whether it is there, and how to mend what isn't."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import click

from holdfast import client, paths
from holdfast.cli import render
from holdfast.cli.asking import Far, check_timeout, far_or_described, run_there, ssh_options
from holdfast.cli.completing import complete_host
from holdfast.cli.reaching import reached_for_a_moment
from holdfast.errors import Exit, HoldfastError
from holdfast.jupyter import audit
from holdfast.jupyter.audit import Login
from holdfast.openssh import command, foreground, script
from holdfast.version import __version__

# Seconds that this machine may take to tell who is logged in.
HERE = 10


class Finding(NamedTuple):
    good: bool
    text: str
    hint: str = ""


@click.command(short_help="check what holdfast needs here, or what others could do to you on a host")
@click.argument("host", required=False, shell_complete=complete_host)
@click.option("--timeout", default=60.0, show_default=True, help="seconds to wait for the connection to HOST")
@ssh_options
def doctor(host: str | None, timeout: float, **options: Any) -> int:
    """Looks at ssh, the directories, the keeper and the versions: what is wrong, and how to mend it.

    With HOST, or a tunnel of your configuration file: who else is there, what of yours listens there, who could
    reach your notebooks and read what your kernels say, and who could reach your forwards on this machine.
    """
    if host is None:
        findings = [*_versions(), *_directories(), *_keeper()]
    else:
        check_timeout(timeout)
        findings = [*_audit(far_or_described(host, options), timeout)]
    return Exit.OK if show(findings) else Exit.FAILED


def show(findings: Sequence[Finding]) -> bool:
    """Prints them; whether all are good."""
    for finding in findings:
        mark = click.style("ok   ", fg="green") if finding.good else click.style("wrong", fg="red")
        click.echo(f"{mark}  {finding.text}", color=render.colour_allowed())
        if finding.hint:
            click.echo(f"       hint: {finding.hint}")
    return all(finding.good for finding in findings)


def _audit(there: Far, timeout: float) -> Iterator[Finding]:
    looked = audit.read(run_there(there, audit.PROGRAM, timeout))
    logins: dict[int, Login] = {}
    for server in looked.found.servers:
        if not server.token and not server.hub:
            try:
                with reached_for_a_moment(there, server, looked.found, timeout) as reached:
                    logins[server.pid] = reached.api.login()
            except HoldfastError as error:
                yield Finding(
                    False, f"the server in {server.directory} could not be tried: {error.message}", error.hint
                )
    for finding in audit.findings(looked, there.host, logins):
        yield Finding(not finding.risk, finding.text, finding.hint)
    for finding in audit.local_findings(audit.others(_people_here())):
        yield Finding(not finding.risk, finding.text, finding.hint)


def _people_here() -> str:
    """What audit.PEOPLE tells of this machine."""
    mark = secrets.token_hex(8)
    program = script.wrap(audit.PEOPLE, mark).encode()
    try:
        done = subprocess.run(["/bin/sh"], input=program, capture_output=True, timeout=HERE, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise HoldfastError(f"can't find out who is logged in here: {error}") from None
    return script.unwrap(done.stdout.decode(errors="replace"), mark, "this machine")


def _versions() -> Iterator[Finding]:
    python = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding(True, f"holdfast {__version__}, Python {python}")
    printed = foreground.version()
    if not printed:
        yield Finding(False, "ssh is not installed", "sudo apt-get install openssh-client")
    elif command.parse_version(printed) is None:
        yield Finding(False, f"the ssh in your PATH is not OpenSSH: {printed}", f"it is {shutil.which('ssh')}")
    elif reason := command.too_old(printed):
        yield Finding(False, reason, "update OpenSSH")
    else:
        yield Finding(True, f"{printed} at {shutil.which('ssh')}")


def _directories() -> Iterator[Finding]:
    for what, find in (("sockets", paths.runtime_dir), ("state", paths.state_dir), ("logs", paths.logs_dir)):
        try:
            yield Finding(True, f"{what} in {find()}, which is yours alone")
        except HoldfastError as error:
            yield Finding(False, error.message, error.hint)
    try:
        free = shutil.disk_usage(paths.state_dir()).free
    except (HoldfastError, OSError):
        return
    if free < 1024 * 1024:
        yield Finding(False, f"the disk of {paths.state_dir()} is full", f"df -h {paths.state_dir()}")


def _keeper() -> Iterator[Finding]:
    try:
        connection = client.find()
    except HoldfastError as error:
        yield Finding(False, error.message, error.hint)
        return
    if connection is None:
        yield Finding(True, "the keeper is not running; the next command that needs it starts it")
        return
    greeting = connection.greeting
    connection.close()
    if greeting["holdfast"] == __version__:
        yield Finding(True, f"the keeper runs (pid {greeting['pid']})")
    else:
        yield Finding(
            False,
            f"the keeper (pid {greeting['pid']}) is holdfast {greeting['holdfast']}, this is {__version__}",
            "end it, tunnels stay up: holdfast keeper stop",
        )
