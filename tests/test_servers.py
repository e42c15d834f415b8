"""Which notebook servers run: what is read from files and kernel tables, and the program that prints them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import UsageError
from holdfast.forward import Address
from holdfast.jupyter import servers
from holdfast.jupyter.servers import Found, Listener, Notebook, Server
from holdfast.openssh import script
from tests.jupyters import RUNTIME_DIRS
from tests.sshd import free_port, wait_for
from tests.test_far_side import path_of

MARK = "0123456789abcdef"
SHELLS = ("dash", "bash", "busybox", "mksh")
PORT = 8888  # 22B8


def tcp(*ends: tuple[str, int], number: int = 1000) -> str:
    """/proc/net/tcp with the listeners at these hexadecimal addresses, each with its uid; inodes count up."""
    lines = [
        f"   {line}: {end} 00000000:0000 0A 00000000:00000000 00:00000000 00000000 {uid:5}        0 "
        f"{number + line} 1 0000000000000000 100 0 0 10 0"
        for line, (end, uid) in enumerate(ends)
    ]
    return "\n".join(["@tcp", *lines, ""])


HERE = "0100007F:22B8"
HERE_6 = "00000000000000000000000001000000:22B8"
EVERYWHERE = "00000000:22B8"
EVERYWHERE_6 = "00000000000000000000000000000000:22B8"
MAPPED = "0000000000000000FFFF00000100007F:22B8"
LAN = "0500000A:22B8"  # 10.0.0.5
OURS = tcp((HERE, 1000))


# The inodes of the sockets of the server's process: those of the first two listeners of `tcp` are among them.
INODES = "17 1000 1001 "


def announced(
    pid: int = 77, alive: str = "yes", hub: str = "no", own: str = "no", inodes: str = INODES, **record: object
) -> str:
    """A server's file, as it is printed."""
    whole = {"base_url": "/", "hostname": "localhost", "pid": pid, "port": PORT, "root_dir": "/home/u", **record}
    return f"@server {pid} {alive} {hub} {own} {inodes}\n{json.dumps(whole, indent=2)}\n"


def read(*parts: str, uid: int = 1000) -> Found:
    return servers.read("".join([f"@uid {uid}\n@home /home/u\n", *parts]))


def one(*parts: str) -> Server:
    found = read(*parts)
    (server,) = found.servers
    assert (found.gone, found.strange) == (0, 0)
    return server


PLACE = Address("127.0.0.1", PORT)
ELSEWHERE = Address("127.0.0.1", 9999)
A_SOCKET = Address(path="/tmp/holdfast-abc/s")


def a_server(pid: int = 77, place: Address = PLACE, root: str = "/home/u/work") -> Server:
    return Server(pid, place, root, "/", False, "secret", False, "2.21.1", False)


def test_a_server_is_read_with_all_that_its_file_tells() -> None:
    text = announced(
        hub="/user/u/",
        base_url="/user/u/",
        token="secret",
        secure=True,
        password=True,
        version="2.21.1",
        url="http://x",
    )
    wanted = Server(77, Address("127.0.0.1", PORT), "/home/u", "/user/u/", True, "secret", True, "2.21.1", True)
    assert one(text, OURS) == wanted


def test_the_home_over_there_may_have_blanks_in_it() -> None:
    assert servers.read("@uid 1000\n@home /home/my  own home\n").home == "/home/my  own home"


def test_a_classic_notebooks_file_is_read_too() -> None:
    record = {"notebook_dir": "/home/u/old", "base_url": "/", "port": PORT, "pid": 77, "token": ""}
    assert one(f"@server 77 yes no no 1000\n{json.dumps(record)}\n", OURS) == Server(
        77, Address("127.0.0.1", PORT), "/home/u/old", "/", False, "", False, "", False
    )


@pytest.mark.parametrize(
    ("said", "base"), [("/", "/"), ("", "/"), (None, "/"), ("/lab", "/lab/"), ("a/b/", "/a/b/"), ("//", "/")]
)
def test_a_base_url_always_has_its_slashes(said: str | None, base: str) -> None:
    assert one(announced(base_url=said), OURS).base_url == base


@pytest.mark.parametrize(
    ("listening", "hostname", "host"),
    [
        (tcp((HERE, 1000)), "localhost", "127.0.0.1"),
        (tcp((HERE, 1000)), "127.0.0.1", "127.0.0.1"),
        (tcp((HERE, 1000)), "", "127.0.0.1"),
        (tcp((HERE, 1000)), "node17", "127.0.0.1"),
        (tcp((HERE, 1000)), "0.0.0.0", "127.0.0.1"),
        (tcp((HERE_6, 1000)), "localhost", "::1"),
        (tcp((HERE_6, 1000)), "::1", "::1"),
        (tcp((MAPPED, 1000)), "localhost", "127.0.0.1"),
        (tcp((EVERYWHERE, 1000)), "0.0.0.0", "127.0.0.1"),
        (tcp((EVERYWHERE, 1000), (EVERYWHERE_6, 1000)), "*", "127.0.0.1"),
        (tcp((LAN, 1000)), "10.0.0.5", "10.0.0.5"),
        (tcp((EVERYWHERE, 1000)), "10.0.0.5", "10.0.0.5"),
        (tcp((HERE, 1000), (LAN, 1000)), "10.0.0.5", "10.0.0.5"),
        # Another user has the same port on the other address: ours is reached all the same, and only ours.
        (tcp((HERE, 1001), (HERE_6, 1000)), "localhost", "::1"),
        (tcp((HERE_6, 1001), (HERE, 1000)), "localhost", "127.0.0.1"),
        (tcp((EVERYWHERE, 1001), (HERE, 1000)), "localhost", "127.0.0.1"),
        (tcp((EVERYWHERE_6, 1001), (HERE, 1000)), "localhost", "127.0.0.1"),
        (tcp((HERE, 1001), (EVERYWHERE_6, 1000)), "localhost", "::1"),
        (tcp((LAN, 1001), (HERE, 1000)), "10.0.0.5", "127.0.0.1"),
        (tcp((EVERYWHERE, 1001), (EVERYWHERE_6, 1000)), "localhost", "::1"),
    ],
)
def test_a_server_is_reached_where_its_user_is_the_one_who_listens(
    listening: str, hostname: str, host: str
) -> None:
    assert one(announced(hostname=hostname), listening).place == Address(host, PORT)


