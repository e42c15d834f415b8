"""The notebook servers that run on the far side, from the files in which they announce themselves. Pure.

The files are read, never `jupyter server list`, which takes 2 s and deletes what other machines with the same home
have written. What a file says counts only if its process lives, and if the kernel says that the listener at its
address is the user's own: nobody else is ever sent a token.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from holdfast.errors import UsageError
from holdfast.forward import LONGEST_SOCKET_PATH, Address
from holdfast.openssh.script import assign, sections

# For all programs: whether a directory or a file is the user's own and no link to anything else, since others can
# put what they like into /tmp; the directories of starts (launch.py); those in which servers announce themselves,
# also where only their own environment names them; and where a path that a person named is.
COMMON = r"""
is_own_directory() { [ -d "$1" ] && [ ! -h "$1" ] && [ -O "$1" ]; }
is_own_file() { [ -f "$1" ] && [ ! -h "$1" ] && [ -O "$1" ]; }
starts() {
    for start in /tmp/holdfast-????????; do is_own_directory "$start" && put "$start"; done
}
runtime_directories() {
    {
        put "$JUPYTER_RUNTIME_DIR"
        put "${JUPYTER_DATA_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/jupyter}/runtime"
        put "$HOME/.local/share/jupyter/runtime"
        put "$HOME/Library/Jupyter/runtime"
        put "$XDG_RUNTIME_DIR/jupyter"
        put "/run/user/$(id -u)/jupyter"
        grep -hzs '^JUPYTER_RUNTIME_DIR=' /proc/[0-9]*/environ 2>/dev/null | tr '\0' '\n' | sed 's/^[^=]*=//'
        starts | while IFS= read -r start; do is_own_directory "$start/runtime" && put "$start/runtime"; done
    } | sort -u | while IFS= read -r directory; do
        [ -d "$directory" ] && [ -O "$directory" ] && put "$directory"
    done
}
pid_of() {
    is_own_file "$1/pid" || return
    pid=$(cat "$1/pid")
    case $pid in *[!0-9]*|'') return 1;; esac
    put "$pid"
}
placed() {
    case $1 in
        '') put "$HOME";;
        '~') put "$HOME";;
        '~/'*) put "$HOME/${1#'~/'}";;
        /*) put "$1";;
        *) put "$HOME/$1";;
    esac
}
"""

# Tells, a part each: who the user is there; the files, with their process, whether it lives, the base URL of a
# JupyterHub in its environment, whether its socket is the user's, and the inodes of all its sockets (where there
# is no /proc: its pid, negative); the certificates that we made; the listeners on TCP, as /proc/net/tcp or lsof
# has them; the Unix sockets that are listened on.
PROGRAM = (
    COMMON
    + r"""
uid=$(id -u)
tell "uid $uid"
tell "home $(cd && pwd -P)"
look() {
    for file in "$1"/jpserver-*.json "$1"/nbserver-*.json; do
        is_own_file "$file" || continue
        pid=${file##*server-}
        pid=${pid%.json}
        case $pid in *[!0-9]*|'') continue;; esac
        alive=no hub='' own=no sockets=-$pid
        if [ -d /proc/self ]; then
            if [ -O "/proc/$pid" ]; then
                case $(cat "/proc/$pid/stat") in *') Z '*) ;; *) alive=yes;; esac
                hub=$(tr '\0' '\n' <"/proc/$pid/environ" | sed -n 's/^JUPYTERHUB_SERVICE_PREFIX=//p')
                sockets=$(ls -l "/proc/$pid/fd" | sed -n 's/.*socket:\[\([0-9]*\)\]$/\1/p' | tr '\n' ' ')
            fi
        else kill -0 "$pid" && alive=yes
        fi
        sock=$(sed -n 's/.*"sock": *"\([^"\\]*\)".*/\1/p' "$file")
        [ -S "$sock" ] && [ -O "$sock" ] && own=yes
        tell "server $pid $alive ${hub:-no} $own $sockets"
        head -c 16384 "$file"
        echo
    done
} 2>/dev/null
runtime_directories | while IFS= read -r directory; do look "$directory"; done
starts | while IFS= read -r start; do
    is_own_file "$start/cert.pem" && pid=$(pid_of "$start") || continue
    tell "certificate $pid"
    openssl x509 -in "$start/cert.pem" -noout -fingerprint -sha256 2>/dev/null
