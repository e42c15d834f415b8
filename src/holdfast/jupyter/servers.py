"""The notebook servers that run on the far side, from the files in which they announce themselves. Pure.

The files are read, never `jupyter server list`, which takes 2 s and deletes what other machines with the same home
have written. What a file says counts only if its process lives, and if the kernel says that the listener at its
address is the user's own: nobody else is ever sent a token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from holdfast.errors import UsageError
from holdfast.forward import LONGEST_SOCKET_PATH, Address
from holdfast.openssh.script import sections

# Prints, each behind a word that no JSON file's line can begin with: who the user is there; the files, with their
# process and whether a JupyterHub started it; the certificates that we made, with the process; what listens on TCP
# (/proc/net/tcp, or lsof's fields for one's own where there is no /proc); the Unix sockets that are listened on.
PROGRAM = r"""
uid=$(id -u)
echo "@uid $uid"
echo "@home $(cd && pwd -P)"
seen=:
look() {
    case $seen in *":$1:"*) return;; esac
    seen=$seen$1:
    for file in "$1"/jpserver-*.json "$1"/nbserver-*.json; do
        [ -f "$file" ] && [ -O "$file" ] || continue
        pid=${file##*server-}
        pid=${pid%.json}
        case $pid in *[!0-9]*|'') continue;; esac
        alive=no hub=no
        if [ -d /proc/self ]; then [ -O "/proc/$pid" ] && alive=yes
        else kill -0 "$pid" 2>/dev/null && alive=yes
        fi
        [ $alive = yes ] && grep -qs JUPYTERHUB_SERVICE_PREFIX "/proc/$pid/environ" && hub=yes
        sock=$(sed -n 's/.*"sock": *"\([^"\\]*\)".*/\1/p' "$file")
        own=no
        [ -S "$sock" ] && [ -O "$sock" ] && own=yes
        echo "@server $pid $alive $hub $own"
        head -c 16384 "$file"
        echo
    done
}
for certificate in /tmp/holdfast-????????/cert.pem; do
    [ -f "$certificate" ] && [ -O "$certificate" ] || continue
    echo "@certificate $(cat "${certificate%cert.pem}pid")"
    openssl x509 -in "$certificate" -noout -fingerprint -sha256
done 2>/dev/null
data=${JUPYTER_DATA_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/jupyter}
for directory in "$JUPYTER_RUNTIME_DIR" "$data/runtime" "$HOME/.local/share/jupyter/runtime" \
    "$HOME/Library/Jupyter/runtime" "$XDG_RUNTIME_DIR/jupyter" "/run/user/$uid/jupyter" /tmp/holdfast-*/runtime
do look "$directory"; done
grep -hzs '^JUPYTER_RUNTIME_DIR=' /proc/[0-9]*/environ 2>/dev/null | tr '\0' '\n' | sort -u |
    while IFS= read -r line; do look "${line#*=}"; done
if [ -r /proc/net/tcp ]; then
    echo @tcp
    grep -hs ' 0A ' /proc/net/tcp /proc/net/tcp6
    echo @unix
    grep -hs ' 00010000 0001 01 ' /proc/net/unix
else
    echo @lsof
    lsof -nP -a -u "$uid" -iTCP -sTCP:LISTEN -Fn 2>/dev/null
    echo @lsof-unix
    lsof -nP -a -u "$uid" -U -Fn 2>/dev/null
fi
"""


class Listener(NamedTuple):
    """What listens on a TCP port over there. `inode` is its socket's, 0 where that isn't known."""

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
        """Whether one may stand for the other: the same process, or the same root and base URL."""
        return self.pid == other.pid or (self.directory, self.base_url) == (other.directory, other.base_url)

    def url(self, listen: Address) -> str:
        """Where a browser finds it behind a forward that listens on `listen`; without its token."""
        return f"{'https' if self.secure else 'http'}://{listen}{self.base_url}"


class Found(NamedTuple):
    """`servers` can be used. `gone` files belong to none that runs there; `strange` ones to servers whose address
    is answered by a listener that isn't the user's, or that can't be told to be. `home` is the user's, over there.
    """

    servers: tuple[Server, ...]
    gone: int
    strange: int
    home: str


def read(printed: str) -> Found:
    """What `PROGRAM` found. Whatever in it makes no sense is passed over."""
    parts = list(sections(printed))
    uid = next((int(words[0]) for name, words, _ in parts if name == "uid" and words), -1)
    listeners = tuple(listeners_in(parts, uid))
    unix = _unix_listeners(parts)
    fingerprints = {
        words[0]: fingerprint_in(text) for name, words, text in parts if name == "certificate" and words
    }
    servers: dict[int, Server] = {}
    gone = strange = 0
    for name, words, text in parts:
        if name != "server" or len(words) != 4:
            continue
        pid, alive, hub, own = words
        record = _record(text)
        if record is None or alive != "yes":
            gone += 1
            continue
        place = _place(record, listeners, uid, unix, is_own_socket=own == "yes")
        if place is None:
            strange += 1
            continue
        server = _server(int(pid), place, record, hub=hub == "yes")
        servers[server.pid] = server._replace(fingerprint=fingerprints.get(pid, ""))
    home = next((" ".join(words) for name, words, _ in parts if name == "home"), "")
    return Found(tuple(servers.values()), gone, strange, home)


def fingerprint_in(text: str) -> str:
    """The fingerprint in openssl's words ('sha256 Fingerprint=AB:CD...'), in bare hexadecimal."""
    return text.strip().rpartition("=")[2].replace(":", "").lower()


