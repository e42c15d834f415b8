"""Finds the command lines of ssh and autossh in what people keep them in: shell scripts and aliases, crontabs,
systemd units, and what `ps` prints.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from holdfast.errors import UsageError

PROGRAMS = ("ssh", "autossh")
# What brings on work: everything else in a text is none of ours.
_MENTIONS = re.compile(r"(?<![\w.-])(?:auto)?ssh\s|AUTOSSH_[A-Z]", re.ASCII)
_PUNCTUATION = ";&|()<>"
# How deep commands may stand in each other's quotes, as in an alias or in sh -c.
_DEEPEST = 3


class Variable(NamedTuple):
    """One of autossh's own, as it is set in the text."""

    line: int
    name: str
    value: str


class Command(NamedTuple):
    """One command line: `words` come after the program's name. `starter` is what starts it by itself, or ''."""

    line: int
    program: str
    words: tuple[str, ...]
    starter: str = ""


class Unreadable(NamedTuple):
    """A line that mentions ssh and isn't made of words."""

    line: int
    why: str


def find(text: str) -> Iterator[Command | Variable | Unreadable]:
    """What is in the text, in its order."""
    for number, line in _whole_lines(text):
        if not _MENTIONS.search(line):
            continue
        try:
            starter, rest = _starter(line)
            for part in _parts(rest, number):
                yield part._replace(starter=starter) if isinstance(part, Command) else part
        except UsageError as error:
            yield Unreadable(number, error.message)


def _whole_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines, joined where a backslash ends one, each with the number of its first."""
    first, held = 0, ""
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        first = first or number
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            held += line[:-1] + " "
            continue
        yield first, held + line
        first, held = 0, ""
    if held:
        yield first, held


def _starter(line: str) -> tuple[str, str]:
    """What starts the line's command without a person, and the line in words that a shell would take.

    Raises UsageError.
    """
    stripped = line.strip()
    if stripped.startswith("@reboot"):
        return "cron", stripped.removeprefix("@reboot")
    if found := re.match(r"ExecStart\s*=\s*[-@:+!|]*(.*)", stripped):
        return "systemd", re.sub(r"%(.?)", _without_specifier, found[1])
    return "", re.sub(r"^Environment\s*=", "", stripped)


def _without_specifier(found: re.Match[str]) -> str:
    """What systemd would put there. Raises UsageError where only the unit's own name or user could tell."""
    if found[1] not in ("h", "%"):
        raise UsageError(f"'{found[0]}' is known to systemd only")
    return "~" if found[1] == "h" else "%"


def _parts(text: str, number: int, depth: int = 0) -> Iterator[Command | Variable]:
    """Raises UsageError for a quote that isn't closed."""
    for words in _simple_commands(text):
        place = next((at for at, word in enumerate(words) if _program(word)), len(words))
        for word in words[:place]:
            if found := re.fullmatch(r"(AUTOSSH_[A-Z_]+)=(.*)", word, re.DOTALL):
                yield Variable(number, found[1], found[2])
            elif " " in word and _MENTIONS.search(word) and depth < _DEEPEST:
                yield from _parts(word, number, depth + 1)
        # Without arguments it is named, not run: `apt install autossh`.
        if words[place + 1 :]:
            yield Command(number, _program(words[place]), tuple(map(_at_home, words[place + 1 :])))


def _simple_commands(text: str) -> Iterator[list[str]]:
    """The words between a shell's operators, without what comes from a redirection on."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=_PUNCTUATION)
    lexer.whitespace_split = True
    words: list[str] = []
    redirected = False
    try:
        tokens = list(lexer)
    except ValueError:
        raise UsageError("its quotes don't match") from None
    for token in tokens:
        if not set(token) <= set(_PUNCTUATION) or not token:
            if not redirected:
                words.append(token)
        elif set(token) & {"<", ">"}:
            if words and re.fullmatch(r"[0-9]", words[-1]):  # the 2 of 2>&1
                words.pop()
            redirected = True
        else:
            yield words
            words, redirected = [], False
    yield words


def _program(word: str) -> str:
    """Which of PROGRAMS the word runs, or ''."""
    if word.startswith("AUTOSSH_"):
        return ""
    name = re.sub(r"^\w+=", "", word).rpartition("/")[2]
    return name if name in PROGRAMS else ""


def _at_home(word: str) -> str:
    return re.sub(r"^(\$HOME|\$\{HOME\})(?=/|$)", "~", word)
