"""What ssh's stderr means, in the user's words, with the next step, and whether trying again can help.

Pure: text in, a Trouble out. Wordings differ between versions, so lines are matched by their key words, and
an unknown ending shows ssh's own last line. Part of the text is the server's (banners, disconnect messages)
and may be hostile: only what can be printed is shown, and what goes into a command is quoted for a shell.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

_LAST_LINES = 400
_LONGEST_LINE = 1000
_LONGEST_VALUE = 200


class Remedy(Enum):
    """What can help, and so how long to wait before the next try (the delays are in keeper/states.py)."""

    RETRY = "the server was never reached"
    RETRY_LATER = "the server was reached, and something failed"
    RETRY_MUCH_LATER = "closed before the banner: MaxStartups, a penalty, a firewall"
    LOGIN = "only a person can go on"
    NONE = "trying again can't help"


class Trouble(NamedTuple):
    """Why a login failed or a link was lost: one line in the user's words, a hint, and what can help."""

    reason: str
    hint: str
    remedy: Remedy


class Refusal(Enum):
    """Why the far side refused a forwarded connection."""

    NO_SERVICE = "nothing listens at the target"
    FORBIDDEN = "the server's policy forbids it"
    UNREACHABLE = "the target can't be reached from the server"
    UNKNOWN = "the server doesn't say"


class _Rule(NamedTuple):
    """One way in which ssh ends.

    `ending` matches the line that ended it, `because` lines before that one, all of them needed. Both are
    matched from the start of a line, so that what a server says further on decides nothing. Their named
    groups fill `reason` and `hint`, besides {host} (as the user typed it) and {server} (who failed).
    """

    ending: str
    reason: str
    hint: str
    remedy: Remedy
    because: tuple[str, ...] = ()


_RETRY, _LATER, _MUCH_LATER, _LOGIN, _NONE = Remedy

# A line that ssh logs only because of LogVerbose (see command.py) starts with this, once _clean has seen it.
_FORCED = "debug: "
_OFFERED = _FORCED + r"verify_host_key: Server host key: \S+ (?P<fingerprint>\S+)"
_GREETED = _FORCED + r"kex_exchange_identification: Remote protocol version "
_GREETING = _FORCED + r"kex_exchange_identification: banner line 0: (?P<said>.*\S)"
_ACCEPTED = (
    _FORCED + r"input_userauth_pk_ok: Server accepts key: (?P<file>.+) [\w-]+ SHA256:\S+(?: explicit)?(?: token)?$"
)
_NO_BANNER = rf"(?:{_FORCED})?(?:kex|ssh)_exchange_identification: (?:Connection closed by|(?:read|write): )"

_CLOSED = r"Connection (?:closed|reset) by \S+"
_DENIED = r"(?:(?P<login>.+): )?Permission denied \("
_UNVERIFIED = r"Host key verification failed"
_NO_ROUTE = r"No route to host|(?:Network|Host) is (?:unreachable|down)|Can't assign requested address"
_OFFLINE = r"Temporary failure|Try again|System error|Non-recoverable failure"
_NO_NAME = r"not known|No address|not resolve|Unknown host|No such host"
_UNRESOLVED = r"(?:\S+: )?Could not resolve hostname (?P<name>\S*): "
_UNCONNECTED = r"(?:\S+: )?connect to (?:host|address) (?P<name>\S+) port (?P<port>\d+): "
_NO_COMMON = r"Unable to negotiate with .+: no matching "
_THEIR_OFFER = r" found\. Their offer: (?P<offer>[^,]*)"
_LISTENER = r"(?:unix_listener: path \"(?P<file>.+)\.\w{16}\" too long|ControlPath \"?(?P<path>.+) too long)"

