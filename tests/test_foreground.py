"""Logins in a terminal: whatever ssh asks is asked there, and the master outlives the terminal."""

from __future__ import annotations

import contextlib
import getpass
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pexpect
import pytest

from tests.conftest import Run, Web, get, tunnel
from tests.sshd import Sshd, free_port, wait_for
from tests.test_up import masters

Typed = Callable[..., "pexpect.spawn[str]"]


@pytest.fixture
def typed(environment: Mapping[str, str], holdfast: Run) -> Iterator[Typed]:
    """Runs `holdfast` in a terminal of its own."""
    opened: list[pexpect.spawn[str]] = []

    def run(*words: str) -> pexpect.spawn[str]:
        terminal: pexpect.spawn[str] = pexpect.spawn(
            sys.executable, ["-m", "holdfast", *words], env=dict(environment), encoding="utf8", timeout=20
        )
        opened.append(terminal)
        return terminal

    yield run
    for terminal in opened:
        terminal.close(force=True)


def finish(terminal: pexpect.spawn[str]) -> int:
    terminal.expect(pexpect.EOF)
    terminal.close()
    return int(terminal.exitstatus or 0)


@pytest.fixture
def secret_key(sshd: Sshd, home: Path) -> None:
    """Lets nobody in but with a key whose passphrase is `secret`."""
    key = home / "secret_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(key)], check=True)
    sshd.authorized_keys.write_text(key.with_suffix(".pub").read_text())
    sshd.user_key = key
    sshd.configure()


def test_an_unknown_host_and_a_passphrase_are_asked_for_in_the_terminal(
    typed: Typed, holdfast: Run, sshd: Sshd, web: Web, secret_key: None
) -> None:
    known = sshd.known_hosts.read_text().split()[-1]
    sshd.known_hosts.write_text("")
    port = free_port()
    terminal = typed("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}")
    terminal.expect("continue connecting")
    terminal.sendline("yes")
    terminal.expect("Enter passphrase")
    terminal.sendline("wrong")
    terminal.expect("Enter passphrase")
    terminal.sendline("secret")
    terminal.expect(f"http://localhost:{port}")
    assert finish(terminal) == 0
    assert known in sshd.known_hosts.read_text()
    assert get(port) == b"hello"  # the terminal is closed


def test_a_second_up_on_the_same_host_asks_nothing(
    typed: Typed, holdfast: Run, sshd: Sshd, web: Web, secret_key: None
) -> None:
    terminal = typed("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}")
    terminal.expect("Enter passphrase")
    terminal.sendline("secret")
    assert finish(terminal) == 0
    port = free_port()
    assert holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}", "--name", "two").returncode == 0
    assert get(port) == b"hello"


def test_ctrl_c_at_the_prompt_leaves_nothing_behind(
    typed: Typed, holdfast: Run, sshd: Sshd, home: Path, secret_key: None
) -> None:
    terminal = typed("up", "-F", str(sshd.config), "lab", f"{free_port()}:1")
    terminal.expect("Enter passphrase")
    terminal.sendintr()
    assert finish(terminal) == 130
    wait_for(lambda: "no tunnels" in holdfast("status").stderr, "the tunnel to be forgotten")
    assert masters(home) == []


def test_ctrl_c_at_the_prompt_leaves_what_somebody_else_has_asked_for_meanwhile(
    typed: Typed, holdfast: Run, sshd: Sshd, web: Web, secret_key: None
) -> None:
    port = free_port()
    terminal = typed("up", "-F", str(sshd.config), "lab", f"{free_port()}:1")
    terminal.expect("Enter passphrase")
    assert holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}", "--no-wait").returncode == 0
    terminal.sendintr()
    assert finish(terminal) == 130
    wait_for(lambda: holdfast("status").returncode == 3 and "needs login" in holdfast("status").stdout, "its end")
    second = typed("up", "lab")
    second.expect("Enter passphrase")
    second.sendline("secret")
    assert finish(second) == 0
    assert get(port) == b"hello"


