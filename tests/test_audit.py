"""What others on a shared machine could do to a user's notebooks: what it means, and the programs that look."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.forward import Address
from holdfast.jupyter import audit, servers
from holdfast.jupyter.audit import Finding, Login, Looked
from holdfast.jupyter.servers import Found, Listener, Server
from holdfast.openssh import script
from tests.test_far_side import path_of
from tests.test_servers import HERE, HERE_6, MARK, needs_root, tcp

SHELLS = ("dash", "bash", "busybox")
NOBODY = Looked((), (), (), {}, (), (), Found((), 0, 0, "/home/u"))
SAFE = Server(
    77, Address(path="/tmp/holdfast-abcdefgh/s"), "/home/u", "/", False, "secret", False, "2.21.1", False
)
ON_TCP = SAFE._replace(place=Address("127.0.0.1", 8888))
TLS = ON_TCP._replace(secure=True)
HERE_8888 = Listener("127.0.0.1", 8888, 1000, 5)


def looked(*found: Server, strange: int = 0, **more: Any) -> Looked:
    return NOBODY._replace(found=Found(found, 0, strange, "/home/u"), **more)


def risks(seen: Looked, logins: Mapping[int, Login] | None = None) -> list[Finding]:
    return [one for one in audit.findings(seen, "lab", logins) if one.risk]


def texts(seen: Looked) -> list[str]:
    return [one.text for one in audit.findings(seen, "lab")]


@pytest.mark.parametrize(
    ("printed", "people"),
    [
        ("", ()),
        ("@me u\n@logged-in\n", ()),
        ("@me u\n@logged-in\nalice\nbob\nroot\nu\n", ("alice", "bob")),
        ("@me root\n@logged-in\nroot\n", ()),
        ("@logged-in\nalice\n", ("alice",)),
        ("@me first.last\n@logged-in\n\n  alice  \nfirst.last\n", ("alice",)),
    ],
)
def test_the_others_are_those_who_are_neither_me_nor_root(printed: str, people: tuple[str, ...]) -> None:
    assert audit.others(printed) == people


def test_what_the_program_printed_is_read_whole() -> None:
    record = json.dumps({"port": 8888, "root_dir": "/home/u", "token": "secret"})
    printed = f"""
@me u
@logged-in
alice
u
@accounts
alice
bob
u
@sockets
/proc/77/fd:
socket:[1000]
socket:[1001]
/proc/78/fd:
/proc/79/fd:
socket:[1002]
@programs
     77 jupyter-lab
     79 my program