_LOG_IN = "run `holdfast up {host}` in a terminal to give it"
_CHECK_KEYS = (
    "see which keys your agent holds with `ssh-add -l`, or name the right one with IdentityFile in your "
    "ssh_config; a key with a passphrase must be in the agent (`ssh-add`)"
)
_CORRECT_CONFIG = "correct it, then see what ssh makes of it with `ssh -G {host}`"
_CORRECT_OPTION = "see `man ssh_config` for what your ssh knows, and correct the option"
_ASK_BEFORE_REMOVING = (
    "somebody may be intercepting the connection; only if its administrator says that the key was changed: "
)
_ASK_AGENT = (
    "it may have waited for a touch or a yes: see what it holds with `ssh-add -l`, "
    "and run `holdfast up {host}` in a terminal"
)
_OLD_SERVER = "have the server updated; as a last resort put `{option} +{offer}` into its block in ssh_config"

_CONFIG = (
    _Rule(
        r"command-line:? line 0: Bad configuration option: (?P<option>\S+)",
        "ssh has no option '{option}', given with -o",
        _CORRECT_OPTION,
        _NONE,
    ),
    _Rule(
        r"command-line:? line 0: (?P<why>.+)",
        "an option given with -o is wrong: {why}",
        _CORRECT_OPTION,
        _NONE,
    ),
    _Rule(
        r"(?P<file>.+): line (?P<line>\d+): Bad configuration option: (?P<option>\S+)",
        "{file} line {line}: ssh has no option '{option}'",
        "correct it; if another ssh does know it, put `IgnoreUnknown {option}` above it",
        _NONE,
    ),
    _Rule(
        r"(?P<file>.*[^:]) line (?P<line>\d+): (?P<why>.+)",
        "{file} line {line}: {why}",
        _CORRECT_CONFIG,
        _NONE,
    ),
    _Rule(
        r"Bad owner or permissions on (?P<file>.+)",
        "ssh doesn't trust {file}: somebody else owns it or may write to it",
        "make it yours alone: chmod go-w {file}",
        _NONE,
    ),
    _Rule(
        r"Can't open user config file (?P<file>.+?): (?P<why>[^:]+)$",
        "the ssh configuration {file} can't be read: {why}",
        "correct the path after -F",
        _NONE,
    ),
    _Rule(
        r"(?:\S+: )?(?:unknown|illegal|invalid|unrecognized) option(?: --|:) '?(?P<option>[^\s'])",
        "ssh has no option -{option}",
        "see `man ssh` for those that your ssh knows",
        _NONE,
    ),
    _Rule(
        r"(?:Bad (?P<kind>port|\w+ forwarding specification)|Unknown (?P<type>\w+) type) '(?P<value>.*)'",
        "'{value}' is not a {kind}{type} that ssh takes",
        _CORRECT_OPTION,
        _NONE,
    ),
    _Rule(r"Invalid -J argument", "the jump host given with -J is not one", "write it as user@host:port", _NONE),
    _Rule(
        r"jumphost loop via (?P<name>.+)",
        "the jump host {name} would be reached through itself",
        "give its own block in ssh_config `ProxyJump none`",
        _NONE,
    ),
    _Rule(
        r"\w*percent_\w*expand: unknown key (?P<key>\S+)",
        "an ssh option contains {key}, which means nothing there",
        "see the TOKENS section of `man ssh_config`; a percent sign is written %%",
        _NONE,
    ),
    _Rule(
        r"hostname contains invalid characters",
        "'{host}' is not a name that ssh takes for a host",
        "check its spelling and your quotes",
        _NONE,
    ),
    _Rule(
        r"remote username contains invalid characters",
        "the user name for '{host}' has characters that ssh doesn't take",
        "check its spelling and your quotes",
        _NONE,
    ),
)

_SOCKET = (
    _Rule(
        _LISTENER,
        "the control socket's path is too long: {file}{path}",
        "set HOLDFAST_RUNTIME_DIR to a shorter directory",
        _NONE,
    ),
    _Rule(
        r"unix_listener: cannot bind to path (?P<file>.+)\.\w{16}: (?P<why>.+)",
        "the control socket {file} can't be made: {why}",
        "check that its directory is there, is yours and has room",
        _LATER,
    ),
    _Rule(
        r"ControlSocket (?P<file>.+) already exists",
        "another ssh has the control socket {file}",
        "end that one with: ssh -S {file} -O exit {host}",
        _RETRY,
    ),
)

