"""What others could do to a user's notebooks, on a machine that they share: what to look at, what it means. Pure.

The same program looks at the far side and at this machine.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from holdfast.forward import Address
from holdfast.jupyter import servers
from holdfast.jupyter.servers import NOBODY, Found, Listener, Server, number
from holdfast.openssh.script import sections

# Who is here, for `holdfast up` too: it costs a few processes. People's uids begin at 1000 (UID_MIN in login.defs;
# 500 on macOS); from 60000 to 65535 are nobody, and services for which systemd has made a user.
PEOPLE = r"""
first=1000
[ -d /proc/self ] || first=500
is_person() {
    case $1 in *[!0-9]*|'') return 1;; esac
    [ "$1" -ge $first ] && { [ "$1" -lt 60000 ] || [ "$1" -gt 65535 ]; }
}
tell "me $(id -un)"
tell logged-in
{
    who | sed 's/ .*//'
    ps -eo uid=,user= | sort -u | while read -r number name; do
        case $name in *[!0-9]*) is_person "$number" && put "$name";; esac
    done
} 2>/dev/null | sort -u
"""

# `kernel PORT encrypted|plain` for each kernel on TCP; `mode MODE PATH` for what ought to be private.
PROGRAM = (
    servers.COMMON
    + PEOPLE
    + r"""
tell accounts
{ getent passwd || cat /etc/passwd; } 2>/dev/null | while IFS=: read -r name _ number _ _ _ shell; do
    case $shell in */nologin|*/false|'') continue;; esac
    is_person "$number" && put "$name"
done
tell sockets
ls -l /proc/[0-9]*/fd 2>/dev/null | grep -E '^/proc|socket:' | sed 's/.*socket:/socket:/'
tell programs
ps -u "$(id -u)" -o pid=,comm= 2>/dev/null
mode() { tell "mode $(ls -ld "$1" | cut -c1-10) $1"; }
inspect() {
    [ -d "$1" ] && [ -O "$1" ] || return
    mode "$1"
    for file in "$1"/*server-*-open.html; do is_own_file "$file" && mode "$file"; done
    for file in "$1"/kernel-*.json; do
        is_own_file "$file" || continue
        port=$(sed -n 's/.*"iopub_port": *\([0-9]*\).*/\1/p' "$file")
        kind=plain
        grep -q '"curve_' "$file" && kind=encrypted
        grep -q '"transport": *"ipc"' "$file" || tell "kernel $port $kind"
    done
}
runtime_directories | while IFS= read -r directory; do inspect "$directory"; done
starts | while IFS= read -r start; do mode "$start"; done
"""
    + servers.PROGRAM
)

# What plain TCP on a shared machine means, also said when a server has to be started so.
TCP_RISK = (
    "every user there can connect to it, and one who is quicker to take its port is sent your browser's cookie"
)
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


class Login(Enum):
    """What a server without a token asks for."""

    NONE = "nothing"
    EMPTY_PASSWORD = "an empty password"  # noqa: S105
    PASSWORD = "a password"  # noqa: S105


class Finding(NamedTuple):
    """`risk`: what it is about isn't as it should be. `hint` is the command that mends it."""

    risk: bool
    text: str
    hint: str = ""


class Looked(NamedTuple):
    """What the program found: `people` are the others who are logged in or run something, `accounts` all others
    who could. `kernels` are iopub ports, with whether the traffic is encrypted; `modes` are of private things."""

    people: tuple[str, ...]
    accounts: tuple[str, ...]
    listeners: tuple[Listener, ...]
    programs: dict[int, str]
    kernels: tuple[tuple[int, bool], ...]
    modes: tuple[tuple[str, str], ...]
    found: Found


def others(printed: str) -> tuple[str, ...]:
    """The other people who are logged in, or run something, as PEOPLE found them."""
    parts = {name: (words, text) for name, words, text in sections(printed)}
    me = " ".join(parts.get("me", ([], ""))[0])
    return tuple(name for name in _lines(parts.get("logged-in", ([], ""))[1]) if name not in (me, "root"))


def read(printed: str) -> Looked:
    """What `PROGRAM` found. Whatever in it makes no sense is passed over."""
    parts = list(sections(printed))
    texts = {name: text for name, _, text in parts}
    uid = next((number(words[0]) for name, words, _ in parts if name == "uid" and words), NOBODY)
    me = next((" ".join(words) for name, words, _ in parts if name == "me"), "")
    mine = tuple(one for one in servers.listeners_in(parts, uid) if one.uid == uid)
    ports = {one.port for one in mine}
    kernels = tuple(
        (number(words[0]), words[1] == "encrypted")
        for name, words, _ in parts
        if name == "kernel" and len(words) == 2 and number(words[0]) in ports
    )
    modes = tuple(
        (words[0], " ".join(words[1:]))
        for name, words, _ in parts
        if name == "mode" and len(words) > 1 and " ".join(words).isprintable()
    )
    accounts = tuple(name for name in _lines(texts.get("accounts", "")) if name != me)
    programs = _programs(texts.get("sockets", ""), texts.get("programs", ""))
    return Looked(others(printed), accounts, mine, programs, kernels, modes, servers.read(printed))


def findings(looked: Looked, host: str, logins: Mapping[int, Login] | None = None) -> Iterator[Finding]:
    """What is right and wrong on `host`; `logins` is what servers without a token ask for, by their pids."""
    is_shared = bool(looked.people or looked.accounts)
    yield _sharing(looked, host)
    for server in looked.found.servers:
        yield from _of_server(server, looked, host, is_shared=is_shared, login=(logins or {}).get(server.pid))
    if not looked.found.servers:
        yield Finding(False, f"no notebook server of yours runs on {host}")
    if looked.found.strange:
        yield Finding(
            True,
            f"at the address of a notebook server of yours on {host} listens a program that isn't yours, or can't "
            "be told to be: it would be sent your cookie and your work",
            f"holdfast jupyter {host} --list shows those that are; start another: holdfast jupyter {host} --start",
        )
    yield from _of_listeners(looked, host)
    yield from _of_kernels(looked, host, is_shared=is_shared)
    yield from _of_modes(looked.modes, host)


