"""What every service manager needs of holdfast: the program, its files, and what is found out about them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from holdfast import client
from holdfast.cli.doctor import Finding
from holdfast.errors import HoldfastError
from holdfast.service import LOGIN_WORDS, Program, is_fleeting, is_ours, kept
from holdfast.version import __version__

# Seconds that a service manager may take for one command, and a Python to tell its holdfast's version.
PATIENCE = 90
VERSION = 20


def this_program() -> Program:
    """The holdfast that runs just now, as a service can start it. Raises HoldfastError when it may vanish, or
    couldn't be written into a service's files."""
    python = lasting_python()
    if is_fleeting(python):
        raise HoldfastError(
            f"this holdfast is only in a cache: {python}", "install it first: uv tool install holdfast"
        )
    program = Program(str(python), kept(os.environ))
    for name, value in (("the path of Python", program.python), *program.environment.items()):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise HoldfastError(
                f"{name} is not in UTF-8, and so can't be written for the service: {value!r}",
                "with another value, for this once: env PATH=/usr/bin:/bin holdfast service install",
            ) from None
    return program


def lasting_python() -> Path:
    """This interpreter, by the name that it keeps when its virtual environment is made anew for a newer Python."""
    python = Path(sys.executable)
    lasting = python.with_name("python")
    is_same = sys.prefix != sys.base_prefix and lasting.exists() and lasting.samefile(python)
    return lasting if is_same else python


def without_manager(why: str) -> HoldfastError:
    """The error for a machine whose service manager can't be used."""
    words = shlex.join(Program(str(lasting_python()), {}).words(*LOGIN_WORDS))
    return HoldfastError(why, f"put this into ~/.profile, or after @reboot into crontab -e: {words}")


def write(files: Mapping[Path, str]) -> list[Path]:
    """Writes what is different, each file as a whole; returns those. Raises HoldfastError before it replaces a
    file that isn't ours."""
    changed = [path for path, text in files.items() if read(path) != text]
    for path in changed:
        if (found := read(path)) and not is_ours(found):
            raise HoldfastError(
                f"{path} was not written by holdfast", "take it away first, or keep it instead of this service"
            )
    for path in changed:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, files[path])
        except OSError as error:
            raise HoldfastError(f"can't write {path}: {error.strerror}", f"ls -ld {path.parent}") from None
    return changed


def delete(files: Iterable[Path]) -> list[Path]:
    """Deletes those that are there and ours, or links to what is ours; returns them. Raises HoldfastError."""
    deleted = []
    for path in files:
        if is_ours(read(path)):
            try:
                path.unlink()
            except OSError as error:
                raise HoldfastError(f"can't delete {path}: {error.strerror}", f"ls -ld {path.parent}") from None
            deleted.append(path)
    return deleted


def program_findings(unit: Path, python: str) -> Iterator[Finding]:
    """Whether what `unit` starts is there, and is this holdfast."""
    mend = "holdfast service install"
    if not Path(python).exists():
        yield Finding(False, f"{unit} starts {python or 'nothing'}, which is gone", mend)
        return
    version = _version_of(python)
    if not version:
        yield Finding(False, f"{unit} starts {python}, which has no holdfast any more", mend)
    elif python != str(lasting_python()):
        yield Finding(
            False, f"it starts holdfast {version} of {python}, this is {__version__} of {lasting_python()}", mend
        )
    else:
        yield Finding(True, f"it starts this holdfast: {python}")


def keeper_findings(service_pid: int) -> Iterator[Finding]:
    """Whether the keeper that runs is the service's, which has this pid, or 0."""
    connection = client.find()
    running = 0
    if connection is not None:
        running = connection.greeting["pid"]
        connection.close()
    if service_pid and running == service_pid:
        yield Finding(True, f"the keeper runs (pid {service_pid})")
    elif running:
        yield Finding(False, f"the keeper (pid {running}) is not the service's", "holdfast service install")
    else:
        yield Finding(
            False,
            "the keeper doesn't run",
            "the next command that needs it starts it; at once: holdfast service install",
        )


def ask(words: list[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a service manager's command. Raises HoldfastError when there is none, or it doesn't end."""
    try:
        return subprocess.run(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except FileNotFoundError:
        raise without_manager(f"there is no {words[0]} here") from None
    except subprocess.TimeoutExpired:
        raise HoldfastError(f"{' '.join(words)} did not end within {PATIENCE} s") from None


def read(path: Path) -> str:
    """What is in the file, or '' when that can't be told."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _replace(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=".holdfast-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, 0o644)
            file.write(text)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def _version_of(python: str) -> str:
    """The version of the holdfast that this interpreter has, or ''."""
    try:
        told = subprocess.run(
            [python, "-P", "-m", "holdfast", "--version"],
            capture_output=True,
            text=True,
            timeout=VERSION,
            check=False,
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return told.stdout.removeprefix("holdfast ").strip() if told.returncode == 0 else ""
