"""The protocol between command line and keeper, and the checks of what a person may name."""

from __future__ import annotations

import contextlib
import json
import subprocess

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from holdfast import control
from holdfast.control import (
    Down,
    LoginEnded,
    Request,
    Restart,
    Status,
    Stop,
    Up,
    Upkeep,
    check_host,
    check_name,
    check_options,
    check_upkeep,
    decode_forward,
    decode_request,
    default_name,
    encode_forward,
    encode_request,
)
from holdfast.errors import Exit, HoldfastError, KeeperError, UsageError
from holdfast.forward import LONGEST_HOST, Kind, parse

UP = Up(
    "lab",
    "work",
    ("-p", "2222"),
    (("local", "localhost:1", "db:2"),),
    {"PATH": "/bin"},
    terminal=True,
    wait=False,
    expose=True,
    upkeep={"hold": 7, "http": 1},
)

WORDS = st.lists(st.text()).map(tuple)
ENVIRONMENTS = st.dictionaries(st.text(), st.text())
UPKEEPS = st.dictionaries(st.text(), st.integers())
FLAGS = st.booleans()
REQUESTS: st.SearchStrategy[Request] = st.one_of(
    st.builds(
        Up, st.text(), st.text(), WORDS, st.lists(WORDS).map(tuple), ENVIRONMENTS, FLAGS, FLAGS, FLAGS, UPKEEPS
    ),
    st.builds(Down, WORDS, WORDS, FLAGS),
    st.builds(Restart, WORDS, ENVIRONMENTS, FLAGS),
    st.builds(Status, WORDS),
    st.just(Stop()),
    st.builds(LoginEnded, st.integers(0, 9), st.integers(-255, 255)),
)


@given(REQUESTS)
def test_a_request_comes_out_as_it_went_in_on_one_line(request: Request) -> None:
    line = encode_request(request)
    assert decode_request(line) == request
    assert type(decode_request(line)) is type(request)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1


@given(st.binary())
def test_any_bytes_as_a_request_are_a_keeper_error(line: bytes) -> None:
    with pytest.raises(KeeperError):
        decode_request(line)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([UP, Down((), (), False), Status(()), LoginEnded(1, 0)]), st.data())
def test_a_request_with_one_field_replaced_by_any_json_is_a_request_or_a_keeper_error(
    request: Request, data: st.DataObject
) -> None:
    record = json.loads(encode_request(request))
    record[data.draw(st.sampled_from(sorted(set(record) - {"request"})))] = data.draw(JSON)
    with contextlib.suppress(KeeperError):
        assert type(decode_request(json.dumps(record).encode())) is type(request)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b"null",
        b"7",
        b'"up"',
        b"[]",
        b'["up"]',
        b"{}",
        b'{"request": null}',
        b'{"request": 7}',
        b'{"request": "Up"}',
        b'{"request": "explode"}',
        b'{"request": "stop"} {"request": "stop"}',
        b"9" * 5000,
        b"[" * 100_000,
    ],
    ids=lambda line: ascii(line)[:30],
)
def test_what_is_no_request_is_a_keeper_error_of_one_line(line: bytes) -> None:
    with pytest.raises(KeeperError) as raised:
        decode_request(line)
    assert raised.value.message.isprintable()
    assert len(raised.value.message) < 400


@pytest.mark.parametrize("line", [b'{"request": []}', b'{"request": {}}'])
def test_a_request_that_names_a_list_or_an_object_is_a_keeper_error(line: bytes) -> None:
    with pytest.raises(KeeperError):
        decode_request(line)


def altered(**changes: object) -> bytes:
    """UP as JSON, with `changes`."""
    return json.dumps({**json.loads(encode_request(UP)), **changes}).encode()


@pytest.mark.parametrize("field", Up._fields)
def test_a_missing_field_is_an_error_that_names_it(field: str) -> None:
    record = json.loads(encode_request(UP))
    del record[field]
    with pytest.raises(KeeperError, match=field):
        decode_request(json.dumps(record).encode())


def test_an_extra_field_is_an_error() -> None:
    with pytest.raises(KeeperError, match="exactly these"):
        decode_request(altered(more=1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host", None),
        ("host", 7),
        ("host", ["lab"]),
        ("name", {}),
        ("options", "-p"),
        ("options", None),
        ("options", [7]),
        ("options", {"-p": "1"}),
        ("forwards", [["local", 1, "x"]]),
        ("forwards", ["local"]),
        ("forwards", [[["local"]]]),
        ("environment", []),
        ("environment", {"PATH": 7}),
        ("environment", {"PATH": None}),
        ("terminal", 1),
        ("terminal", "yes"),
        ("wait", None),
        ("expose", 0),
        ("upkeep", None),
        ("upkeep", []),
        ("upkeep", {"hold": "7"}),
        ("upkeep", {"hold": None}),
        ("upkeep", {"hold": 7.5}),
    ],
)
def test_a_field_of_the_wrong_type_is_an_error_that_names_it(field: str, value: object) -> None:
    with pytest.raises(KeeperError, match=field):
        decode_request(altered(**{field: value}))