@pytest.mark.parametrize(
    "listening",
    [
        tcp((HERE, 1001)),
        tcp((HERE, 0)),
        tcp((HERE, 1001), (HERE_6, 1001)),
        tcp((EVERYWHERE, 1001)),
        tcp((EVERYWHERE_6, 1001)),
        tcp((HERE, 1001), (EVERYWHERE, 1000)),
        tcp((LAN, 1000)),
        # The user's own, but of another process than the one that has announced itself.
        tcp((HERE, 1000), number=2000),
        tcp((HERE, 1000), (HERE_6, 1000), number=2000),
        tcp((EVERYWHERE, 1000), number=2000),
    ],
)
def test_a_server_at_whose_address_somebody_else_listens_counts_as_strange(listening: str) -> None:
    assert read(announced(), listening) == Found((), 0, 1, "/home/u")


@pytest.mark.parametrize(
    "listening",
    [
        "",
        "@tcp\n",
        tcp(("0100007F:22B9", 1000)),
        tcp(("0100007F:22B9", 1001)),
        tcp(("0100007F", 1000), ("xx:22B8", 1000), ("01:22B8", 1000), (":", 1000)),
    ],
)
def test_a_server_at_whose_address_nobody_listens_counts_as_gone(listening: str) -> None:
    assert read(announced(), listening) == Found((), 1, 0, "/home/u")


@pytest.mark.parametrize("inodes", ["", " ", "17", "-1000", "x", "1000x", "²", "10001000", "1" * 30])
def test_a_listener_that_is_not_among_the_sockets_of_its_process_is_not_the_servers(inodes: str) -> None:
    assert read(announced(inodes=inodes), OURS) == Found((), 0, 1, "/home/u")


def test_of_two_servers_that_say_the_same_the_one_that_has_the_listener_is_believed() -> None:
    found = read(announced(78, inodes="18"), announced(77), announced(79, inodes=""), OURS)
    assert ([server.pid for server in found.servers], found.strange) == ([77], 2)


@pytest.mark.parametrize(
    ("fields", "host"),
    [
        ("p77\nf5\nn127.0.0.1:8888\n", "127.0.0.1"),
        ("p77\nf5\nn[::1]:8888\n", "::1"),
        ("p77\nf5\nn*:8888\n", "127.0.0.1"),
        ("p77\nf7\nn[::1]:8888\nf8\nn127.0.0.1:8888\np80\nf3\nn*:5000\n", "127.0.0.1"),
        ("p80\nf7\nn[::1]:8888\np77\nf8\nn127.0.0.1:8888\n", "127.0.0.1"),
    ],
)
def test_lsofs_fields_tell_the_listeners_of_a_mac(fields: str, host: str) -> None:
    assert one(announced(inodes="-77"), f"@lsof\n{fields}@lsof-unix\n").place == Address(host, PORT)


@pytest.mark.parametrize(
    ("fields", "gone", "strange"),
    [
        ("", 1, 0),
        ("p77\nf5\nn127.0.0.1:88\n", 1, 0),
        ("p77\nf5\nn127.0.0.1:88888888\n", 1, 0),
        ("p77\nf5\nn127.0.0.1:8888->127.0.0.1:5000\n", 1, 0),
        ("p80\nf5\nn127.0.0.1:8888\n", 0, 1),
        ("n127.0.0.1:8888\n", 0, 1),
    ],
)
def test_on_a_mac_only_what_the_process_itself_listens_on_is_the_servers(
    fields: str, gone: int, strange: int
) -> None:
    assert read(announced(inodes="-77"), f"@lsof\n{fields}@lsof-unix\n") == Found((), gone, strange, "/home/u")


UNIX = "0000000000000000: 00000002 00000000 00010000 0001 01 12345 "


@pytest.mark.parametrize(
    ("path", "inodes", "listening"),
    [
        ("/tmp/holdfast-abc/s", "7 12345", f"@unix\n{UNIX}/run/other\n{UNIX}/tmp/holdfast-abc/s\n"),
        ("/home/my own/s", "12345", f"@unix\n{UNIX}/home/my own/s\n"),
        # What was there before it, and has been unlinked, is still listed while it lives.
        ("/tmp/s", "12345", f"@unix\n{UNIX.replace('12345', '12344')}/tmp/s\n{UNIX}/tmp/s\n"),
        ("/tmp/s", "-77", "@lsof-unix\np80\nf9\nn/tmp/s\np77\nf9\nn/tmp/s\nn->0x1234\n"),
    ],
)
def test_a_socket_is_where_the_server_is_reached(path: str, inodes: str, listening: str) -> None:
    place = one(announced(sock=path, own="yes", port=0, inodes=inodes), listening).place
    assert place == Address(path=path)