done
wanted() {
    runtime_directories | while IFS= read -r directory; do
        for file in "$directory"/jpserver-*.json "$directory"/nbserver-*.json; do
            is_own_file "$file" && sed -n "s/.*\"$1\": *\"\{0,1\}\([^\"\\\\,]*\).*/\\1/p" "$file"
        done
    done | sort -u
}
if [ -r /proc/net/tcp ]; then
    tell tcp
    # All of the user's own, and of strangers', who may have very many, what could be taken for a server in a file.
    PORTS=$(wanted port) awk -v uid="$uid" '
        BEGIN {
            for (count = split(ENVIRON["PORTS"], all, "\n"); count; count--) wanted[sprintf("%04X", all[count])]
        }
        $4 != "0A" { next }
        { port = $2; sub(/.*:/, "", port); host = $2; sub(/:.*/, "", host); sub(/^0+/, "", host) }
        $8 == uid { print; next }
        (port in wanted) && (host == "" || host ~ /^(FFFF00000)?100007F$|^1000000$/) && seen[$2]++ < 3 { print }
    ' /proc/net/tcp /proc/net/tcp6 2>/dev/null
    tell unix
    PATHS=$(wanted sock) awk '
        BEGIN { for (count = split(ENVIRON["PATHS"], all, "\n"); count; count--) wanted[all[count]] }
        $4 == "00010000" && $6 == "01" {
            path = $0
            for (count = 7; count; count--) sub(/^[^ ]+ +/, "", path)
            if (path in wanted && seen[$7]++ < 3) print
        }
    ' /proc/net/unix
else
    tell lsof
    lsof -nP -a -u "$uid" -iTCP -sTCP:LISTEN -Fpn 2>/dev/null
    tell lsof-unix
    lsof -nP -a -u "$uid" -U -Fpn 2>/dev/null
fi
"""
)


def program_for(directory: str) -> str:
    """PROGRAM, which also tells what the directory that a person named is called over there."""
    resolve = r"""
tell "directory $(cd "$(placed "$wanted")" 2>/dev/null && pwd -P)"
"""
    return assign(wanted=directory) + PROGRAM + resolve


class Listener(NamedTuple):
    """What listens on a TCP port over there. `inode` is its socket's, or its process's negative pid."""

    host: str
    port: int
    uid: int
    inode: int = 0


class Server(NamedTuple):
    """A notebook server that runs. `place` is where it is reached from the far side itself.

    `directory` is its root; `version` is '' before Jupyter Server; `hub`: a JupyterHub started it; `fingerprint`
    is that of the certificate that we made for it (SHA-256, in hexadecimal), or ''.
    """

    pid: int
    place: Address
    directory: str
    base_url: str
    secure: bool
    token: str
    password: bool
    version: str
    hub: bool
    fingerprint: str = ""

    @property
    def option(self) -> str:
        """The option by which `holdfast jupyter` is told that this one is meant."""
        return f"--port {self.place.port}" if self.place.port else f"--dir {shlex.quote(self.directory)}"

    @property
    def kept(self) -> Notebook:
        """What is remembered of it: never its token."""
        return Notebook(self.pid, self.directory, self.base_url, self.secure, self.version)


class Notebook(NamedTuple):
    """The server that a forward leads to, as it was last seen."""

    pid: int
    directory: str
    base_url: str
    secure: bool
    version: str

    def encode(self) -> dict[str, str]:
        """As it is sent and saved."""
        return {**self._asdict(), "pid": str(self.pid), "secure": "yes" if self.secure else ""}

    @classmethod
    def decode(cls, fields: dict[str, str]) -> Notebook:
        """What `encode` made. Raises UsageError for anything else."""
        base = fields.get("base_url", "")
        whole = fields.keys() == set(cls._fields) and fields["pid"].isdecimal() and len(fields["pid"]) < 12
        if not whole or not base.startswith("/") or not base.isprintable():
            raise UsageError(f"{str(fields)[:60]!r} is not a notebook")
        return cls(int(fields["pid"]), fields["directory"], base, bool(fields["secure"]), fields["version"])

    def is_like(self, other: Notebook) -> bool:
        """Whether one may take the other's place: the same root and base URL."""
        return (self.directory, self.base_url) == (other.directory, other.base_url)

    def url(self, listen: Address) -> str:
        """Where a browser finds it behind a forward that listens on `listen`; without its token."""
        return f"{'https' if self.secure else 'http'}://{listen}{self.base_url}"


