"""Command lines of autossh, and of ssh where they forward something, as tunnels."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from holdfast.config.reading import Described, Start
from holdfast.control import check_host, default_name
from holdfast.errors import UsageError
from holdfast.forward import Forward, Kind
from holdfast.importing import ssh_options
from holdfast.importing.command_lines import Command, Unreadable, Variable, find
from holdfast.importing.found import Found, Remark, collect, describe, reason, shortened, ssh_forward


class Given(NamedTuple):
    """An option as it was given: its letter, and its value or ''."""

    letter: str
    value: str


class Invocation(NamedTuple):
    """ssh's command line in its parts: `command` is what it would run over there."""

    options: tuple[Given, ...]
    destination: str
    command: tuple[str, ...]


def read(text: str) -> Found:
    """The tunnels of all command lines in `text`; lines that can't be taken are remarked upon."""
    found = list(find(text))
    by_autossh = any(isinstance(part, Command) and part.program == "autossh" for part in found)
    return collect(_tunnel(part, by_autossh) if isinstance(part, Command) else _aside(part) for part in found)


def _aside(part: Variable | Unreadable) -> Found:
    place = f"line {part.line}"
    if isinstance(part, Unreadable):
        return Found(remarks=(Remark(place, f"not taken: {part.why}"),))
    why = ssh_options.VARIABLES.get(part.name, "autossh has no such variable")
    return Found(remarks=(Remark(place, f"{part.name} is left out: {why}"),))


def _tunnel(command: Command, by_autossh: bool) -> Found:
    """What one command line comes to; `by_autossh`: an ssh may be one that an autossh has started."""
    place = f"line {command.line}"
    try:
        invocation = split(command.program, command.words)
        letters = {option.letter for option in invocation.options}
        if letters & ssh_options.NO_TUNNEL:
            return Found()
        orders = [value for letter, value in invocation.options if letter == ssh_options.CONTROL]
        if orders and orders != [ssh_options.MAKES_FORWARD]:
            text = f"ssh -O {shortened(orders[0])} is left out: {ssh_options.ORDER}"
            return Found(remarks=(Remark(place, text),))
        reading = _Reading(invocation)
        if command.program == "ssh" and by_autossh:
            reading.forget_monitors()
        if command.program == "ssh" and not reading.specifications:
            return Found()
        return reading.finish(command, place)
    except UsageError as error:
        return Found(remarks=(Remark(place, f"not taken: {reason(error)}"),))


def split(program: str, words: Sequence[str]) -> Invocation:
    """The parts of a command line, in any order that ssh takes them in. Raises UsageError."""
    options, rest = _options(program, words)
    destination, rest = (rest[0], rest[1:]) if rest else ("", rest)
    more, command = _options(program, rest)
    return Invocation((*options, *more), destination, tuple(command))


def _options(program: str, words: Sequence[str]) -> tuple[list[Given], Sequence[str]]:
    """The options at the start of `words`, and what follows them."""
    valued = ssh_options.VALUED | ({"M"} if program == "autossh" else set())
    options: list[Given] = []
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] != "-":
        word, at = words[at], at + 1
        if word == "--":
            break
        for place, letter in enumerate(word[1:], 1):
            if letter in valued:
                value = word[place + 1 :]
                if not value:
                    if at == len(words):
                        raise UsageError(f"-{letter} has no value")
                    value, at = words[at], at + 1
                options.append(Given(letter, value))
                break
            if letter not in ssh_options.FLAGS:
                raise UsageError(f"ssh has no option -{shortened(letter)}")
            options.append(Given(letter, ""))
    return options, words[at:]


def _whole(forward: str) -> str:
    """With the home directory that a shell would put before a socket: ssh takes whole paths only."""
    return os.path.expanduser(forward) if forward.startswith("~/") else forward  # noqa: PTH111 - never raises


