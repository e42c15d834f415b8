"""The command lines of ssh: what we set, and what we leave to the user's own configuration. Pure.

The order of options matters to ssh: the first value given for an option wins.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

# Options that came after the oldest ssh that we support. `ssh -G` prints those that it knows; naming the others in
# IgnoreUnknown would undo the user's own IgnoreUnknown.
RECENT = ("ForkAfterAuthentication", "LogVerbose", "SessionType", "StdinNull")

# Makes ssh log, at any level, the lines that tell why a server hung up early (its version, what it sent before
# the banner), the fingerprint of the key it offered, which of our keys it would take (BatchMode says nothing
# of a passphrase that is missing), and how far a connect has come.
_LOG_VERBOSE = ",".join(
    f"{place}:*"
    for place in (
        "kex.c:kex_exchange_identification()",
        "sshconnect.c:verify_host_key()",
        "sshconnect2.c:input_userauth_pk_ok()",
        "sshconnect.c:ssh_connect_direct()",
    )
)

# What ssh logs when it asks for a TCP connection, and when it has it.
CONNECTING, CONNECTED = ": Connecting to ", ": Connection established."

# The oldest ssh that was tested. Options that it lacks are in RECENT.
OLDEST = (8, 0)

# ssh's own line that login is done and the control socket is there: LocalCommand runs right after both.
READY = b"ready"


def master(
    host: str,
    options: Sequence[str],
    socket: Path,
    log: Path,
    *,
    in_terminal: bool,
    in_dialogue: bool = False,
    defaults: Mapping[str, str],
    unknown: Collection[str] = (),
) -> list[str]:
    """The command that starts a master for `host` with its control socket at `socket`.

    `in_terminal`: ssh asks its questions there and goes into the background once logged in (-f). Otherwise it
    never asks (BatchMode), stays a child, and prints `READY` on stdout once its socket is there; `in_dialogue`: it
    asks by SSH_ASKPASS, and once only, since a dialogue that is closed sends an empty password.
    `options` are the user's own (-F, -o, -p, -i, -J, -l) and win over all of ours that are a matter of taste;
    `defaults` is what we prefer where the user's configuration says nothing (see `preferences`);
    `unknown` are those of `RECENT` that this ssh doesn't know.
    """
    ours = [
        ("ControlMaster", "yes"),
        # Otherwise a ControlPersist in the user's file makes the master daemonize, and end when it is idle.
        ("ControlPersist", "no"),
        ("SessionType", "none"),
        # The user's forward lines are ours to open, over the control socket, where each answer is seen.
        ("ClearAllForwardings", "yes"),
        ("ExitOnForwardFailure", "no"),
        ("RemoteCommand", "none"),
        ("GatewayPorts", "no"),
    ]
    if in_terminal:
        # The log is shown to the person while they log in: no more than ssh itself would say.
        ours += [("PermitLocalCommand", "no"), ("LogLevel", "INFO")]
    else:
        ours += [
            ("ForkAfterAuthentication", "no"),
            ("StdinNull", "no"),
            *([("NumberOfPasswordPrompts", "1")] if in_dialogue else [("BatchMode", "yes")]),
            ("PermitLocalCommand", "yes"),
            ("LocalCommand", f"echo {READY.decode()}"),
            ("LogLevel", "VERBOSE"),
            ("LogVerbose", _LOG_VERBOSE),
        ]
    known = [(name, value) for name, value in ours if name not in unknown]
    flags = ["-f"] if in_terminal else []
    where = ["-S", str(socket).replace("%", "%%"), "-E", str(log)]
    words = ["ssh", "-M", "-N", "-T", "-x", "-a", *flags, *where]
    return [*words, *_o(known), *options, *_o(defaults.items()), "--", host]


def unattended(options: Sequence[str], jump: str, unknown: Collection[str] = ()) -> list[str]:
    """`options`, made to go through the jump hosts `jump` (as `ssh -G` prints ProxyJump) without a question.

    ssh runs another ssh for a ProxyJump, without our BatchMode: where nobody is there to ask, that one would try
    empty passwords, and have us banned. So we say ourselves what it would run; ssh allows no -J beside that.
    `unknown` are those of `RECENT` that this ssh doesn't know.
    """
    if not jump:
        return list(options)
    before, _, last = jump.rpartition(",")
    pairs = list(zip(options[::2], options[1::2], strict=True))
    config = [word for flag, value in pairs if flag == "-F" for word in (flag, value)]
    hops = ["-J", before] if before else []
    log = [] if "LogVerbose" in unknown else [("LogVerbose", "sshconnect.c:ssh_connect_direct():*")]
    words = ["ssh", *config, *_o([("BatchMode", "yes"), ("ConnectTimeout", "15"), *log]), *hops]
    destination = last if last.startswith("ssh://") else f"ssh://{last}"
    proxy = (
        shlex.join(words).replace("%", "%%") + " -W '[%h]:%p' -- " + shlex.quote(destination.replace("%", "%%"))
    )
    rest = [word for flag, value in pairs if flag != "-J" for word in (flag, value)]
    return ["-o", f"ProxyCommand={proxy}", *rest]


def show_settings(host: str, options: Sequence[str]) -> list[str]:
    """The command that prints the settings ssh would use for a master to `host` (-G).

    -N as for the master itself: `Match sessiontype` sees it, and ForkAfterAuthentication wants it.
    """
    return ["ssh", "-N", *options, "-G", "--", host]


def parse_version(printed: str) -> tuple[int, int] | None:
    """(9, 2) for 'OpenSSH_9.2p1 Debian-2'; None for what isn't OpenSSH."""
    found = re.match(r"OpenSSH_(?:for_Windows_)?(\d+)\.(\d+)", printed)
    return (int(found[1]), int(found[2])) if found else None


def too_old(printed: str) -> str:
    """That this version of OpenSSH is older than any that was tested; '' when it isn't."""
    version = parse_version(printed)
    if version is None or version >= OLDEST:
        return ""
    return f"{printed} is older than {'.'.join(map(str, OLDEST))}, the oldest that was tested"


def _o(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [word for name, value in pairs for word in ("-o", f"{name}={value}")]