_NETWORK = (
    _Rule(
        rf"{_UNRESOLVED}.*(?:{_OFFLINE})",
        "the name {name} can't be looked up just now",
        "check that this machine is online",
        _RETRY,
    ),
    _Rule(
        rf"{_UNRESOLVED}.*(?:{_NO_NAME})",
        "there is no host named {name}",
        "check the spelling, and that you are online; a name that only a VPN knows needs that VPN",
        _RETRY,
    ),
    _Rule(
        rf"{_UNRESOLVED}(?P<why>.+)",
        "the name {name} can't be looked up: {why}",
        "check HostName and AddressFamily in your ssh_config",
        _RETRY,
    ),
    _Rule(
        rf"{_UNCONNECTED}Connection refused",
        "{name} refuses connections to port {port}",
        "check that sshd runs there, and on that port",
        _RETRY,
    ),
    _Rule(
        rf"{_UNCONNECTED}(?:Connection|Operation) timed out",
        "{name} doesn't answer on port {port}",
        "check that it is up, and that your network or VPN reaches it",
        _RETRY,
    ),
    _Rule(
        rf"{_UNCONNECTED}(?:{_NO_ROUTE})",
        "there is no way to {name} from this network",
        "check your network or VPN",
        _RETRY,
    ),
    _Rule(
        rf"{_UNCONNECTED}failure",
        "this machine has no address or interface {address} to connect to {name} from",
        "check BindAddress and BindInterface in your ssh_config, and your VPN",
        _RETRY,
        (r"(?:bind|getifaddrs:) (?P<address>\S+): ",),
    ),
    _Rule(
        rf"{_UNCONNECTED}(?P<why>.+)",
        "{name} can't be reached on port {port}: {why}",
        "check your network, VPN or firewall",
        _RETRY,
    ),
)

_TURNED_AWAY = _Rule(
    _CLOSED,
    "{server} turned the connection away: '{said}'",
    "it limits connections, above all after failed logins: give it a minute or more",
    _MUCH_LATER,
    (_NO_BANNER, _GREETING),
)

_GREETINGS = (
    _Rule(
        r"Connection to \S+ port \d+ timed out",
        "{server} accepted the connection, then said nothing",
        "it may be overloaded, or the port may not be sshd's",
        _LATER,
        (r"(?:\S+: )?Connection timed out during banner exchange",),
    ),
    _Rule(
        r"banner exchange: Connection to ",
        "{server} speaks only version {version} of the SSH protocol, which is not safe",
        "have the server updated",
        _NONE,
        (_FORCED + r"kex_exchange_identification: Remote protocol version (?P<version>1\.\d+)",),
    ),
    *(
        _Rule(
            ending,
            "{server} doesn't answer like an SSH server: it said '{said}'",
            "check the port; a captive portal or a proxy may be answering",
            _LATER,
            because,
        )
        for ending, because in (
            (r"banner exchange: Connection to ", (_GREETING,)),
            (
                _CLOSED,
                (_NO_BANNER, _FORCED + r"kex_exchange_identification: banner line 0: (?P<said>HTTP/.*)"),
            ),
        )
    ),
    _Rule(
        r"banner exchange: Connection to .+: (?P<why>[^:]+)$",
        "{server} doesn't answer like an SSH server: {why}",
        "check the port; a captive portal or a proxy may be answering",
        _LATER,
    ),
    _TURNED_AWAY,
    _Rule(
        _CLOSED,
        "{server} closed the connection before saying anything",
        "it may limit connections after failed logins, or a firewall is in the way: give it a minute or more",
        _MUCH_LATER,
        (_NO_BANNER,),
    ),
)