class Found(NamedTuple):
    """`servers` can be used. `gone` files belong to none that runs there; at the address in a `strange` one
    somebody listens who isn't that server. `home` is the user's, over there; `directory` is what was asked for.
    """

    servers: tuple[Server, ...]
    gone: int
    strange: int
    home: str
    directory: str = ""


def read(printed: str) -> Found:
    """What `PROGRAM` found. Whatever in it makes no sense is passed over."""
    parts = list(sections(printed))
    uid = next((number(words[0]) for name, words, _ in parts if name == "uid" and words), NOBODY)
    listeners = tuple(listeners_in(parts, uid))
    unix = tuple(_unix_listeners(parts))
    fingerprints = {
        words[0]: fingerprint_in(text) for name, words, text in parts if name == "certificate" and words
    }
    servers: dict[int, Server] = {}
    gone = strange = 0
    for name, words, text in parts:
        if name != "server" or len(words) < 4:
            continue
        pid, alive, hub, own, *sockets = words
        record = _record(text)
        if record is None or alive != "yes":
            gone += 1
            continue
        inodes = {number(inode) for inode in sockets if inode}
        if record["sock"]:
            place = _path(record["sock"], unix, inodes) if own == "yes" else None
        else:
            place = _port(record, listeners, uid, inodes)
        if place is None:
            is_answered = (
                any(path == record["sock"] for path, _ in unix)
                if record["sock"]
                else any(one.port == record["port"] for one in listeners)
            )
            strange, gone = strange + is_answered, gone + (not is_answered)
            continue
        if (known := number(pid)) == NOBODY:
            continue
        server = _server(known, place, record, hub)
        servers[server.pid] = server._replace(fingerprint=fingerprints.get(pid, ""))
    home, directory = (
        next((" ".join(words) for name, words, _ in parts if name == wanted), "")
        for wanted in ("home", "directory")
    )
    # A person looks for a directory; in the files' order a pid of four digits may come after one of five.
    found = sorted(servers.values(), key=lambda server: (server.directory, str(server.place)))
    return Found(tuple(found), gone, strange, home, directory)


def fingerprint_in(text: str) -> str:
    """The fingerprint in openssl's words ('sha256 Fingerprint=AB:CD...'), in bare hexadecimal."""
    return text.strip().rpartition("=")[2].replace(":", "").lower()


def same(notebook: Notebook, place: Address, servers: Iterable[Server]) -> Server | None:
    """Which of `servers` is what `notebook` was at `place`: the same process, or the same address and root."""
    same_root = [server for server in servers if server.directory == notebook.directory]
    first = [server for server in same_root if server.pid == notebook.pid]
    second = [server for server in same_root if server.place == place]
    return next(iter((*first, *second)), None)


def successor(notebook: Notebook, servers: Iterable[Server]) -> Server | None:
    """Which of `servers` has taken the place of `notebook`, which is gone; None when none has.

    The newest with its root, those with the same base URL first.
    """
    same_root = [server for server in servers if server.directory == notebook.directory]
    return max(same_root, key=lambda server: (server.base_url == notebook.base_url, server.pid), default=None)


def matching(servers: Sequence[Server], port: int | None, directory: str) -> list[Server]:
    """Those at `port` and with the root `directory`, or whose root ends with that; None and '': any."""
    wanted = directory.rstrip("/") or directory
    return [
        server
        for server in servers
        if port in (None, server.place.port)
        and (
            not wanted or server.directory == wanted or server.directory.endswith("/" + wanted.removeprefix("~/"))
        )
    ]


Section = tuple[str, list[str], str]
# No uid, pid or inode.
NOBODY = -(10**18)
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


def listeners_in(parts: Iterable[Section], uid: int) -> Iterator[Listener]:
    """The TCP listeners that the parts `tcp` (lines of /proc/net/tcp and tcp6) or `lsof` (its fields) tell of."""
    for name, _, text in parts:
        if name == "tcp":
            for line in text.splitlines():
                fields = line.split()
                if len(fields) > 9 and (end := _address(fields[1])):
                    yield Listener(*end, number(fields[7]), number(fields[9]))
        elif name == "lsof":
            for pid, value in _lsof(text):
                if found := re.fullmatch(r"(\S+):(\d{1,5})", value):
                    host = {"*": "0.0.0.0"}.get(found[1], found[1].strip("[]"))  # noqa: S104 - told, not bound
                    yield Listener(host, int(found[2]), uid, -pid)