def test_ctrl_c_at_the_prompt_leaves_what_was_remembered(
    typed: Typed, holdfast: Run, sshd: Sshd, web: Web, secret_key: None
) -> None:
    port = free_port()
    first = typed("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}")
    first.expect("Enter passphrase")
    first.sendline("secret")
    assert finish(first) == 0
    holdfast("down", "lab")
    second = typed("up", "lab", f"{free_port()}:1")
    second.expect("Enter passphrase")
    second.sendintr()
    assert finish(second) == 130
    third = typed("up", "lab")
    third.expect("Enter passphrase")
    third.sendline("secret")
    third.expect(f"http://localhost:{port}")
    assert finish(third) == 0


def test_a_terminal_that_is_closed_at_the_prompt_leaves_nothing_behind(
    typed: Typed, holdfast: Run, sshd: Sshd, home: Path, secret_key: None
) -> None:
    terminal = typed("up", "-F", str(sshd.config), "lab", f"{free_port()}:1")
    terminal.expect("Enter passphrase")
    terminal.close(force=True)
    wait_for(lambda: "no tunnels" in holdfast("status").stderr, "the tunnel to be forgotten")
    wait_for(lambda: masters(home) == [], "ssh to be gone")


def test_a_tunnel_that_is_taken_down_during_its_login_leaves_no_master(
    typed: Typed, holdfast: Run, sshd: Sshd, home: Path, secret_key: None
) -> None:
    terminal = typed("up", "-F", str(sshd.config), "lab", f"{free_port()}:1")
    terminal.expect("Enter passphrase")
    assert holdfast("down", "lab").returncode == 0
    terminal.sendline("secret")
    terminal.expect("was taken down meanwhile")
    assert finish(terminal) == 1
    wait_for(lambda: masters(home) == [], "the master to be gone")


def test_a_restart_during_a_login_leaves_one_master(
    typed: Typed, holdfast: Run, sshd: Sshd, web: Web, home: Path, secret_key: None
) -> None:
    first = typed("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}")
    first.expect("Enter passphrase")
    second = typed("restart", "lab")
    second.expect("connecting")
    first.sendline("secret")  # for a login that nobody waits for any more
    first.expect("Enter passphrase")
    first.sendline("secret")
    assert finish(first) == 0
    assert finish(second) == 0
    wait_for(
        lambda: masters(home) == [tunnel(holdfast("status", "--json"))["master_pid"]], "one master to be left"
    )


def test_a_login_in_a_terminal_is_the_only_one(
    typed: Typed, holdfast: Run, sshd: Sshd, web: Web, secret_key: None
) -> None:
    holdfast("up", "nowhere.invalid", str(free_port()), "--no-wait")  # the keeper runs already
    terminal = typed("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}")
    terminal.expect("Enter passphrase")
    terminal.sendline("secret")
    assert finish(terminal) == 0
    assert sshd.log.read_text().count("Connection from") == 1


def test_of_two_terminals_one_logs_in_and_both_get_their_tunnel(
    typed: Typed, sshd: Sshd, web: Web, secret_key: None
) -> None:
    one = typed("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}", "--name", "one")
    one.expect("Enter passphrase")
    two = typed("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}", "--name", "two")
    two.expect("two is connecting")
    one.sendline("secret")
    assert finish(one) == 0
    assert finish(two) == 0


def test_a_login_that_only_a_person_can_make_is_made_by_the_next_up_in_a_terminal(
    typed: Typed, holdfast: Run, sshd: Sshd, web: Web, secret_key: None
) -> None:
    port = free_port()
    assert holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}").returncode == 4
    assert "passphrase" in tunnel(holdfast("status", "--json"))["reason"]
    terminal = typed("up", "lab")
    terminal.expect("Enter passphrase")
    terminal.sendline("secret")
    assert finish(terminal) == 0
    assert get(port) == b"hello"


def test_a_login_that_fails_in_the_terminal_is_told_in_plain_words(typed: Typed, sshd: Sshd) -> None:
    sshd.authorized_keys.write_text("")
    terminal = typed("up", "-F", str(sshd.config), "-o", "NumberOfPasswordPrompts=1", "lab", f"{free_port()}:1")
    with contextlib.suppress(pexpect.EOF):
        terminal.expect("assword:", timeout=5)
        terminal.sendline("wrong")
    terminal.expect("holdfast: ")
    assert finish(terminal) == 4