_HOST_KEYS = (
    _Rule(
        _UNVERIFIED,
        "{server} offers a host key that is revoked: {fingerprint}",
        "do not log in; ask its administrator ({file} revokes it)",
        _NONE,
        (r"(?:verify_host_key: )?Host key \S+ (?P<fingerprint>\S+) revoked by file (?P<file>.+)",),
    ),
    _Rule(
        _UNVERIFIED,
        "{name} offers a host key that is revoked",
        "do not log in; ask its administrator (your known_hosts says @revoked)",
        _NONE,
        (r"(?:The )?\S+ host key for (?P<name>\S+) (?:is marked as|was) revoked",),
    ),
    _Rule(
        _UNVERIFIED,
        "the list of revoked host keys {file} can't be used: {why}",
        "correct RevokedHostKeys in your ssh_config",
        _NONE,
        (r"(?:\w+: )?Error checking host key .+ in revoked keys file (?P<file>.+): (?P<why>[^:]+)$",),
    ),
    _Rule(
        _UNVERIFIED,
        "{name} offers another host key than before: {fingerprint}",
        _ASK_BEFORE_REMOVING + "ssh-keygen -f {file} -R {name}",
        _NONE,
        (
            r"Host key for (?P<name>\S+) has changed",
            r"Offending .*key in (?P<file>.+):\d+$",
            r"(?P<fingerprint>(?:SHA256|MD5):\S+?)\.?$",
        ),
    ),
    _Rule(
        _UNVERIFIED,
        "{name} offers another host key than before",
        _ASK_BEFORE_REMOVING + "ssh-keygen -R {name}",
        _NONE,
        (r"Host key for (?P<name>\S+) has changed",),
    ),
    _Rule(
        _UNVERIFIED,
        "{server} offers a host certificate that is not valid: {why}",
        "ask its administrator for a new one",
        _NONE,
        (r"(?:verify_host_key: )?Certificate invalid: (?P<why>.+)",),
    ),
    _Rule(
        _UNVERIFIED,
        "{name} offers a host key that is not known here: {fingerprint}",
        "compare that with what its administrator says, and run once, to accept it, "
        "`ssh -o StrictHostKeyChecking=ask {host}`",
        _NONE,
        (r"No \S+ host key is known for (?P<name>\S+) and", _OFFERED),
    ),
    _Rule(
        _UNVERIFIED,
        "{server} offers a host key that is not known here: {fingerprint}",
        "compare that with what its administrator says, and run `ssh {host}` once to accept it",
        _NONE,
        (_OFFERED,),
    ),
    _Rule(
        _UNVERIFIED,
        "{server} offers a host key that is not known here",
        "run `ssh {host}` once, compare the fingerprint with what its administrator says, and accept it",
        _NONE,
    ),
    _Rule(
        r"Bad server host key: Invalid key length",
        "{server} has an RSA host key that is too short",
        "have it given an ed25519 key; as a last resort lower RequiredRSASize in its block in ssh_config",
        _NONE,
    ),
    _Rule(
        r"Bad server host key: (?P<why>.+)",
        "{server} offers a bad host key: {why}",
        "ask its administrator",
        _NONE,
    ),
)

_ALGORITHMS = (
    *(
        _Rule(
            _NO_COMMON + words + _THEIR_OFFER,
            "{server} and your ssh share no " + words + ": it offers {offer}",
            _OLD_SERVER.replace("{option}", option),
            _NONE,
        )
        for words, option in (
            ("key exchange method", "KexAlgorithms"),
            ("host key type", "HostKeyAlgorithms"),
            ("cipher", "Ciphers"),
            ("MAC", "MACs"),
        )
    ),
    _Rule(
        _NO_COMMON + r"(?P<what>.+) found",
        "{server} and your ssh share no {what}",
        "see what your configuration allows with `ssh -G {host}`",
        _NONE,
    ),
    _Rule(
        r"Server host key (?P<kind>\S+) not in HostKeyAlgorithms",
        "{server} has a host key of a kind that your ssh doesn't accept: {kind}",
        _OLD_SERVER.replace("{option}", "HostKeyAlgorithms").replace("{offer}", "{kind}"),
        _NONE,
    ),
)