@pytest.mark.parametrize(
    ("path", "own", "inodes", "listening", "strange"),
    [
        ("/tmp/s", "no", "12345", f"@unix\n{UNIX}/tmp/s\n", 1),
        ("/tmp/s", "yes", "12344", f"@unix\n{UNIX}/tmp/s\n", 1),
        ("/tmp/s", "yes", "-77", "@lsof-unix\np80\nf9\nn/tmp/s\n", 1),
        ("/tmp/s", "yes", "12345", "@unix\n", 0),
        ("/tmp/s", "yes", "12345", f"@unix\n{UNIX}/tmp/s2\n", 0),
        ("s", "yes", "12345", f"@unix\n{UNIX}s\n", 0),
        ("/tmp/\x1b[0m", "yes", "12345", f"@unix\n{UNIX}/tmp/\x1b[0m\n", 1),
        ("/tmp/\ud800", "yes", "12345", f"@unix\n{UNIX}/tmp/\n", 0),
        ("/" + "x" * 103, "yes", "12345", f"@unix\n{UNIX}/{'x' * 103}\n", 1),
    ],
    ids=[
        "another's",
        "another process",
        "another process of a Mac",
        "nobody listens",
        "another path",
        "not absolute",
        "control",
        "surrogate",
        "too long",
    ],
)
def test_a_socket_that_is_not_sure_to_be_the_servers_is_not_used(
    path: str, own: str, inodes: str, listening: str, strange: int
) -> None:
    # Its port is no way round: a server on a socket has none.
    found = read(announced(sock=path, own=own, inodes=f"{inodes} {INODES}"), listening, OURS)
    assert found == Found((), 1 - strange, strange, "/home/u")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "8888",
        "[" * 100_000,
        '{"pid": 77}',
        '{"port": "8888"}',
        '{"port": true}',
        '{"port": 8888.0}',
        '{"port": -1}',
        '{"port": 65536}',
        '{"port": 1' + "0" * 5000 + "}",
        '{"port": 8888, "token": "cut off',
        '{"port": 8888, "token": 5}',
        '{"port": 8888, "token": ["x"]}',
        '{"port": 8888, "token": "x\\r\\nX-Forged: y"}',
        '{"port": 8888, "token": "x\\ty"}',
        '{"port": 8888, "token": "caf\u00e9"}',
        '{"port": 8888, "token": "\\ud800"}',
        '{"port": 8888, "token": "x\\u0000"}',
        '{"port": 8888, "base_url": 5}',
        '{"port": 8888, "hostname": {"a": 1}}',
        '{"port": 8888, "root_dir": true}',
        '{"port": 8888, "notebook_dir": ["/"]}',
        '{"port": 8888, "sock": 7}',
        '{"port": 8888, "version": 2.1}',
    ],
)
def test_a_file_that_makes_no_sense_belongs_to_no_server(text: str) -> None:
    assert read(f"@server 77 yes no no {INODES}\n{text}\n", OURS) == Found((), 1, 0, "/home/u")


@pytest.mark.parametrize(
    ("said", "token"),
    [("secret", "secret"), (" secret\n", "secret"), ("a b", "a b"), ("", ""), ("  ", ""), (None, ""), (0, "")],
)
def test_a_token_is_what_can_be_sent(said: object, token: str) -> None:
    assert one(announced(token=said), OURS).token == token


@pytest.mark.parametrize(
    ("hub", "base_url", "is_hub"),
    [
        ("/user/u/", "/user/u/", True),
        ("/user/u", "/user/u/", True),
        ("/user/u/", "/user/u", True),
        ("/user/u/lab/", "/user/u/lab/", True),
        # Started by hand in a terminal of a hub's server, whose environment it has.
        ("/user/u/", "/", False),
        ("/user/u/", "/user/u/lab/", False),
        ("/user/u/", "/user/v/", False),
        ("/", "/", False),
        ("no", "/", False),
        ("no", "/user/u/", False),
        ("no", "/no/", False),
    ],
)
def test_a_server_is_a_hubs_when_its_base_url_is_the_one_that_the_hub_gave(
    hub: str, base_url: str, is_hub: bool
) -> None:
    assert one(announced(hub=hub, base_url=base_url), OURS).hub == is_hub


def test_what_a_terminal_would_obey_is_not_shown() -> None:
    server = one(announced(root_dir="/a\x1b[2Jb", base_url="/c\nd", version="2\x07"), OURS)
    assert (server.directory, server.base_url, server.version) == ("/a?[2Jb", "/c?d/", "2?")


def test_a_file_whose_process_is_gone_belongs_to_no_server() -> None:
    assert read(announced(alive="no"), OURS) == Found((), 1, 0, "/home/u")


def test_a_server_that_is_announced_twice_is_one() -> None:
    assert len(read(announced(), announced(), OURS).servers) == 1


@pytest.mark.parametrize(
    "printed",
    [
        "@uid\n",
        "@uid \n",
        "@uid me\n",
        "@uid ²\n",
        f"@uid 1000\n@server x yes no no 1000\n{json.dumps({'port': PORT})}\n{OURS}",
        f"@uid 1000\n@server ² yes no no 1000\n{json.dumps({'port': PORT})}\n{OURS}",
        f"@uid 1000\n@server {'1' * 5000} yes no no 1000\n{json.dumps({'port': PORT})}\n{OURS}",
        f"@server 77 yes no no 1000\n{json.dumps({'port': PORT})}\n{OURS}",
        f"@uid {'1' * 5000}\n@server 77 yes no no 1000\n{json.dumps({'port': PORT})}\n{OURS}",
        "@uid 1000\n@server 77 yes\n{}\n",
        "@uid 1000\n@server 77 yes no\n{}\n",
        "@uid 1000\n@tcp\n0: 0100007F:22B8 0:0 0A 0:0 0:0 0 who 0 1\n",
        "@uid 1000\n@tcp\n0: 0100007F:22B8 0:0 0A 0:0 0:0 0 1000 0 one 1\n",
        f"@uid 1000\n@lsof\nn127.0.0.1:{'1' * 5000}\n",
    ],
)
def test_what_makes_no_sense_is_passed_over(printed: str) -> None:
    assert servers.read(printed).servers == ()