def local_findings(people: Sequence[str]) -> Iterator[Finding]:
    """What is right and wrong on this machine, where these others are, as far as forwards are concerned."""
    if people:
        yield Finding(
            True,
            f"{_names(people)} can connect to the ports that forwards listen on here, as every user of this "
            "machine can; what is behind them has only its own login to protect it",
            "listen on a socket of yours instead, as in holdfast up HOST $HOME/lab.sock:8888",
        )
    else:
        yield Finding(False, "nobody else is logged in on this machine")


def warning(people: Sequence[str], host: str) -> str:
    """One line for whoever forwards a port of `host`, on which these people are logged in."""
    return f"{_names(people)} can connect to that port on {host} as well"


def _sharing(looked: Looked, host: str) -> Finding:
    if looked.people:
        return Finding(False, f"others on {host} just now: {_names(looked.people)}")
    if looked.accounts:
        return Finding(False, f"nobody else is on {host} just now; who may log in: {_names(looked.accounts)}")
    return Finding(False, f"{host} has no other users")


def _of_server(
    server: Server, looked: Looked, host: str, *, is_shared: bool, login: Login | None
) -> Iterator[Finding]:
    name = f"the notebook server in {server.directory} ({server.place})"
    again = (
        ""
        if server.hub
        else f"holdfast jupyter {host} --stop {server.option}, then holdfast jupyter {host} --start"
    )
    risks = []
    if login is Login.NONE:
        risks.append("has no token: whoever can connect to it runs programs as you")
    if login is Login.EMPTY_PASSWORD:
        risks.append("takes an empty password: whoever can connect to it runs programs as you")
    if not server.place.path:
        hosts = {one.host for one in looked.listeners if one.port == server.place.port}
        if hosts & set(_EVERYWHERE):
            risks.append("listens on all addresses: other machines can connect to it")
        if is_shared and not server.secure:
            risks.append(f"is on a TCP port without TLS: {TCP_RISK}")
    for risk in risks:
        yield Finding(True, f"{name} {risk}", again)
    if not risks:
        how = "a socket of yours alone" if server.place.path else "TLS" if server.secure else "loopback"
        yield Finding(False, f"{name} asks for {'its token' if server.token else 'a password'}, over {how}")


def _of_listeners(looked: Looked, host: str) -> Iterator[Finding]:
    notebooks = {server.place.port for server in looked.found.servers}
    rest = sorted({(one.host, one.port, one.inode) for one in looked.listeners if one.port not in notebooks})
    private = []
    for address, port, inode in rest:
        program = looked.programs.get(inode, "a program of yours")
        where = str(Address(address, port))
        if address in _EVERYWHERE:
            yield Finding(
                True,
                f"{program} listens on {where} on {host}: other machines can connect to it",
                f"have it listen on 127.0.0.1, and forward that: holdfast up {host} {port}",
            )
        else:
            private.append(f"{where} ({program})")
    if private:
        yield Finding(False, f"also yours on {host}: {', '.join(private[:8])}{', ...' if private[8:] else ''}")


def _of_kernels(looked: Looked, host: str, *, is_shared: bool) -> Iterator[Finding]:
    plain = [port for port, is_encrypted in looked.kernels if not is_encrypted]
    if plain and is_shared:
        yield Finding(
            True,
            f"{len(plain)} of your kernels on {host} talk in the clear on TCP: every user there can read your "
            "code and its output",
            f"start the server with holdfast, which encrypts that: holdfast jupyter {host} --start",
        )
    elif looked.kernels and not plain:
        yield Finding(False, f"your kernels' traffic on {host} is encrypted")


def _of_modes(modes: Iterable[tuple[str, str]], host: str) -> Iterator[Finding]:
    modes = list(modes)
    closed = [f"{path}/" for mode, path in modes if mode.startswith("d") and not _is_open(mode)]
    for mode, path in modes:
        if _is_open(mode) and not path.startswith(tuple(closed)):
            what = "others can look into" if mode.startswith("d") else "others can read the token in"
            right = "700" if mode.startswith("d") else "600"
            command = f"chmod {right} {shlex.quote(path)}"  # for a shell there, and one here
            yield Finding(True, f"{what} {path} on {host} ({mode})", f"ssh {host} {shlex.quote(command)}")


def _is_open(mode: str) -> bool:
    """Whether somebody else may do something, in the words of ls."""
    return bool(mode[4:10].strip("-TS"))


def _programs(sockets: str, programs: str) -> dict[int, str]:
    """The program that has each socket, by its inode, from listings of /proc/PID/fd and of ps."""
    names = dict(line.split(None, 1) for line in _lines(programs) if len(line.split(None, 1)) == 2)
    found: dict[int, str] = {}
    pid = ""
    for line in _lines(sockets):
        if start := re.fullmatch(r"/proc/(\d+)/fd:", line):
            pid = start[1]
        elif inode := re.fullmatch(r"socket:\[(\d+)\]", line):
            found[int(inode[1])] = f"{names.get(pid, 'a program')} (pid {pid})"
    return found


def _names(people: Sequence[str]) -> str:
    shown = ", ".join(people[:3])
    return f"{shown} and {len(people) - 3} others" if len(people) > 3 else shown


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and line.isprintable()]