@pytest.mark.parametrize("status", [True, 1.0, "0", None])
def test_the_exit_status_of_a_login_is_a_whole_number(status: object) -> None:
    with pytest.raises(KeeperError, match="status"):
        decode_request(json.dumps({"request": "login_ended", "number": 1, "status": status}).encode())


def test_an_error_comes_out_as_it_went_in() -> None:
    sent = HoldfastError("it broke: 'ü'", "mend it", Exit.NEEDS_LOGIN)
    got = control.error_from(json.loads(control.encode_error(sent))["error"])
    assert (got.message, got.hint, got.exit_code) == (sent.message, sent.hint, sent.exit_code)


# --- forwards ---


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("8888", Kind.LOCAL),
        ("0:db:80", Kind.LOCAL),
        ("[::1]:8888:[2001:db8::1]:80", Kind.LOCAL),
        ("*:8888:db:80", Kind.LOCAL),
        ("/run/x:db:80", Kind.LOCAL),
        ("8888:/run/a b", Kind.LOCAL),
        ("0", Kind.REMOTE),
        ("8888:/run/x", Kind.REMOTE),
        ("1080", Kind.DYNAMIC),
        ("*:1080", Kind.DYNAMIC),
    ],
)
def test_a_forward_comes_out_as_it_went_in(text: str, kind: Kind) -> None:
    forward = parse(text, kind)
    assert decode_forward(encode_forward(forward)) == forward


