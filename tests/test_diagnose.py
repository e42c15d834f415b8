"""Every way to fail that this machine can provoke, provoked with real ssh and sshd; the rest from recorded text.

Recorded, because loopback can't show it: offline name resolution, "No route to host", account and PAM messages,
disconnect messages with a text, and the wordings of versions that are not installed here.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import signal
import socket
import string
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.openssh import endings
from holdfast.openssh.command import READY, master, show_settings, unattended
from holdfast.openssh.diagnose import ENDED_BY_HAND, Refusal, Remedy, Trouble, diagnose, refusal
from holdfast.openssh.settings import Settings
from tests.sshd import Sshd, free_port, make_key, wait_for

ME = f"{getpass.getuser()}@127.0.0.1"
BY_KEY_ONLY = ("PasswordAuthentication no", "KbdInteractiveAuthentication no")
# What command.py's LogVerbose must name for ssh to log that the server accepted a key.
ACCEPTED_KEY = "sshconnect2.c:input_userauth_pk_ok():*"

LOG_IN = "run `holdfast up lab` in a terminal to give it"
CHECK_KEYS = (
    "see which keys your agent holds with `ssh-add -l`, or name the right one with IdentityFile in your "
    "ssh_config; a key with a passphrase must be in the agent (`ssh-add`)"
)
CHECK_OPTION = "see `man ssh_config` for what your ssh knows, and correct the option"
CHECK_CONFIG = "correct it, then see what ssh makes of it with `ssh -G lab`"
CHECK_NAME = "check the spelling, and that you are online; a name that only a VPN knows needs that VPN"
CHECK_PORT = "check the port; a captive portal or a proxy may be answering"
CHECK_PROXY = "install it, or correct ProxyCommand in your ssh_config"
ASK_BEFORE = (
    "somebody may be intercepting the connection; only if its administrator says that the key was changed: "
)
ASK_AGENT = (
    "it may have waited for a touch or a yes: see what it holds with `ssh-add -l`, "
    "and run `holdfast up lab` in a terminal"
)
PATIENCE = "it limits connections, above all after failed logins: give it a minute or more"
MAYBE_PATIENCE = (
    "it may limit connections after failed logins, or a firewall is in the way: give it a minute or more"
)
VERBOSELY = "see how far it gets with `ssh -v lab`"


def _command(server: Sshd, options: tuple[str, ...], host: str, socket_path: Path | None = None) -> list[str]:
    options = options if "-F" in options else ("-F", str(server.config), *options)
    control = socket_path or server.home / "ctl"
    through = unattended(options, _jump(options, host))
    command = master(host, through, control, server.home / "master.log", in_terminal=False, defaults={})
    return [re.sub("^LogVerbose=", f"LogVerbose={ACCEPTED_KEY},", word) for word in command]


def _jump(options: Sequence[str], host: str) -> str:
    """The jump hosts that ssh would use, '' where it refuses the options."""
    shown = subprocess.run(show_settings(host, options), capture_output=True, text=True, check=False)
    return Settings(shown.stdout).proxy_jump


def fail(server: Sshd, *options: str, host: str = "lab", **environment: str) -> Trouble:
    """Runs ssh until it gives up, and diagnoses what it wrote."""
    log = server.home / "master.log"
    with log.open("ab") as errors:
        ended = subprocess.run(
            _command(server, options, host),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **environment},
            start_new_session=True,
            timeout=20,
            check=False,
        )
    assert (ended.returncode, ended.stdout) == (255, b"")
    return diagnose(log.read_text(errors="replace"), host)


@contextlib.contextmanager
def logged_in(server: Sshd, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A master that has logged in; it has ended when the block is left."""
    with (server.home / "master.log").open("ab") as errors:
        process = subprocess.Popen(
            _command(server, options, "lab"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == READY
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)
        (server.home / "ctl").unlink(missing_ok=True)


def lose(server: Sshd, cut: Callable[[], object], *options: str) -> Trouble:
    """Logs in, then cuts the connection, and diagnoses what ssh wrote when it ended."""
    with logged_in(server, *options) as process:
        cut()
        assert process.wait(10) == 255
    return diagnose((server.home / "master.log").read_text(errors="replace"), "lab")


@pytest.fixture
def sshd(sshd: Sshd) -> Iterator[Sshd]:
    yield sshd
    let_go(sshd)


def let_go(server: Sshd) -> None:
    """Waits until the server has seen its connections end."""
    wait_for(lambda: not server.descendants(), "sshd to be done with its connections")


def restart(server: Sshd, *options: str) -> None:
    let_go(server)
    server.stop()
    server.start(*options)


@pytest.fixture
def client(home: Path, keys: Path) -> Sshd:
    """The client's side only: nothing listens at its port."""
    return Sshd(home, keys)


Peer = Callable[[Callable[[socket.socket], object]], int]


@pytest.fixture
def peer() -> Iterator[Peer]:
    """Starts something on loopback that isn't an sshd: does `act` to the first connection, then holds it open."""
    with contextlib.ExitStack() as stack:

        def start(act: Callable[[socket.socket], object]) -> int:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            listener.settimeout(20)

            def serve() -> None:
                act(stack.enter_context(listener.accept()[0]))

            thread = threading.Thread(target=serve)
            thread.start()
            stack.callback(thread.join)
            return int(listener.getsockname()[1])

        yield start


@contextlib.contextmanager
def silent(port: int) -> Iterator[None]:
    """A listener at `port` whose queue is full: it drops what comes, as a firewall does."""
    with socket.create_server(("127.0.0.1", port), backlog=0), contextlib.ExitStack() as stack:
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        yield


def reset(connection: socket.socket) -> None:
    """Closes it so that the other end gets a reset instead of an end of file."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def say(text: bytes) -> Callable[[socket.socket], None]:
    """Says `text` to an ssh, waits for its own greeting, and ends."""

    def act(connection: socket.socket) -> None:
        connection.sendall(text)
        connection.recv(1000)
        connection.shutdown(socket.SHUT_WR)

    return act


def use_key(server: Sshd, key: Path) -> None:
    """Makes `key` the only one that the client has."""
    server.user_key = key
    server.configure()


def make_agent(server: Sshd, key: Path) -> subprocess.Popen[bytes]:
    """An agent with `key`, which wants a confirmation that nobody can give."""
    at = server.home / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(at)], stdout=subprocess.DEVNULL)
    wait_for(at.exists, "the agent's socket")
    subprocess.run(["ssh-add", "-q", "-c", str(key)], env={**os.environ, "SSH_AUTH_SOCK": str(at)}, check=True)
    return agent


def keygen(path: Path, *options: str) -> Path:
    subprocess.run(["ssh-keygen", "-q", *options, "-f", str(path)], check=True, stdin=subprocess.DEVNULL)
    return path


def fingerprint(key: Path) -> str:
    listed = subprocess.run(["ssh-keygen", "-lf", str(key)], capture_output=True, text=True, check=True)
    return listed.stdout.split()[1]


# --- what never reached the server ---


def test_a_name_that_nobody_knows_is_told(client: Sshd) -> None:
    assert fail(client, "-o", "HostName=something.invalid") == Trouble(
        "there is no host named something.invalid", CHECK_NAME, Remedy.RETRY
    )


def test_a_port_that_nobody_listens_on_is_told(client: Sshd) -> None:
    assert fail(client) == Trouble(
        f"127.0.0.1 refuses connections to port {client.port}",
        "check that sshd runs there, and on that port",
        Remedy.RETRY_REFUSED,
    )


def test_a_name_whose_addresses_all_refuse_is_told_as_one(client: Sshd) -> None:
    assert fail(client, "-o", "HostName=localhost") == Trouble(
        f"localhost refuses connections to port {client.port}",
        "check that sshd runs there, and on that port",
        Remedy.RETRY_REFUSED,
    )


def test_an_address_that_refused_is_not_blamed_for_what_another_one_did() -> None:
    """As LogVerbose has ssh say it, on a machine where `lab` has two addresses."""
    log = """
        debug1: sshconnect.c:ssh_connect_direct():485 (pid=7): Connecting to lab [2001:db8::7] port 22.
        debug1: sshconnect.c:ssh_connect_direct():504 (pid=7): connect to address 2001:db8::7 port 22: {why}
        debug1: sshconnect.c:ssh_connect_direct():485 (pid=7): Connecting to lab [192.0.2.7] port 22.
        debug1: sshconnect.c:ssh_connect_direct():522 (pid=7): Connection established.
        something that nobody has ever seen
        """
    for why in ("Connection refused", "Connection timed out", "No route to host"):
        assert diagnose(log.format(why=why), "lab") == Trouble(
            "ssh ended, saying 'something that nobody has ever seen'", VERBOSELY, Remedy.RETRY_LATER
        )


def test_a_machine_that_never_answers_is_told(client: Sshd) -> None:
    with silent(client.port):
        assert fail(client, "-o", "ConnectTimeout=1") == Trouble(
            f"127.0.0.1 doesn't answer on port {client.port}",
            "check that it is up, and that your network or VPN reaches it",
            Remedy.RETRY,
        )


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels say something else of this address")
def test_a_network_that_leads_nowhere_is_told(client: Sshd) -> None:
    assert fail(client, "-o", "HostName=255.255.255.255") == Trouble(
        "there is no way to 255.255.255.255 from this network", "check your network or VPN", Remedy.RETRY
    )


def test_a_local_address_that_is_not_there_is_told(client: Sshd) -> None:
    assert fail(client, "-b", "203.0.113.9") == Trouble(
        "this machine has no address or interface 203.0.113.9 to connect to 127.0.0.1 from",
        "check BindAddress and BindInterface in your ssh_config, and your VPN",
        Remedy.RETRY,
    )


def test_a_wrong_address_family_is_not_called_a_wrong_name(client: Sshd) -> None:
    assert fail(client, "-4", "-o", "HostName=::1") == Trouble(
        "the name ::1 can't be looked up: address family for hostname not supported",
        "check HostName and AddressFamily in your ssh_config",
        Remedy.RETRY,
    )


# --- what answered, but never as an sshd ---


def test_a_server_that_says_nothing_is_told(client: Sshd, peer: Peer) -> None:
    port = peer(lambda connection: None)
    assert fail(client, "-p", str(port), "-o", "ConnectTimeout=1") == Trouble(
        "lab accepted the connection, then said nothing",
        "it may be overloaded, or the port may not be sshd's",
        Remedy.RETRY_LATER,
    )


@pytest.mark.parametrize("end", [socket.socket.close, reset])
def test_closed_before_the_banner_is_left_alone_for_long(
    client: Sshd, peer: Peer, end: Callable[[socket.socket], None]
) -> None:
    assert fail(client, "-p", str(peer(end))) == Trouble(
        "lab closed the connection before saying anything", MAYBE_PATIENCE, Remedy.RETRY_MUCH_LATER
    )


def test_too_many_unfinished_logins_are_told_with_the_servers_words(sshd: Sshd) -> None:
    restart(sshd, "MaxStartups 1:100:1")
    with socket.create_connection(("127.0.0.1", sshd.port)) as unfinished:
        assert unfinished.recv(4) == b"SSH-"
        assert fail(sshd) == Trouble(
            "lab turned the connection away: 'Exceeded MaxStartups'", PATIENCE, Remedy.RETRY_MUCH_LATER
        )


def test_a_penalty_is_told_with_the_servers_words(client: Sshd, peer: Peer) -> None:
    """As sshd 9.8 and later say it."""
    port = peer(say(b"Not allowed at this time\r\n"))
    assert fail(client, "-p", str(port)) == Trouble(
        "lab turned the connection away: 'Not allowed at this time'", PATIENCE, Remedy.RETRY_MUCH_LATER
    )


def test_a_web_server_is_not_taken_for_a_busy_sshd(client: Sshd, peer: Peer) -> None:
    port = peer(say(b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n"))
    assert fail(client, "-p", str(port)) == Trouble(
        "lab doesn't answer like an SSH server: it said 'HTTP/1.1 400 Bad Request'",
        CHECK_PORT,
        Remedy.RETRY_LATER,
    )


def test_what_can_not_be_ssh_is_told(client: Sshd, peer: Peer) -> None:
    port = peer(say(b"x" * 10_000 + b"\r\n"))
    assert fail(client, "-p", str(port)) == Trouble(
        "lab doesn't answer like an SSH server: invalid format", CHECK_PORT, Remedy.RETRY_LATER
    )


def test_what_says_something_before_what_can_not_be_ssh_is_told_in_its_words(client: Sshd, peer: Peer) -> None:
    port = peer(say(b"220 mail.example ESMTP\r\n" + b"x" * 10_000 + b"\r\n"))
    assert fail(client, "-p", str(port)) == Trouble(
        "lab doesn't answer like an SSH server: it said '220 mail.example ESMTP'",
        CHECK_PORT,
        Remedy.RETRY_LATER,
    )


def test_a_server_of_version_1_is_told(client: Sshd, peer: Peer) -> None:
    port = peer(say(b"SSH-1.5-old\r\n"))
    assert fail(client, "-p", str(port)) == Trouble(
        "lab speaks only version 1.5 of the SSH protocol, which is not safe",
        "have the server updated",
        Remedy.NONE,
    )


def test_closed_after_the_banner_is_not_called_closed_before_it(client: Sshd, peer: Peer) -> None:
    port = peer(say(b"SSH-2.0-busy\r\n"))
    assert fail(client, "-p", str(port)) == Trouble(
        "lab closed the connection during the login", "ask what its sshd logged", Remedy.RETRY_LATER
    )


def test_garbage_after_the_banner_is_told(client: Sshd, peer: Peer) -> None:
    port = peer(say(b"SSH-2.0-broken\r\n" + b"x" * 200))
    assert fail(client, "-p", str(port)) == Trouble(
        "the connection to lab broke during the login: message authentication code incorrect",
        "check your network or VPN",
        Remedy.RETRY_LATER,
    )


# --- host keys ---


def test_an_unknown_host_key_is_told_with_its_fingerprint(sshd: Sshd) -> None:
    sshd.known_hosts.write_text("")
    assert fail(sshd) == Trouble(
        f"lab offers a host key that is not known here: {fingerprint(sshd.host_key)}",
        "compare that with what its administrator says, and run `ssh lab` once to accept it",
        Remedy.NONE,
    )


def test_an_unknown_host_key_under_strict_checking_names_the_way_to_accept_it(sshd: Sshd) -> None:
    sshd.known_hosts.write_text("")
    assert fail(sshd, "-o", "StrictHostKeyChecking=yes") == Trouble(
        f"[127.0.0.1]:{sshd.port} offers a host key that is not known here: {fingerprint(sshd.host_key)}",
        "compare that with what its administrator says, and run once, to accept it, "
        "`ssh -o StrictHostKeyChecking=ask lab`",
        Remedy.NONE,
    )


def test_a_changed_host_key_is_told_with_the_command_that_forgets_the_old_one(sshd: Sshd, keys: Path) -> None:
    sshd.trust(keys / "other_host")
    trouble = fail(sshd)
    forget = f"ssh-keygen -f {sshd.known_hosts} -R '[127.0.0.1]:{sshd.port}'"
    assert trouble == Trouble(
        f"[127.0.0.1]:{sshd.port} offers another host key than before: {fingerprint(sshd.host_key)}",
        ASK_BEFORE + forget,
        Remedy.NONE,
    )
    subprocess.run(forget, shell=True, check=True, capture_output=True)
    assert sshd.known_hosts.read_text() == ""


def test_a_changed_host_key_is_told_even_if_it_is_not_checked(sshd: Sshd, keys: Path) -> None:
    sshd.trust(keys / "other_host")
    options = ("StrictHostKeyChecking=no", "PubkeyAuthentication=no")
    assert fail(sshd, *(word for option in options for word in ("-o", option))) == Trouble(
        "lab offers another host key than before, so no password is sent to it",
        f"{ASK_BEFORE}remove line 1 of {sshd.known_hosts}",
        Remedy.NONE,
    )


def test_a_host_key_marked_as_revoked_is_told(sshd: Sshd) -> None:
    sshd.known_hosts.write_text("@revoked " + sshd.known_hosts.read_text())
    assert fail(sshd) == Trouble(
        f"[127.0.0.1]:{sshd.port} offers a host key that is revoked",
        "do not log in; ask its administrator (your known_hosts says @revoked)",
        Remedy.NONE,
    )


def test_a_host_key_in_the_list_of_revoked_ones_is_told(sshd: Sshd) -> None:
    revoked = sshd.host_key.with_suffix(".pub")
    assert fail(sshd, "-o", f"RevokedHostKeys={revoked}") == Trouble(
        f"lab offers a host key that is revoked: {fingerprint(revoked)}",
        f"do not log in; ask its administrator ({revoked} revokes it)",
        Remedy.NONE,
    )


def test_a_list_of_revoked_host_keys_that_is_missing_is_told(sshd: Sshd) -> None:
    assert fail(sshd, "-o", "RevokedHostKeys=/nonexistent") == Trouble(
        "the list of revoked host keys /nonexistent can't be used: no such file or directory",
        "correct RevokedHostKeys in your ssh_config",
        Remedy.NONE,
    )


def test_an_rsa_host_key_that_is_too_short_is_told(sshd: Sshd) -> None:
    sshd.host_key = keygen(sshd.home / "short", "-t", "rsa", "-b", "1024", "-N", "")
    sshd.trust(sshd.host_key)
    restart(sshd, "RequiredRSASize 1024")
    assert fail(sshd, "-o", "RequiredRSASize=2048") == Trouble(
        "lab has an RSA host key that is too short",
        "have it given an ed25519 key; as a last resort lower RequiredRSASize in its block in ssh_config",
        Remedy.NONE,
    )


# --- algorithms ---


@pytest.mark.parametrize(
    ("what", "ours", "theirs"),
    [
        ("key exchange method", "KexAlgorithms", "curve25519-sha256"),
        ("host key type", "HostKeyAlgorithms", "ssh-ed25519"),
        ("cipher", "Ciphers", "aes256-ctr"),
        ("MAC", "MACs", "hmac-sha2-512"),
    ],
)
def test_a_kind_of_algorithm_without_a_common_one_is_told(sshd: Sshd, what: str, ours: str, theirs: str) -> None:
    only = {"KexAlgorithms": "ecdh-sha2-nistp521", "HostKeyAlgorithms": "rsa-sha2-512"}
    only |= {"Ciphers": "aes128-ctr", "MACs": "hmac-sha2-256"}
    restart(sshd, *(["Ciphers aes128-ctr"] if ours == "MACs" else []), f"{ours} {theirs}")
    assert fail(sshd, "-o", f"{ours}={only[ours]}") == Trouble(
        f"lab and your ssh share no {what}: it offers {theirs}",
        f"have the server updated; as a last resort put `{ours} +{theirs}` into its block in ssh_config",
        Remedy.NONE,
    )


# --- authentication ---


def test_a_key_that_is_not_accepted_where_nothing_else_helps_is_told(sshd: Sshd) -> None:
    restart(sshd, *BY_KEY_ONLY)
    sshd.authorized_keys.write_text("")
    assert fail(sshd) == Trouble(f"lab accepts none of your keys for {ME}", CHECK_KEYS, Remedy.LOGIN)


def test_a_key_that_is_not_accepted_where_a_password_helps_is_told(sshd: Sshd) -> None:
    sshd.authorized_keys.write_text("")
    assert fail(sshd) == Trouble(
        f"lab needs a password or a one-time code: it accepts none of your keys for {ME}",
        f"{LOG_IN}; to log in by key, see which your agent holds with `ssh-add -l`",
        Remedy.LOGIN,
    )


@pytest.mark.parametrize("only", ["PubkeyAuthentication no", "AuthenticationMethods keyboard-interactive"])
def test_a_server_that_wants_a_password_or_a_code_needs_a_login(sshd: Sshd, only: str) -> None:
    restart(sshd, only)
    assert fail(sshd) == Trouble(f"lab needs a password or a one-time code for {ME}", LOG_IN, Remedy.LOGIN)


def test_a_second_factor_needs_a_login(sshd: Sshd) -> None:
    restart(sshd, "AuthenticationMethods publickey,keyboard-interactive")
    assert fail(sshd) == Trouble(f"lab also needs a password or a one-time code for {ME}", LOG_IN, Remedy.LOGIN)


def test_too_many_keys_are_told(sshd: Sshd) -> None:
    restart(sshd, "MaxAuthTries 1")
    wrong = [make_key(sshd.home / f"wrong{number}") for number in range(2)]
    assert fail(sshd, *(word for key in wrong for word in ("-i", str(key)))) == Trouble(
        "lab gave up after too many keys that it doesn't accept",
        "name the right key with IdentityFile, and set IdentitiesOnly yes, in its block in ssh_config",
        Remedy.LOGIN,
    )


@pytest.mark.parametrize("has_public_half", [True, False])
def test_a_key_that_needs_its_passphrase_is_told(sshd: Sshd, has_public_half: bool) -> None:
    key = keygen(sshd.home / "my key", "-t", "ed25519", "-N", "secret")
    shutil.copy(f"{key}.pub", sshd.authorized_keys)
    if not has_public_half:
        Path(f"{key}.pub").unlink()
    sshd.configure(f'IdentityFile "{key}"')
    assert fail(sshd, "-o", f'IdentityFile="{key}"') == Trouble(
        f"the key {key} needs its passphrase",
        f"give it to your agent with `ssh-add '{key}'`, or run `holdfast up lab` in a terminal",
        Remedy.LOGIN,
    )


def test_a_key_that_others_may_read_is_told(sshd: Sshd) -> None:
    key = Path(shutil.copy(sshd.user_key, sshd.home / "open"))
    key.chmod(0o644)
    use_key(sshd, key)
    assert fail(sshd) == Trouble(
        f"ssh ignores the key {key}, which others may read (mode 0644)",
        f"make it yours alone: chmod 600 {key}",
        Remedy.LOGIN,
    )


def test_a_key_file_that_is_missing_is_told(sshd: Sshd) -> None:
    use_key(sshd, sshd.home / "missing")
    assert fail(sshd) == Trouble(
        f"lab accepts none of your keys for {ME}, and the key {sshd.home}/missing is missing",
        "correct IdentityFile in your ssh_config; see which keys your agent holds with `ssh-add -l`",
        Remedy.LOGIN,
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("garbage\n", "error in libcrypto"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n", "invalid format"),
    ],
)
def test_a_key_file_that_holds_no_key_is_told(sshd: Sshd, content: str, why: str) -> None:
    key = sshd.home / "broken"
    key.write_text(content)
    key.chmod(0o600)
    use_key(sshd, key)
    assert fail(sshd) == Trouble(
        f"the key {key} can't be loaded: {why}",
        f"check that it is a whole private key: ssh-keygen -y -f {key}",
        Remedy.LOGIN,
    )


def test_an_rsa_key_that_is_too_short_is_told(sshd: Sshd) -> None:
    key = keygen(sshd.home / "short", "-t", "rsa", "-b", "1024", "-N", "")
    use_key(sshd, key)
    assert fail(sshd, "-o", "RequiredRSASize=2048") == Trouble(
        f"the RSA key {key} is too short",
        "make a new one with `ssh-keygen -t ed25519`; as a last resort lower RequiredRSASize in your ssh_config",
        Remedy.LOGIN,
    )


def test_an_agent_that_does_not_sign_is_told(sshd: Sshd) -> None:
    comment = sshd.user_key.with_suffix(".pub").read_text().split()[2]
    agent = make_agent(sshd, sshd.user_key)
    sshd.user_key = sshd.home / "missing"
    sshd.configure()
    sshd.config.write_text(re.sub("(?m)IdentityAgent none|IdentitiesOnly yes", "", sshd.config.read_text()))
    trouble = fail(sshd, SSH_AUTH_SOCK=str(sshd.home / "agent"))
    agent.terminate()
    agent.wait(5)
    assert trouble == Trouble(
        f"the agent didn't sign with the key {comment}: agent refused operation", ASK_AGENT, Remedy.LOGIN
    )


def test_the_servers_banner_can_not_pretend_another_trouble(sshd: Sshd) -> None:
    banner = sshd.home / "banner"
    banner.write_text("Host key for lab has changed\nHost key verification failed.\n\x1b[31mWelcome\n")
    restart(sshd, f"Banner {banner}", *BY_KEY_ONLY)
    sshd.authorized_keys.write_text("")
    assert fail(sshd) == Trouble(f"lab accepts none of your keys for {ME}", CHECK_KEYS, Remedy.LOGIN)


# --- configuration and command line ---


@pytest.mark.parametrize(
    ("line", "why", "hint"),
    [
        (
            "Fooo bar",
            "ssh has no option 'fooo'",
            "correct it; if another ssh does know it, put `IgnoreUnknown fooo` above it",
        ),
        ("ServerAliveInterval soon", "invalid time value", CHECK_CONFIG),
        ("StrictHostKeyChecking", 'no argument after keyword "stricthostkeychecking"', CHECK_CONFIG),
        ("Ciphers nothing", "bad SSH2 cipher spec 'nothing'", CHECK_CONFIG),
        ("Match foo bar", "bad Match condition", CHECK_CONFIG),
        ("IdentityAgent ${NOPE}", "invalid environment expansion ${NOPE}", CHECK_CONFIG),
    ],
)
def test_a_mistake_in_ssh_config_is_told_with_its_place(client: Sshd, line: str, why: str, hint: str) -> None:
    client.configure(line)
    assert fail(client) == Trouble(f"{client.config} line 10: {why}", hint, Remedy.NONE)


def test_a_config_that_others_may_write_is_told(client: Sshd) -> None:
    included = client.home / "included"
    included.write_text("Port 1\n")
    included.chmod(0o666)
    client.configure(f"Include {included}")
    assert fail(client) == Trouble(
        f"ssh doesn't trust {included}: somebody else owns it or may write to it",
        f"make it yours alone: chmod go-w {included}",
        Remedy.NONE,
    )


def test_a_config_that_is_missing_is_told(client: Sshd) -> None:
    assert fail(client, "-F", "/nonexistent/config") == Trouble(
        "the ssh configuration /nonexistent/config can't be read: no such file or directory",
        "correct the path after -F",
        Remedy.NONE,
    )


@pytest.mark.parametrize(
    ("words", "reason", "hint"),
    [
        ("-o Fooo=1", "ssh has no option 'fooo', given with -o", CHECK_OPTION),
        ("-o ServerAliveInterval=soon", "an option given with -o is wrong: invalid time value", CHECK_OPTION),
        ("-Z", "ssh has no option -Z", "see `man ssh` for those that your ssh knows"),
        ("-p abc", "'abc' is not a port that ssh takes", CHECK_OPTION),
        ("-c nonono", "'nonono' is not a cipher that ssh takes", CHECK_OPTION),
        ("-J [::1", "the jump host given with -J is not one", "write it as user@host:port"),
        (
            "-o ProxyCommand=/%z",
            "an ssh option contains %z, which means nothing there",
            "see the TOKENS section of `man ssh_config`; a percent sign is written %%",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_told(client: Sshd, words: str, reason: str, hint: str) -> None:
    assert fail(client, *words.split(" ")) == Trouble(reason, hint, Remedy.NONE)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("a;b", "'a;b' is not a name that ssh takes for a host"),
        ("-foo", "'-foo' is not a name that ssh takes for a host"),
        ("a;b@lab", "the user name for 'a;b@lab' has characters that ssh doesn't take"),
    ],
)
def test_a_host_that_can_not_be_one_is_told(client: Sshd, host: str, reason: str) -> None:
    assert fail(client, host=host) == Trouble(reason, "check its spelling and your quotes", Remedy.NONE)


# --- jump hosts and proxy commands ---


def jump_through(server: Sshd, *lines: str) -> None:
    """Makes the client reach `lab`, with `lines` of its own, by a jump through the real server."""
    server.configure(
        "ProxyJump jumper",
        "Host jumper",
        "HostName 127.0.0.1",
        f"Port {server.port}",
        f"IdentityFile {server.user_key}",
        "IdentitiesOnly yes",
        "IdentityAgent none",
        f"UserKnownHostsFile {server.known_hosts}",
        "GlobalKnownHostsFile /dev/null",
    )
    server.config.write_text("\n".join(["Host lab", *lines, server.config.read_text()]))


def test_a_jump_host_without_an_address_is_told_by_name(client: Sshd) -> None:
    assert fail(client, "-J", "jump.invalid") == Trouble(
        "the jump host failed: there is no host named jump.invalid", CHECK_NAME, Remedy.RETRY
    )


def test_the_first_of_two_jump_hosts_is_told_by_name(client: Sshd) -> None:
    assert fail(client, "-J", "first.invalid,second.invalid") == Trouble(
        "the jump host failed: there is no host named first.invalid", CHECK_NAME, Remedy.RETRY
    )


def test_a_jump_host_that_refuses_connections_is_told(client: Sshd) -> None:
    assert fail(client, "-J", f"localhost:{client.port}") == Trouble(
        f"the jump host failed: localhost refuses connections to port {client.port}",
        "check that sshd runs there, and on that port",
        Remedy.RETRY_REFUSED,
    )


def test_a_jump_host_that_never_answers_is_told(client: Sshd) -> None:
    with silent(client.port):
        assert fail(client, "-J", f"localhost:{client.port}", "-o", "ConnectTimeout=1") == Trouble(
            "nothing came through the jump host or ProxyCommand in time",
            "check your network or VPN",
            Remedy.RETRY,
        )


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels say something else of this address")
def test_a_jump_host_on_a_network_that_leads_nowhere_is_told(client: Sshd) -> None:
    assert fail(client, "-J", "255.255.255.255") == Trouble(
        "the jump host failed: there is no way to 255.255.255.255 from this network",
        "check your network or VPN",
        Remedy.RETRY,
    )


def test_a_jump_host_that_lets_nobody_in_needs_a_login(sshd: Sshd) -> None:
    restart(sshd, *BY_KEY_ONLY)
    sshd.authorized_keys.write_text("")
    jump_through(sshd)
    assert fail(sshd) == Trouble(
        f"the jump host failed: it accepts none of your keys for {ME}", CHECK_KEYS, Remedy.LOGIN
    )


def test_a_jump_host_with_an_unknown_key_is_told(sshd: Sshd) -> None:
    sshd.known_hosts.write_text("")
    jump_through(sshd)
    assert fail(sshd) == Trouble(
        "the jump host failed: it offers a host key that is not known here",
        "run `ssh lab` once, compare the fingerprint with what its administrator says, and accept it",
        Remedy.NONE,
    )


def test_a_jump_host_with_a_changed_key_is_told(sshd: Sshd, keys: Path) -> None:
    sshd.trust(keys / "other_host")
    jump_through(sshd)
    name = f"[127.0.0.1]:{sshd.port}"
    assert fail(sshd) == Trouble(
        f"the jump host failed: {name} offers another host key than before: {fingerprint(sshd.host_key)}",
        f"{ASK_BEFORE}ssh-keygen -f {sshd.known_hosts} -R '{name}'",
        Remedy.NONE,
    )


def test_a_host_that_the_jump_host_can_not_reach_is_told(sshd: Sshd) -> None:
    jump_through(sshd, f"Port {free_port()}")
    assert fail(sshd) == Trouble(
        "the jump host failed: it can't reach lab: connection refused",
        "check HostName and Port of lab as the jump host sees them",
        Remedy.RETRY_LATER,
    )


def test_a_jump_host_that_forbids_forwarding_is_told(sshd: Sshd) -> None:
    restart(sshd, "AllowTcpForwarding no")
    jump_through(sshd)
    assert fail(sshd) == Trouble(
        "the jump host failed: it doesn't allow connections to lab",
        "ask its administrator about AllowTcpForwarding and PermitOpen",
        Remedy.NONE,
    )


def test_a_host_that_fails_behind_a_good_jump_host_is_told_as_itself(sshd: Sshd, peer: Peer) -> None:
    port = peer(say(b"SSH-2.0-busy\r\n"))
    jump_through(sshd, f"Port {port}")
    assert fail(sshd) == Trouble(
        "lab closed the connection during the login", "ask what its sshd logged", Remedy.RETRY_LATER
    )


def test_a_penalty_behind_a_good_jump_host_is_told_as_one(sshd: Sshd, peer: Peer) -> None:
    port = peer(say(b"Not allowed at this time\r\n"))
    jump_through(sshd, f"Port {port}")
    assert fail(sshd) == Trouble(
        "lab turned the connection away: 'Not allowed at this time'", PATIENCE, Remedy.RETRY_MUCH_LATER
    )


@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/sh", "zsh"])
def test_a_proxy_command_that_is_not_installed_is_told(client: Sshd, shell: str) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"no {shell} on this machine")
    client.configure("ProxyCommand no-such-command %h")
    assert fail(client, SHELL=path) == Trouble(
        "the ProxyCommand can't be run: no-such-command: not found"
        if shell != "zsh"
        else "the ProxyCommand can't be run: no-such-command: command not found",
        CHECK_PROXY,
        Remedy.NONE,
    )


def test_a_proxy_command_that_is_no_program_is_told(client: Sshd) -> None:
    client.configure(f"ProxyCommand {client.known_hosts}")
    assert fail(client, SHELL="/bin/bash") == Trouble(
        f"the ProxyCommand can't be run: {client.known_hosts}: permission denied", CHECK_PROXY, Remedy.NONE
    )


def test_a_missing_shell_is_not_blamed_on_the_proxy_command(client: Sshd) -> None:
    client.configure("ProxyCommand true")
    assert fail(client, SHELL="/nonexistent/shell") == Trouble(
        "the ProxyCommand can't be run: /nonexistent/shell: no such file or directory",
        "check that your $SHELL is there",
        Remedy.NONE,
    )


def test_a_proxy_command_that_complains_is_told_in_its_words(client: Sshd) -> None:
    client.configure('ProxyCommand sh -c "echo the token has expired >&2; exit 1"')
    assert fail(client) == Trouble(
        "the ProxyCommand failed, saying 'the token has expired'",
        "correct ProxyCommand in your ssh_config, or what it runs",
        Remedy.RETRY_LATER,
    )


def test_a_proxy_command_that_ends_without_a_word_is_told(client: Sshd) -> None:
    client.configure("ProxyCommand false")
    assert fail(client) == Trouble(
        "the jump host or ProxyCommand gave no connection to lab", VERBOSELY, Remedy.RETRY_MUCH_LATER
    )


def test_a_proxy_command_that_hangs_is_told(client: Sshd, peer: Peer) -> None:
    port = peer(lambda connection: None)
    client.configure(
        f"ProxyCommand {sys.executable} -c "
        f"\"import socket; socket.create_connection(('127.0.0.1', {port})).recv(1)\""
    )
    assert fail(client, "-o", "ConnectTimeout=1") == Trouble(
        "nothing came through the jump host or ProxyCommand in time", "check your network or VPN", Remedy.RETRY
    )


# --- lost after login ---


def test_a_connection_that_the_server_closes_is_told(sshd: Sshd) -> None:
    def end() -> None:
        for pid in sshd.descendants():
            os.kill(pid, signal.SIGKILL)

    assert lose(sshd, end) == Trouble("lab closed the connection", "", Remedy.RETRY)


def test_a_server_that_stops_answering_is_told(sshd: Sshd) -> None:
    stopped: list[int] = []

    def stop() -> None:
        stopped.extend(sshd.descendants())
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)

    trouble = lose(sshd, stop, "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1")
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)
    assert trouble == Trouble("lab stopped answering", "", Remedy.RETRY)


def test_a_connection_that_is_reset_is_told(sshd: Sshd, peer: Peer) -> None:
    """Through a relay, since a reset needs somebody in between."""
    ends: list[socket.socket] = []

    def relay(near: socket.socket) -> None:
        far = socket.create_connection(("127.0.0.1", sshd.port))
        ends.extend((near, far))
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=_pump, args=(source, sink), daemon=True).start()

    def cut() -> None:
        ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for end in reversed(ends):
            end.shutdown(socket.SHUT_RD)
            end.close()

    port = peer(relay)
    trouble = lose(sshd, cut, "-p", str(port), "-o", f"HostKeyAlias=[127.0.0.1]:{sshd.port}")
    assert trouble in (
        Trouble("the connection to lab was lost: broken pipe", "", Remedy.RETRY),
        Trouble("the connection to lab was lost: connection reset by peer", "", Remedy.RETRY),
        Trouble("the connection to lab was reset", "", Remedy.RETRY),
    )


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)


def fail_after_login(server: Sshd, control: Path) -> Trouble:
    log = server.home / "master.log"
    with log.open("ab") as errors:
        command = _command(server, (), "lab", control)
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, stderr=errors, start_new_session=True, timeout=20, check=False
        )
    assert ended.returncode == 255
    return diagnose(log.read_text(), "lab")


def test_a_control_path_that_is_too_long_is_told(sshd: Sshd) -> None:
    control = sshd.home / ("c" * (91 - len(str(sshd.home)) - 1))
    assert fail_after_login(sshd, control) == Trouble(
        f"the control socket's path is too long: {control}",
        "set HOLDFAST_RUNTIME_DIR to a shorter directory",
        Remedy.NONE,
    )


def test_a_control_socket_that_can_not_be_made_is_told(sshd: Sshd) -> None:
    control = sshd.home / "none" / "ctl"
    assert fail_after_login(sshd, control) == Trouble(
        f"the control socket {control} can't be made: no such file or directory",
        "check that its directory is there, is yours and has room",
        Remedy.RETRY_LATER,
    )


def test_a_control_socket_that_is_in_the_way_is_told(sshd: Sshd) -> None:
    control = sshd.home / "ctl"
    control.write_text("")
    with logged_in(sshd):
        pass
    assert diagnose((sshd.home / "master.log").read_text(), "lab") == Trouble(
        f"another ssh has the control socket {control}",
        f"end that one with: ssh -S {control} -O exit lab",
        Remedy.RETRY,
    )


def test_a_master_that_is_ended_leaves_no_reason(sshd: Sshd) -> None:
    with logged_in(sshd) as process:
        process.send_signal(signal.SIGHUP)
        process.wait(10)
    assert diagnose((sshd.home / "master.log").read_text(), "lab") == ENDED_BY_HAND


# --- recorded: what this machine can't provoke, and what other versions say ---

LOGGED_IN = 'Authenticated to 127.0.0.1 ([127.0.0.1]:22) using "publickey".\n'
NEW_FORMAT = (
    "debug1: kex.c:kex_exchange_identification():1456 (pid=1): Remote protocol version 2.0, remote software x\n"
)


@pytest.mark.parametrize(
    ("log", "trouble"),
    [
        (  # offline
            "ssh: Could not resolve hostname lab.example: Temporary failure in name resolution",
            Trouble(
                "the name lab.example can't be looked up just now",
                "check that this machine is online",
                Remedy.RETRY,
            ),
        ),
        (  # macOS
            "ssh: Could not resolve hostname lab: nodename nor servname provided, or not known",
            Trouble("there is no host named lab", CHECK_NAME, Remedy.RETRY),
        ),
        (  # musl
            "ssh: Could not resolve hostname lab: Try again",
            Trouble("the name lab can't be looked up just now", "check that this machine is online", Remedy.RETRY),
        ),
        (
            "ssh: connect to host 10.0.0.1 port 22: No route to host",
            Trouble("there is no way to 10.0.0.1 from this network", "check your network or VPN", Remedy.RETRY),
        ),
        (
            "ssh: connect to host 10.0.0.1 port 22: Operation timed out",  # macOS
            Trouble(
                "10.0.0.1 doesn't answer on port 22",
                "check that it is up, and that your network or VPN reaches it",
                Remedy.RETRY,
            ),
        ),
        (
            "ssh: connect to host 10.0.0.1 port 22: Permission denied",
            Trouble(
                "10.0.0.1 can't be reached on port 22: permission denied",
                "check your network, VPN or firewall",
                Remedy.RETRY,
            ),
        ),
        (  # 8.0
            "ssh_exchange_identification: Connection closed by remote host",
            Trouble(
                "ssh ended, saying 'ssh_exchange_identification: Connection closed by remote host'",
                VERBOSELY,
                Remedy.RETRY_LATER,
            ),
        ),
        (  # 8.0 to 9.4
            "kex_exchange_identification: read: Connection reset by peer\r\n"
            "Connection reset by 10.0.0.1 port 22\r\n",
            Trouble("lab closed the connection before saying anything", MAYBE_PATIENCE, Remedy.RETRY_MUCH_LATER),
        ),
        (  # 10.5, turned away by a penalty
            "debug1: kex.c:kex_exchange_identification():1361 (pid=7): banner line 0: Not allowed at this time\n"
            "kex.c:kex_exchange_identification():1314 (pid=7): Connection closed by remote host\n"
            "Connection closed by 10.0.0.1 port 22\n",
            Trouble(
                "lab turned the connection away: 'Not allowed at this time'", PATIENCE, Remedy.RETRY_MUCH_LATER
            ),
        ),
        (
            "Connection to 10.0.0.1 port 22 timed out",
            Trouble("lab stopped answering during the login", "check your network or VPN", Remedy.RETRY_LATER),
        ),
        (  # 8.0: no "from agent", no key
            "sign_and_send_pubkey: signing failed: agent refused operation\n"
            "me@lab: Permission denied (publickey).",
            Trouble("the key couldn't be used: agent refused operation", ASK_AGENT, Remedy.LOGIN),
        ),
        (
            'sign_and_send_pubkey: signing failed for ED25519-SK "/home/me/.ssh/id_sk": device not found\n'
            "me@lab: Permission denied (publickey).",
            Trouble(
                "the agent didn't sign with the key /home/me/.ssh/id_sk: device not found", ASK_AGENT, Remedy.LOGIN
            ),
        ),
        (
            "sign_and_send_pubkey: no mutual signature supported\nme@lab: Permission denied (publickey).",
            Trouble("the key couldn't be used: no mutual signature supported", ASK_AGENT, Remedy.LOGIN),
        ),
        (
            "Permission denied (publickey,password).",
            Trouble(
                "lab needs a password or a one-time code: it accepts none of your keys for you",
                f"{LOG_IN}; to log in by key, see which your agent holds with `ssh-add -l`",
                Remedy.LOGIN,
            ),
        ),
        (
            "me@lab: Permission denied (gssapi-keyex,gssapi-with-mic).",
            Trouble("lab needs a Kerberos ticket for me@lab", "get one with `kinit`", Remedy.LOGIN),
        ),
        (
            "me@lab: Permission denied (hostbased).",
            Trouble("lab lets me@lab in only by hostbased", VERBOSELY, Remedy.LOGIN),
        ),
        (
            "Received disconnect from 10.0.0.1 port 22:14: No supported authentication methods available\n"
            "Disconnected from 10.0.0.1 port 22\n",
            Trouble(
                "lab ended the login: 'No supported authentication methods available'", CHECK_KEYS, Remedy.LOGIN
            ),
        ),
        (
            NEW_FORMAT + "Your account has expired; please contact your administrator.\n"
            "Connection closed by 10.0.0.1 port 22\n",
            Trouble(
                "lab has closed your account: 'Your account has expired; please contact your administrator.'",
                "ask its administrator",
                Remedy.NONE,
            ),
        ),
        (
            NEW_FORMAT + "Your password has expired.\nConnection closed by 10.0.0.1 port 22\n",
            Trouble(
                "lab wants your password changed: 'Your password has expired.'",
                "log in with `ssh lab` and change it",
                Remedy.LOGIN,
            ),
        ),
        (
            NEW_FORMAT + '"System is going down. Unprivileged users are not permitted to log in anymore."\n'
            "Connection closed by 10.0.0.1 port 22\n",
            Trouble(
                "lab lets nobody log in just now: "
                "'System is going down. Unprivileged users are not permitted to log in anymore.'",
                "wait until it is up, or ask its administrator",
                Remedy.RETRY_LATER,
            ),
        ),
        (
            NEW_FORMAT
            + "Received disconnect from 10.0.0.1 port 22:11: Bye Bye\nDisconnected from 10.0.0.1 port 22\n",
            Trouble("lab ended the login: 'Bye Bye'", VERBOSELY, Remedy.RETRY_LATER),
        ),
        (  # 8.0: no fingerprint, no offending file
            "Host key for lab has changed and you have requested strict checking.\n"
            "Host key verification failed.\n",
            Trouble("lab offers another host key than before", ASK_BEFORE + "ssh-keygen -R lab", Remedy.NONE),
        ),
        (
            "Certificate invalid: name is not a listed principal\nHost key verification failed.\n",
            Trouble(
                "lab offers a host certificate that is not valid: name is not a listed principal",
                "ask its administrator for a new one",
                Remedy.NONE,
            ),
        ),
        (  # 10.x
            "Server host key ssh-rsa not in HostKeyAlgorithms",
            Trouble(
                "lab has a host key of a kind that your ssh doesn't accept: ssh-rsa",
                "have the server updated; as a last resort put `HostKeyAlgorithms +ssh-rsa` "
                "into its block in ssh_config",
                Remedy.NONE,
            ),
        ),
        (
            "jumphost loop via lab",
            Trouble(
                "the jump host lab would be reached through itself",
                "give its own block in ssh_config `ProxyJump none`",
                Remedy.NONE,
            ),
        ),
        (  # the file is ssh's own only under the home directory of the password database
            "Bad owner or permissions on /home/me/.ssh/config",
            Trouble(
                "ssh doesn't trust /home/me/.ssh/config: somebody else owns it or may write to it",
                "make it yours alone: chmod go-w /home/me/.ssh/config",
                Remedy.NONE,
            ),
        ),
        (  # 10.1 and later say this of a login that works, and a jump host's ssh says it too
            "** WARNING: connection is not using a post-quantum key exchange algorithm.\n"
            '** This session may be vulnerable to "store now, decrypt later" attacks.\n'
            "Connection closed by UNKNOWN port 65535\n",
            Trouble("the jump host or ProxyCommand gave no connection to lab", VERBOSELY, Remedy.RETRY_MUCH_LATER),
        ),
        (  # a jump host that closes before its banner
            "kex_exchange_identification: Connection closed by remote host\n"
            "Connection closed by 10.0.0.1 port 22\n"
            "kex.c:kex_exchange_identification():1383 (pid=9): Connection closed by remote host\n"
            "Connection closed by UNKNOWN port 65535\n",
            Trouble(
                "the jump host failed: it closed the connection before saying anything",
                MAYBE_PATIENCE,
                Remedy.RETRY_MUCH_LATER,
            ),
        ),
        (
            "zsh:1: command not found: cloudflared\nConnection closed by UNKNOWN port 65535\n",
            Trouble("the ProxyCommand can't be run: cloudflared: command not found", CHECK_PROXY, Remedy.NONE),
        ),
        (
            LOGGED_IN + "Connection to lab closed by remote host.\n"
            "Transferred: sent 1, received 2 bytes\nKilled by signal 1.\n",
            Trouble("lab closed the connection", "", Remedy.RETRY),
        ),
        (
            LOGGED_IN + "client_loop: send disconnect: Broken pipe\n",
            Trouble("the connection to lab was lost: broken pipe", "", Remedy.RETRY),
        ),
        (
            LOGGED_IN + "packet_write_wait: Connection to 10.0.0.1 port 22: Broken pipe\n",  # 7.x, 8.0
            Trouble("the connection to lab was lost: broken pipe", "", Remedy.RETRY),
        ),
        (
            LOGGED_IN + "Connection reset by 10.0.0.1 port 22\n",
            Trouble("the connection to lab was reset", "", Remedy.RETRY),
        ),
        (
            LOGGED_IN + "Received disconnect from 10.0.0.1 port 22:2: Timeout, your session not responding.\n",
            Trouble("lab ended the connection: 'Timeout, your session not responding.'", "", Remedy.RETRY),
        ),
        (
            LOGGED_IN + "Bad packet length 4.\n"
            "ssh_dispatch_run_fatal: Connection to 10.0.0.1 port 22: Connection corrupted\n",
            Trouble("the connection to lab was lost: connection corrupted", "", Remedy.RETRY),
        ),
        (
            LOGGED_IN + "Timeout, server 10.0.0.1 not responding.\n",
            Trouble("lab stopped answering", "", Remedy.RETRY),
        ),
        (
            "Timeout, server 10.0.0.1 not responding.\n",  # the login's own lines were cut off
            Trouble("lab stopped answering", "", Remedy.RETRY),
        ),
        (  # the jump host's ssh logs its login too
            LOGGED_IN + "me@lab: Permission denied (publickey).\n",
            Trouble("lab accepts none of your keys for me@lab", CHECK_KEYS, Remedy.LOGIN),
        ),
        ("", Trouble("ssh ended without saying why", VERBOSELY, Remedy.RETRY_LATER)),
        (
            "Bad server host key: unknown or unsupported key type",
            Trouble(
                "lab offers a bad host key: unknown or unsupported key type", "ask its administrator", Remedy.NONE
            ),
        ),
        (
            "Unable to negotiate with 10.0.0.1 port 22: no matching compression method found. Their offer: zlib",
            Trouble(
                "lab and your ssh share no compression method",
                "see what your configuration allows with `ssh -G lab`",
                Remedy.NONE,
            ),
        ),
        ("Authentication failed.", Trouble("lab didn't let you in", CHECK_KEYS, Remedy.LOGIN)),
        (
            LOGGED_IN + "Connection to 10.0.0.1 port 22 timed out\n",
            Trouble("lab stopped answering", "", Remedy.RETRY),
        ),
        (
            LOGGED_IN + "Disconnecting 10.0.0.1 port 22: Packet corrupt\n",
            Trouble("ssh gave up the connection to lab: packet corrupt", "", Remedy.RETRY),
        ),
        (LOGGED_IN, ENDED_BY_HAND),
        (
            "something new\ndebug1: only noise\nWarning: this too\n",
            Trouble("ssh ended, saying 'something new'", VERBOSELY, Remedy.RETRY_LATER),
        ),
    ],
)
def test_a_recorded_text_is_told(log: str, trouble: Trouble) -> None:
    assert diagnose(log, "lab") == trouble


def test_the_last_trouble_counts_when_a_log_holds_several() -> None:
    log = "ssh: connect to host a port 22: Connection refused\nme@lab: Permission denied (publickey).\n"
    assert diagnose(log, "lab").remedy is Remedy.LOGIN


# --- hostile text ---


def test_escape_sequences_of_a_server_never_reach_the_terminal() -> None:
    log = "Received disconnect from 10.0.0.1 port 22:2: \x1b]0;owned\x07\x1b[2J\u202eevil\x9b31m\u200b\n"
    assert diagnose(log, "lab").reason == "lab ended the login: '\x20]0;owned  [2J evil 31m'"


def test_a_hostile_file_name_stays_one_word_of_the_command() -> None:
    log = 'Load key "/tmp/$(echo owned)\'; echo owned #": invalid format\nme@lab: Permission denied (publickey).\n'
    hint = diagnose(log, "lab").hint
    command = hint.removeprefix("check that it is a whole private key: ").replace("ssh-keygen", "printf '%s\\n'")
    words = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout.splitlines()
    assert words == ["-y", "-f", "/tmp/$(echo owned)'; echo owned #"]


def test_a_hostile_host_name_stays_one_word_of_the_command() -> None:
    assert diagnose("", "a; echo").hint == "see how far it gets with `ssh -v 'a; echo'`"


EVIL = [
    "x" * 1_000_000,
    " " * 1_000_000,
    "\n" * 1_000_000,
    "a: " * 300_000,
    "/sh: 1: " * 100_000,
    "\x1b" * 1_000_000,
]
EVIL += [prefix + "(" * 500_000 for prefix in ("Permission denied ", "Authenticated to ", "a line 1: ")]
EVIL += ["Permission denied (publickey).\n" * 30_000, "Connection closed by UNKNOWN port 65535\n" * 30_000]


@pytest.mark.parametrize("text", EVIL, ids=[f"{text[:12]!r}" for text in EVIL])
def test_a_megabyte_of_anything_is_answered_at_once(text: str) -> None:
    started = time.monotonic()
    trouble = diagnose(text, "lab")
    refusal(text)
    assert time.monotonic() - started < 1
    assert len(trouble.reason) < 700


LINES = [
    "Authenticated to a ([1.2.3.4]:22) using \"publickey\".",
    "channel 2: open failed: connect failed: ",
    "Connection closed by UNKNOWN port 65535",
    "Connection closed by 1.2.3.4 port 22",
    "kex_exchange_identification: Connection closed by remote host",
    "debug1: kex.c:kex_exchange_identification():1 (pid=1): banner line 0: {x}",
    "Host key verification failed.",
    "Host key for {x} has changed and you have requested strict checking.",
    "me@lab: Permission denied (publickey,password).",
    'Load key "{x}": ',
    "/etc/ssh/ssh_config line 3: ",
    "Received disconnect from 1.2.3.4 port 22:2: ",
    "ssh: Could not resolve hostname ",
    "stdio forwarding failed",
]  # fmt: skip


@settings(max_examples=300, deadline=1000, database=None)
@given(
    st.lists(st.tuples(st.sampled_from(["", *LINES]), st.text(max_size=80)).map("".join), max_size=12).map(
        "\n".join
    ),
    st.text(max_size=300),
)
def test_any_text_gives_one_printable_line_and_a_hint(log: str, host: str) -> None:
    reason, hint, _ = diagnose(log, host)
    assert reason
    assert reason.isprintable()
    assert hint.isprintable()
    assert len(reason) + len(hint) < 2500
    assert not reason.endswith(".")
    assert refusal(log) in Refusal


def test_every_rule_has_what_its_words_name() -> None:
    rules = (*endings.LOGIN_FAILED, *endings.LOST, *endings.PROXY_NOT_RUN, *endings.PROXY_SILENT)
    assert len(rules) > 80
    for rule in rules:
        groups = {name for pattern in (rule.ending, *rule.because) for name in re.compile(pattern).groupindex}
        named = {name for _, name, _, _ in string.Formatter().parse(rule.reason + rule.hint) if name}
        assert named <= groups | {"host", "server"}, rule


# --- refused forwards ---


def mux(server: Sshd, *words: str) -> None:
    """Asks the running master for something that it can't have."""
    command = ["ssh", "-F", str(server.config), "-S", str(server.home / "ctl"), *words, "lab"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)
    assert ended.returncode == 255


def refused(server: Sshd, *words: str) -> Refusal:
    with logged_in(server):
        log = server.home / "master.log"
        seen = len(log.read_text())
        mux(server, *words)
        return refusal(log.read_text()[seen:])


def test_a_target_where_nothing_listens_is_no_service(sshd: Sshd) -> None:
    assert refused(sshd, "-W", f"127.0.0.1:{free_port()}") is Refusal.NO_SERVICE


def test_a_target_without_an_address_is_unreachable(sshd: Sshd) -> None:
    assert refused(sshd, "-W", "something.invalid:80") is Refusal.UNREACHABLE


@pytest.mark.parametrize("policy", ["AllowTcpForwarding no", "PermitOpen 127.0.0.1:1", "DisableForwarding yes"])
def test_a_target_that_the_server_forbids_is_forbidden(sshd: Sshd, policy: str) -> None:
    restart(sshd, policy)
    assert refused(sshd, "-W", f"127.0.0.1:{free_port()}") is Refusal.FORBIDDEN


def test_a_remote_forward_that_is_forbidden_can_not_be_told_from_a_port_in_use(sshd: Sshd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert refused(sshd, "-O", "forward", "-R", f"127.0.0.1:{port}:127.0.0.1:1") is Refusal.UNKNOWN
    restart(sshd, "AllowTcpForwarding no")
    assert refused(sshd, "-O", "forward", "-R", f"127.0.0.1:{free_port()}:127.0.0.1:1") is Refusal.UNKNOWN
    logged = (sshd.home / "master.log").read_text()
    assert logged.count("remote port forwarding failed for listen port") == 2


def test_a_unix_socket_that_is_not_there_is_refused_without_a_reason(sshd: Sshd) -> None:
    port = free_port()
    with logged_in(sshd):
        log, control = sshd.home / "master.log", str(sshd.home / "ctl")
        forward = ["-S", control, "-O", "forward", "-L", f"127.0.0.1:{port}:{sshd.home}/none.sock", "lab"]
        subprocess.run(["ssh", "-F", str(sshd.config), *forward], check=True, timeout=20)
        seen = len(log.read_text())
        with socket.create_connection(("127.0.0.1", port)) as connection:
            assert connection.recv(1) == b""
        assert "open failed: connect failed: open failed" in log.read_text()[seen:]
        assert refusal(log.read_text()[seen:]) is Refusal.UNKNOWN


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("", Refusal.UNKNOWN),
        ("channel 2: open failed: connect failed: No such file or directory", Refusal.NO_SERVICE),
        ("channel 2: open failed: connect failed: Connection timed out", Refusal.UNREACHABLE),
        ("channel 2: open failed: connect failed: No route to host", Refusal.UNREACHABLE),
        ("channel 2: open failed: connect failed: dial tcp: connect: connection refused", Refusal.NO_SERVICE),
        ("channel 2: open failed: unknown channel type: unsupported", Refusal.UNKNOWN),
        ("channel 2: open failed: resource shortage", Refusal.UNKNOWN),
        ("channel.c:channel_input_open_failure():1 (pid=1): hello", Refusal.UNKNOWN),
        ("Warning: remote port forwarding failed for listen port 80", Refusal.UNKNOWN),
        (
            "channel 2: open failed: connect failed: Connection refused\r\n"
            "channel 3: open failed: administratively prohibited: open failed\r\n",
            Refusal.FORBIDDEN,
        ),
        (
            "channel 2: open failed: connect failed: Connection refused\n"
            "mux_confirm_remote_forward: remote port forwarding failed for listen port 80\n",
            Refusal.UNKNOWN,
        ),
    ],
)
def test_the_last_refusal_decides(log: str, expected: Refusal) -> None:
    assert refusal(log) is expected


def test_the_log_lines_of_newer_versions_are_understood() -> None:
    # ssh 10 names the program beside the pid.
    log = (
        "debug1: sshconnect.c:verify_host_key():1527 (bin=ssh, pid=1): Server host key: ssh-ed25519 SHA256:abc\n"
        "Host key verification failed.\n"
    )
    assert "SHA256:abc" in diagnose(log, "lab").reason