class _Reading:
    """What the options of one command line come to. Raises UsageError for what ssh wouldn't take either."""

    def __init__(self, invocation: Invocation) -> None:
        self.specifications: list[tuple[Kind, str]] = []
        self._destination = invocation.destination
        self._options: list[str] = []
        self._left_out: dict[str, list[str]] = {}
        self._unchecked: list[str] = []
        self._everywhere = False
        for option in invocation.options:
            self._take(*option)
        if invocation.command:
            self._leave_out("the command after the host", "holdfast forwards, and runs nothing")

    def _take(self, letter: str, value: str) -> None:
        if letter in ssh_options.FORWARDS:
            self.specifications.append((ssh_options.FORWARDS[letter], _whole(value)))
        elif letter in ssh_options.KEPT:
            self._options += [f"-{letter}", value]
        elif letter == "o":
            self._take_setting(value)
        elif letter in ssh_options.AS_SETTING:
            self._options += ["-o", f"{ssh_options.AS_SETTING[letter]}={value}"]
        elif letter in ssh_options.AS_WHOLE_SETTING:
            self._options += ["-o", ssh_options.AS_WHOLE_SETTING[letter]]
        elif letter == ssh_options.EVERYWHERE:
            self._everywhere = True
        elif letter == "M" and value:
            self._leave_out(f"-M {shortened(value)}", ssh_options.MONITOR_PORT)
        elif letter in ssh_options.LEFT_OUT:
            self._leave_out(f"-{letter} {shortened(value)}".rstrip(), ssh_options.LEFT_OUT[letter])

    def _take_setting(self, text: str) -> None:
        found = re.fullmatch(r"\s*(\w+)\s*[=\s]\s*(.*?)\s*", text, re.DOTALL)
        if found is None:
            raise UsageError(f"-o {shortened(text)} is no setting", "as in -o Compression=yes")
        name, value = found[1], found[2]
        key = name.lower()
        if key in ssh_options.FORWARD_SETTINGS:
            kind = ssh_options.FORWARD_SETTINGS[key]
            self.specifications.append((kind, re.sub(r"\s+", ":", value)))
        elif key == ssh_options.EVERYWHERE_SETTING:
            self._everywhere = value.lower() == "yes"
        elif key in ssh_options.SETTINGS_LEFT_OUT:
            self._leave_out(f"-o {name}={shortened(value)}", ssh_options.SETTINGS_LEFT_OUT[key])
        elif key == "proxycommand" and " " not in value and value != "none":
            # What ps prints has lost its quotes: the rest of the command would be taken for the host.
            raise UsageError("its ProxyCommand has lost its quotes", "take it from where it was written")
        else:
            self._options += ["-o", f"{name}={value}"]
            if (key, value.lower()) in ssh_options.UNCHECKED:
                self._unchecked.append(f"{name}={value}")

    def _leave_out(self, what: str, why: str) -> None:
        self._left_out.setdefault(why, []).append(what)

    def forget_monitors(self) -> None:
        """Takes those forwards away by which autossh watches its ssh: a loop over two neighbouring ports."""
        for kind, text in list(self.specifications):
            port = text.partition(":")[0]
            loop = (Kind.LOCAL, f"{port}:127.0.0.1:{port}")
            if kind is Kind.REMOTE and port.isdecimal() and text == f"{port}:127.0.0.1:{int(port[:5]) + 1}":
                self.specifications = [own for own in self.specifications if own not in (loop, (kind, text))]

    def finish(self, command: Command, place: str) -> Found:
        """The tunnel, and what is to be said of it."""
        if not self._destination:
            raise UsageError("it names no host")
        self._check_variables()
        check_host(self._destination)
        remarks = [Remark(place, text) for text in self._remarks()]
        forwards: list[Forward] = []
        for kind, text in self.specifications:
            try:
                forwards.append(ssh_forward(text, kind, everywhere=self._everywhere))
            except UsageError as error:
                remarks.append(Remark(place, f"a forward is left out: {reason(error)}"))
        if not forwards:
            why = "none of its forwards can be had" if self.specifications else "it forwards nothing"
            return Found(remarks=(*remarks, Remark(place, f"not taken: {why}")))
        start = Start.LOGIN if command.starter else Start.MANUAL
        if command.starter:
            remarks.append(
                Remark(
                    place, f'{command.starter} started it: start = "login" does, after holdfast service install'
                )
            )
        tunnel = Described(
            name=default_name(self._destination),
            host=self._destination,
            forwards=tuple(dict.fromkeys(forwards)),
            start=start,
            options=tuple(self._options),
        )
        return collect([Found(remarks=tuple(remarks)), describe(tunnel, place)])

    def _check_variables(self) -> None:
        for text in (self._destination, *self._options, *(text for _, text in self.specifications)):
            if found := re.search(r"\$\{?\w+\}?|\$\(|`", text):
                raise UsageError(
                    f"'{shortened(found[0])}' is known to its shell only", "put in what it stands for"
                )

    def _remarks(self) -> Iterator[str]:
        for why, what in self._left_out.items():
            each = dict.fromkeys(what)
            yield f"{' and '.join(each)} {'is' if len(each) == 1 else 'are'} left out: {why}"
        for setting in self._unchecked:
            yield f"with {shortened(setting)} nobody checks which machine that is: better to take it out"