@mode drwx------ /home/u/my  runtime
@mode -rw-r--r-- /home/u/my  runtime/jpserver-77-open.html
@kernel 8888 encrypted
@kernel 9999 plain
@kernel 8888 plain
@uid 1000
@home /home/u
@server 77 yes no no 1000
{record}
{tcp((HERE, 1000), (HERE_6, 1001))}"""
    assert audit.read(printed) == Looked(
        people=("alice",),
        accounts=("alice", "bob"),
        listeners=(Listener("127.0.0.1", 8888, 1000, 1000),),
        programs={1000: "jupyter-lab (pid 77)", 1001: "jupyter-lab (pid 77)", 1002: "my program (pid 79)"},
        # A kernel whose port is nobody's, or another user's, has ended.
        kernels=((8888, True), (8888, False)),
        modes=(("drwx------", "/home/u/my  runtime"), ("-rw-r--r--", "/home/u/my  runtime/jpserver-77-open.html")),
        found=servers.read(printed),
    )


@pytest.mark.parametrize(
    "printed",
    [
        "@uid\n",
        "@uid me\n",
        "@uid 1000\n@kernel\n@kernel x plain\n@kernel  plain\n",
        f"@uid 1000\n@kernel ² plain\n{tcp((HERE, 1000))}",
        "@mode drwx------\n@mode\n",
        "@sockets\nsocket:[1]\nsocket:[x]\n/proc/x/fd:\n",
        "@programs\n77\n\nx y\n",
        "@uid 1000\n@tcp\n0: 0100007F:22B8 0:0 0A 0:0 0:0 0 who 0 1\n",
    ],
)
def test_what_makes_no_sense_is_passed_over(printed: str) -> None:
    seen = audit.read(printed)
    assert (seen.people, seen.accounts, seen.kernels, seen.modes) == ((), (), (), ())


LINES = st.one_of(
    st.text(),
    st.builds(
        lambda *words: " ".join(words),
        st.sampled_from(["@me", "@logged-in", "@accounts", "@sockets", "@programs", "@mode", "@kernel", "@uid"]),
        *[st.sampled_from(["", "8888", "plain", "encrypted", "drwxr-xr-x", "/x", "u", "²", "1000"])] * 2,
    ),
    st.sampled_from(
        ["/proc/7/fd:", "socket:[5]", "7 python", "@server 7 yes no no 1000", '{"port": 8888}', "@tcp"]
    ),
    st.just(tcp((HERE, 1000)).removeprefix("@tcp\n")),
)


@given(st.lists(LINES).map("\n".join))
def test_no_text_makes_it_fail(printed: str) -> None:
    seen = audit.read(printed)
    for logins in (None, dict.fromkeys(range(9), Login.NONE)):
        found = list(audit.findings(seen, "lab", logins))
        assert found
        assert all(one.hint for one in found if one.risk)
    assert audit.others(printed) == seen.people


@pytest.mark.parametrize(
    ("people", "accounts", "text"),
    [
        ((), (), "lab has no other users"),
        ((), ("bob",), "nobody else is on lab just now; who may log in: bob"),
        (("alice",), ("alice", "bob"), "others on lab just now: alice"),
        (("a", "b", "c"), (), "others on lab just now: a, b, c"),
        (("a", "b", "c", "d", "e"), (), "others on lab just now: a, b, c and 2 others"),
    ],
)
def test_who_else_is_there_is_told_first_and_is_no_risk_itself(
    people: tuple[str, ...], accounts: tuple[str, ...], text: str
) -> None:
    first = next(audit.findings(looked(people=people, accounts=accounts), "lab"))
    assert first == Finding(False, text)


def test_one_server_on_a_socket_of_ones_own_is_no_risk_on_any_host() -> None:
    seen = looked(SAFE, people=("alice",))
    assert risks(seen) == []
    assert (
        f"the notebook server in /home/u ({SAFE.place}) asks for its token, over a socket of yours alone"
        in texts(seen)
    )


@pytest.mark.parametrize(
    ("server", "login", "people", "said"),
    [
        (ON_TCP, None, (), None),
        (TLS, None, ("alice",), None),
        (ON_TCP, None, ("alice",), "is on a TCP port without TLS: every user there can connect to it"),
        (TLS._replace(token=""), Login.NONE, (), "has no token: whoever can connect to it runs programs as you"),
        (SAFE._replace(token=""), Login.NONE, (), "has no token: whoever can connect to it runs programs as you"),
        # What it asks for is what was tried, not what its file says.
        (TLS._replace(token=""), Login.PASSWORD, ("alice",), None),
        (TLS._replace(token="", password=True), Login.PASSWORD, ("alice",), None),
        (TLS._replace(token="", password=True), Login.NONE, ("alice",), "has no token: whoever"),
        (TLS._replace(token=""), None, ("alice",), None),
        (SAFE._replace(token="", password=True), Login.EMPTY_PASSWORD, (), "takes an empty password: whoever"),
    ],
)
def test_what_is_wrong_with_a_server_is_told_with_how_to_mend_it(
    server: Server, login: Login | None, people: tuple[str, ...], said: str | None
) -> None:
    logins = {server.pid: login} if login else None
    found = risks(looked(server, people=people, listeners=(HERE_8888,)), logins)
    assert len(found) == (said is not None)
    for one in found:
        assert str(said) in one.text
        chosen = "--port 8888" if server.place.port else "--dir /home/u"
        assert one.hint == f"holdfast jupyter lab --stop {chosen}, then holdfast jupyter lab --start"


def test_an_account_that_may_log_in_makes_a_host_as_shared_as_one_who_has() -> None:
    assert len(risks(looked(ON_TCP, accounts=("bob",), listeners=(HERE_8888,)))) == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_server_that_listens_on_all_addresses_is_told_although_nobody_shares_the_host(host: str) -> None:
    (one,) = risks(looked(TLS, listeners=(Listener(host, 8888, 1000, 5),)))
    assert "listens on all addresses: other machines can connect to it" in one.text


def test_an_empty_password_is_told_of_the_server_that_has_it() -> None:
    seen = looked(SAFE, TLS._replace(pid=78))
    (one,) = risks(seen, {78: Login.EMPTY_PASSWORD, 79: Login.NONE})
    assert "(127.0.0.1:8888) takes an empty password" in one.text


def test_a_server_behind_a_password_is_told_as_such() -> None:
    seen = looked(SAFE._replace(token="", password=True))
    wanted = f"the notebook server in /home/u ({SAFE.place}) asks for a password, over a socket of yours alone"
    assert Finding(False, wanted) in list(audit.findings(seen, "lab", {77: Login.PASSWORD}))


def test_a_hubs_server_is_the_hubs_to_start_and_has_no_hint() -> None:
    (one,) = risks(looked(ON_TCP._replace(hub=True), people=("alice",), listeners=(HERE_8888,)))
    assert "is on a TCP port without TLS" in one.text
    assert one.hint == ""


def test_a_hint_that_names_a_directory_can_be_pasted_into_a_shell() -> None:
    (one,) = risks(looked(SAFE._replace(token="", directory="/home/u/it's mine")), {77: Login.NONE})
    command = one.hint.partition(", then ")[0]
    words = subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=False)
    assert words.stdout.splitlines()[-1:] == ["/home/u/it's mine"]


def test_a_stranger_at_a_servers_address_is_a_risk() -> None:
    (one,) = risks(looked(strange=1))
    assert "listens a program that isn't yours" in one.text
    assert "holdfast jupyter lab --list" in one.hint


def test_no_server_at_all_is_told_and_is_no_risk() -> None:
    assert Finding(False, "no notebook server of yours runs on lab") in list(audit.findings(NOBODY, "lab"))


@pytest.mark.parametrize(
    ("listener", "risk", "text"),
    [
        (Listener("127.0.0.1", 5000, 1000, 9), False, "also yours on lab: 127.0.0.1:5000 (flask (pid 9))"),
        (Listener("::1", 5000, 1000), False, "also yours on lab: [::1]:5000 (a program of yours)"),
        (
            Listener("0.0.0.0", 5000, 1000, 9),
            True,
            "flask (pid 9) listens on 0.0.0.0:5000 on lab: other machines can connect to it",
        ),
        (
            Listener("::", 5000, 1000, 7),
            True,
            "a program of yours listens on [::]:5000 on lab: other machines can connect to it",
        ),
    ],
)
def test_what_else_listens_is_told_with_its_program(listener: Listener, risk: bool, text: str) -> None:
    seen = looked(SAFE, listeners=(listener,), programs={9: "flask (pid 9)"})
    hint = "have it listen on 127.0.0.1, and forward that: holdfast up lab 5000" if risk else ""
    assert Finding(risk, text, hint) in list(audit.findings(seen, "lab"))


def test_a_notebooks_own_port_is_not_told_twice() -> None:
    assert not [text for text in texts(looked(TLS, listeners=(HERE_8888,))) if "also yours" in text]


def test_of_many_listeners_eight_are_named() -> None:
    seen = looked(listeners=tuple(Listener("127.0.0.1", port, 1000) for port in range(5000, 5020)))
    (text,) = [text for text in texts(seen) if "also yours" in text]
    assert text.count("a program of yours") == 8
    assert text.endswith(", ...")


@pytest.mark.parametrize(
    ("kernels", "people", "risk", "text"),
    [
        ((), ("alice",), None, "kernel"),
        (((1, True),), ("alice",), False, "your kernels' traffic on lab is encrypted"),
        (((1, True), (2, False)), ("alice",), True, "1 of your kernels on lab talk in the clear on TCP"),
        (((1, False), (2, False)), ("alice",), True, "2 of your kernels on lab talk in the clear on TCP"),
        (((1, False),), (), None, "kernel"),
    ],
)
def test_kernels_in_the_clear_are_a_risk_where_others_are(
    kernels: tuple[tuple[int, bool], ...], people: tuple[str, ...], risk: bool | None, text: str
) -> None:
    found = [one for one in audit.findings(looked(kernels=kernels, people=people), "lab") if text in one.text]
    assert [one.risk for one in found] == ([] if risk is None else [risk])


@pytest.mark.parametrize(
    ("mode", "what", "right"),
    [
        ("drwx------", None, ""),
        ("-rw-------", None, ""),
        ("-r--------", None, ""),
        ("drwx-----T", None, ""),
        # In a directory whose group is passed on, `chmod 700` leaves it so, and it opens nothing.
        ("drwx--S---", None, ""),
        ("drwxr-xr-x", "others can look into /x y on lab (drwxr-xr-x)", "700"),
        ("drwx--x---", "others can look into /x y on lab (drwx--x---)", "700"),
        ("drwx--s---", "others can look into /x y on lab (drwx--s---)", "700"),
        ("drwxrwxrwt", "others can look into /x y on lab (drwxrwxrwt)", "700"),
        ("-rw-r--r--", "others can read the token in /x y on lab (-rw-r--r--)", "600"),
        ("-rw----r--", "others can read the token in /x y on lab (-rw----r--)", "600"),
        ("-rw--w----", "others can read the token in /x y on lab (-rw--w----)", "600"),
    ],
)
def test_what_others_can_look_into_is_told(mode: str, what: str | None, right: str) -> None:
    found = risks(looked(SAFE, modes=((mode, "/x y"),)))
    assert [one.text for one in found] == ([what] if what else [])
    assert all(f"chmod {right} " in one.hint for one in found)


def test_what_is_in_a_directory_that_nobody_else_can_look_into_is_no_risk() -> None:
    page = ("-rw-r--r--", "/home/u/runtime/jpserver-77-open.html")
    for closed in ("drwx------", "drwx--S---", "drwx-----T"):
        assert risks(looked(SAFE, modes=((closed, "/home/u/runtime"), page))) == []
        assert risks(looked(SAFE, modes=(page, (closed, "/home/u/runtime")))) == []
    for others in ((), (("drwx------", "/home/u/run"),), (("-rw-------", "/home/u/runtime"),)):
        assert len(risks(looked(SAFE, modes=(*others, page)))) == 1
    opened = ("drwx--x---", "/home/u/runtime")
    assert len(risks(looked(SAFE, modes=(opened, page)))) == 2


@pytest.mark.parametrize("name", ["it's my  runtime", "$(touch x)`id`\\", "-rf", 'a"b', "*"])
def test_a_hint_that_names_a_path_changes_the_mode_of_that_path(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir(mode=0o755)
    (one,) = risks(looked(SAFE, modes=(("drwxr-xr-x", str(directory)),)))
    # `ssh lab words...` gives the words to a shell over there, as this function does.
    subprocess.run(["sh", "-c", f'ssh() {{ shift; sh -c "$*"; }}; {one.hint}'], check=True)
    assert directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("people", "risk", "text"),
    [
        ((), False, "nobody else is logged in on this machine"),
        (("alice", "bob"), True, "alice, bob can connect to the ports that forwards listen on here"),
    ],
)
def test_forwards_are_a_risk_on_a_machine_where_others_are(people: tuple[str, ...], risk: bool, text: str) -> None:
    (one,) = audit.local_findings(people)
    assert one.risk == risk == bool(one.hint)
    assert text in one.text


def test_a_warning_names_three_people_and_counts_the_rest() -> None:
    assert audit.warning(["a"], "lab") == "a can connect to that port on lab as well"
    assert audit.warning(list("abcd"), "lab") == "a, b, c and 1 others can connect to that port on lab as well"


# From here on the programs themselves, run by real shells.


class Far:
    """A home with blanks and quotes in its path, in which the programs are run."""

    def __init__(self, home: Path) -> None:
        self.home = home / 'it\'s "my"  home'
        self.runtime = self.home / ".local/share/jupyter/runtime"
        self.runtime.mkdir(parents=True, mode=0o700)
        self.tools = home / "tools"
        self.tools.mkdir()

    def run(self, shell: str, program: str, *prefix: str) -> str:
        done = subprocess.run(
            [*prefix, *path_of(shell).split()],
            input=script.wrap(program, MARK).encode(),
            capture_output=True,
            env={"PATH": f"{self.tools}:{os.environ['PATH']}", "HOME": str(self.home)},
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return script.unwrap(done.stdout.decode(), MARK, "lab")


@pytest.fixture
def far(home: Path) -> Far:
    return Far(home)


ACCOUNTS = {
    "root": (0, "/bin/bash"),
    "service": (900, "/bin/sh"),
    "alice": (1000, "/bin/bash"),
    "a-name-that-is-longer-than-most": (1001, "/bin/sh"),
    "bob": (1002, "/usr/bin/zsh"),
    "from-the-directory": (1_234_567, "/bin/bash"),
    "no-shell": (1003, "/usr/sbin/nologin"),
    "never": (1004, "/bin/false"),
    "empty": (1005, ""),
    "dynamic": (61_184, "/bin/sh"),
    "nobody": (65_534, "/bin/sh"),
}
PEOPLE = {"alice", "a-name-that-is-longer-than-most", "bob", "from-the-directory"}


@pytest.fixture
def lone(home: Path) -> list[str]:
    """A prefix for commands: a machine with these accounts and no process but what is run there."""
    etc = home / "etc"  # a whole one: what is mounted over a file goes when another test makes an account
    etc.mkdir()
    for name in ("alternatives", "group", "ld.so.cache", "nsswitch.conf"):
        subprocess.run(["cp", "-a", f"/etc/{name}", str(etc)], check=True)
    lines = [f"{name}:x:{uid}:{uid}:{name}, of course:/:{shell}" for name, (uid, shell) in ACCOUNTS.items()]
    (etc / "passwd").write_text("\n".join(lines) + "\n")
    home.chmod(0o755)  # every user reads it
    mounts = f"mount --bind {etc} /etc"
    prefix = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c"]
    if subprocess.run([*prefix, mounts], capture_output=True, check=False).returncode != 0:
        pytest.skip("mount namespaces can't be made here")
    return [*prefix, f'{mounts}; "$@"', "sh"]


@needs_root
@pytest.mark.parametrize("shell", SHELLS)
def test_people_are_those_with_a_login_shell_and_a_persons_uid(far: Far, lone: list[str], shell: str) -> None:
    seen = audit.read(far.run(shell, audit.PROGRAM, *lone))
    assert set(seen.accounts) == PEOPLE
    assert seen.people == ()


@needs_root
@pytest.mark.parametrize("shell", SHELLS)
def test_whoever_runs_something_is_there(far: Far, lone: list[str], shell: str) -> None:
    starts = "".join(f"setpriv --reuid {uid} --clear-groups sleep 1000 & " for uid, _ in ACCOUNTS.values())
    within = [*lone[:-2], lone[-2].replace('"$@"', f'{starts}"$@"'), "sh"]
    # Until each of them has become its own user, which takes a moment.
    wait = 'while [ "$(ps -eo comm= | grep -c sleep)" -lt ' + str(len(ACCOUNTS)) + " ]; do :; done\n"
    printed = far.run(shell, wait + audit.PEOPLE, *within)
    # Whoever has no login shell may run something all the same, as may whoever an administrator lets in.
    assert set(audit.others(printed)) == PEOPLE | {"no-shell", "never", "empty"}


@needs_root
def test_a_user_with_a_long_name_is_not_told_of_as_somebody_else(far: Far, lone: list[str]) -> None:
    own = ["setpriv", "--reuid", "1001", "--clear-groups", "--"]
    assert audit.others(far.run("dash", audit.PEOPLE, *lone, *own)) == ()


@pytest.mark.parametrize("shell", SHELLS)
def test_whoever_is_logged_in_is_there(far: Far, shell: str) -> None:
    who = far.tools / "who"
    who.write_text(
        "#!/bin/sh\necho 'carol    pts/0        2026-11-28 09:00 (10.0.0.7)'\necho 'root     tty1  x'\n"
    )
    who.chmod(0o755)
    assert "carol" in audit.others(far.run(shell, audit.PEOPLE))


@pytest.mark.parametrize("shell", SHELLS)
def test_it_says_nothing_but_what_is_read(far: Far, shell: str) -> None:
    known = {"me", "logged-in", "accounts", "sockets", "programs", "mode", "kernel", "uid", "home", "server"}
    known |= {"certificate", "tcp", "unix", "lsof", "lsof-unix"}
    names = {name for name, _, _ in script.sections(far.run(shell, audit.PROGRAM))}
    assert {"me", "logged-in", "accounts", "sockets", "programs", "uid", "home", "tcp", "unix"} <= names <= known


@pytest.mark.parametrize("shell", SHELLS)
def test_a_listener_is_told_with_the_program_that_has_it(far: Far, shell: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        seen = audit.read(far.run(shell, audit.PROGRAM))
        port = listener.getsockname()[1]
    (own,) = [one for one in seen.listeners if one.port == port]
    assert own.host == "127.0.0.1"
    assert seen.programs[own.inode].endswith(f"(pid {os.getpid()})")
    assert seen.programs[own.inode].startswith(Path("/proc/self/comm").read_text().strip())


@pytest.mark.parametrize("shell", SHELLS)
def test_kernels_on_tcp_are_told_with_whether_they_encrypt(far: Far, listeners: list[int], shell: str) -> None:
    plain, encrypted, own_socket = listeners
    files = {
        "plain": {"iopub_port": plain, "transport": "tcp", "key": "x"},
        "encrypted": {"iopub_port": encrypted, "transport": "tcp", "curve_publickey": "x"},
        "socket": {"iopub_port": own_socket, "transport": "ipc"},
        "ended": {"iopub_port": 1, "transport": "tcp"},
    }
    for name, record in files.items():
        (far.runtime / f"kernel-{name}.json").write_text(json.dumps(record, indent=2))
    seen = audit.read(far.run(shell, audit.PROGRAM))
    assert set(seen.kernels) & {(port, kind) for port in listeners for kind in (True, False)} == {
        (plain, False),
        (encrypted, True),
    }


@pytest.fixture
def listeners() -> Iterator[list[int]]:
    made = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    yield [one.getsockname()[1] for one in made]
    for one in made:
        one.close()


@pytest.mark.parametrize("shell", SHELLS)
def test_modes_are_those_of_runtime_directories_and_of_pages_with_a_token(far: Far, shell: str) -> None:
    page = far.runtime / "jpserver-77-open.html"
    page.touch(mode=0o644)
    (far.runtime / "jpserver-77.json").touch(mode=0o644)
    far.runtime.chmod(0o755)
    kept = {path: mode for mode, path in audit.read(far.run(shell, audit.PROGRAM)).modes}
    mine = {path: mode for path, mode in kept.items() if path.startswith(str(far.home))}
    assert mine == {str(far.runtime): "drwxr-xr-x", str(page): "-rw-r--r--"}


@pytest.mark.parametrize("shell", SHELLS)
def test_files_that_are_links_or_no_files_are_not_looked_at(far: Far, shell: str) -> None:
    elsewhere = far.home / "elsewhere"
    elsewhere.write_text('{"iopub_port": 7, "transport": "tcp"}')
    (far.runtime / "jpserver-7-open.html").symlink_to(elsewhere)
    (far.runtime / "kernel-linked.json").symlink_to(elsewhere)
    os.mkfifo(far.runtime / "jpserver-8-open.html")
    os.mkfifo(far.runtime / "kernel-fifo.json")
    parts = list(script.sections(far.run(shell, audit.PROGRAM)))
    assert ["7", "plain"] not in [words for name, words, _ in parts if name == "kernel"]
    modes = [" ".join(words[1:]) for name, words, _ in parts if name == "mode"]
    assert [path for path in modes if path.startswith(str(far.home))] == [str(far.runtime)]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_name_that_another_user_may_have_made_up_tells_nothing(far: Far, shell: str) -> None:
    program = far.tools / "ps"
    program.write_text("#!/bin/sh\nprintf '%s\\n' '@me nobody' '@accounts' '@server 1 yes no no' ' 1 \033[2J'\n")
    program.chmod(0o755)
    (far.runtime / "jpserver-7\n@me nobody\n@mode drwxrwxrwx x-open.html").touch()
    printed = far.run(shell, audit.PROGRAM)
    parts = list(script.sections(printed))
    assert [words for name, words, _ in parts if name == "me"] != [["nobody"]]
    assert [name for name, _, _ in parts].count("me") == 1
    assert "x-open.html" not in [words[-1] for name, words, _ in parts if name == "mode"]
    seen = audit.read(printed)
    assert all(text.isprintable() for text in (*seen.people, *seen.accounts, *seen.programs.values()))


@needs_root
def test_a_directory_of_anothers_is_not_ours_to_judge(far: Far) -> None:
    shutil.chown(far.runtime, 12345)
    printed = far.run("dash", audit.PROGRAM)
    assert str(far.home) not in [
        " ".join(words[1:]) for name, words, _ in script.sections(printed) if name == "mode"
    ]