_AUTHENTICATION = (
    _Rule(
        r"Received disconnect from .+: Too many authentication failures",
        "{server} gave up after too many keys that it doesn't accept",
        "name the right key with IdentityFile, and set IdentitiesOnly yes, in its block in ssh_config",
        _LOGIN,
    ),
    _Rule(
        r"Received disconnect from .+: (?P<said>.*authentication methods.*)",
        "{server} ended the login: '{said}'",
        _CHECK_KEYS,
        _LOGIN,
    ),
    _Rule(
        _DENIED + r"[^)]*(?:password|keyboard-interactive)",
        "{server} also needs a password or a one-time code for {login}",
        _LOG_IN,
        _LOGIN,
        (r"Authenticated using .+ with partial success",),
    ),
    _Rule(
        _DENIED,
        "{server} offers another host key than before, so no password is sent to it",
        _ASK_BEFORE_REMOVING + "remove line {line} of {file}",
        _NONE,
        (
            r"Password authentication is disabled to avoid man-in-the-middle attacks",
            r"Offending .*key in (?P<file>.+):(?P<line>\d+)$",
        ),
    ),
    _Rule(
        _DENIED,
        "ssh ignores the key {file}, which others may read (mode {mode})",
        "make it yours alone: chmod 600 {file}",
        _LOGIN,
        (r"Permissions (?P<mode>\d+) for '(?P<file>.+)' are too open",),
    ),
    _Rule(
        _DENIED,
        "the RSA key {file} is too short",
        "make a new one with `ssh-keygen -t ed25519`; as a last resort lower RequiredRSASize in your ssh_config",
        _LOGIN,
        (r'(?:load pubkey|Load key) "(?P<file>.+)": Invalid key length',),
    ),
    _Rule(
        _DENIED,
        "the key {file} can't be loaded: {why}",
        "check that it is a whole private key: ssh-keygen -y -f {file}",
        _LOGIN,
        (r'Load key "(?P<file>.+)": (?P<why>.+)',),
    ),
    _Rule(
        _DENIED,
        "the agent didn't sign with the key {key}: {why}",
        _ASK_AGENT,
        _LOGIN,
        (r'sign_and_send_pubkey: signing failed for \S+ "(?P<key>.*)".*: (?P<why>[^:]+)$',),
    ),
    _Rule(
        _DENIED,
        "the key couldn't be used: {why}",
        _ASK_AGENT,
        _LOGIN,
        (r"sign_and_send_pubkey: (?:signing failed: )?(?P<why>.+)",),
    ),
    _Rule(
        _DENIED,
        "the key {file} needs its passphrase",
        "give it to your agent with `ssh-add {file}`, or run `holdfast up {host}` in a terminal",
        _LOGIN,
        (_ACCEPTED,),
    ),
    _Rule(
        _DENIED,
        "{server} accepts none of your keys for {login}, and the key {file} is missing",
        "correct IdentityFile in your ssh_config; see which keys your agent holds with `ssh-add -l`",
        _LOGIN,
        (r"no such identity: (?P<file>.+): No such file",),
    ),
    _Rule(
        _DENIED + r"(?![^)]*(?:password|keyboard-interactive))[^)]*publickey",
        "{server} accepts none of your keys for {login}",
        _CHECK_KEYS,
        _LOGIN,
    ),
    _Rule(
        _DENIED + r"[^)]*publickey",
        "{server} needs a password or a one-time code: it accepts none of your keys for {login}",
        _LOG_IN + "; to log in by key, see which your agent holds with `ssh-add -l`",
        _LOGIN,
    ),
    _Rule(
        _DENIED + r"[^)]*(?:password|keyboard-interactive)",
        "{server} needs a password or a one-time code for {login}",
        _LOG_IN,
        _LOGIN,
    ),
    _Rule(
        _DENIED + r"[^)]*gssapi",
        "{server} needs a Kerberos ticket for {login}",
        "get one with `kinit`",
        _LOGIN,
    ),
    _Rule(
        _DENIED + r"(?P<methods>[^)]*)",
        "{server} lets {login} in only by {methods}",
        "see how far it gets with `ssh -v {host}`",
        _LOGIN,
    ),
    _Rule(r"Authentication failed", "{server} didn't let you in", _CHECK_KEYS, _LOGIN),
    _Rule(
        _CLOSED,
        "{server} wants your password changed: '{said}'",
        "log in with `ssh {host}` and change it",
        _LOGIN,
        (r"(?P<said>.*\bpassword (?:has|is) expired.*)",),
    ),
    _Rule(
        _CLOSED,
        "{server} has closed your account: '{said}'",
        "ask its administrator",
        _NONE,
        (r"(?P<said>.*\baccount (?:has |is )?(?:been |currently )?(?:expired|locked|disabled).*)",),
    ),
    _Rule(
        _CLOSED,
        "{server} lets nobody log in just now: '{said}'",
        "wait until it is up, or ask its administrator",
        _LATER,
        (r'"?(?P<said>System is (?:booting up|going down).*?)"?$',),
    ),
)

