"""A program for the far side's `sh`, and what it printed. Pure.

The program goes over there as standard input: no login shell can misread it, and no process list shows it. Login
files may print what they like before it, and a forced command may run in its place; a mark that nobody else knows
tells what is ours. It also begins the parts of what is printed: whatever another user may have put into a file, or
the name of a socket or a directory, can't begin one. Programs are plain POSIX, and have no input of their own.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator

from holdfast.errors import HoldfastError

# Understood by every login shell, fish and tcsh included.
COMMAND = "exec sh"
# Bytes of a program, and characters of what it may print.
LONGEST_PROGRAM = 48 * 1024
LONGEST_OUTPUT = 4 * 1024 * 1024


# How a program prints: a line as it is, which `echo` doesn't always; and the first line of a part.
PUT = "put() { printf '%s\\n' \"$1\"; }\n"
PRELUDE = PUT.replace("{", "{{").replace("}", "}}") + 'tell() {{ put "@{mark} $*"; }}\n'


class NotRun(HoldfastError):
    """The far side runs no program for us, now or later."""


def wrap(program: str, mark: str, *, until_hung_up: bool = False) -> str:
    """What is sent to `COMMAND` to run `program`; `mark` is a word that is in no other output.

    The program begins a part of its output by `tell name words...`. `until_hung_up`: it reads to the end of its
    input, which is when we hang up, to know when to leave.
    """
    source, gap = ("", "") if until_hung_up else (" </dev/null", "echo; ")
    return (
        f"{PRELUDE.format(mark=mark)}main() {{\n{program}\n}}\n"
        f"echo; echo '{mark} begin'\nmain{source}\n{gap}echo '{mark} end'\nexit\n"
    )


def unwrap(printed: str, mark: str, host: str) -> str:
    """What the program that was wrapped with `mark` printed, as a whole, on `host`: for `sections`.

    Raises NotRun, HoldfastError.
    """
    _, begin, rest = printed.partition(f"{mark} begin\n")
    if not begin:
        raise not_run(host)
    text, end, _ = rest.partition(f"\n{mark} end\n")
    if not end:
        raise HoldfastError(f"what was run on {host} broke off", "try again")
    return re.sub(rf"^@({mark} )?", lambda found: "@" if found[1] else " @", text, flags=re.MULTILINE)


def not_run(host: str) -> NotRun:
    """Something else has run."""
    return NotRun(
        f"{host} does not run what it is asked to: a forced command, or a login file that ends the shell",
        f"see what this prints: ssh {shlex.quote(host)} echo hello",
    )


class Unwrapping:
    """`unwrap` for output that is shown as it comes: whole lines, none of them of ours."""

    def __init__(self, mark: str, show: Callable[[str], None]) -> None:
        self._mark = mark
        self._show = show
        self._partial = ""
        self.has_begun = self.has_ended = False
        # The names of the parts that began.
        self.parts: list[str] = []

    def take(self, text: str) -> None:
        """Hands on what `text` completes."""
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            if not self.has_begun:
                self.has_begun = line == f"{self._mark} begin"
            elif line == f"{self._mark} end":
                self.has_ended = True
            elif line.startswith(f"@{self._mark} "):
                self.parts.append(line.partition(" ")[2])
            elif not self.has_ended:
                self._show(f"{line}\n")


def assign(**values: str) -> str:
    """Lines of a program that set these variables, whatever is in the values."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def sections(printed: str) -> Iterator[tuple[str, list[str], str]]:
    """Each line '@name words...' that a program printed, in parts, with the lines after it."""
    for part in re.split(r"^@", printed, flags=re.MULTILINE)[1:]:
        head, _, text = part.partition("\n")
        name, *words = head.split(" ")
        yield name, words, text
