"""The grammar of a forward: what is accepted, what it means, and what is said of the rest."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import Exit, UsageError
from holdfast.forward import LONGEST_SOCKET_PATH, LONGEST_SPEC, Address, Forward, Kind, parse, parse_address

HERE = Address("localhost", 8888)
THERE = Address("127.0.0.1", 8888)
SOCKET = Address(path="/run/x.sock")


@pytest.mark.parametrize(
    ("text", "listen", "target"),
    [
        ("8888", HERE, THERE),
        ("localhost:8888", HERE, THERE),
        ("9999:8888", Address("localhost", 9999), THERE),
        ("0:8888", Address("localhost", 0), THERE),
        ("1:65535", Address("localhost", 1), Address("127.0.0.1", 65535)),
        ("08888", HERE, THERE),
        ("8888:localhost:8888", HERE, Address("localhost", 8888)),
        ("5432:db:5432", Address("localhost", 5432), Address("db", 5432)),
        ("5432:db.example.com:5432", Address("localhost", 5432), Address("db.example.com", 5432)),
        ("5432:10.0.0.7:5432", Address("localhost", 5432), Address("10.0.0.7", 5432)),
        ("80:bücher.example:80", Address("localhost", 80), Address("bücher.example", 80)),
        ("8888:[::1]:8888", HERE, Address("::1", 8888)),
        ("8888:[2001:DB8:0::1]:80", HERE, Address("2001:db8::1", 80)),
        ("8888:[fe80::1%eth0]:80", HERE, Address("fe80::1%eth0", 80)),
        ("127.0.0.1:8888:db:80", Address("127.0.0.1", 8888), Address("db", 80)),
        ("[::1]:8888:localhost:8888", Address("::1", 8888), Address("localhost", 8888)),
        ("[::1]:8888:[::1]:80", Address("::1", 8888), Address("::1", 80)),
        ("*:8888:db:80", Address("*", 8888), Address("db", 80)),
        ("0.0.0.0:0:db:80", Address("0.0.0.0", 0), Address("db", 80)),
        ("8888:/run/x.sock", HERE, SOCKET),
        ("127.0.0.1:8888:/run/x.sock", Address("127.0.0.1", 8888), SOCKET),
        ("[::1]:8888:/run/x.sock", Address("::1", 8888), SOCKET),
        ("/run/x.sock:8888", SOCKET, THERE),
        ("/run/x.sock:db:80", SOCKET, Address("db", 80)),
        ("/run/x.sock:[::1]:80", SOCKET, Address("::1", 80)),
        ("/run/x.sock:/run/y z.sock", SOCKET, Address(path="/run/y z.sock")),
        (r"8888:/run/a\:b.sock", HERE, Address(path="/run/a:b.sock")),
        ("8888:/run/ü'\"$(x).sock", HERE, Address(path="/run/ü'\"$(x).sock")),
    ],
)
def test_a_local_forward_means(text: str, listen: Address, target: Address) -> None:
    assert parse(text) == Forward(Kind.LOCAL, listen, target)


@pytest.mark.parametrize(
    ("text", "listen", "target"),
    [
        ("8888", HERE, None),
        ("0", Address("localhost", 0), None),
        ("*:8888", Address("*", 8888), None),
        ("/run/x.sock", SOCKET, None),
        ("0:8888", Address("localhost", 0), THERE),
        ("0:localhost:80", Address("localhost", 0), Address("localhost", 80)),
        ("10.0.0.7:8888:db:80", Address("10.0.0.7", 8888), Address("db", 80)),
        ("/run/x.sock:/run/y.sock", SOCKET, Address(path="/run/y.sock")),
    ],
)
def test_a_remote_forward_means(text: str, listen: Address, target: Address | None) -> None:
    assert parse(text, Kind.REMOTE) == Forward(Kind.REMOTE, listen, target)


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("1080", Address("localhost", 1080)),
        ("0", Address("localhost", 0)),
        ("127.0.0.1:1080", Address("127.0.0.1", 1080)),
        ("[::1]:1080", Address("::1", 1080)),
        ("*:1080", Address("*", 1080)),
    ],
)
def test_a_dynamic_forward_means(text: str, listen: Address) -> None:
    assert parse(text, Kind.DYNAMIC) == Forward(Kind.DYNAMIC, listen, None)


# What is wrong, and a part of what is said about it.
BAD = [
    ("", "is empty"),
    ("8" * (LONGEST_SPEC + 1), f"{LONGEST_SPEC + 1} characters long"),
    ("8888\n", "can't be printed"),
    ("88\x0088", "can't be printed"),
    ("\x1b[2J8888", "can't be printed"),
    ("8888:/run/\ud800", "can't be printed"),
    ("0", "port 0 can't be a target"),
    ("8888:0", "port 0 can't be a target"),
    ("8888:db:0", "port 0 can't be a target"),
    ("/run/x.sock:0", "port 0 can't be a target"),
    ("65536", "'65536'"),
    ("8888:65536", "'65536'"),
    ("65536:db:80", "'65536'"),
    ("8888:db:65536", "'65536'"),
    ("99999999999999999999", "'99999999999999999999'"),
    ("-1", "'-1'"),
    ("8888:-1", "'-1'"),
    ("-1:8888", "'-1'"),
    ("8888:db:-1", "'-1'"),
    ("8888:", "an empty port"),
    ("8888:db:", "an empty port"),
    ("8888::80", "an empty name"),
    ("http", "'http'"),
    ("8888:http", "'http'"),
    ("8888:db:http", "'http'"),
    ("one:two:80", "is not a forward"),
    ("http://localhost:8888", "is not a forward"),
    ("/run/x.sock:db:80:90", "is not a forward"),
    ("8888:/run/x.sock:80", "is not a forward"),
    ("8888:/run/x.sock:/run/y.sock", "is not a forward"),
    ("1:2:3:4:5", "too many colons"),
    ("::1:8888:localhost:8888", "too many colons"),
    (":" * 40, "too many colons"),
    ("[::1:8888", "'['"),
    ("[::1]8888", "is not"),
    ("[[::1]]:8888", "[[::1]]:8888"),
    ("::1]:8888", "::1]:8888"),
    ("8888:[::1:80", "8888:[::1:80"),
    ("[]:8888:db:80", "is empty"),
    (":8888:db:80", "is empty"),
    ("[localhost]:8888:db:80", "is not an IPv6 address"),
    ("[127.0.0.1]:8888:db:80", "is not an IPv6 address"),
    ("8888:[::g]:80", "is not an IPv6 address"),
    (" 8888", "' 8888'"),
    ("8888 ", "'8888 '"),
    ("8888: 80", "' 80'"),
    ("8888:d b:80", "'d b'"),
    ("'8888'", "''8888''"),
    ('"8888"', "'\"8888\"'"),
    ("8888:'db':80", "''db''"),
    ("8888:$(id):80", "'$(id)'"),
    ("8888:-oProxyCommand=id:80", "'-oProxyCommand=id'"),
    ("8888:*:80", "'*'"),
    (f"8888:{'d' * 256}:80", "is not a host"),
    ("٨٨٨٨", "'٨٨٨٨'"),
    ("８８８８", "'８８８８'"),
    ("8888:８０", "'８０'"),
    ("8888:db:²", "'²'"),
    ("db:8888", "has no target"),
    ("127.0.0.1:8888", "has no target"),
    ("[::1]:8888", "has no target"),
    ("*:8888", "has no target"),
    ("/run/x.sock", "has no target"),
    ("/", "directory"),
    ("8888:/run/", "directory"),
    (f"8888:/{'p' * LONGEST_SOCKET_PATH}", f"{LONGEST_SOCKET_PATH + 1} bytes long"),
    (f"8888:/{'ü' * 60}", "121 bytes long"),
]


@pytest.mark.parametrize(("text", "said"), BAD, ids=[ascii(text)[:40] for text, _ in BAD])
def test_a_bad_local_forward_is_refused_in_one_printable_line_with_a_hint(text: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse(text)
    assert said in raised.value.message
    assert raised.value.message.isprintable()
    assert raised.value.hint.isprintable()
    assert raised.value.hint
    assert raised.value.exit_code is Exit.USAGE


@pytest.mark.parametrize("text", ["1080:db:80", "1080:80", "1080:/run/x.sock", "/run/x.sock:/run/y.sock"])
def test_a_dynamic_forward_takes_no_target(text: str) -> None:
    with pytest.raises(UsageError, match="has no target") as raised:
        parse(text, Kind.DYNAMIC)
    assert "-D 1080" in raised.value.hint


@pytest.mark.parametrize("text", ["/run/x.sock", "1:2:3:4:5", "::1:1080", "", "-1"])
def test_a_dynamic_forward_needs_one_port(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text, Kind.DYNAMIC)


def test_the_longest_socket_path_is_accepted() -> None:
    path = "/" + "p" * (LONGEST_SOCKET_PATH - 1)
    assert parse(f"8888:{path}").target == Address(path=path)


def test_the_hint_for_a_host_and_port_alone_can_be_used_as_it_stands() -> None:
    with pytest.raises(UsageError) as raised:
        parse("db:80")
    assert parse(raised.value.hint.removeprefix("did you mean ")) == parse("80:db:80")


def test_an_enormous_forward_of_control_characters_is_refused_in_one_printable_line() -> None:
    with pytest.raises(UsageError) as raised:
        parse("\x1b[2J\n" * LONGEST_SPEC)
    assert raised.value.message.isprintable()


@pytest.mark.parametrize("scope", ["a b", "$(id)", "'", "a;"])
def test_the_scope_of_an_ipv6_address_is_checked_like_a_name(scope: str) -> None:
    with pytest.raises(UsageError):
        parse(f"8888:[fe80::1%{scope}]:80")


def attempt(text: str, kind: Kind) -> tuple[Forward | None, UsageError | None]:
    try:
        return parse(text, kind), None
    except UsageError as error:
        return None, error


@given(st.text(), st.sampled_from(Kind))
def test_any_text_is_a_forward_or_a_usage_error(text: str, kind: Kind) -> None:
    forward, error = attempt(text, kind)
    assert (error and error.hint) or (forward and forward.kind is kind)


# Texts made of what forwards are made of find more than letters do.
PARTS = st.sampled_from(
    ["8888", "0", "-1", "db", "::1", "[", "]", ":", "/x", "\\", "\\:", "*", "%", " ", "'", "é"]
)


@given(st.lists(PARTS, max_size=12).map("".join), st.sampled_from(Kind))
def test_any_text_made_of_a_forwards_parts_is_a_forward_or_a_printable_usage_error(text: str, kind: Kind) -> None:
    _, error = attempt(text, kind)
    assert error is None or (error.message + error.hint).isprintable()


def test_a_socket_path_may_end_in_a_colon() -> None:
    assert parse(r"8888:/run/a\:").target == Address(path="/run/a:")


PORTS = st.integers(0, 65535)
NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,60}", fullmatch=True)
HOSTS = st.one_of(NAMES, st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str))
PATHS = (
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=25)
    .filter(str.isprintable)
    .map(lambda text: f"/{text}x")
)
NO_PATH = st.just("")
ADDRESSES = st.builds(Address, HOSTS, PORTS, NO_PATH) | PATHS.map(lambda path: Address(path=path))


@given(ADDRESSES)
def test_an_address_written_out_reads_back_as_itself(address: Address) -> None:
    assert parse_address(str(address)) == address


@given(HOSTS, st.integers(1, 65535))
def test_an_address_written_out_is_a_target_that_parse_takes(host: str, port: int) -> None:
    target = Address(host, port)
    assert parse(f"8888:{target}") == Forward(Kind.LOCAL, HERE, target)


@pytest.mark.parametrize("kind", Kind)
def test_a_listening_end_on_every_address_reads_back_as_itself(kind: Kind) -> None:
    listen = parse("*:8888" if kind is Kind.DYNAMIC else "*:8888:db:80", kind).listen
    assert parse_address(str(listen)) == listen


@pytest.mark.parametrize(
    "text", ["", "8888", "db", "db:", ":80", "db:0x50", "db:65536", "-db:80", "d b:80", "/x/"]
)
def test_what_is_not_an_address_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_address(text)
    assert raised.value.hint


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_is_an_address_or_a_usage_error(text: str) -> None:
    try:
        parse_address(text)
    except UsageError:
        return


def test_a_path_with_a_lone_surrogate_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        parse_address("/\ud800")


@pytest.mark.parametrize("character", ["\0", "\n", "\x1b"])
def test_a_path_with_control_characters_is_a_usage_error(character: str) -> None:
    with pytest.raises(UsageError):
        parse_address(f"/run/{character}")


@pytest.mark.parametrize(
    ("text", "kind", "hosts"),
    [
        ("8888", Kind.LOCAL, ["127.0.0.1", "::1"]),
        ("localhost:8888:db:80", Kind.LOCAL, ["127.0.0.1", "::1"]),
        ("1080", Kind.DYNAMIC, ["127.0.0.1", "::1"]),
        ("8888", Kind.REMOTE, ["localhost"]),
        ("127.0.0.1:8888:db:80", Kind.LOCAL, ["127.0.0.1"]),
        ("*:8888:db:80", Kind.LOCAL, ["*"]),
    ],
)
def test_only_localhost_on_this_side_is_two_listeners(text: str, kind: Kind, hosts: list[str]) -> None:
    forward = parse(text, kind)
    assert [listener.host for listener in forward.listeners] == hosts
    assert {listener.port for listener in forward.listeners} == {forward.listen.port}


def test_a_socket_is_its_own_only_listener() -> None:
    assert parse("/run/x.sock:80").listeners == (SOCKET,)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("8888", "http://localhost:8888"),
        ("9999:8888", "http://localhost:9999"),
        ("9999:443", "https://localhost:9999"),
        ("443:80", "http://localhost:443"),
        ("9999:db:8443", "https://localhost:9999"),
        ("127.0.0.1:8888:db:80", "http://127.0.0.1:8888"),
        ("[::1]:8888:db:80", "http://[::1]:8888"),
        ("*:8888:db:80", "http://localhost:8888"),
        ("0.0.0.0:8888:db:80", "http://localhost:8888"),
        ("[::]:8888:db:80", "http://localhost:8888"),
        ("8888:/run/x.sock", "http://localhost:8888"),
        ("5432:db:5432", None),
        ("8022:22", None),
        ("0:8888", None),
        ("/run/x.sock:8888", None),
    ],
)
def test_a_local_forward_offers_the_url(text: str, url: str | None) -> None:
    assert parse(text).url == url


@pytest.mark.parametrize("kind", [Kind.REMOTE, Kind.DYNAMIC])
def test_a_forward_that_is_no_local_one_offers_no_url(kind: Kind) -> None:
    assert parse("8888", kind).url is None


@pytest.mark.parametrize(
    ("address", "is_loopback"),
    [
        (Address("localhost", 1), True),
        (Address("127.0.0.1", 1), True),
        (Address("127.8.9.1", 1), True),
        (Address("::1", 1), True),
        (SOCKET, True),
        (Address("", 1), False),
        (Address("*", 1), False),
        (Address("0.0.0.0", 1), False),
        (Address("::", 1), False),
        (Address("10.0.0.7", 1), False),
        (Address("fe80::1%lo", 1), False),
        (Address("localhost.example.com", 1), False),
        (Address("db", 1), False),
        (Address("127.0.0.1.example.com", 1), False),
        (Address("2130706433", 1), False),
    ],
)
def test_only_what_cannot_leave_this_machine_is_loopback(address: Address, is_loopback: bool) -> None:
    assert address.is_loopback is is_loopback


@given(st.ip_addresses())
def test_an_ip_address_is_loopback_as_the_standard_library_says(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    assert Address(str(ip), 1).is_loopback is ip.is_loopback


@pytest.mark.parametrize(
    ("text", "kind", "shown"),
    [
        ("8888", Kind.LOCAL, "localhost:8888 -> 127.0.0.1:8888"),
        ("[::1]:8888:/run/x.sock", Kind.LOCAL, "[::1]:8888 -> /run/x.sock"),
        ("1080", Kind.DYNAMIC, "localhost:1080 -> SOCKS"),
    ],
)
def test_a_forward_is_shown_as(text: str, kind: Kind, shown: str) -> None:
    assert str(parse(text, kind)) == shown


@pytest.mark.parametrize("path", ["/run/postgresql/.s.PGSQL.5432", "/run/mysqld/mysqld.sock", "/run/redis.sock"])
def test_a_databases_socket_has_no_url(path: str) -> None:
    assert parse(f"8888:{path}").url is None