_DURING_LOGIN = (
    _Rule(
        r"stdio forwarding failed",
        "{server} doesn't allow connections to {host}",
        "ask its administrator about AllowTcpForwarding and PermitOpen",
        _NONE,
        (r"channel \d+: open failed: administratively prohibited",),
    ),
    _Rule(
        r"stdio forwarding failed",
        "{server} can't reach {host}: {why}",
        "check HostName and Port of {host} as the jump host sees them",
        _LATER,
        (r"channel \d+: open failed: (?:connect failed: )?(?P<why>.+)",),
    ),
    _Rule(
        r"Received disconnect from .+?:\d+: (?P<said>.+)",
        "{server} ended the login: '{said}'",
        "see how far it gets with `ssh -v {host}`",
        _LATER,
    ),
    _Rule(_CLOSED, "{server} closed the connection during the login", "ask what its sshd logged", _LATER),
    _Rule(
        r"Connection to \S+ port \d+ timed out",
        "{server} stopped answering during the login",
        "check your network or VPN",
        _LATER,
    ),
    _Rule(
        r"\w+: Connection to \S+ port \d+: (?P<why>.+)",
        "the connection to {server} broke during the login: {why}",
        "check your network or VPN",
        _LATER,
    ),
)

_LOST = (
    *_SOCKET,
    _Rule(r"Timeout, server .+ not responding", "{server} stopped answering", "", _RETRY),
    _Rule(
        r"Received disconnect from .+?:\d+: (?P<said>.+)",
        "{server} ended the connection: '{said}'",
        "",
        _RETRY,
    ),
    _Rule(
        r"(?:Connection to .+ closed by remote host|Connection closed by)",
        "{server} closed the connection",
        "",
        _RETRY,
    ),
    _Rule(
        r"(?:\w+: send disconnect|Read from remote host .+?|\w+: Connection to \S+ port \d+): (?P<why>.+)",
        "the connection to {server} was lost: {why}",
        "",
        _RETRY,
    ),
    _Rule(r"Connection reset by", "the connection to {server} was reset", "", _RETRY),
    _Rule(r"Connection to .+ timed out", "{server} stopped answering", "", _RETRY),
    _Rule(r"Disconnecting .+?: (?P<why>[^:]+)$", "ssh gave up the connection to {server}: {why}", "", _RETRY),
)

_LOGIN_FAILED = (
    *_CONFIG,
    *_SOCKET,
    *_NETWORK,
    *_GREETINGS,
    *_HOST_KEYS,
    *_ALGORITHMS,
    *_AUTHENTICATION,
    *_DURING_LOGIN,
)

