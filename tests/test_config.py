"""The configuration file, from its text to tunnels, and every mistake with its place."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, cast, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.config.keys import TunnelTable
from holdfast.config.places import Places
from holdfast.config.reading import (
    DEFAULTS,
    KEYS,
    ConfigError,
    Described,
    Start,
    merged_options,
    parse,
    parse_bytes,
    usual,
)
from holdfast.config.spelling import duration, parse_duration, parse_mode
from holdfast.config.writing import described, table_of, table_text, with_tunnel, written
from holdfast.control import ForwardStatus, NotebookStatus, TunnelStatus, Upkeep, check_upkeep
from holdfast.errors import HoldfastError, UsageError
from holdfast.forward import Address, Forward, Kind
from holdfast.forward import parse as parse_forward

PATH = Path("/home/ann/.config/holdfast/config.toml")

WHOLE = """\
# what I use every day
[tunnels.lab]
host = "ann@lab"
forwards = ["8888", "5432:db:5432"]   # the notebook, and the database
remote = ["9000:localhost:3000", "1080"]
dynamic = ["1080"]
groups = ["work"]
start = "login"
http = true
hold = 100
hold_for = "2m"
switch = false
notify = false
mode = "0660"
ssh = ["-J", "bastion", "-o", "Compression=yes"]

[tunnels.gpu]
start = "demand"
idle = "30m"

[tunnels.board]
forwards = ["*:6006:localhost:6006"]
expose = true

