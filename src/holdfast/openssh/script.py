"""A program for the far side's `sh`, and what it printed. Pure.

The program goes over there as standard input: no login shell can misread it, and no process list shows it. Login
files may print what they like before it, and a forced command may run in its place; marks that nobody else knows
tell what is ours. Programs are plain POSIX, and have no input of their own.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from holdfast.errors import HoldfastError

# Understood by every login shell, fish and tcsh included.
COMMAND = "exec sh"
# Bytes of a program, and characters of what it may print.
LONGEST_PROGRAM = 48 * 1024
LONGEST_OUTPUT = 4 * 1024 * 1024


def wrap(program: str, mark: str, *, until_hung_up: bool = False) -> str:
    """What is sent to `COMMAND` to run `program`; `mark` is a word that is in no other output.

    `until_hung_up`: the program reads to the end of its input, which is when we hang up, to know when to leave.
    """
    source = "" if until_hung_up else " </dev/null"
    return f"main() {{\n{program}\n}}\necho; echo '{mark} begin'\nmain{source}\necho; echo '{mark} end'\nexit\n"


def begin_of(mark: str) -> str:
    """The line before the first that the program printed."""
    return f"{mark} begin\n"


def unwrap(printed: str, mark: str, host: str) -> str:
    """What the program that was wrapped with `mark` printed, as a whole, on `host`. Raises HoldfastError."""
    _, begin, rest = printed.partition(begin_of(mark))
    if not begin:
        raise HoldfastError(
            f"{host} does not run what it is asked to: a forced command, or a login file that ends the shell",
            f"see what this prints: ssh {shlex.quote(host)} echo hello",
        )
    text, end, _ = rest.partition(f"\n{mark} end\n")
    if not end:
        raise HoldfastError(f"what was run on {host} broke off", "try again")
    return text


def assign(**values: str) -> str:
    """Lines of a program that set these variables, whatever is in the values."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def sections(printed: str) -> Iterator[tuple[str, list[str], str]]:
    """Each line '@name words...' that a program printed, in parts, with the lines after it."""
    for part in re.split(r"^@", printed, flags=re.MULTILINE)[1:]:
        head, _, text = part.partition("\n")
        name, *words = head.split(" ")
        yield name, words, text