LINES = st.one_of(
    st.text(),
    st.sampled_from(["@uid 1000", "@home /h", "@tcp", "@unix", "@lsof", "@lsof-unix", "@server 7 yes no yes 0"]),
    st.builds(
        lambda *words: " ".join(words),
        *[st.sampled_from(["@server", "@uid", "@tcp", "n[::1]:8888", "{}", "7", "yes", HERE, "0A", "1000"])] * 4,
    ),
    st.builds(
        json.dumps, st.dictionaries(st.sampled_from(["port", "sock", "hostname"]), st.integers() | st.text())
    ),
)


@given(st.lists(LINES).map("\n".join))
def test_no_text_makes_it_fail(printed: str) -> None:
    found = servers.read(printed)
    for server in found.servers:
        assert server.pid >= 0
        assert server.base_url.startswith("/")


WORK = Notebook(77, "/home/u/work", "/", False, "2.21.1")


OTHER_BASE = a_server(99, ELSEWHERE)._replace(base_url="/other/")


@pytest.mark.parametrize(
    ("found", "pid"),
    [
        ([], None),
        ([a_server(77)], 77),
        ([a_server(77, ELSEWHERE)], 77),
        ([a_server(78)], 78),
        # Neither the process nor the address: it may be its successor, but isn't it.
        ([a_server(78, ELSEWHERE)], None),
        ([a_server(78, A_SOCKET)], None),
        # The process itself before the address.
        ([a_server(99, ELSEWHERE), a_server(78), a_server(77, A_SOCKET)], 77),
        ([a_server(77, A_SOCKET), a_server(78)], 77),
        ([a_server(99, ELSEWHERE), a_server(78)], 78),
        # Another root is another notebook, whatever its process and address are.
        ([a_server(77, PLACE, "/home/u")], None),
        ([a_server(78, PLACE, "/home/u")], None),
        ([a_server(77, PLACE, "/home/u"), a_server(78)], 78),
        # With the same root the base URL may differ: it was started anew.
        ([a_server(78, PLACE)._replace(base_url="/other/")], 78),
    ],
)
def test_a_server_is_still_the_same_by_its_process_or_its_address_with_its_root(
    found: list[Server], pid: int | None
) -> None:
    same = servers.same(WORK, PLACE, found)
    assert (same.pid if same else None) == pid


