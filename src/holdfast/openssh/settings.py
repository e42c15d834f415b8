"""What `ssh -G` says of a host, parsed; and from that, what we add where the user's configuration is silent.

`ssh -G` prints one `key value` a line, without quotes. It can't tell a value that the user wrote from ssh's
default, so a setting counts as the user's own when it differs from what `ssh -F none -G` prints.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from holdfast.errors import UsageError
from holdfast.forward import Forward, Kind, parse

# The ciphers that run in hardware where the processor has AES: about twice the speed of ChaCha20, ssh's first
# choice.
_AES_GCM = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")


class Settings:
    """The settings that ssh would use for one host."""

    def __init__(self, text: str) -> None:
        self._values: dict[str, list[str]] = {}
        for line in text.splitlines():
            key, _, value = line.partition(" ")
            self._values.setdefault(key, []).append(value.strip())

    def get(self, key: str) -> str:
        """The first value of `key` (in lower case, as -G prints it), or ''."""
        return self._values.get(key, [""])[0]

    def lacks(self, options: Iterable[str]) -> list[str]:
        """Those of `options` that this ssh doesn't know."""
        return [option for option in options if option.lower() not in self._values]

    @property
    def control_path(self) -> Path | None:
        """Where the user's configuration puts the master's socket, expanded; None when it names none."""
        path = self.get("controlpath")
        return Path(path) if path.startswith("/") else None

    @property
    def proxy_jump(self) -> str:
        """The jump hosts, the nearest first, separated by commas; '' for none."""
        jump = self.get("proxyjump")
        return "" if jump == "none" else jump

    @property
    def first_hop(self) -> str:
        """The machine that this one really connects to: a handshake at a time is asked of each."""
        if self.proxy_jump:
            return self.proxy_jump.partition(",")[0]
        return self.get("proxycommand") or f"{self.get('hostname')}:{self.get('port')}"

    def forward_lines(self, kind: Kind) -> list[str]:
        """The host's own forward lines of this kind, in the form that -L, -R and -D take."""
        lines = self._values.get(f"{kind}forward", [])
        if kind is Kind.DYNAMIC:
            # A LocalForward to a socket is printed as a DynamicForward, too.
            to_sockets = {
                listen
                for listen, _, target in (line.partition(" ") for line in self._values.get("localforward", []))
                if target.startswith("/")
            }
            lines = [line for line in lines if line not in to_sockets]
        return [_as_specification(line) for line in lines]

    def local_forwards(self) -> Iterator[Forward]:
        """The host's own LocalForward lines.

        Raises UsageError for one that holdfast can't open.
        """
        for line in self._values.get("localforward", []):
            try:
                yield parse(_as_specification(line), Kind.LOCAL)
            except UsageError as error:
                raise UsageError(
                    f"'LocalForward {line}' in your ssh configuration: {error.message}", error.hint
                ) from None


def preferences(settings: Settings, baseline: Settings, *, has_aes: bool) -> dict[str, str]:
    """The options we add because the user's configuration leaves them at ssh's defaults (`baseline`)."""

    def is_default(key: str) -> bool:
        return settings.get(key) == baseline.get(key)

    ours: dict[str, str] = {}
    if is_default("serveraliveinterval"):
        # The keeper finds out much earlier. This is for when there is none: as long as TCP itself would try.
        ours["ServerAliveInterval"] = "30"
        if is_default("serveralivecountmax"):
            ours["ServerAliveCountMax"] = "30"
    elif settings.get("serveraliveinterval"):
        # Said again because Debian's BatchMode changes it to 300 behind the user's back.
        ours["ServerAliveInterval"] = settings.get("serveraliveinterval")
    if is_default("connecttimeout"):
        ours["ConnectTimeout"] = "15"
    if is_default("ipqos"):
        # Masters of 7.8 to 10.0 mark everything as scavenger class (CS1), which some networks drop first.
        ours["IPQoS"] = "none"
    ciphers = settings.get("ciphers").split(",")
    if has_aes and is_default("ciphers"):
        first = [cipher for cipher in _AES_GCM if cipher in ciphers]
        ours["Ciphers"] = ",".join(first + [cipher for cipher in ciphers if cipher not in first])
    return ours


def processor_has_aes() -> bool:
    """Whether this machine's processor encrypts AES in hardware; every 64-bit ARM Mac does."""
    if sys.platform == "darwin":
        return True
    try:
        return " aes" in Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False


def _as_specification(line: str) -> str:
    """`8888 [localhost]:8888` as -G prints a LocalForward, in the form that -L takes; SOCKS has no target."""
    listen, _, target = line.partition(" ")
    return _unbracket(listen) if target in ("", "[socks]:0") else f"{_unbracket(listen)}:{_unbracket(target)}"


def _unbracket(address: str) -> str:
    host, bracket, port = address.removeprefix("[").partition("]:")
    if address.startswith("[") and bracket and ":" not in host:
        return f"{host}:{port}"
    return address