[defaults]
notify = true
ssh = ["-i", "keys/id", "-J", "other"]
"""


def tunnels(text: str) -> dict[str, Described]:
    return {tunnel.name: tunnel for tunnel in parse(text, PATH)}


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parse(text, PATH)
    return raised.value.message.split("\n")


def test_every_key_of_a_tunnel_is_taken() -> None:
    lab = tunnels(WHOLE)["lab"]
    assert lab == Described(
        name="lab",
        host="ann@lab",
        forwards=(
            parse_forward("8888"),
            parse_forward("5432:db:5432"),
            parse_forward("9000:localhost:3000", Kind.REMOTE),
            parse_forward("1080", Kind.REMOTE),
            parse_forward("1080", Kind.DYNAMIC),
        ),
        groups=("work",),
        start=Start.LOGIN,
        options=("-J", "bastion", "-o", "Compression=yes", "-i", str(PATH.parent / "keys/id")),
        upkeep={"http": 1, "hold": 100, "hold_for": 120, "switch": 0, "notify": 0, "mode": 0o660},
        origin=str(PATH),
    )


def test_a_tunnel_without_a_line_has_its_name_for_a_host_and_says_no_forwards() -> None:
    (lab,) = parse("[tunnels.lab]", PATH)
    assert (lab.host, lab.forwards, lab.start) == ("lab", (), Start.MANUAL)
    assert lab.whole_upkeep == {field: int(value) for field, value in Upkeep()._asdict().items()}


def test_on_demand_is_lazy_and_the_defaults_idle_is_for_it_alone() -> None:
    found = tunnels('[tunnels.a]\nstart = "demand"\n[tunnels.b]\n[defaults]\nidle = "1h"')
    assert (found["a"].whole_upkeep["lazy"], found["a"].whole_upkeep["idle"]) == (1, 3600)
    assert (found["b"].whole_upkeep["lazy"], found["b"].whole_upkeep["idle"]) == (0, 0)


def test_a_tunnel_wins_over_the_defaults() -> None:
    found = tunnels(WHOLE)
    assert found["lab"].upkeep["notify"] == 0
    assert found["gpu"].upkeep["notify"] == 1
    assert "other" not in found["lab"].options
    assert "other" in found["gpu"].options


def test_paths_are_seen_from_the_folder_of_the_file_and_from_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    (lab,) = parse(
        '[tunnels.lab]\nforwards = ["./x.sock:80", "~/y.sock:8888", "7000:/far.sock"]\n'
        'remote = ["9000:~/z.sock", "/far:./w.sock"]\nssh = ["-F", "ssh_config", "-i", "~/.ssh/k", "-i", "none"]',
        PATH,
    )
    assert [str(forward) for forward in lab.forwards] == [
        "/home/ann/.config/holdfast/x.sock -> 127.0.0.1:80",
        "/home/ann/y.sock -> 127.0.0.1:8888",
        "localhost:7000 -> /far.sock",
        "localhost:9000 -> /home/ann/z.sock",
        "/far -> /home/ann/.config/holdfast/w.sock",
    ]
    folder = "/home/ann/.config/holdfast"
    assert lab.options == ("-F", f"{folder}/ssh_config", "-i", "/home/ann/.ssh/k", "-i", "none")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[tunnels.lab]\nhost = "a b"', "config.toml:2: tunnels.lab.host: the host 'a b' has a space in it"),
        ("[tunnels.lab]\nforwards = [\n '8888',\n '88888']", "config.toml:4: tunnels.lab.forwards: '88888' in"),
        ("[tunnels.lab]\nforwards = '8888'", "expected a list, as in forwards = [\"8888\"], found '8888'"),
        ("[tunnels.lab]\nforwards = [true]", 'expected text in quotes, as in forwards = ["8888"], found true'),
        ("[tunnels.lab]\nforwards = ['*:1:a:1']", "*:1 can be reached by other machines; leave the address out"),
        ("[tunnels.lab]\nremote = ['*:1:a:1']", "*:1 can be reached by other machines; leave the address out"),
        ("[tunnels.lab]\n\nforwards = [0x" + "f" * 5000 + "]", "config.toml:3: a number here is too long"),
        ("[tunnels.lab]\n\nhold = " + "9" * 5000, "config.toml:3: a number here is too long"),
        ("[tunnels.lab]\nforwards = ['1', '1:db:2']", "localhost:1 is named twice"),
        (
            "[tunnels.lab]\nforwards = ['1']\ndynamic = [1]",
            "config.toml:3: tunnels.lab.dynamic: localhost:1 is named",
        ),
        (
            "[tunnels.lab]\nforward = ['1']",
            "config.toml:2: tunnels.lab.forward: there is no such key; did you mean f",
        ),
        ("[tunnels.lab]\nzzz = 1", "there is no such key; there are host, forwards, remote"),
        ("[tunnel.lab]", "config.toml:1: tunnel: there is no such key; did you mean tunnels"),
        ("[defaults]\nhost = 'lab'", "config.toml:2: defaults.host: there is no such key"),
        ("[tunnels.lab]\nstart = 'logn'", "found 'logn'; did you mean login"),
        ("[tunnels.lab]\nstart = 1", 'expected "login", "demand" or "manual", found 1'),
        ("[tunnels.lab]\nidle = '30m'", 'only a tunnel with start = "demand" can go idle'),
        ("[tunnels.lab]\nhold_for = '30'", "tunnels.lab.hold_for: '30' is not a time; did you mean 30s or 30m"),
        ("[tunnels.lab]\nhold_for = 30", 'expected text in quotes, as in hold_for = "2m", found 30'),
        ("[tunnels.lab]\nhold_for = '2d'", "expected a number from 1 to 86400 of seconds, found '2d'"),
        ("[tunnels.lab]\nhold = 0", "expected a number from 1 to 10000, found 0"),
        ("[tunnels.lab]\nhttp = 'yes'", "expected true or false, found 'yes'"),
        ("[tunnels.lab]\nmode = '999'", "'999' can't be a socket's mode"),
        ("[tunnels.lab]\nmode = '0440'", "expected as for chmod, yours to read and write: 0660, found '0440'"),
        ("[tunnels.lab]\nssh = ['-X', '1']", "'-X' is not an option that is passed on to ssh"),
        ("[tunnels.lab]\nssh = ['-J']", "'-J' has no value"),
        (
            "[tunnels.lab]\nstart = 'demand'\nremote = ['1:a:1']",
            "config.toml:3: tunnels.lab.remote: a tunnel with",
        ),
        ("[tunnels.lab]\ngroups = ['a b']", "'a b' can't be a group's name"),
        (
            "[tunnels.lab]\ngroups = ['gpu']\n[tunnels.gpu]",
            "config.toml:2: tunnels.lab.groups: the group 'gpu' has",
        ),
        ("[tunnels.8888]", "config.toml:1: tunnels.8888: '8888' can't be a tunnel's name"),
        ("[tunnels.'a\\u001b']", "can't be a tunnel's name"),
        ("[tunnels.'a%b']", "the host 'a%b' has a percent sign in it"),
        (
            "[tunnels]\nlab = 3",
            "config.toml:2: tunnels.lab: expected a table, as [tunnels.lab] begins one, found 3",
        ),
        ("tunnels = []", "config.toml:1: tunnels: expected a table, as [tunnels] begins one, found a list"),
        ("[tunnels.lab]\n\nhost = lab\n", "config.toml:3: this is not TOML: invalid value, at column 8"),
        ("[tunnels.lab", "config.toml:1: this is not TOML: expected ']' at the end of a table declaration"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_what_would_be_right(text: str, told: str) -> None:
    (line,) = mistakes(text)
    assert told in line


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    found = mistakes(WHOLE.replace('"8888"', '"x"').replace('"30m"', '"30"').replace("hold = 100", "hold = 0"))
    assert [line.partition(": ")[0] for line in found] == ["config.toml:4", "config.toml:10", "config.toml:19"]


def test_of_very_many_mistakes_the_first_are_told_and_the_others_counted() -> None:
    found = mistakes("[tunnels.lab]\n" + "\n".join(f"key{number} = 1" for number in range(100)))
    assert len(found) == 21
    assert found[-1] == "config.toml: and 80 more"


@pytest.mark.parametrize(
    "text",
    [
        "[tunnels.lab]\nzz = 1\n" + " " * 100_000,
        "[tunnels.lab]\nzz = 1\na" + " " * 100_000 + "." + " " * 100_000 + "b = 1",
        "[tunnels.lab]\nforwards = [" + ",\n".join(f"'{port}'" for port in range(1, 20_000)) + "]",
        "[tunnels.lab]\nforwards = [" + "'1',\n" * 20_000 + "]",
    ],
    ids=["blanks", "blanks in a key", "forwards", "mistakes"],
)
def test_the_time_it_takes_grows_no_faster_than_the_file(text: str) -> None:
    begun = time.process_time()
    error_of(text.encode())
    assert time.process_time() - begun < 5


def test_two_tunnels_on_one_port_are_a_mistake_only_when_both_are_there_from_login_on() -> None:
    two = "[tunnels.a]\nforwards=['8888']\nstart='login'\n[tunnels.b]\nforwards=['8888:9']\nstart='{}'\n"
    (line,) = mistakes(two.format("demand"))
    assert line.startswith("config.toml:5: tunnels.b.forwards: localhost:8888 is taken by the tunnel 'a'")
    assert len(tunnels(two.format("manual"))) == 2


def test_a_remote_port_is_each_hosts_own() -> None:
    two = "[tunnels.a]\nremote=['80']\nstart='login'\n[tunnels.b]\nhost='{}'\nremote=['80']\nstart='login'\n"
    assert len(tunnels(two.format("b"))) == 2
    assert len(mistakes(two.format("a"))) == 1


def test_a_file_that_is_not_utf8_is_told_with_the_line() -> None:
    with pytest.raises(ConfigError, match=r"config\.toml:2: this is not UTF-8"):
        parse_bytes(b"# \n\xff", PATH)


def test_a_mistake_never_has_characters_that_a_terminal_obeys() -> None:
    for line in mistakes('[tunnels."\\u001b[2J"]\n"\\u0007" = "\\u001b"\nssh = ["\\u001b", "x"]\nstart="\\u0007"'):
        assert line.isprintable()


@settings(max_examples=300, deadline=None)
@given(st.text() | st.binary())
def test_garbage_is_a_list_of_mistakes_or_none(text: str | bytes) -> None:
    error = error_of(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    assert error is None or (error.mistakes and all(line.isprintable() for line in error.message.split("\n")))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_good_file_with_anything_done_to_it_is_read_or_has_mistakes(data: st.DataObject) -> None:
    text = mutated(data)
    error = error_of(text.encode(errors="surrogatepass"))
    assert error is None or all(1 <= mistake.line <= text.count("\n") + 1 for mistake in error.mistakes)


def mutated(data: st.DataObject) -> str:
    """A good file after a few edits."""
    text = WHOLE
    pieces = st.sampled_from(['"', "'", "[", "]", "=", "\n", "{", "}", "#", ",", '"""', "'''", ".", "1", "\x1b"])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + data.draw(st.text(max_size=5) | pieces) + text[end:]
    return text


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(["lab", "gpu", "new"]))
def test_a_file_that_has_anything_in_it_is_changed_right_or_not_at_all(data: st.DataObject, name: str) -> None:
    text = mutated(data)
    tunnel = Described(name, "elsewhere", (parse_forward("7000"),), options=("-i", "/k"), upkeep={"hold": 7})
    if error_of(text.encode(errors="surrogatepass")) is not None:
        return
    try:
        found = tunnels(with_tunnel(text, tunnel, PATH))
    except HoldfastError:
        return
    assert (found[name].host, found[name].forwards) == ("elsewhere", tunnel.forwards)
    assert {**tunnels(text), name: None} == {**found, name: None}


