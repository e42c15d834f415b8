"""What ssh's stderr means, in the user's words, with the next step, and whether trying again can help.

Pure: text in, a Trouble out, by the tables of endings.py; an unknown ending shows ssh's own last line. Part of
the text is the server's (banners, disconnect messages) and may be hostile: only what can be printed is shown, and
what goes into a command is quoted for a shell.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

from holdfast.openssh.endings import (
    FORCED,
    GREETED,
    LOGIN_FAILED,
    LOST,
    PIPE_ENDED,
    PROXY_NOT_RUN,
    PROXY_SILENT,
    Remedy,
    Rule,
)

__all__ = ["ENDED_BY_HAND", "Refusal", "Remedy", "Trouble", "diagnose", "refusal"]

_LAST_LINES = 400
_LONGEST_LINE = 1000
_LONGEST_VALUE = 200


class Trouble(NamedTuple):
    """Why a login failed or a link was lost: one line in the user's words, a hint, and what can help."""

    reason: str
    hint: str
    remedy: Remedy


class Refusal(Enum):
    """Why the far side refused a forwarded connection."""

    NO_SERVICE = "nothing listens at the target"
    FORBIDDEN = "the server's policy forbids it"
    UNREACHABLE = "the target can't be reached from the server"
    UNKNOWN = "the server doesn't say"


_NOISE = re.compile(
    r"debug: |Authenticated |Transferred: |Bytes per second: |Warning: |\*\* |@|usage: |\[|Disconnected from "
    r"|Killed by signal "
)

# What can be said of a master that ended without a word.
ENDED_BY_HAND = Trouble("its ssh process was ended, by `ssh -O exit` or a signal", "", Remedy.RETRY)


def diagnose(log: str, host: str) -> Trouble:
    """Why ssh ended, from what it wrote to stderr and its -E file. `host` is as the user typed it."""
    raw = log.split("\n")
    login = max((at for at, line in enumerate(raw) if line.startswith("Authenticated to ")), default=-1)
    lines = [line for line in map(_clean, raw[login + 1 :][-_LAST_LINES:]) if line]
    host = _capped(_clean(host)) or "the host"
    proxy = _proxy_lines(lines)
    if proxy is not None:
        return _proxy_trouble(proxy, host) or _matched(PROXY_SILENT, lines, host, host) or _unknown(lines, host)
    if login < 0:
        return _matched((*LOGIN_FAILED, *LOST), lines, host, host) or _unknown(lines, host)
    # A jump host's login may be logged too, so the login to the host itself may still have failed.
    found = _matched((*LOST, *LOGIN_FAILED), lines, host, host)
    if found is None and not _last_words(lines):
        return ENDED_BY_HAND
    return found or _unknown(lines, host)._replace(remedy=Remedy.RETRY)


def refusal(log: str) -> Refusal:
    """Why the last forwarded connection was refused, from what a master logged since it was asked for.

    UNKNOWN is also what a server leaves unsaid: a remote forward that it forbids or that finds its port taken
    there, and a Unix socket that is not there, or that it forbids.
    """
    for line in map(_clean, reversed(log.split("\n")[-_LAST_LINES:])):
        if re.match(r"(?:\w+: )?(?:Warning: |Error: )?remote (?:port|stream\w*) forwarding failed", line):
            return Refusal.UNKNOWN
        refused = re.match(r"channel \d+: open failed: (.*)", line)
        if refused:
            return _refusal_of(refused[1])
    return Refusal.UNKNOWN


_REFUSALS = (
    (r"administratively prohibited", Refusal.FORBIDDEN),
    (r"connect failed: .*(?:connection refused|no such file)", Refusal.NO_SERVICE),
    (
        r"connect failed: .*(?:not known|no address|not resolve|name resolution|no such host"
        r"|timed out|timeout|no route|unreachable|host is down)",
        Refusal.UNREACHABLE,
    ),
)


def _refusal_of(why: str) -> Refusal:
    return next((kind for words, kind in _REFUSALS if re.match(words, why, re.IGNORECASE)), Refusal.UNKNOWN)


