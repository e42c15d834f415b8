"""What sshtunnel's arguments mean to ssh: the options and forwards they stand for, or why they can't be had."""

from __future__ import annotations

import logging
import os
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.forward import Address, Forward, parse

SSH_CONFIG_FILE = "~/.ssh/config"

_KEY_FILES = ("id_rsa", "id_ecdsa", "id_ed25519")
_DEPRECATED = {
    "ssh_address": "ssh_address_or_host",
    "ssh_host": "ssh_address_or_host",
    "ssh_private_key": "ssh_pkey",
    "raise_exception_if_any_forwarder_have_a_problem": "mute_exceptions",
}

# A host and a port, or the path of a Unix socket.
Place = tuple[str, int] | str
File = str | os.PathLike[str]


class BaseSSHTunnelForwarderError(HoldfastError):
    """The tunnel can't be had. `value` says why, and what to try."""

    def __init__(self, value: str = "", hint: str = "") -> None:
        super().__init__(value, hint)
        self.value = f"{value} ({hint})" if hint else value

    def __str__(self) -> str:
        return self.value


class HandlerSSHTunnelForwarderError(BaseSSHTunnelForwarderError):
    """The tunnel is there, and leads nowhere."""


class ArgumentRefused(BaseSSHTunnelForwarderError, ValueError):
    """An argument that makes no sense, or that ssh can't use. sshtunnel raises ValueError for the former."""


def replaced(value: Any, old: str, given: dict[str, Any]) -> Any:
    """`value`, or what was given by the argument's old name. Raises ArgumentRefused where both are."""
    if old not in given:
        return value
    new = _DEPRECATED[old]
    warnings.warn(f"'{old}' is DEPRECATED use '{new}' instead", DeprecationWarning, stacklevel=3)
    if value:
        raise ArgumentRefused(f"You can't use both '{old}' and '{new}'. Please only use one of them")
    return given.pop(old)


def host_and_port(place: object, port: int | str | None) -> tuple[str, int | None]:
    """The gateway's; no port where ssh's configuration says. Raises ArgumentRefused.

    `port` may be text, as sshtunnel has it: programs take it from their environment.
    """
    if isinstance(port, str) and (port.isdecimal() or not port):
        port = int(port) if port else None
    if isinstance(place, tuple) and len(place) == 2:
        place, port = place
    if not isinstance(place, str) or not isinstance(port, int | None):
        raise ArgumentRefused(f"{place!r} is not a gateway", "as in 'lab', or ('lab', 22)")
    return place, port


def places(side: str, one: Any, several: Sequence[Any] | None) -> list[Place]:
    """The addresses of one `side`, which is 'local' or 'remote'. Raises ArgumentRefused."""
    if one and several:
        raise ArgumentRefused(
            f"You can't use both '{side}_bind_address' and '{side}_bind_addresses' arguments. Use one of them."
        )
    found = [one] if one else list(several or ())
    if not found and side == "remote":
        raise ArgumentRefused(
            "No remote bind addresses specified. Use 'remote_bind_address' or 'remote_bind_addresses' argument"
        )
    return [_place(side, place) for place in found]


def _place(side: str, place: object) -> Place:
    match place:
        case str() if "/" in place:
            return str(Path(place).absolute()) if side == "local" else place
        case (str() as host,) if side == "local":
            return host, 0
        case (str() as host, int() as port):
            return host, port
    raise ArgumentRefused(
        f"{place!r} is not a {side} address", "write it as ('127.0.0.1', 5432), or '/run/x.sock'"
    )


def forwards(local: Sequence[Place], remote: Sequence[Place]) -> list[Forward]:
    """The forwards from the first to the second. Raises UsageError."""
    return [parse(f"{_written(here)}:{_written(there)}") for here, there in zip(local, remote, strict=True)]


def _written(place: Place) -> str:
    """The place as holdfast writes it; a listening address that is left out is loopback's."""
    if isinstance(place, str):
        return place.replace(":", "\\:")
    host, port = place
    return str(Address(host, port)) if host else str(port)