_NO_PROXY = "install it, or correct ProxyCommand in your ssh_config"
_PROXY_NOT_RUN = (
    _Rule(
        r"(?:\S*/)?\w*sh: (?:line )?\d+: (?:exec: )?(?P<command>.+?): (?:cannot execute: )?(?P<why>[^:]+)$",
        "the ProxyCommand can't be run: {command}: {why}",
        _NO_PROXY,
        _NONE,
    ),
    _Rule(
        r"zsh:\d+: (?P<why>[^:]+): (?P<command>.+)",
        "the ProxyCommand can't be run: {command}: {why}",
        _NO_PROXY,
        _NONE,
    ),
    _Rule(
        r"(?P<command>/[^:]+): No such file or directory$",
        "the ProxyCommand can't be run: {command}: no such file or directory",
        "check that your $SHELL is there",
        _NONE,
    ),
)

# What an ssh prints when what it reached its server through ends: the address is that of a pipe.
_PIPE_ENDED = r"(?:\w+ ?\w+: )?Connection (?:closed by|reset by|to) UNKNOWN port 65535"
_PROXY_SILENT = (
    _Rule(
        _PIPE_ENDED + " timed out",
        "nothing came through the jump host or ProxyCommand in time",
        "check your network or VPN",
        _RETRY,
    ),
    _TURNED_AWAY,
    _Rule(
        _PIPE_ENDED,
        "the jump host or ProxyCommand gave no connection to {host}",
        "see how far it gets with `ssh -v {host}`",
        _MUCH_LATER,
    ),
)

_NOISE = re.compile(
    r"debug: |Authenticated |Transferred: |Bytes per second: |Warning: |\*\* |@|usage: |\[|Disconnected from "
    r"|Killed by signal "
)


def diagnose(log: str, host: str) -> Trouble:
    """Why ssh ended, from what it wrote to stderr and its -E file. `host` is as the user typed it."""
    raw = log.split("\n")
    login = max((at for at, line in enumerate(raw) if line.startswith("Authenticated to ")), default=-1)
    lines = [line for line in map(_clean, raw[login + 1 :][-_LAST_LINES:]) if line]
    host = _capped(_clean(host)) or "the host"
    proxy = _proxy_lines(lines)
    if proxy is not None:
        return _proxy_trouble(proxy, host) or _matched(_PROXY_SILENT, lines, host, host) or _unknown(lines, host)
    if login < 0:
        return _matched((*_LOGIN_FAILED, *_LOST), lines, host, host) or _unknown(lines, host)
    # A jump host's login may be logged too, so the login to the host itself may still have failed.
    found = _matched((*_LOST, *_LOGIN_FAILED), lines, host, host)
    return found or _unknown(lines, host)._replace(remedy=Remedy.RETRY)


def refusal(log: str) -> Refusal:
    """Why the last forwarded connection was refused, from what a master logged since it was asked for.

    UNKNOWN is also what a server leaves unsaid: a remote forward that it forbids or that finds its port taken
    there, and a Unix socket that is not there, or that it forbids.
    """
    for line in map(_clean, reversed(log.split("\n")[-_LAST_LINES:])):
        if re.match(r"(?:\w+: )?(?:Warning: |Error: )?remote (?:port|stream\w*) forwarding failed", line):
            return Refusal.UNKNOWN
        refused = re.match(r"channel \d+: open failed: (.*)", line)
        if refused:
            return _refusal_of(refused[1])
    return Refusal.UNKNOWN


_REFUSALS = (
    (r"administratively prohibited", Refusal.FORBIDDEN),
    (r"connect failed: .*(?:connection refused|no such file)", Refusal.NO_SERVICE),
    (
        r"connect failed: .*(?:not known|no address|not resolve|name resolution|no such host"
        r"|timed out|timeout|no route|unreachable|host is down)",
        Refusal.UNREACHABLE,
    ),
)


def _refusal_of(why: str) -> Refusal:
    return next((kind for words, kind in _REFUSALS if re.match(words, why, re.IGNORECASE)), Refusal.UNKNOWN)