@pytest.mark.parametrize(
    "fields",
    [
        (),
        ("local",),
        ("local", "localhost:1"),
        ("local", "localhost:1", "db:2", "more"),
        ("", "localhost:1", "db:2"),
        ("LOCAL", "localhost:1", "db:2"),
        ("local", "", "db:2"),
        ("local", "localhost", "db:2"),
        ("local", "localhost:1", "db"),
        ("local", "localhost:65536", "db:2"),
        ("local", "localhost:1", "-oProxyCommand=id:2"),
    ],
)
def test_fields_that_are_no_forward_are_a_usage_error(fields: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        decode_forward(fields)


@given(st.sampled_from([*Kind, "x"]), st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_any_fields_are_a_forward_or_a_usage_error(kind: str, listen: str, target: str) -> None:
    try:
        decode_forward((kind, listen, target))
    except UsageError:
        return


@pytest.mark.parametrize(
    "fields",
    [
        ("local", "localhost:8888", ""),
        ("local", "localhost:8888", "db:0"),
        ("dynamic", "localhost:1080", "db:80"),
        ("dynamic", "/run/x.sock", ""),
    ],
)
def test_fields_that_make_no_sense_together_are_a_usage_error(fields: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        decode_forward(fields)


# --- hosts ---

GOOD_HOSTS = [
    "lab",
    "lab.example.com",
    "LAB-2_x",
    "ann@lab",
    "ann@corp@lab",
    "corp\\ann@lab",
    "ann+x@lab",
    "$USER@lab",
    "lab:2222",
    "ssh://lab",
    "ssh://lab:2222",
    "ssh://ann@lab:2222",
    "10.0.0.7",
    "2001:db8::1",
    "ann@2001:db8::1",
    "[::1]",
    "[::1]:22",
    "fe80::1%eth0",
    "ann@fe80::1%eth0",
    "bücher.example",
    "例え.テスト",
    "a" * LONGEST_HOST,
]


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_a_host_is_accepted(host: str) -> None:
    assert check_host(host) == host


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("", "is empty"),
        ("-oProxyCommand=id", "begins with '-'"),
        ("-", "begins with '-'"),
        ("ann@-oProxyCommand=id", "begins with '-'"),
        ("-l@lab", "begins with '-'"),
        ("ssh://-lab", "begins with '-'"),
        ("ssh://-l@lab", "begins with '-'"),
        ("@lab", "lacks a part"),
        ("ann@", "lacks a part"),
        ("ssh://", "lacks a part"),
        ("ssh://ann@", "lacks a part"),
        ("%h", "percent"),
        ("lab%eth0", "percent"),
        ("fe80::1%", "percent"),
        ("fe80::1%eth0%h", "percent"),
        ("la b", "space"),
        (" lab", "space"),
        ("lab ", "space"),
        ("an n@lab", "space"),
        ("'lab'", "quote"),
        ('"lab"', "quote"),
        ("`id`", "quote"),
        ("an'n@lab", "quote"),
        ("$(id)", "'$'"),
        ("$HOME", "'$'"),
        ("$(id)@lab", "'('"),
        ("lab;id", "';'"),
        ("ann;id@lab", "';'"),
        ("lab|id", "'|'"),
        ("lab&", "'&'"),
        ("lab>x", "'>'"),
        ("{lab}", "'{'"),
        ("lab,other", "','"),
        ("lab*", "'*'"),
        ("!lab", "'!'"),
        ("#lab", "'#'"),
        ("lab\\x", "backslash"),
        ("lab/x", "slash"),
        ("http://lab", "slash"),
        ("lab\n", "can't be printed"),
        ("lab\0", "can't be printed"),
        ("\x1b[2Jlab", "can't be printed"),
        ("lab\u00a0x", "can't be printed"),
        ("lab\u202ex", "can't be printed"),
        ("\ud800", "can't be printed"),
        ("a" * (LONGEST_HOST + 1), f"{LONGEST_HOST + 1} characters long"),
    ],
)
def test_a_host_is_refused_in_one_printable_line_with_a_hint(host: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        check_host(host)
    assert said in raised.value.message
    assert raised.value.message.isprintable()
    assert raised.value.hint


def test_an_enormous_host_of_control_characters_is_refused_in_one_printable_line() -> None:
    with pytest.raises(UsageError) as raised:
        check_host("\x1b[2J\n" * LONGEST_HOST)
    assert raised.value.message.isprintable()


@pytest.mark.parametrize("host", ["fe80::1%br-lan", "fe80::1%eth0.100"])
def test_a_link_local_address_on_any_interface_is_accepted(host: str) -> None:
    assert check_host(host) == host


def test_a_user_that_ends_in_a_backslash_is_refused() -> None:
    with pytest.raises(UsageError):
        check_host("ann\\@lab")


def ssh_takes(host: str) -> bool:
    argv = ["ssh", "-F", "none", "-G", "--", host]
    return subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_real_ssh_takes_an_accepted_host(host: str) -> None:
    assert ssh_takes(host)


@pytest.mark.parametrize("host", ["ssh://ann@[::1]:2222", "ssh://lab:65536"])
def test_an_address_that_real_ssh_refuses_is_refused(host: str) -> None:
    assert not ssh_takes(host)
    with pytest.raises(UsageError):
        check_host(host)


TRICKY = st.text(st.sampled_from("ab1.-_@:%[]$'\"`;&|<>(){}\\~^=+ /ü\n"), min_size=1, max_size=8)


@given(TRICKY)
@settings(deadline=None)
def test_what_real_ssh_refuses_is_refused(host: str) -> None:
    assume("\\@" not in host)  # the test above
    with contextlib.suppress(UsageError):
        assert ssh_takes(check_host(host))


# --- names ---


@pytest.mark.parametrize("name", ["lab", "lab2", "2lab", "a.b-c_d@e", "_", "fe80--1%eth0", "a" * 100])
def test_a_name_is_accepted(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-x",
        ".",
        "..",
        ".x",
        "@x",
        "%x",
        "a b",
        "a/b",
        "../x",
        "a\n",
        "a\0",
        "bücher",
        "8888",
        "1:2",
        "a" * 101,
    ],
)
def test_a_name_is_refused_in_one_printable_line_with_a_hint(name: str) -> None:
    with pytest.raises(UsageError) as raised:
        check_name(name)
    assert raised.value.message.isprintable()
    assert raised.value.hint


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("lab", "lab"),
        ("ann@lab", "lab"),
        ("ann@corp@lab", "lab"),
        ("ssh://lab", "lab"),
        ("ssh://ann@lab:2222", "lab"),
        ("lab.example.com", "lab.example.com"),
        ("[::1]", "host-1"),
        ("bücher.de", "b-cher.de"),
    ],
)
def test_a_tunnel_is_named_for_its_host(host: str, name: str) -> None:
    assert default_name(host) == name


@given(
    st.from_regex(r"(ssh://)?([a-z]{1,8}@)?[a-zé_][a-zA-Z0-9é._~^=+-]{0,60}(:[1-9][0-9]{0,3})?", fullmatch=True)
)
def test_the_name_of_a_host_that_begins_with_a_letter_is_valid(host: str) -> None:
    check_name(default_name(check_host(host)))