def successor(notebook: Notebook, place: Address, servers: Iterable[Server]) -> Server | None:
    """Which of `servers` is the one that `notebook` was at `place`, or has taken its place; None when none has.

    The same process, else the same address with the same root, else the newest with that root, those with the same
    base URL first.
    """
    same_root = [server for server in servers if server.directory == notebook.directory]
    for server in same_root:
        if server.pid == notebook.pid:
            return server
    for server in same_root:
        if server.place == place:
            return server
    return max(same_root, key=lambda server: (server.base_url == notebook.base_url, server.pid), default=None)


def matching(servers: Sequence[Server], port: int | None, directory: str) -> list[Server]:
    """Those at `port` and with the root `directory`, or whose root ends with that; None and '': any."""
    wanted = directory.rstrip("/")
    return [
        server
        for server in servers
        if port in (None, server.place.port)
        and (not wanted or server.directory == wanted or server.directory.endswith("/" + wanted.lstrip("~/")))
    ]


Section = tuple[str, list[str], str]


def listeners_in(parts: Iterable[Section], uid: int) -> Iterator[Listener]:
    """The TCP listeners that the sections `tcp` (lines of /proc/net/tcp and tcp6) or `lsof` (fields) tell of."""
    for name, _, text in parts:
        if name == "tcp":
            for line in text.splitlines():
                fields = line.split()
                if len(fields) > 9 and (end := _address(fields[1])):
                    yield Listener(*end, int(fields[7]), int(fields[9]))
        elif name == "lsof":
            for host, port in re.findall(r"^n(\S+):(\d+)$", text, re.MULTILINE):
                yield Listener({"*": "0.0.0.0"}.get(host, host.strip("[]")), int(port), uid)  # noqa: S104


def owner_of(listeners: Iterable[Listener], host: str, port: int) -> int | None:
    """The uid of whoever answers at that address: a listener on it, else one on every address; None: nobody."""
    there = [listener for listener in listeners if listener.port == port]
    wildcards = ("::",) if ":" in host else ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
    for wanted in (host, *wildcards):
        for listener in there:
            if listener.host == wanted:
                return listener.uid
    return None


def _place(
    record: dict[str, Any], listeners: Sequence[Listener], uid: int, unix: set[str], *, is_own_socket: bool
) -> Address | None:
    """Where the server is reached, if the listener there is the user's own."""
    if sock := str(record.get("sock", "")):
        fits = sock.startswith("/") and sock.isprintable() and len(sock.encode()) <= LONGEST_SOCKET_PATH
        return Address(path=sock) if fits and is_own_socket and sock in unix else None
    port = record["port"]
    named = str(record.get("hostname", ""))
    hosts = [named] if re.fullmatch(r"[0-9.]+|[0-9a-fA-F:]+:[0-9a-fA-F:.]*", named) else []
    for host in (*(host for host in hosts if host not in ("0.0.0.0", "::")), "127.0.0.1", "::1"):  # noqa: S104
        if owner_of(listeners, host, port) == uid:
            return Address(host, port)
    return None


def _server(pid: int, place: Address, record: dict[str, Any], *, hub: bool) -> Server:
    base = _shown(record.get("base_url") or "/")
    return Server(
        pid,
        place,
        _shown(record.get("root_dir") or record.get("notebook_dir") or ""),
        f"/{base.strip('/')}/" if base.strip("/") else "/",
        bool(record.get("secure")),
        str(record.get("token") or ""),
        bool(record.get("password")),
        _shown(record.get("version") or ""),
        hub,
    )


def _shown(value: object) -> str:
    """A text that may be shown: without what a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in str(value))


def _record(text: str) -> dict[str, Any] | None:
    """The JSON object in a server's file, if it can be one."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    good = isinstance(record, dict) and type(record.get("port")) is int and 0 <= record["port"] < 65536
    return record if good else None


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


def _unix_listeners(parts: Iterable[Section]) -> set[str]:
    found: set[str] = set()
    for name, _, text in parts:
        if name == "unix":
            found.update(re.findall(r"^(?:\S+ +){6}\d+ (/.*)$", text, re.MULTILINE))
        elif name == "lsof-unix":
            found.update(re.findall(r"^n(/.*)$", text, re.MULTILINE))
    return found