def listener_at(listeners: Iterable[Listener], host: str, port: int) -> Listener | None:
    """Who answers at that address: a listener on it, else one on every address; None: nobody."""
    there = [listener for listener in listeners if listener.port == port]
    wildcards = ("::",) if ":" in host else ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
    for wanted in (host, *wildcards):
        for listener in there:
            if listener.host == wanted:
                return listener
    return None


def _port(record: dict[str, Any], listeners: Sequence[Listener], uid: int, inodes: set[int]) -> Address | None:
    """Where a server on TCP, which has the sockets `inodes`, is reached."""
    named = record["hostname"]
    is_literal = re.fullmatch(r"[0-9.]+|[0-9a-fA-F:]+:[0-9a-fA-F:.]*", named) and named not in _EVERYWHERE
    for host in (*([named] if is_literal else []), "127.0.0.1", "::1"):
        found = listener_at(listeners, host, record["port"])
        if found is not None and found.uid == uid and found.inode in inodes:
            return Address("::1" if found.host == "::" else host, record["port"])
    return None


def _path(sock: str, unix: Iterable[tuple[str, int]], inodes: set[int]) -> Address | None:
    """Where a server on a Unix socket is reached; the socket there is known to be the user's own."""
    fits = sock.startswith("/") and sock.isprintable() and len(sock.encode()) <= LONGEST_SOCKET_PATH
    is_listening = any(path == sock and inode in inodes for path, inode in unix)
    return Address(path=sock) if fits and is_listening else None


def _server(pid: int, place: Address, record: dict[str, Any], hub: str) -> Server:
    base = _shown(record["base_url"]).strip("/")
    url = f"/{base}/" if base else "/"
    directory = _shown(record["root_dir"] or record["notebook_dir"])
    version = _shown(record["version"])
    is_hub = hub.startswith("/") and hub.strip("/") == base != ""
    return Server(
        pid, place, directory, url, record["secure"], record["token"], record["password"], version, is_hub
    )


def _shown(text: str) -> str:
    """A text that may be shown: without what a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _record(text: str) -> dict[str, Any] | None:
    """What a server's file says, whole and of the right types, or None. A token with spaces around it has none."""
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(read, dict) or type(read.get("port")) is not int or not 0 <= read["port"] < 65536:
        return None
    words = ("base_url", "hostname", "root_dir", "notebook_dir", "sock", "token", "version")
    record: dict[str, Any] = {name: read.get(name) or "" for name in words}
    if not all(isinstance(word, str) for word in record.values()):
        return None
    record["token"] = record["token"].strip()
    if not (record["token"].isascii() and record["token"].isprintable()):
        return None
    return {**record, "port": read["port"], **{name: bool(read.get(name)) for name in ("secure", "password")}}


def number(text: str) -> int:
    """The number that `text` is; NOBODY when it is none."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII) else NOBODY


def _lsof(text: str) -> Iterator[tuple[int, str]]:
    """The process and name of each file in lsof's fields (-F pn)."""
    pid = 0
    for line in text.splitlines():
        if line.startswith("p"):
            pid = number(line[1:])
        elif line.startswith("n"):
            yield pid, line[1:]


def _address(text: str) -> tuple[str, int] | None:
    """The host and port that /proc/net/tcp writes as hexadecimal words in the machine's (little-endian) order."""
    import ipaddress

    address, _, port = text.partition(":")
    try:
        raw = bytes.fromhex(address)
        ordered = b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))
        host = ipaddress.ip_address(ordered)
        if isinstance(host, ipaddress.IPv6Address) and host.ipv4_mapped:
            host = host.ipv4_mapped
        return str(host), int(port, 16)
    except ValueError:
        return None


def _unix_listeners(parts: Iterable[Section]) -> Iterator[tuple[str, int]]:
    """The path and inode of each."""
    for name, _, text in parts:
        if name == "unix":
            for inode, path in re.findall(r"^(?:\S+ +){6}(\d{1,18}) (/.*)$", text, re.MULTILINE):
                yield path, int(inode)
        elif name == "lsof-unix":
            yield from ((value, -pid) for pid, value in _lsof(text))
