"""What an importer finds. Everything that is asked for over there is honoured or remarked upon."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from holdfast.config.reading import Described, listeners
from holdfast.control import check_host, check_name, check_options, default_name
from holdfast.errors import UsageError
from holdfast.forward import Address, Forward, Kind, parse

LONGEST_SHOWN = 60


class Remark(NamedTuple):
    """What a person should know about the import: `place` is a line or a tunnel over there, or ''."""

    place: str
    text: str


class Found(NamedTuple):
    """What a text says: the tunnels, in its order, and what is to be said about them."""

    tunnels: tuple[Described, ...] = ()
    remarks: tuple[Remark, ...] = ()


def describe(tunnel: Described, place: str) -> Found:
    """`tunnel` with names that holdfast takes and exposure allowed where it has it, both remarked upon.

    Raises UsageError for a host or an option that ssh isn't given.
    """
    check_host(tunnel.host)
    check_options(tunnel.options)
    forwards, remarks = _each_once(tunnel.forwards)
    remarks += _of_exposure(forwards)
    remarks += _of_files(tunnel.options)
    name = allowed_name(tunnel.name, tunnel.host)
    groups = [allowed_name(group, "group") for group in tunnel.groups]
    for old, new in zip((tunnel.name, *tunnel.groups), (name, *groups), strict=True):
        if old != new:
            remarks.append(f"'{shortened(old)}' can't be a name here: it becomes {new}")
    settled = tunnel._replace(
        name=name,
        groups=tuple(dict.fromkeys(groups)),
        forwards=tuple(forwards),
        expose=not all(forward.listen.is_loopback for forward in forwards),
    )
    return Found((settled,), tuple(Remark(place, text) for text in remarks))


def ssh_forward(text: str, kind: Kind, *, everywhere: bool) -> Forward:
    """What ssh makes of a -L, -R or -D: an empty address is every one, and so is none with GatewayPorts (-g).

    Raises UsageError.
    """
    forward = parse(f"*{text}" if text.startswith(":") else text, kind)
    is_bare = forward.listen.host == "localhost" and not text.startswith("localhost:")
    if everywhere and is_bare and kind is not Kind.REMOTE:
        return forward._replace(listen=forward.listen._replace(host="*"))
    return forward


def allowed_name(name: str, otherwise: str) -> str:
    """`name`, or what can be made of it, or of `otherwise`, as the name of a tunnel or a group."""
    try:
        return check_name(name)
    except UsageError:
        return default_name(name or otherwise)


def collect(parts: Iterable[Found]) -> Found:
    """All of them as one."""
    whole = list(parts)
    return Found(
        tuple(tunnel for part in whole for tunnel in part.tunnels),
        tuple(remark for part in whole for remark in part.remarks),
    )


def told(remarks: Iterable[Remark]) -> Iterator[str]:
    """A line for each remark, fit to be shown; what is the same in several places is said once, after them all."""
    places: dict[str, list[str]] = {}
    for remark in remarks:
        places.setdefault(_printable(remark.text), []).append(_printable(remark.place))
    for text, where in places.items():
        named = ", ".join(dict.fromkeys(place for place in where if place))
        yield f"{named}: {text}" if named else text


def reason(error: UsageError) -> str:
    """What a remark says of something that isn't taken."""
    return f"{error.message} ({error.hint})" if error.hint else error.message


def shortened(value: object) -> str:
    """A value from a file, fit to be shown: printable, and not too long."""
    text = str(value)
    return _printable(f"{text[:LONGEST_SHOWN]}…" if len(text) > LONGEST_SHOWN else text)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _each_once(forwards: Sequence[Forward]) -> tuple[list[Forward], list[str]]:
    """The forwards that listen where none before them does, and what to say of the others."""
    kept: list[Forward] = []
    remarks: list[str] = []
    taken: set[tuple[bool, Address]] = set()
    for forward in dict.fromkeys(forwards):
        if taken & listeners(forward):
            remarks.append(f"the second forward on {forward.listen} is left out: each needs a port of its own")
        else:
            kept.append(forward)
            taken |= listeners(forward)
    return kept, remarks


def _of_exposure(forwards: Sequence[Forward]) -> Iterator[str]:
    exposed = [forward for forward in forwards if not forward.listen.is_loopback]
    here = [str(forward.listen) for forward in exposed if forward.kind is not Kind.REMOTE]
    if here:
        yield f"other machines can connect to {' and '.join(here)}: expose = true allows that"
    for forward in exposed:
        if forward.kind is Kind.REMOTE:
            yield (
                f"other machines can connect to {forward.listen} over there, where its sshd allows that: "
                "expose = true asks for it"
            )


def _of_files(options: Sequence[str]) -> Iterator[str]:
    for flag, value in zip(options[::2], options[1::2], strict=True):
        if flag in ("-F", "-i") and value != "none" and not value.startswith(("/", "~", "%")):
            yield f"{flag} {shortened(value)} is relative to the folder it was meant for: write the whole path"