def error_of(content: bytes) -> ConfigError | None:
    try:
        parse_bytes(content, PATH)
    except ConfigError as error:
        return error
    return None


def test_a_key_is_found_wherever_toml_lets_it_stand() -> None:
    text = (
        "a.b = [  # ] not yet\n  1,\n  '''\n]\n''', \"]\", {x = 2},\n]\n"
        '["t"."u.v"]\n"k k" = """\nw = 1\n"""\n w = 2\n[[l]]\nz = 1\n[t]\ny = {w = 1}\n'
    )
    places = Places(text)
    assert places.line(("a", "b")) == 1
    assert places.line(("a", "b"), 1) == 2
    assert places.line(("t", "u.v")) == 7
    assert places.line(("t", "u.v", "k k")) == 8
    assert places.line(("t", "u.v", "w")) == 11
    assert places.line(("l", "z")) == 13
    assert places.line(("t", "y", "w")) == 15
    assert places.line(("nowhere",)) == 1


@pytest.mark.parametrize(("text", "seconds"), [("0s", 0), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86400)])
def test_a_time_is_read_and_written(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(duration(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "m", "-1m", "1.5h", "1w", "30", "٣m", "1m\n"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


def test_a_mode_is_octal() -> None:
    assert parse_mode("0660") == parse_mode("660") == parse_mode("0o660") == 0o660


def test_of_ssh_options_that_it_takes_once_the_own_one_is_kept() -> None:
    own, others = ("-J", "a", "-o", "X=1"), ("-J", "b", "-p", "2", "-o", "X=2", "-i", "k")
    assert merged_options(own, others) == ("-J", "a", "-o", "X=1", "-p", "2", "-o", "X=2", "-i", "k")


PORTS = st.integers(1, 65535)
HOSTS = st.sampled_from(["127.0.0.1", "localhost", "::1", "db", "10.0.0.1", "*"])
ADDRESSES = st.builds(Address, HOSTS, PORTS, path=st.just("")) | st.builds(
    Address, st.just(""), st.just(0), path=st.sampled_from(["/run/x.sock", "/a:b/x", "/8888"])
)
FORWARDS = st.builds(Forward, st.just(Kind.REMOTE), ADDRESSES, ADDRESSES | st.none()) | st.builds(
    Forward, st.just(Kind.LOCAL), ADDRESSES.filter(lambda one: one.host != "db"), ADDRESSES
)


def test_what_the_defaults_say_beside_an_own_option_is_not_written_again() -> None:
    defaults = "[defaults]\nssh = ['-J', 'bastion', '-o', 'Compression=yes']\n"
    text = f"{defaults}[tunnels.lab]\nssh = ['-J', 'other']\n"
    lab = tunnels(text)["lab"]
    runs = lab._replace(options=("-p", "22", *lab.options))
    after = with_tunnel(text, runs, PATH)
    assert after == text.replace("['-J', 'other']", '["-p", "22", "-J", "other"]')
    assert tunnels(after)["lab"].options == runs.options


def test_a_form_that_tomlkit_trips_over_is_in_the_way() -> None:
    text = "[tunnels]\nlab.notify = true\nlab.host = 'x'\n"
    with pytest.raises(HoldfastError, match="the form of the file is in the way"):
        with_tunnel(text, Described("lab", "y", ()), PATH)


@given(FORWARDS.filter(lambda one: one.target is None or one.target.host != "*"))
def test_a_forward_as_it_is_written_is_the_same_forward(forward: Forward) -> None:
    assert parse_forward(written(forward), forward.kind) == forward


@pytest.mark.parametrize(
    "text", ["8888", "9999:8888", "5432:db:5432", "8888:/run/x", "/run/x:80", "[::1]:1:[::1]:2"]
)
def test_a_forward_is_written_as_a_person_would(text: str) -> None:
    assert written(parse_forward(text)) == text


def test_a_tunnel_is_added_and_all_else_stays_as_it_is() -> None:
    new = Described("new", "new", (parse_forward("7000"),), ("work",), Start.LOGIN)
    after = with_tunnel(WHOLE, new, PATH)
    assert after.startswith(WHOLE)
    # What the file's [defaults] say, and the tunnel doesn't, is said.
    assert after[len(WHOLE) :] == (
        '\n[tunnels.new]\nforwards = ["7000"]\ngroups = ["work"]\nstart = "login"\nnotify = false\n'
    )


def test_a_table_is_changed_where_it_stands_and_keeps_its_comments() -> None:
    lab = tunnels(WHOLE)["lab"]
    after = with_tunnel(WHOLE, lab._replace(forwards=(parse_forward("8888"), *lab.forwards[2:])), PATH)
    old = 'forwards = ["8888", "5432:db:5432"]   # the notebook, and the database\n'
    assert after == WHOLE.replace(old, 'forwards = ["8888"]   # the notebook, and the database\n')


LIST = """\
[tunnels.lab]
forwards = [
  8888,            # the notebook
  # the database
  "5432:db:5432",  # for reports
  './x.sock:80',
]  # these three
"""


def test_what_stays_in_a_list_stays_as_it_is_written_with_its_comments() -> None:
    lab = tunnels(LIST)["lab"]
    notebook, database, socket = lab.forwards
    new = parse_forward("6006")
    after = with_tunnel(LIST, lab._replace(forwards=(*lab.forwards, new)), PATH)
    assert after == LIST.replace("80',\n", '80\',\n  "6006",\n')
    after = with_tunnel(LIST, lab._replace(forwards=(notebook, new, socket)), PATH)
    assert after == LIST.replace('"5432:db:5432",  # for reports\n', '"6006",\n')
    assert tunnels(after)["lab"].forwards == (notebook, new, socket)
    after = with_tunnel(LIST, lab._replace(forwards=(socket, database)), PATH)
    assert tunnels(after)["lab"].forwards == (socket, database)


def test_a_list_that_cannot_be_changed_item_by_item_is_written_anew() -> None:
    text = "[tunnels.lab]\nforwards = ['1', '2' # b\n # c\n]\n"
    lab = tunnels(text)["lab"]._replace(forwards=tuple(map(parse_forward, "123")))
    assert tunnels(with_tunnel(text, lab, PATH))["lab"].forwards == lab.forwards


def test_a_new_key_comes_above_the_comment_that_is_the_next_tables() -> None:
    text = "[tunnels.lab]\nhost = 'x'  # mine\n\n# the fast one\n[tunnels.gpu]\n"
    lab = tunnels(text)["lab"]
    after = with_tunnel(text, lab._replace(forwards=(parse_forward("8888"),)), PATH)
    assert after == text.replace("# mine\n", '# mine\nforwards = ["8888"]\n')
    bare = text.replace("host = 'x'  # mine\n", "")
    after = with_tunnel(bare, lab._replace(forwards=(), host="y"), PATH)
    assert after == bare.replace("lab]\n", 'lab]\nhost = "y"\n')


def test_a_key_that_says_nothing_any_more_goes() -> None:
    lab = tunnels(WHOLE)["lab"]
    after = with_tunnel(WHOLE, lab._replace(groups=(), start=Start.MANUAL), PATH)
    assert after == WHOLE.replace('groups = ["work"]\nstart = "login"\n', "")


@pytest.mark.parametrize(
    "text",
    [
        "tunnels.a.host = 'x'\n",
        "[tunnels]\na = {host = 'x'}\n",
        "[tunnels.a]\nhost = 'x'\n[defaults]\nhold = 5\n[tunnels.b]\n",
        "",
        "# nothing",
    ],
)
@pytest.mark.parametrize("name", ["a", "c", "c.d"])
def test_whatever_the_form_of_the_file_a_tunnel_is_written_right(text: str, name: str) -> None:
    tunnel = Described(name, "lab", (parse_forward("8888"),), upkeep={"hold": 7}, options=("-p", "22"))
    before = {other.name: other for other in parse(text, PATH) if other.name != name}
    found = tunnels(with_tunnel(text, tunnel, PATH))
    assert found.pop(name)._replace(origin="") == tunnel
    assert found == before


def test_where_the_form_is_in_the_way_it_is_said_and_nothing_written() -> None:
    text = "tunnels = {a = {host = 'x'}}\n"
    with pytest.raises(HoldfastError, match="the form of the file is in the way") as raised:
        with_tunnel(text, Described("c", "c", ()), PATH)
    assert raised.value.hint == "write [tunnels.c] yourself: holdfast config edit"
    assert tunnels(with_tunnel(text, Described("a", "y", ()), PATH))["a"].host == "y"


@given(FORWARDS.filter(lambda one: one.target is None or one.target.host != "*"), st.sampled_from(list(Start)))
def test_what_is_written_is_read_back(forward: Forward, start: Start) -> None:
    forwards = (forward,) if start is not Start.DEMAND or forward.kind is not Kind.REMOTE else ()
    upkeep = {"lazy": int(start is Start.DEMAND), "hold_for": 61, "mode": 0o666}
    tunnel = Described("a.b", "ann@lab", forwards, ("g",), start, ("-o", 'X="\\ü'), upkeep, expose=True)
    (found,) = parse(table_text("a.b", table_of(tunnel, {}, ())), PATH)
    assert found.whole_upkeep == tunnel.whole_upkeep
    assert found._replace(upkeep={}, origin="") == tunnel._replace(upkeep={})


def test_the_defaults_are_known_by_themselves() -> None:
    assert usual(WHOLE, PATH) == ({"notify": 1}, ("-i", str(PATH.parent / "keys/id"), "-J", "other"))


def test_the_page_names_the_keys_of_the_defaults_and_its_example_is_right() -> None:
    page = (Path(__file__).parent.parent / "docs" / "config.md").read_text()
    said = re.search(r"`\[defaults\]` says (.*?) for all", page, re.DOTALL)
    assert said is not None
    assert re.findall(r"`(\w+)`", said[1]) == list(DEFAULTS)
    (example,) = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert [tunnel.name for tunnel in parse(example, PATH)] == ["lab", "gpu"]


@pytest.mark.parametrize("key", KEYS)
def test_a_value_of_another_type_than_the_key_has_is_a_mistake(key: str) -> None:
    values: dict[str, Any] = {'"login"': str, "7": int, "true": bool, '["x"]': list[str], "[7]": list[str | int]}
    wanted = get_type_hints(TunnelTable)[key]
    taken = {kind for text, kind in values.items() if not is_mistyped(f"[tunnels.lab]\n{key} = {text}")}
    assert taken == ({list[str], list[str | int]} if wanted == list[str | int] else {wanted})


def is_mistyped(text: str) -> bool:
    try:
        parse(text, PATH)
    except ConfigError as error:
        return any(mistake.text.startswith("expected ") for mistake in error.mistakes)
    return False


def status_of(tunnel: Described, config: str | None = None) -> TunnelStatus:
    """What the keeper tells of a tunnel that runs as described."""
    forwards = [
        ForwardStatus(
            kind=forward.kind.value,
            listen=str(forward.listen),
            asked=str(forward.listen),
            target=str(forward.target) if forward.target else None,
            url=None,
            state="up",
            reason=None,
            hint=None,
            notebook=None,
            exposed=not forward.listen.is_loopback,
            leases=0,
            kept=True,
            connections=0,
        )
        for forward in tunnel.forwards
    ]
    record = {
        "name": tunnel.name,
        "host": tunnel.host,
        "options": list(tunnel.options),
        "upkeep": check_upkeep(tunnel.upkeep)._asdict(),
        "config": config,
        "forwards": forwards,
    }
    return cast(TunnelStatus, record)


def test_a_running_tunnel_is_described_as_it_runs() -> None:
    for tunnel in tunnels(WHOLE).values():
        found = described(status_of(tunnel))
        assert found.whole_upkeep == tunnel.whole_upkeep
        assert (found.forwards, found.options, found.expose) == (tunnel.forwards, tunnel.options, tunnel.expose)


def test_a_forward_that_only_a_program_holds_and_a_notebooks_are_not_described() -> None:
    status = status_of(tunnels(WHOLE)["lab"])
    status["forwards"][0]["kept"] = False
    status["forwards"][1]["notebook"] = NotebookStatus(directory="/w", base_url="/", version="7", pid=1)
    assert described(status).forwards == tunnels(WHOLE)["lab"].forwards[2:]


def test_a_remote_forward_that_others_can_reach_is_described_so_that_it_can_be_brought_up_again() -> None:
    (tunnel,) = parse("[tunnels.lab]\nremote = ['*:9000:a:1']\nexpose = true", PATH)
    assert described(status_of(tunnel)).expose


def test_what_would_be_a_mistake_is_not_written_and_told_without_the_line_of_a_text_that_nobody_has() -> None:
    with pytest.raises(UsageError) as raised:
        with_tunnel(WHOLE, Described("new", "new", (parse_forward("8888"),), start=Start.LOGIN), PATH)
    assert raised.value.message == (
        "not written: localhost:8888 is taken by the tunnel 'lab', and both are held from login on"
    )
    assert raised.value.hint == "change what you asked for; the file is as it was"