@pytest.fixture
def account() -> Iterator[str]:
    """An account on this machine with the password `open sesame`."""
    if os.getuid() != 0 or not Path("/usr/sbin/useradd").exists():
        pytest.skip("needs root, to make an account")
    name = f"hf{os.getpid()}"
    subprocess.run(["useradd", "--no-create-home", "--home-dir", "/", "--shell", "/bin/sh", name], check=True)
    subprocess.run(["chpasswd"], input=f"{name}:open sesame", text=True, check=True)
    yield name
    subprocess.run(["userdel", "--force", name], capture_output=True, check=True)


def test_a_password_is_asked_for_again_when_it_was_wrong(
    typed: Typed, sshd: Sshd, web: Web, account: str, home: Path
) -> None:
    home.chmod(0o755)
    sshd.authorized_keys.write_text("")
    port = free_port()
    terminal = typed("up", "-F", str(sshd.config), "-l", account, "lab", f"{port}:{web.port}")
    terminal.expect(f"{account}@127.0.0.1's password:")
    terminal.sendline("wrong")
    terminal.expect("Permission denied, please try again")
    terminal.sendline("open sesame")
    assert finish(terminal) == 0
    assert get(port) == b"hello"


def test_the_master_survives_the_end_of_its_session(
    typed: Typed, holdfast: Run, sshd: Sshd, web: Web, secret_key: None
) -> None:
    port = free_port()
    terminal = typed("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}")
    terminal.expect("Enter passphrase")
    terminal.sendline("secret")
    assert finish(terminal) == 0
    pid = tunnel(holdfast("status", "--json"))["master_pid"]
    assert os.getsid(pid) == os.getpgid(pid)
    assert os.getsid(pid) != os.getsid(0)


def test_what_was_typed_is_in_no_log(typed: Typed, sshd: Sshd, web: Web, home: Path, secret_key: None) -> None:
    terminal = typed("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}")
    terminal.expect("Enter passphrase")
    terminal.sendline("secret")
    assert finish(terminal) == 0
    kept = [path for where in ("state", "run") for path in (home / where).rglob("*") if path.is_file()]
    assert kept
    assert not any("secret\n" in path.read_text(errors="replace") for path in kept)
    assert getpass.getuser() in sshd.config.read_text()


def test_after_a_loss_the_desktops_dialogue_is_used_once(
    typed: Typed, holdfast: Run, sshd: Sshd, web: Web, home: Path, secret_key: None, environment: dict[str, str]
) -> None:
    asked, secret = home / "asked", home / "secret"
    program = home / "askpass"
    program.write_text(f'#!/bin/sh\necho "$1" >> {asked}\ncat {secret}\n')
    program.chmod(0o700)
    secret.write_text("secret\n")
    environment |= {"SSH_ASKPASS": str(program), "DISPLAY": ":9"}
    port = free_port()
    terminal = typed("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}")
    terminal.expect("Enter passphrase")
    terminal.sendline("secret")
    assert finish(terminal) == 0
    assert not asked.exists()
    sshd.drop_connections()
    wait_for(asked.exists, "the dialogue")
    assert get(port) == b"hello"
    assert asked.read_text().count("Enter passphrase") == 1
    secret.write_text("wrong\n")
    sshd.drop_connections()
    wait_for(lambda: tunnel(holdfast("status", "--json"))["state"] == "needs login", "the refusal")
    assert asked.read_text().count("Enter passphrase") == 2


def test_after_a_loss_one_login_brings_all_tunnels_of_the_host_back(
    typed: Typed, holdfast: Run, sshd: Sshd, web: Web, secret_key: None
) -> None:
    ports = [free_port(), free_port()]
    terminal = typed("up", "-F", str(sshd.config), "lab", f"{ports[0]}:{web.port}")
    terminal.expect("Enter passphrase")
    terminal.sendline("secret")
    assert finish(terminal) == 0
    holdfast("up", "-F", str(sshd.config), "lab", f"{ports[1]}:{web.port}", "--name", "two")
    logins = sshd.log.read_text().count("Connection from")
    sshd.drop_connections()
    wait_for(lambda: tunnel(holdfast("status", "--json", "two"))["state"] == "needs login", "the loss")
    assert sshd.log.read_text().count("Connection from") == logins  # nothing was tried without the person
    terminal = typed("up", "lab")
    terminal.expect("lets only a person log in")
    terminal.expect("Enter passphrase")
    terminal.sendline("secret")
    assert finish(terminal) == 0
    assert [get(port) for port in ports] == [b"hello", b"hello"]
