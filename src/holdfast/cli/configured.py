"""The tunnels that the user's configuration file describes, and a project's, once the user has agreed to that."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from holdfast import paths
from holdfast.cli import choosing
from holdfast.cli.main import complain
from holdfast.config.users import of_user
from holdfast.errors import HoldfastError, UsageError

if TYPE_CHECKING:
    from holdfast.config.reading import Described
    from holdfast.config.trust import ProjectFile

_HARM = "   (can run programs or change files on this machine)"


class Project(NamedTuple):
    """A project's file, and what is in the ssh configurations that it names, by their paths. `digest` is what the
    user agrees to."""

    file: ProjectFile
    tunnels: list[Described]
    configurations: dict[str, bytes]
    digest: str


def project_file() -> ProjectFile | None:
    """The file of the project that the working directory belongs to. Raises UsageError."""
    from holdfast.config import trust

    try:
        folder = Path.cwd()
    except OSError:  # it was deleted
        return None
    return trust.find(folder)


def project() -> Project | None:
    """The project's file, which the user may not have agreed to. Raises UsageError, ConfigError."""
    file = project_file()
    if file is None:
        return None
    from holdfast.config import trust
    from holdfast.config.reading import parse_bytes

    tunnels = parse_bytes(file.content, file.path)
    configurations = trust.configurations(tunnels)
    return Project(file, tunnels, configurations, trust.digest(file, configurations))


def agreed(found: Project) -> list[Described]:
    """The project's tunnels as the user agreed to them, here if they hadn't. Raises UsageError when they don't."""
    from holdfast.config import trust

    if not trust.is_allowed(found.digest):
        _ask(found)
    return [trust.with_copies(tunnel, found.configurations) for tunnel in found.tunnels]


def _ask(found: Project) -> None:
    """Has the user agree. Raises UsageError when they don't."""
    from holdfast.cli.asking import at_terminal
    from holdfast.config import trust

    if not at_terminal():
        raise UsageError(
            f"{found.file.path} is new, or has changed, and was not agreed to",
            "read it, then: holdfast config allow",
        )
    click.echo(f"{found.file.path} is new, or has changed:", err=True)
    click.echo(shown(found), err=True)
    if not click.confirm("Use it?", default=False, err=True):
        raise UsageError(f"{found.file.path} is not used", "to agree later: holdfast config allow")
    trust.allow(found.file, found.digest)


def shown(found: Project) -> str:
    """What a person has to know of the project's tunnels before they agree."""
    from holdfast.config import trust
    from holdfast.config.spelling import shown_mode
    from holdfast.config.writing import written

    lines = []
    for tunnel in found.tunnels:
        forwards = ", ".join(
            f"{'' if one.kind == 'local' else f'{one.kind} '}{written(one)}" for one in tunnel.forwards
        )
        lines.append(f"  {tunnel.name}: {tunnel.host}, {forwards or 'its own forwards, or 8888'}")
        lines += [f"    ssh {option}{_HARM if harms else ''}" for option, harms in trust.options(tunnel)]
        if tunnel.expose:
            lines.append("    other machines can reach it")
        if tunnel.upkeep.get("mode", 0) & 0o077:
            lines.append(f"    mode {shown_mode(tunnel.upkeep['mode'])}: other users of this machine can reach it")
    return "\n".join(lines) or "  no tunnels"


def trusted() -> list[Described]:
    """What may be used without a question: the user's tunnels, a project's if agreed to. Raises UsageError."""
    from holdfast.config import trust

    tunnels: list[Described] = []
    with contextlib.suppress(HoldfastError):
        found = project()
        if found and trust.is_allowed(found.digest):
            tunnels = agreed(found)
    return _together(tunnels, of_user())


def usual() -> list[Described]:
    """What `holdfast up` alone brings up: the project's tunnels, else the login set. Raises UsageError."""
    found = project()
    if found is None:
        return _some_login_set()
    if not found.tunnels:
        raise UsageError(
            f"{found.file.path} describes no tunnels", f"describe one: [tunnels.lab] in {found.file.path}"
        )
    return agreed(found)


def login_set() -> list[Described]:
    """The tunnels that are there from login on; there may be none. Raises UsageError."""
    from holdfast.config.reading import Start

    return [tunnel for tunnel in of_user() if tunnel.start is not Start.MANUAL]


def _some_login_set() -> list[Described]:
    """The tunnels that are there from login on. Raises UsageError when there are none."""
    tunnels = login_set()
    if not tunnels:
        raise UsageError(
            f"there is no project file here, and no tunnel in {paths.config_file()} starts at login",
            'name one, as in holdfast up lab; or give it start = "login": holdfast config edit',
        )
    return tunnels


def chosen(words: Sequence[str]) -> tuple[list[Described], tuple[str, ...], bool]:
    """As choosing.split, of the project's and the user's tunnels. The user may be asked. Raises UsageError."""
    own = of_user()
    found = None
    try:
        found = project()
    except HoldfastError as error:
        if not choosing.split(words, own)[0]:
            complain(f"not used: {error.message.splitlines()[0]}", error.hint)
    tunnels, rest, is_one = choosing.split(words, _together(found.tunnels if found else [], own))
    if found and any(tunnel.origin == str(found.file.path) for tunnel in tunnels):
        projects = {tunnel.name: tunnel for tunnel in agreed(found)}
        tunnels = [projects.get(tunnel.name, tunnel) for tunnel in tunnels]
    if not tunnels and words and choosing.is_pattern(words[0]):
        raise UsageError(
            f"no tunnel in the configuration fits '{words[0][:60]}'", "see what is there: holdfast config check"
        )
    return tunnels, rest, is_one


def _together(projects: list[Described], own: list[Described]) -> list[Described]:
    """Both; of two with the same name, the project's."""
    names = {tunnel.name for tunnel in projects}
    return [*projects, *(tunnel for tunnel in own if tunnel.name not in names)]