@pytest.mark.parametrize(
    ("found", "pid"),
    [
        ([], None),
        ([a_server(78, ELSEWHERE)], 78),
        ([a_server(78, A_SOCKET)], 78),
        # The newest with that root.
        ([a_server(98, ELSEWHERE), a_server(99, A_SOCKET), a_server(97, A_SOCKET)], 99),
        ([a_server(78, PLACE, "/home/u")], None),
        ([a_server(98, PLACE, "/home/u"), a_server(79, ELSEWHERE)], 79),
        # With the same base URL first; another one, if it must be.
        ([OTHER_BASE], 99),
        ([a_server(98, ELSEWHERE), OTHER_BASE], 98),
        ([OTHER_BASE, a_server(98, ELSEWHERE), a_server(97)], 98),
    ],
)
def test_the_successor_of_a_server_that_is_gone_is_the_newest_with_its_root(
    found: list[Server], pid: int | None
) -> None:
    successor = servers.successor(WORK, found)
    assert (successor.pid if successor else None) == pid


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (a_server(), ["--port", "8888"]),
        (a_server(place=A_SOCKET), ["--dir", "/home/u/work"]),
        (a_server(place=A_SOCKET, root="/home/u/it's my  work"), ["--dir", "/home/u/it's my  work"]),
        (a_server(place=A_SOCKET, root="$HOME/*"), ["--dir", "$HOME/*"]),
    ],
)
def test_the_option_that_means_a_server_can_be_pasted_into_a_shell(server: Server, words: list[str]) -> None:
    done = subprocess.run(["sh", "-c", f"printf '%s\\n' {server.option}"], capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == words
    option = {"--port": "port", "--dir": "directory"}[words[0]]
    chosen: dict[str, Any] = {
        "port": None,
        "directory": "",
        option: int(words[1]) if option == "port" else words[1],
    }
    assert servers.matching([server, a_server(1, ELSEWHERE, "/")], **chosen) == [server]


@pytest.mark.parametrize(
    ("port", "directory", "pids"),
    [
        (None, "", [1, 2, 3, 4]),
        (PORT, "", [1, 3]),
        (9999, "", [2]),
        (0, "", [4]),
        (1234, "", []),
        (None, "/home/u/work", [1]),
        (None, "/home/u/work/", [1]),
        (None, "work", [1, 3]),
        (None, "~/work", [1, 3]),
        (None, "ork", []),
        (PORT, "u", []),
        (None, "u", [2]),
        (None, "nothing", []),
        (None, "/", [4]),
    ],
)
def test_servers_are_chosen_by_port_and_by_the_end_of_their_root(
    port: int | None, directory: str, pids: list[int]
) -> None:
    every = [
        a_server(1, PLACE, "/home/u/work"),
        a_server(2, ELSEWHERE, "/home/u"),
        a_server(3, PLACE, "/data/work"),
        a_server(4, A_SOCKET, "/"),
    ]
    assert [server.pid for server in servers.matching(every, port, directory)] == pids


@given(
    st.builds(
        Notebook,
        st.integers(0, 10**11 - 1),
        st.text(),
        st.text().filter(str.isprintable).map("/{}".format),
        st.booleans(),
        st.text(),
    )
)
def test_what_is_remembered_of_a_notebook_comes_back_unchanged(notebook: Notebook) -> None:
    assert Notebook.decode(json.loads(json.dumps(notebook.encode()))) == notebook


@pytest.mark.parametrize(
    "change",
    [
        {"pid": ""},
        {"pid": "-1"},
        {"pid": "1.5"},
        {"pid": "²"},
        {"pid": "1" * 12},
        {"base_url": ""},
        {"base_url": "lab/"},
        {"base_url": "/\x1b[0m"},
        {"base_url": "/\n"},
        {"token": "secret"},
    ],
)
def test_nonsense_is_no_notebook(change: Mapping[str, str]) -> None:
    with pytest.raises(UsageError, match="is not a notebook"):
        Notebook.decode({**WORK.encode(), **change})


@pytest.mark.parametrize("missing", Notebook._fields)
def test_a_notebook_that_lacks_something_is_refused(missing: str) -> None:
    fields = WORK.encode()
    del fields[missing]
    with pytest.raises(UsageError, match="is not a notebook"):
        Notebook.decode(fields)


@given(st.dictionaries(st.sampled_from(Notebook._fields) | st.text(max_size=3), st.text(max_size=5)))
def test_any_fields_are_a_notebook_or_refused(fields: dict[str, str]) -> None:
    with contextlib.suppress(UsageError):
        assert Notebook.decode(fields).pid >= 0


def test_what_is_remembered_of_a_server_has_no_token() -> None:
    kept = a_server().kept
    assert kept == WORK
    assert "secret" not in str(kept.encode())


@pytest.mark.parametrize(
    ("other", "is_like"),
    [
        (WORK, True),
        (WORK._replace(pid=1, version="1", secure=True), True),
        (WORK._replace(directory="/"), False),
        (WORK._replace(base_url="/other/"), False),
        (WORK._replace(pid=1, directory="/"), False),
    ],
)
def test_one_notebook_stands_for_another_with_the_same_root_and_base_url(other: Notebook, is_like: bool) -> None:
    assert WORK.is_like(other) == other.is_like(WORK) == is_like


@pytest.mark.parametrize(
    ("secure", "listen", "url"),
    [
        (False, Address("localhost", 8888), "http://localhost:8888/"),
        (True, Address("::1", 8888), "https://[::1]:8888/"),
    ],
)
def test_a_notebooks_url_is_where_the_forward_listens(secure: bool, listen: Address, url: str) -> None:
    assert WORK._replace(secure=secure).url(listen) == url


def test_a_certificate_that_we_made_belongs_to_the_server_with_its_pid() -> None:
    certificate = "@certificate 77\nsha256 Fingerprint=AB:CD:01\n@certificate 78\n@certificate\n"
    assert one(certificate, announced(secure=True), OURS).fingerprint == "abcd01"
    assert one(certificate, announced(78), OURS).fingerprint == ""


@pytest.mark.parametrize(
    ("listeners", "host", "who"),
    [
        ([], "127.0.0.1", None),
        ([Listener("127.0.0.1", 1, 5)], "127.0.0.1", None),
        ([Listener("0.0.0.0", PORT, 5), Listener("127.0.0.1", PORT, 6)], "127.0.0.1", 6),
        ([Listener("::", PORT, 5), Listener("0.0.0.0", PORT, 6)], "127.0.0.1", 6),
        ([Listener("::", PORT, 5), Listener("0.0.0.0", PORT, 6)], "::1", 5),
        ([Listener("0.0.0.0", PORT, 6)], "::1", None),
    ],
)
def test_the_listener_that_is_closest_to_an_address_is_the_one_that_answers(
    listeners: list[Listener], host: str, who: int | None
) -> None:
    found = servers.listener_at(listeners, host, PORT)
    assert (found.uid if found else None) == who
    assert found is None or found in listeners


# From here on the program itself, run by real shells against real processes.


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")


class Far:
    """An account of the test's own: a home with blanks and quotes in its path, and what runs in it."""

    def __init__(self, home: Path) -> None:
        self.home = home / 'it\'s "my"  home'
        self.runtime = self.home / ".local/share/jupyter/runtime"
        self.runtime.mkdir(parents=True)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.announced: set[str] = set()

    def listen(
        self, uid: int | None = None, host: str = "127.0.0.1", port: int | None = None, **environment: str
    ) -> tuple[int, int]:
        """A process, of the user `uid`, that listens on a port of that host; its pid and the port.

        A port of its choice is free on the other loopback address, too.
        """
        family = "AF_INET6, dualstack_ipv6=False" if ":" in host else "AF_INET"
        return self.run(
            f"port = {port or free_port()}; s = socket.create_server(({host!r}, port), family=socket.{family})",
            uid,
            **environment,
        )

    def listen_on(self, path: Path, uid: int | None = None) -> int:
        """A process, of the user `uid`, that listens on that socket; its pid."""
        return self.run(f"s = socket.socket(socket.AF_UNIX); s.bind({str(path)!r}); s.listen(); port = 0", uid)[0]

    def run(self, statements: str, uid: int | None = None, **environment: str) -> tuple[int, int]:
        """A process, of the user `uid`, that has done that and stays; its pid, and what `port` is."""
        program = (
            f"import os, socket, time; os.setuid({os.getuid() if uid is None else uid});"
            f"{statements}; print(port, flush=True); time.sleep(1000)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(self.home)],
            stdout=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], **environment},
        )
        self.processes.append(process)
        assert process.stdout is not None
        return process.pid, int(process.stdout.readline())

    def announce(self, pid: int, directory: Path | None = None, kind: str = "jp", **record: object) -> Path:
        """Writes the file by which a server makes itself known, as Jupyter does."""
        path = (directory or self.runtime) / f"{kind}server-{pid}.json"
        whole = {"base_url": "/", "hostname": "localhost", "pid": pid, "root_dir": str(self.home), "sock": ""}
        self.announced.add(str(pid))
        path.write_text(json.dumps({**whole, **record}, indent=2, sort_keys=True))
        return path

    def look(self, shell: str, program: str = servers.PROGRAM, **environment: str) -> str:
        """What the program prints, run by that shell as `sh`."""
        done = subprocess.run(
            path_of(shell).split(),
            input=script.wrap(program, MARK).encode(),
            capture_output=True,
            env={"PATH": os.environ["PATH"], "HOME": str(self.home), **environment},
            timeout=30,
            check=False,
        )
        return script.unwrap(done.stdout.decode(), MARK, "lab")

    def find(self, shell: str, program: str = servers.PROGRAM, **environment: str) -> Found:
        """What is read from that of the files that were written here: others' servers may run on this machine."""
        parts = re.split(r"^(?=@)", self.look(shell, program, **environment), flags=re.MULTILINE)
        kept = [part for part in parts if not part.startswith("@server") or part.split()[1] in self.announced]
        return servers.read("".join(kept))

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(10)
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def far(home: Path) -> Iterator[Far]:
    made = Far(home)
    yield made
    made.end()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_server_that_runs_is_found_and_a_dead_ones_file_is_left_alone(far: Far, shell: str) -> None:
    pid, port = far.listen()
    far.announce(pid, port=port, token="secret")
    with subprocess.Popen(["true"]) as process:
        process.wait(10)
    dead = far.announce(process.pid, port=port)
    found = far.find(shell)
    wanted = Server(pid, Address("127.0.0.1", port), str(far.home), "/", False, "secret", False, "", False)
    assert found.servers == (wanted,)
    assert found.gone == 1
    assert found.home == str(far.home.resolve())
    assert dead.exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_directory_that_only_a_running_process_knows_of_is_looked_into(far: Far, shell: str) -> None:
    runtime = far.home / "some where"
    runtime.mkdir()
    pid, port = far.listen(JUPYTER_RUNTIME_DIR=str(runtime))
    far.announce(pid, runtime, port=port)
    assert [server.pid for server in far.find(shell).servers] == [pid]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_directory_that_is_named_in_many_places_is_printed_once(far: Far, shell: str) -> None:
    pid, port = far.listen(JUPYTER_RUNTIME_DIR=str(far.runtime))
    far.announce(pid, port=port)
    places = {
        "JUPYTER_RUNTIME_DIR": str(far.runtime),
        "JUPYTER_DATA_DIR": str(far.runtime.parent),
        "XDG_RUNTIME_DIR": str(far.runtime.parent),
    }
    assert far.look(shell, **places).count(f"@server {pid} ") == 1
    assert far.look(shell).count(f"@server {pid} ") == 1


