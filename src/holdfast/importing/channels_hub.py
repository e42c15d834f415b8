"""The configuration of ssh-channels-hub (github.com/maoXyzt/ssh-channels-hub), as of 0.6, and as it was up to 0.2.

From 0.3 on a channel names a host of ssh_config and has two ends; before, it named one of the file's own `hosts`.
"""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.config.reading import Described
from holdfast.errors import UsageError
from holdfast.forward import Address, Forward, Kind, build, parse_address
from holdfast.importing import tables
from holdfast.importing.found import Found, Remark, collect, describe, reason, shortened
from holdfast.importing.tables import Table

_KEYS = ("ssh_config", "channels", "auth", "reconnection", "web", "hosts")
_CHANNEL_KEYS = ("name", "hostname", "direction", "local", "remote")
_OLD_CHANNEL_KEYS = ("name", "hostname", "channel_type", "ports", "dest_host", "listen_host")
_HOST_KEYS = ("name", "host", "port", "username", "auth")
_AUTH_KEYS = ("type", "password", "key_path", "passphrase")
_DIRECTIONS = {"local->remote": Kind.LOCAL, "remote->local": Kind.REMOTE}
_TYPES = {"direct-tcpip": Kind.LOCAL, "forwarded-tcpip": Kind.REMOTE}

_PASSWORD = "passwords aren't kept in files here: log in once with holdfast up in a terminal, or use a key"  # noqa: S105
_PASSPHRASE = "passphrases aren't kept in files here: ssh-add the key, or give it to holdfast up in a terminal"  # noqa: S105


def read(text: str) -> Found:
    """The tunnels of ssh-channels-hub's configuration; what can't be taken is remarked upon."""
    try:
        document = tables.parse(text)
        channels, hosts = tables.entries(document, "channels"), tables.entries(document, "hosts")
        remarks = (*_asides(document), *(remark for host in hosts for remark in _asides_of_host(host)))
        config = tables.word(document, "ssh_config", "")
    except UsageError as error:
        return Found(remarks=(Remark("", reason(error)),))
    known = {str(host.get("name")): host for host in hosts}
    options = ("-F", config) if config else ()
    parts = [_tunnel(channel, number, known, options) for number, channel in enumerate(channels, 1)]
    return collect([Found(remarks=remarks), *parts])


def _asides(document: Table) -> Iterator[Remark]:
    yield from tables.unknown(document, _KEYS, "")
    if "reconnection" in document:
        yield Remark("reconnection", "left out: holdfast goes on trying, with delays of its own")
    if "web" in document:
        yield Remark("web", "left out: holdfast status, or holdfast ui, is the page")
    for alias, secrets in tables.table(document, "auth").items():
        place = f"auth.{shortened(alias)}"
        yield from _asides_of_secrets(secrets, ("password", "passphrase"), place)


def _asides_of_host(host: Table) -> Iterator[Remark]:
    place = f"host {shortened(host.get('name', '?'))}"
    yield from tables.unknown(host, _HOST_KEYS, place)
    yield from _asides_of_secrets(host.get("auth", {}), _AUTH_KEYS, place)


def _asides_of_secrets(secrets: object, known: tuple[str, ...], place: str) -> Iterator[Remark]:
    if not isinstance(secrets, dict):
        yield Remark(place, "left out: it is not a table")
        return
    yield from tables.unknown(secrets, known, place)
    if "password" in secrets:
        yield Remark(place, _PASSWORD)
    if "passphrase" in secrets:
        yield Remark(place, _PASSPHRASE)


def _tunnel(channel: Table, number: int, hosts: dict[str, Table], options: tuple[str, ...]) -> Found:
    """`hosts` are the file's own, up to 0.2; it has none where those of ssh_config are meant."""
    place = shortened(channel.get("name") or f"channel {number}")
    known = _CHANNEL_KEYS if "direction" in channel else _OLD_CHANNEL_KEYS
    remarks = tuple(tables.unknown(channel, known, place))
    try:
        host, more = _host(tables.word(channel, "hostname"), hosts)
        forward = _forward(channel) if "direction" in channel else _old_forward(channel)
        tunnel = Described(tables.word(channel, "name"), host, (forward,), options=(*options, *more))
        return collect([Found(remarks=remarks), describe(tunnel, place)])
    except UsageError as error:
        return Found(remarks=(*remarks, Remark(place, f"not taken: {reason(error)}")))


def _host(name: str, hosts: dict[str, Table]) -> tuple[str, tuple[str, ...]]:
    """Where ssh is to go, and with which options. Raises UsageError."""
    if not hosts:
        return name, ()
    if name not in hosts:
        raise UsageError(f"there is no host '{shortened(name)}' in the file")
    found = hosts[name]
    auth = tables.table(found, "auth")
    key = tables.word(auth, "key_path", "")
    user, host = tables.word(found, "username", ""), tables.word(found, "host")
    options = (*tables.port(found, "port"), *(("-i", key) if key else ()))
    return f"{user}@{host}" if user else host, options


def _forward(channel: Table) -> Forward:
    """As it is written from 0.3 on. Raises UsageError."""
    direction = tables.word(channel, "direction")
    if direction not in _DIRECTIONS:
        raise UsageError(f"its direction is '{shortened(direction)}'", "local->remote or remote->local")
    kind = _DIRECTIONS[direction]
    ends = [tables.word(channel, key).strip() for key in ("local", "remote")]
    return _between(kind, *(_end("", end) if end.isdecimal() else _tcp(end) for end in ends))


def _old_forward(channel: Table) -> Forward:
    """As it was written up to 0.2: `ports` has ours first, in both directions. Raises UsageError."""
    kind = tables.word(channel, "channel_type", "direct-tcpip")
    if kind not in _TYPES:
        raise UsageError(f"its channel_type is '{shortened(kind)}', which forwards nothing")
    ours, colon, theirs = tables.word(channel, "ports").partition(":")
    if not colon:
        raise UsageError(f"its ports are '{shortened(ours)}'", "as in 3306:3306")
    destination = tables.word(channel, "dest_host", "")
    if _TYPES[kind] is Kind.REMOTE:
        return _between(Kind.REMOTE, _end(destination, ours), _end("", theirs))
    return _between(Kind.LOCAL, _end(tables.word(channel, "listen_host", ""), ours), _end(destination, theirs))


def _between(kind: Kind, here: Address, there: Address) -> Forward:
    """Where no host is named, loopback is meant: as everywhere here, both addresses of it where it listens."""
    listen, target = (here, there) if kind is Kind.LOCAL else (there, here)
    listen = listen._replace(host=listen.host or "localhost")
    target = target._replace(host=target.host or "127.0.0.1")
    return build(kind, listen, target, f"{listen} -> {target}")


def _end(host: str, port: str) -> Address:
    """`host` may be '', for the one that is usual."""
    return _tcp(f"{host}:{port}") if host else _tcp(f"localhost:{port}")._replace(host="")


def _tcp(text: str) -> Address:
    """Raises UsageError; ssh-channels-hub forwards no sockets."""
    address = parse_address(text)
    if address.path:
        raise UsageError(f"'{shortened(text)}' is no port", "as in 3306 or db.internal:5432")
    return address