@pytest.mark.parametrize(
    "host",
    ["8888", "ssh://8888:22", "2001::1", ".lab", ".", "[", "a" * 101],
    ids=lambda host: host[:20],
)
def test_the_name_of_any_accepted_host_is_valid(host: str) -> None:
    check_name(default_name(check_host(host)))


# --- options ---


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-p", "22"),
        ("-p", "65535"),
        ("-F", "/some/config"),
        ("-i", "/key", "-o", "Compression=yes", "-J", "a,b", "-l", "ann"),
        ("-o", "ProxyCommand=nc %h %p"),
        ("-i", "-key"),
    ],
)
def test_options_are_accepted(options: tuple[str, ...]) -> None:
    assert check_options(options) == options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-p",), "'-p' has no value"),
        (("-p", "22", "-o"), "'-o' has no value"),
        (("-L", "8888:db:80"), "'-L'"),
        (("-A", "x"), "'-A'"),
        (("22", "-p"), "'22'"),
        (("-p22", "x"), "'-p22'"),
        (("-p", ""), "can't be the value of -p"),
        (("-o", ""), "can't be the value of -o"),
        (("-o", "a\nb"), "can't be the value of -o"),
        (("-o", "a\0b"), "can't be the value of -o"),
        (("-o", "x" * 4097), "can't be the value of -o"),
        (("-p", "0"), "'0' is not a port"),
        (("-p", "65536"), "'65536' is not a port"),
        (("-p", "-1"), "'-1' is not a port"),
        (("-p", "²"), "'²' is not a port"),
        (("-p", "٢٢"), "is not a port"),
        (("-p", "ssh"), "'ssh' is not a port"),
        (("-l", "-ann"), "can't be the value of -l"),
        (("-J", "-oProxyCommand=id"), "can't be the value of -J"),
    ],
)
def test_options_are_refused_in_one_printable_line(options: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError) as raised:
        check_options(options)
    assert said in raised.value.message
    assert raised.value.message.isprintable()


def test_an_enormous_port_is_refused_briefly() -> None:
    with pytest.raises(UsageError) as raised:
        check_options(("-p", "9" * 4096))
    assert len(raised.value.message) < 200


@given(st.lists(st.sampled_from(control.SSH_OPTIONS) | st.text(max_size=10), max_size=6).map(tuple))
def test_any_options_are_pairs_of_known_ones_or_a_usage_error(options: tuple[str, ...]) -> None:
    try:
        assert set(check_options(options)[::2]) <= set(control.SSH_OPTIONS)
    except UsageError:
        return


# --- upkeep ---


def test_what_is_not_said_of_a_tunnels_upkeep_is_as_by_default() -> None:
    assert check_upkeep({}) == Upkeep(hold=512, hold_for=120, http=False, switch=True, notify=False)
    assert check_upkeep({"hold": 7, "switch": 0}) == Upkeep(hold=7, switch=False)


def test_an_upkeep_comes_out_of_json_as_it_went_in_flags_as_flags() -> None:
    kept = Upkeep(hold=1, hold_for=2, http=True, switch=False, notify=True)
    for sent in (kept._asdict(), {name: int(value) for name, value in kept._asdict().items()}):
        got = check_upkeep(json.loads(json.dumps(sent)))
        assert got == kept
        assert [type(value) for value in got] == [type(value) for value in kept]


@pytest.mark.parametrize("upkeep", [{"hold": 1}, {"hold": 10_000}, {"hold_for": 1}, {"hold_for": 86_400}])
def test_an_upkeep_is_accepted(upkeep: dict[str, int]) -> None:
    assert check_upkeep(upkeep)._asdict().items() >= upkeep.items()


@pytest.mark.parametrize(
    ("upkeep", "said"),
    [
        ({"hold": 0}, "0 can't be the value of --hold"),
        ({"hold": 10_001}, "10001 can't be the value of --hold"),
        ({"hold_for": -1}, "-1 can't be the value of --hold-for"),
        ({"hold_for": 86_401}, "86401 can't be the value of --hold-for"),
        ({"nope": 1}, "no 'nope'"),
        ({"": 1}, "no ''"),
    ],
)
def test_an_upkeep_is_refused_in_one_printable_line(upkeep: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError) as raised:
        check_upkeep(upkeep)
    assert said in raised.value.message
    assert raised.value.message.isprintable()


@given(st.dictionaries(st.sampled_from(Upkeep._fields) | st.text(max_size=5), st.integers(), max_size=4))
def test_any_upkeep_is_within_its_bounds_or_a_usage_error(upkeep: dict[str, int]) -> None:
    try:
        kept = check_upkeep(upkeep)
    except UsageError:
        return
    assert 0 <= kept.hold <= 10_000
    assert 0 <= kept.hold_for <= 86_400