@pytest.mark.parametrize(("variable", "value", "runtime"), RUNTIME_DIRS)
def test_every_place_that_jupyter_may_use_is_looked_into(
    far: Far, variable: str, value: str, runtime: str
) -> None:
    directory = far.home / runtime
    directory.mkdir(parents=True)
    pid, port = far.listen()
    far.announce(pid, directory, port=port)
    found = far.find("dash", **{variable: str(far.home / value)})
    assert [server.pid for server in found.servers] == [pid]


@pytest.mark.parametrize("shell", SHELLS)
def test_classic_notebooks_and_those_of_a_hub_are_told_as_such(far: Far, shell: str) -> None:
    pid, port = far.listen(JUPYTERHUB_SERVICE_PREFIX="/user/u/")
    far.announce(pid, port=port, kind="nb", notebook_dir=f"{far.home}/old", root_dir=None, base_url="/user/u/")
    (server,) = far.find(shell).servers
    assert (server.hub, server.directory) == (True, f"{far.home}/old")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_server_that_was_started_in_a_hubs_terminal_is_its_users_own(far: Far, shell: str) -> None:
    pid, port = far.listen(JUPYTERHUB_SERVICE_PREFIX="/user/u/")
    far.announce(pid, port=port)
    (server,) = far.find(shell).servers
    assert not server.hub