def _clean(line: str) -> str:
    """`line` as it may be shown; LogVerbose's `file.c:function():1 (pid=1): ` becomes ssh's `function: `."""
    line = "".join(c if c.isprintable() else " " for c in line[:_LONGEST_LINE]).strip()
    line = re.sub(r"^debug[123]: ", _FORCED, line)
    return re.sub(rf"^({_FORCED})?[\w.-]{{1,48}}:(\w{{1,48}})\(\):\d+ \(pid=\d+\): ", r"\1\2: ", line)


def _capped(value: str) -> str:
    return value if len(value) <= _LONGEST_VALUE else value[: _LONGEST_VALUE - 1] + "…"


def _matched(rules: tuple[_Rule, ...], lines: list[str], server: str, host: str) -> Trouble | None:
    """What the first of `rules` says that knows the last line which any of them knows as an ending."""
    for at in range(len(lines) - 1, -1, -1):
        for rule in rules:
            values = _values(rule, lines, at)
            if values is not None:
                return _told(rule, {**values, "server": server, "host": host})
    return None


def _values(rule: _Rule, lines: list[str], at: int) -> dict[str, str] | None:
    """What the named groups of `rule` hold if it fits the line `at` and those before it, or None."""
    ending = re.match(rule.ending, lines[at])
    if ending is None:
        return None
    values = ending.groupdict(default="")
    for pattern in rule.because:
        found = next((m for line in reversed(lines[:at]) if (m := re.match(pattern, line))), None)
        if found is None:
            return None
        values |= found.groupdict(default="")
    return values


def _told(rule: _Rule, values: dict[str, str]) -> Trouble:
    shown = {name: _capped(value) for name, value in values.items()}
    if "why" in shown:
        shown["why"] = shown["why"][:1].lower() + shown["why"][1:].rstrip(".")
    if not shown.get("login", "-"):
        shown["login"] = "you"
    quoted = {name: _quoted(value) for name, value in shown.items()}
    return Trouble(rule.reason.format_map(shown), rule.hint.format_map(quoted), rule.remedy)


def _quoted(value: str) -> str:
    """`value` as one word of a shell's command line."""
    return value if re.fullmatch(r"[\w@%+=:,./-]+", value, re.ASCII) else "'" + value.replace("'", "'\\''") + "'"


def _last_words(lines: list[str]) -> str:
    return next((_capped(line) for line in reversed(lines) if not _NOISE.match(line)), "")


def _unknown(lines: list[str], host: str) -> Trouble:
    said = _last_words(lines)
    reason = f"ssh ended, saying '{said}'" if said else "ssh ended without saying why"
    return Trouble(reason, f"see how far it gets with `ssh -v {_quoted(host)}`", Remedy.RETRY_LATER)


def _proxy_lines(lines: list[str]) -> list[str] | None:
    """What the jump host's ssh or the ProxyCommand wrote, if that ended and the host never answered."""
    ended = [re.match(_PIPE_ENDED, line) is not None for line in lines]
    if not any(ended) or any(re.match(_GREETED, line) for line in lines):
        return None
    return [
        line
        for line, is_end, before_end in zip(lines, ended, [*ended[1:], False], strict=True)
        # The line before the end is the same ssh's own account of it.
        if not is_end
        and not (before_end and "_exchange_identification: " in line)
        and not line.startswith(_FORCED)
    ]


def _proxy_trouble(lines: list[str], host: str) -> Trouble | None:
    not_run = _matched(_PROXY_NOT_RUN, lines, "", host)
    if not_run:
        return not_run
    jump = _matched(_LOGIN_FAILED, lines, "it", host)
    if jump:
        return jump._replace(reason=f"the jump host failed: {jump.reason}")
    said = _last_words(lines)
    if not said:
        return None
    hint = "correct ProxyCommand in your ssh_config, or what it runs"
    return Trouble(f"the ProxyCommand failed, saying '{said}'", hint, Remedy.RETRY_LATER)