def specification(forward: Forward) -> str:
    """The forward as `holdfast up` takes it, as short as can be."""
    _, listen, target = forward
    if listen.host == "localhost" and target and target.host == "127.0.0.1":
        return f"{listen.port}:{target.port}"
    return ":".join(_written(end.path) if end.path else str(end) for end in (listen, target) if end)


def config_options(file: File | None, logger: logging.Logger) -> list[str]:
    """For another configuration file than ssh's own, or for none. One that isn't there counts as none."""
    if file == SSH_CONFIG_FILE:
        return []
    if not file:
        return ["-F", "none"]
    path = Path(file).expanduser()
    if path.is_file():
        return ["-F", str(path.absolute())]
    logger.warning("Could not read SSH configuration file: %s", file)
    return ["-F", "none"]


def key_files(key: object, folders: Sequence[File] | None, logger: logging.Logger) -> list[str]:
    """The files with keys that are there: the one that was named, and those in the folders.

    Raises ArgumentRefused for a key that is an object.
    """
    if key and not isinstance(key, str | os.PathLike):
        raise ArgumentRefused(
            f"ssh_pkey can't be a {type(key).__name__}: ssh takes keys from files and agents only",
            "name its file; or put it in the agent, and leave ssh_pkey out: ssh-add KEYFILE",
        )
    found = [Path(key)] if isinstance(key, str | os.PathLike) and key else []
    if found and not found[0].expanduser().is_file():
        logger.warning("Private key file not found: %s", key)
    found += [Path(folder) / name for folder in folders or () for name in _KEY_FILES]
    return [str(path.absolute()) for path in (path.expanduser() for path in found) if path.is_file()]


def proxy_options(proxy: Any, host: str, port: int | None, *, enabled: bool) -> list[str]:
    """For a command, a paramiko.ProxyCommand, or the address to connect to instead. Raises ArgumentRefused."""
    if not enabled:
        return ["-o", "ProxyCommand=none"]
    if not proxy:
        return []
    words = getattr(proxy, "cmd", None)
    if isinstance(words, list):  # paramiko's: it runs already, and its command has the names put in
        proxy.close()
        proxy = shlex.join(words).replace("%", "%%")
    if isinstance(proxy, str):
        return ["-o", f"ProxyCommand={proxy}"]
    if isinstance(proxy, tuple) and len(proxy) == 2:
        known_as = host if port in (None, 22) else f"[{host}]:{port}"
        return ["-o", f"HostName={proxy[0]}", "-o", f"Port={proxy[1]}", "-o", f"HostKeyAlias={known_as}"]
    raise ArgumentRefused(
        f"ssh_proxy can't be a {type(proxy).__name__}: ssh makes its connections itself",
        "give the command, as in ssh_proxy='nc -X connect -x proxy:3128 %h %p'; or ProxyJump in ~/.ssh/config",
    )


def check_secrets(*, password: object, passphrase: object, host_key: object, key: str, host: str, up: str) -> None:
    """Raises ArgumentRefused for each that is given: ssh takes none from a program.

    `key` is the key's file, `up` the command with which a person logs in to `host`.
    """
    if passphrase or (password and key):
        name = "ssh_private_key_password" if passphrase else "ssh_password"
        raise ArgumentRefused(
            f"{name} can't be used: ssh takes no passphrase from a program",
            f"put the key in the agent once, and leave it out: ssh-add {shlex.quote(key or 'KEYFILE')}",
        )
    if password:
        raise ArgumentRefused(
            "ssh_password can't be used: ssh takes no password from a program",
            f"leave it out, and use a key: ssh-copy-id {host}; or log in once, in a terminal: {up}",
        )
    if host_key:
        raise ArgumentRefused(
            "ssh_host_key can't be used: ssh compares the host's key with ~/.ssh/known_hosts",
            f"leave it out, and put the key there once: ssh {host}",
        )