def _clean(line: str) -> str:
    """`line` as it may be shown; LogVerbose's `file.c:function():1 (pid=1): ` becomes ssh's `function: `."""
    line = "".join(c if c.isprintable() else " " for c in line[:_LONGEST_LINE]).strip()
    line = re.sub(r"^debug[123]: ", FORCED, line)
    return re.sub(rf"^({FORCED})?[\w.-]{{1,48}}:(\w{{1,48}})\(\):\d+ \((?:bin=\S+ )?pid=\d+\): ", r"\1\2: ", line)


def _capped(value: str) -> str:
    return value if len(value) <= _LONGEST_VALUE else value[: _LONGEST_VALUE - 1] + "…"


def _matched(rules: tuple[Rule, ...], lines: list[str], server: str, host: str) -> Trouble | None:
    """What the first of `rules` says that knows the last line which any of them knows as an ending."""
    for at in range(len(lines) - 1, -1, -1):
        for rule in rules:
            values = _values(rule, lines, at)
            if values is not None:
                return _told(rule, {**values, "server": server, "host": host})
    return None


def _values(rule: Rule, lines: list[str], at: int) -> dict[str, str] | None:
    """What the named groups of `rule` hold if it fits the line `at` and those before it, or None."""
    ending = re.match(rule.ending, lines[at])
    if ending is None:
        return None
    values = ending.groupdict(default="")
    for pattern in rule.because:
        found = next((m for line in reversed(lines[:at]) if (m := re.match(pattern, line))), None)
        if found is None:
            return None
        values |= found.groupdict(default="")
    return values


def _told(rule: Rule, values: dict[str, str]) -> Trouble:
    shown = {name: _capped(value) for name, value in values.items()}
    if "why" in shown:
        shown["why"] = shown["why"][:1].lower() + shown["why"][1:].rstrip(".")
    if not shown.get("login", "-"):
        shown["login"] = "you"
    quoted = {name: _quoted(value) for name, value in shown.items()}
    return Trouble(rule.reason.format_map(shown), rule.hint.format_map(quoted), rule.remedy)


def _quoted(value: str) -> str:
    """`value` as one word of a shell's command line."""
    return value if re.fullmatch(r"[\w@%+=:,./-]+", value, re.ASCII) else "'" + value.replace("'", "'\\''") + "'"


def _last_words(lines: list[str]) -> str:
    return next((_capped(line) for line in reversed(lines) if not _NOISE.match(line)), "")


def _unknown(lines: list[str], host: str) -> Trouble:
    said = _last_words(lines)
    reason = f"ssh ended, saying '{said}'" if said else "ssh ended without saying why"
    return Trouble(reason, f"see how far it gets with `ssh -v {_quoted(host)}`", Remedy.RETRY_LATER)


def _proxy_lines(lines: list[str]) -> list[str] | None:
    """What the jump host's ssh or the ProxyCommand wrote, if that ended and the host never answered."""
    ended = [re.match(PIPE_ENDED, line) is not None for line in lines]
    if not any(ended) or any(re.match(GREETED, line) for line in lines):
        return None
    return [
        line
        for line, is_end, before_end in zip(lines, ended, [*ended[1:], False], strict=True)
        # The line before the end is the same ssh's own account of it.
        if not is_end and not (before_end and "_exchange_identification: " in line) and not line.startswith(FORCED)
    ]


def _proxy_trouble(lines: list[str], host: str) -> Trouble | None:
    not_run = _matched(PROXY_NOT_RUN, lines, "", host)
    if not_run:
        return not_run
    jump = _matched(LOGIN_FAILED, lines, "it", host)
    if jump:
        return jump._replace(reason=f"the jump host failed: {jump.reason}")
    said = _last_words(lines)
    if not said:
        return None
    hint = "correct ProxyCommand in your ssh_config, or what it runs"
    return Trouble(f"the ProxyCommand failed, saying '{said}'", hint, Remedy.RETRY_LATER)