@pytest.mark.parametrize("shell", SHELLS)
def test_a_socket_counts_while_it_is_ones_own_and_the_server_listens(far: Far, shell: str) -> None:
    path = far.home.parent / "s"
    pid = far.listen_on(path)
    far.announce(pid, sock=str(path), port=0)
    (server,) = far.find(shell).servers
    assert (server.pid, server.place) == (pid, Address(path=str(path)))
    if os.getuid() == 0:
        os.chown(path, 12345, -1)
        assert far.find(shell).servers == ()
    path.unlink()
    assert far.find(shell).servers == ()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_socket_that_another_process_listens_on_is_strange_and_one_that_nobody_does_is_gone(
    far: Far, shell: str
) -> None:
    pid, _ = far.listen()
    path = far.home.parent / "s"
    far.announce(pid, sock=str(path), port=0)
    assert (far.find(shell).gone, far.find(shell).strange) == (1, 0)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert (far.find(shell).gone, far.find(shell).strange) == (1, 0)
        listener.listen()
        found = far.find(shell)
        assert (found.servers, found.gone, found.strange) == ((), 0, 1)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_port_that_another_process_of_ones_own_listens_on_is_strange(far: Far, shell: str) -> None:
    pid, _ = far.listen()
    _, port = far.listen()
    far.announce(pid, port=port)
    found = far.find(shell)
    assert (found.servers, found.gone, found.strange) == ((), 0, 1)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_live_process_whose_port_nobody_listens_on_is_gone(far: Far, shell: str) -> None:
    pid, _ = far.listen()
    far.announce(pid, port=1)
    found = far.find(shell)
    assert (found.servers, found.gone, found.strange) == ((), 1, 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_a_server_on_any_address_is_placed_where_it_can_be_connected_to(far: Far, host: str) -> None:
    """As Jupyter listens: on `::`, IPv6 alone."""
    pid, port = far.listen(host=host)
    far.announce(pid, port=port, hostname=host)
    (server,) = far.find("dash").servers
    socket.create_connection((server.place.host, server.place.port), 5).close()


@pytest.mark.parametrize("shell", SHELLS)
def test_beside_another_program_on_the_same_port_the_server_is_reached_at_its_own_address(
    far: Far, shell: str
) -> None:
    uid = 12345 if os.getuid() == 0 else None
    pid, port = far.listen(host="::1")
    far.listen(uid, port=port)
    far.announce(pid, port=port)
    (server,) = far.find(shell).servers
    assert server.place == Address("::1", port)


@pytest.mark.parametrize("shell", SHELLS)
def test_files_that_are_links_or_no_files_are_passed_over(far: Far, shell: str) -> None:
    pid, port = far.listen()
    real = far.announce(pid, port=port, token="secret")
    real.rename(far.home / "moved")
    real.symlink_to(far.home / "moved")
    os.mkfifo(far.runtime / "jpserver-6.json")
    assert "secret" not in far.look(shell)
    found = far.find(shell)
    assert (found.servers, found.gone, found.strange) == ((), 0, 0)


START = Path("/tmp/holdfast-srvtests")


@pytest.fixture
def start() -> Iterator[Path]:
    """The directory of a start."""
    START.mkdir(mode=0o700)
    yield START
    if START.is_symlink():
        START.unlink()
    shutil.rmtree(START, ignore_errors=True)


CERTIFICATE = "sha256 Fingerprint=AB:CD"


@pytest.fixture
def certified(far: Far, start: Path) -> Callable[[], str]:
    """Gives the start a certificate; tells the fingerprint that is found for the server `pid`."""
    tool = far.home / "tools/openssl"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho '{CERTIFICATE}'\n")
    tool.chmod(0o755)
    (start / "cert.pem").write_text("a certificate")
    pid, port = far.listen()
    far.announce(pid, port=port, secure=True)
    (start / "pid").write_text(f"{pid}\n")

    def look(shell: str = "dash") -> str:
        (server,) = far.find(shell, PATH=f"{tool.parent}:{os.environ['PATH']}").servers
        return server.fingerprint

    return look


@pytest.mark.parametrize("shell", SHELLS)
def test_the_certificate_of_a_start_is_found_with_its_server(certified: Callable[[str], str], shell: str) -> None:
    assert certified(shell) == "abcd"


@pytest.mark.parametrize(
    "what", ["linked", "linked pid", "FIFO", "FIFO for a certificate", "no number", "another's"]
)
def test_a_start_that_somebody_else_may_have_made_is_passed_over(
    certified: Callable[[str], str], start: Path, what: str
) -> None:
    pid = start / "pid"
    match what:
        case "linked":
            elsewhere = Path(tempfile.mkdtemp(prefix="hf"))
            start.rename(elsewhere / "real")
            start.symlink_to(elsewhere / "real")
        case "linked pid":
            pid.rename(start / "moved")
            pid.symlink_to(start / "moved")
        case "FIFO":
            pid.unlink()
            os.mkfifo(pid)
        case "FIFO for a certificate":
            (start / "cert.pem").unlink()
            os.mkfifo(start / "cert.pem")
        case "no number":
            pid.write_text(pid.read_text().strip() + "; x\n")
        case "another's":
            if os.getuid() != 0:
                pytest.skip("only root can be another user")
            os.chown(start, 12345, -1)
    try:
        assert certified("dash") == ""
    finally:
        if start.is_symlink():
            shutil.rmtree(start.resolve().parent)


@pytest.mark.parametrize(
    ("wanted", "directory"),
    [
        ("", ""),
        ("~", ""),
        ("work", "/work"),
        ("~/work", "/work"),
        ("work/", "/work"),
        ("link", "/work"),
        ("work/../it's $(mine)  too", "/it's $(mine)  too"),
        ("nothing", None),
        ("$HOME", None),
    ],
)
def test_a_directory_that_a_person_named_is_told_as_it_is_called_there(
    far: Far, wanted: str, directory: str | None
) -> None:
    (far.home / "work").mkdir()
    (far.home / "it's $(mine)  too").mkdir()
    (far.home / "link").symlink_to("work")
    found = far.find("dash", servers.program_for(wanted))
    assert found.directory == ("" if directory is None else f"{far.home.resolve()}{directory}")


@pytest.mark.parametrize("shell", SHELLS)
def test_an_absolute_directory_is_told_as_it_is(far: Far, shell: str) -> None:
    assert far.find(shell, servers.program_for(str(far.home))).directory == str(far.home.resolve())


@needs_root
@pytest.mark.parametrize("shell", SHELLS)
def test_another_users_file_and_process_are_not_believed(far: Far, shell: str) -> None:
    pid, port = far.listen()
    os.chown(far.announce(pid, port=port, token="planted"), 12345, -1)
    assert "planted" not in far.look(shell)
    with subprocess.Popen(["sleep", "1000"], user=12345) as other:
        far.announce(other.pid, port=port)
        try:
            wait_for(lambda: psutil.Process(other.pid).uids().real == 12345, "it to be another's")
            assert far.find(shell).gone == 1
        finally:
            other.kill()


@needs_root
@pytest.mark.parametrize("shell", SHELLS)
def test_a_port_that_only_another_user_listens_on_is_no_servers(far: Far, shell: str) -> None:
    pid, _ = far.listen()
    _, port = far.listen(uid=12345)
    far.announce(pid, port=port)
    found = far.find(shell)
    assert (found.servers, found.gone + found.strange) == ((), 1)


@needs_root
@pytest.mark.parametrize("shell", SHELLS)
def test_a_strangers_listeners_are_told_on_the_ports_of_ones_own_servers_and_nowhere_else(
    far: Far, shell: str
) -> None:
    pid, shared = far.listen(host="::1")
    _, alone = far.listen(uid=12345)
    far.listen(uid=12345, port=shared)
    far.announce(pid, port=shared)
    parts = list(script.sections(far.look(shell)))
    seen = {(one.host, one.port, one.uid) for one in servers.listeners_in(parts, os.getuid())}
    assert {("::1", shared, os.getuid()), ("127.0.0.1", shared, 12345)} <= seen
    assert alone not in {port for _, port, _ in seen}
    assert {uid for _, _, uid in seen} >= {os.getuid(), 12345}
    (own,) = [one for one in servers.listeners_in(parts, 0) if (one.host, one.port) == ("::1", shared)]
    assert any(f"socket:[{own.inode}]" in str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir())


@needs_root
@pytest.mark.parametrize("shell", SHELLS)
def test_a_stranger_beside_another_process_of_ones_own_is_strange(far: Far, shell: str) -> None:
    pid, _ = far.listen()
    _, port = far.listen(host="::1")
    far.listen(uid=12345, port=port)
    far.announce(pid, port=port)
    found = far.find(shell)
    assert (found.servers, found.strange) == ((), 1)


@pytest.mark.parametrize("shell", SHELLS)
def test_what_is_in_the_files_cannot_be_taken_for_something_else(far: Far, shell: str) -> None:
    pid, port = far.listen()
    # An object of Jupyter's own, and lines that none would write.
    path = far.announce(pid, port=port, token="secret")
    path.write_text(path.read_text().replace("{", "{\n@uid 0\n@server 1 yes no no\n", 1))
    pid, port = far.listen()
    far.announce(pid, port=port, root_dir="/a\n@uid 0\n@server 1 yes no no\n")
    (far.runtime / "jpserver-.json").write_text("@uid 0\n")
    (far.runtime / "jpserver-1;id.json").write_text("@uid 0\n")
    (far.runtime / f"jpserver-{pid}-open.html").write_text("@uid 0\n")
    (far.runtime / "jpserver-7.json").mkdir()
    printed = far.look(shell)
    assert [words for name, words, _ in script.sections(printed) if name == "uid"] == [[str(os.getuid())]]
    assert pid in [server.pid for server in servers.read(printed).servers]


def test_a_file_of_any_size_costs_little(far: Far) -> None:
    pid, port = far.listen()
    far.announce(pid, port=port, junk="x" * 5_000_000)
    parts = script.sections(far.look("dash"))
    assert [len(text) for name, words, text in parts if name == "server" and words[0] == str(pid)] == [16385]
    assert far.find("dash").gone == 1


def test_a_home_that_is_not_there_is_no_trouble(far: Far) -> None:
    assert far.find("dash", HOME=f"{far.home}/nothing").home == ""


def on_a_mac() -> str:
    """The program on a system without /proc, with Linux's own lsof, which prints the same fields."""
    path_of("lsof")
    program = servers.PROGRAM.replace("/proc/net/tcp ]", "/nothing ]").replace("/proc/self", "/nothing")
    assert program.count("/nothing") == 2
    return program


def test_on_a_mac_lsof_tells_the_listeners_as_proc_does(far: Far) -> None:
    pid, port = far.listen()
    far.announce(pid, port=port)
    other, _ = far.listen()
    far.announce(other, port=port)
    found = far.find("dash", on_a_mac())
    (server,) = found.servers
    assert (server.pid, server.place) == (pid, Address("127.0.0.1", port))
    assert found.strange == 1


def test_on_a_mac_lsof_tells_whose_a_socket_is(far: Far) -> None:
    path = far.home.parent / "s"
    pid = far.listen_on(path)
    other, _ = far.listen()
    for one in (pid, other):
        far.announce(one, sock=str(path), port=0)
    path_of("lsof")
    # Linux's lsof adds the type to a socket's name, which a Mac's doesn't.
    program = on_a_mac().replace("-U -Fpn 2>/dev/null", "-U -Fpn 2>/dev/null | sed 's/ type=.*//'")
    found = far.find("dash", program)
    assert ([server.place for server in found.servers], found.strange) == ([Address(path=str(path))], 1)


def test_a_process_that_has_just_ended_is_gone_although_nobody_has_waited_for_it(far: Far) -> None:
    pid, port = far.listen()
    far.announce(pid, port=port)
    far.processes[0].send_signal(signal.SIGKILL)
    wait_for(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, "it to end")
    found = far.find("dash")
    assert (found.gone, found.strange) == (1, 0)


def test_servers_are_listed_by_their_directories_whatever_their_pids_are() -> None:
    found = read(announced(9588, root_dir="/home/u/b"), announced(16003, root_dir="/home/u/a"), OURS)
    assert [server.directory for server in found.servers] == ["/home/u/a", "/home/u/b"]
