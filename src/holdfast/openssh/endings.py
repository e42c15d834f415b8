"""The endings of ssh that are known: the lines it ends with, and what each means to a person. Data.

Wordings differ between versions, so lines are matched by their key words. A table is read from top to bottom,
the most specific first.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Remedy(Enum):
    """What can help, and so how long to wait before the next try (the delays are in keeper/states.py)."""

    RETRY = "nobody was reached"
    RETRY_REFUSED = "the machine was reached, and nothing listens there"
    RETRY_LATER = "the server was reached, and something failed"
    RETRY_MUCH_LATER = "closed before the banner: MaxStartups, a penalty, a firewall"
    LOGIN = "only a person can go on"
    NONE = "trying again can't help"


class Rule(NamedTuple):
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


_RETRY, _REFUSED, _LATER, _MUCH_LATER, _LOGIN, _NONE = Remedy

# A line that ssh logs only because of LogVerbose (see command.py) starts with this, once _clean has seen it.
FORCED = "debug: "
_OFFERED = FORCED + r"verify_host_key: Server host key: \S+ (?P<fingerprint>\S+)"
GREETED = FORCED + r"kex_exchange_identification: Remote protocol version "
_GREETING = FORCED + r"kex_exchange_identification: banner line 0: (?P<said>.*\S)"
_ACCEPTED = (
    FORCED + r"input_userauth_pk_ok: Server accepts key: (?P<file>.+) [\w-]+ SHA256:\S+(?: explicit)?(?: token)?$"
)
_NO_BANNER = rf"(?:{FORCED})?(?:kex|ssh)_exchange_identification: (?:Connection closed by|(?:read|write): )"

_CLOSED = r"Connection (?:closed|reset) by \S+"
_DENIED = r"(?:(?P<login>.+): )?Permission denied \("
_UNVERIFIED = r"Host key verification failed"
_NO_ROUTE = r"No route to host|(?:Network|Host) is (?:unreachable|down)|Can't assign requested address"
_OFFLINE = r"Temporary failure|Try again|System error|Non-recoverable failure"
_NO_NAME = r"not known|No address|not resolve|Unknown host|No such host"
_UNRESOLVED = r"(?:\S+: )?Could not resolve hostname (?P<name>\S*): "
# Not the debug lines: each tells of one of the host's addresses, and another one may be connected to.
_UNCONNECTED = rf"(?!{FORCED})(?:\S+: ){{0,2}}connect to (?:host|address) (?P<name>\S+) port (?P<port>\d+): "
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
    Rule(
        r"command-line:? line 0: Bad configuration option: (?P<option>\S+)",
        "ssh has no option '{option}', given with -o",
        _CORRECT_OPTION,
        _NONE,
    ),
    Rule(
        r"command-line:? line 0: (?P<why>.+)",
        "an option given with -o is wrong: {why}",
        _CORRECT_OPTION,
        _NONE,
    ),
    Rule(
        r"(?P<file>.+): line (?P<line>\d+): Bad configuration option: (?P<option>\S+)",
        "{file} line {line}: ssh has no option '{option}'",
        "correct it; if another ssh does know it, put `IgnoreUnknown {option}` above it",
        _NONE,
    ),
    Rule(
        r"(?P<file>.*[^:]) line (?P<line>\d+): (?P<why>.+)",
        "{file} line {line}: {why}",
        _CORRECT_CONFIG,
        _NONE,
    ),
    Rule(
        r"Bad owner or permissions on (?P<file>.+)",
        "ssh doesn't trust {file}: somebody else owns it or may write to it",
        "make it yours alone: chmod go-w {file}",
        _NONE,
    ),
    Rule(
        r"Can't open user config file (?P<file>.+?): (?P<why>[^:]+)$",
        "the ssh configuration {file} can't be read: {why}",
        "correct the path after -F",
        _NONE,
    ),
    Rule(
        r"(?:\S+: )?(?:unknown|illegal|invalid|unrecognized) option(?: --|:) '?(?P<option>[^\s'])",
        "ssh has no option -{option}",
        "see `man ssh` for those that your ssh knows",
        _NONE,
    ),
    Rule(
        r"(?:Bad (?P<kind>port|\w+ forwarding specification)|Unknown (?P<type>\w+) type) '(?P<value>.*)'",
        "'{value}' is not a {kind}{type} that ssh takes",
        _CORRECT_OPTION,
        _NONE,
    ),
    Rule(r"Invalid -J argument", "the jump host given with -J is not one", "write it as user@host:port", _NONE),
    Rule(
        r"jumphost loop via (?P<name>.+)",
        "the jump host {name} would be reached through itself",
        "give its own block in ssh_config `ProxyJump none`",
        _NONE,
    ),
    Rule(
        r"\w*percent_\w*expand: unknown key (?P<key>\S+)",
        "an ssh option contains {key}, which means nothing there",
        "see the TOKENS section of `man ssh_config`; a percent sign is written %%",
        _NONE,
    ),
    Rule(
        r"hostname contains invalid characters",
        "'{host}' is not a name that ssh takes for a host",
        "check its spelling and your quotes",
        _NONE,
    ),
    Rule(
        r"remote username contains invalid characters",
        "the user name for '{host}' has characters that ssh doesn't take",
        "check its spelling and your quotes",
        _NONE,
    ),
)

_SOCKET = (
    Rule(
        _LISTENER,
        "the control socket's path is too long: {file}{path}",
        "set HOLDFAST_RUNTIME_DIR to a shorter directory",
        _NONE,
    ),
    Rule(
        r"unix_listener: cannot bind to path (?P<file>.+)\.\w{16}: (?P<why>.+)",
        "the control socket {file} can't be made: {why}",
        "check that its directory is there, is yours and has room",
        _LATER,
    ),
    Rule(
        r"ControlSocket (?P<file>.+) already exists",
        "another ssh has the control socket {file}",
        "end that one with: ssh -S {file} -O exit {host}",
        _RETRY,
    ),
)

_NETWORK = (
    Rule(
        rf"{_UNRESOLVED}.*(?:{_OFFLINE})",
        "the name {name} can't be looked up just now",
        "check that this machine is online",
        _RETRY,
    ),
    Rule(
        rf"{_UNRESOLVED}.*(?:{_NO_NAME})",
        "there is no host named {name}",
        "check the spelling, and that you are online; a name that only a VPN knows needs that VPN",
        _RETRY,
    ),
    Rule(
        rf"{_UNRESOLVED}(?P<why>.+)",
        "the name {name} can't be looked up: {why}",
        "check HostName and AddressFamily in your ssh_config",
        _RETRY,
    ),
    Rule(
        rf"{_UNCONNECTED}Connection refused",
        "{name} refuses connections to port {port}",
        "check that sshd runs there, and on that port",
        _REFUSED,
    ),
    Rule(
        rf"{_UNCONNECTED}(?:Connection|Operation) timed out",
        "{name} doesn't answer on port {port}",
        "check that it is up, and that your network or VPN reaches it",
        _RETRY,
    ),
    Rule(
        rf"{_UNCONNECTED}(?:{_NO_ROUTE})",
        "there is no way to {name} from this network",
        "check your network or VPN",
        _RETRY,
    ),
    Rule(
        rf"{_UNCONNECTED}failure",
        "this machine has no address or interface {address} to connect to {name} from",
        "check BindAddress and BindInterface in your ssh_config, and your VPN",
        _RETRY,
        (r"(?:bind|getifaddrs:) (?P<address>\S+): ",),
    ),
    Rule(
        rf"{_UNCONNECTED}(?P<why>.+)",
        "{name} can't be reached on port {port}: {why}",
        "check your network, VPN or firewall",
        _RETRY,
    ),
)

_TURNED_AWAY = Rule(
    _CLOSED,
    "{server} turned the connection away: '{said}'",
    "it limits connections, above all after failed logins: give it a minute or more",
    _MUCH_LATER,
    (_NO_BANNER, _GREETING),
)

_GREETINGS = (
    Rule(
        r"Connection to \S+ port \d+ timed out",
        "{server} accepted the connection, then said nothing",
        "it may be overloaded, or the port may not be sshd's",
        _LATER,
        (r"(?:\S+: )?Connection timed out during banner exchange",),
    ),
    Rule(
        r"banner exchange: Connection to ",
        "{server} speaks only version {version} of the SSH protocol, which is not safe",
        "have the server updated",
        _NONE,
        (FORCED + r"kex_exchange_identification: Remote protocol version (?P<version>1\.\d+)",),
    ),
    *(
        Rule(
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
                (_NO_BANNER, FORCED + r"kex_exchange_identification: banner line 0: (?P<said>HTTP/.*)"),
            ),
        )
    ),
    Rule(
        r"banner exchange: Connection to .+: (?P<why>[^:]+)$",
        "{server} doesn't answer like an SSH server: {why}",
        "check the port; a captive portal or a proxy may be answering",
        _LATER,
    ),
    _TURNED_AWAY,
    Rule(
        _CLOSED,
        "{server} closed the connection before saying anything",
        "it may limit connections after failed logins, or a firewall is in the way: give it a minute or more",
        _MUCH_LATER,
        (_NO_BANNER,),
    ),
)

_HOST_KEYS = (
    Rule(
        _UNVERIFIED,
        "{server} offers a host key that is revoked: {fingerprint}",
        "do not log in; ask its administrator ({file} revokes it)",
        _NONE,
        (r"(?:verify_host_key: )?Host key \S+ (?P<fingerprint>\S+) revoked by file (?P<file>.+)",),
    ),
    Rule(
        _UNVERIFIED,
        "{name} offers a host key that is revoked",
        "do not log in; ask its administrator (your known_hosts says @revoked)",
        _NONE,
        (r"(?:The )?\S+ host key for (?P<name>\S+) (?:is marked as|was) revoked",),
    ),
    Rule(
        _UNVERIFIED,
        "the list of revoked host keys {file} can't be used: {why}",
        "correct RevokedHostKeys in your ssh_config",
        _NONE,
        (r"(?:\w+: )?Error checking host key .+ in revoked keys file (?P<file>.+): (?P<why>[^:]+)$",),
    ),
    Rule(
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
    Rule(
        _UNVERIFIED,
        "{name} offers another host key than before",
        _ASK_BEFORE_REMOVING + "ssh-keygen -R {name}",
        _NONE,
        (r"Host key for (?P<name>\S+) has changed",),
    ),
    Rule(
        _UNVERIFIED,
        "{server} offers a host certificate that is not valid: {why}",
        "ask its administrator for a new one",
        _NONE,
        (r"(?:verify_host_key: )?Certificate invalid: (?P<why>.+)",),
    ),
    Rule(
        _UNVERIFIED,
        "{name} offers a host key that is not known here: {fingerprint}",
        "compare that with what its administrator says, and run once, to accept it, "
        "`ssh -o StrictHostKeyChecking=ask {host}`",
        _NONE,
        (r"No \S+ host key is known for (?P<name>\S+) and", _OFFERED),
    ),
    Rule(
        _UNVERIFIED,
        "{server} offers a host key that is not known here: {fingerprint}",
        "compare that with what its administrator says, and run `ssh {host}` once to accept it",
        _NONE,
        (_OFFERED,),
    ),
    Rule(
        _UNVERIFIED,
        "{server} offers a host key that is not known here",
        "run `ssh {host}` once, compare the fingerprint with what its administrator says, and accept it",
        _NONE,
    ),
    Rule(
        r"Bad server host key: Invalid key length",
        "{server} has an RSA host key that is too short",
        "have it given an ed25519 key; as a last resort lower RequiredRSASize in its block in ssh_config",
        _NONE,
    ),
    Rule(
        r"Bad server host key: (?P<why>.+)",
        "{server} offers a bad host key: {why}",
        "ask its administrator",
        _NONE,
    ),
)

_ALGORITHMS = (
    *(
        Rule(
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
    Rule(
        _NO_COMMON + r"(?P<what>.+) found",
        "{server} and your ssh share no {what}",
        "see what your configuration allows with `ssh -G {host}`",
        _NONE,
    ),
    Rule(
        r"Server host key (?P<kind>\S+) not in HostKeyAlgorithms",
        "{server} has a host key of a kind that your ssh doesn't accept: {kind}",
        _OLD_SERVER.replace("{option}", "HostKeyAlgorithms").replace("{offer}", "{kind}"),
        _NONE,
    ),
)

_AUTHENTICATION = (
    Rule(
        r"Received disconnect from .+: Too many authentication failures",
        "{server} gave up after too many keys that it doesn't accept",
        "name the right key with IdentityFile, and set IdentitiesOnly yes, in its block in ssh_config",
        _LOGIN,
    ),
    Rule(
        r"Received disconnect from .+: (?P<said>.*authentication methods.*)",
        "{server} ended the login: '{said}'",
        _CHECK_KEYS,
        _LOGIN,
    ),
    Rule(
        _DENIED + r"[^)]*(?:password|keyboard-interactive)",
        "{server} also needs a password or a one-time code for {login}",
        _LOG_IN,
        _LOGIN,
        (r"Authenticated using .+ with partial success",),
    ),
    Rule(
        _DENIED,
        "{server} offers another host key than before, so no password is sent to it",
        _ASK_BEFORE_REMOVING + "remove line {line} of {file}",
        _NONE,
        (
            r"Password authentication is disabled to avoid man-in-the-middle attacks",
            r"Offending .*key in (?P<file>.+):(?P<line>\d+)$",
        ),
    ),
    Rule(
        _DENIED,
        "ssh ignores the key {file}, which others may read (mode {mode})",
        "make it yours alone: chmod 600 {file}",
        _LOGIN,
        (r"Permissions (?P<mode>\d+) for '(?P<file>.+)' are too open",),
    ),
    Rule(
        _DENIED,
        "the RSA key {file} is too short",
        "make a new one with `ssh-keygen -t ed25519`; as a last resort lower RequiredRSASize in your ssh_config",
        _LOGIN,
        (r'(?:load pubkey|Load key) "(?P<file>.+)": Invalid key length',),
    ),
    Rule(
        _DENIED,
        "the key {file} can't be loaded: {why}",
        "check that it is a whole private key: ssh-keygen -y -f {file}",
        _LOGIN,
        (r'Load key "(?P<file>.+)": (?P<why>.+)',),
    ),
    Rule(
        _DENIED,
        "the agent didn't sign with the key {key}: {why}",
        _ASK_AGENT,
        _LOGIN,
        (r'sign_and_send_pubkey: signing failed for \S+ "(?P<key>.*)".*: (?P<why>[^:]+)$',),
    ),
    Rule(
        _DENIED,
        "the key couldn't be used: {why}",
        _ASK_AGENT,
        _LOGIN,
        (r"sign_and_send_pubkey: (?:signing failed: )?(?P<why>.+)",),
    ),
    Rule(
        _DENIED,
        "the key {file} needs its passphrase",
        "give it to your agent with `ssh-add {file}`, or run `holdfast up {host}` in a terminal",
        _LOGIN,
        (_ACCEPTED,),
    ),
    Rule(
        _DENIED,
        "{server} accepts none of your keys for {login}, and the key {file} is missing",
        "correct IdentityFile in your ssh_config; see which keys your agent holds with `ssh-add -l`",
        _LOGIN,
        (r"no such identity: (?P<file>.+): No such file",),
    ),
    Rule(
        _DENIED + r"(?![^)]*(?:password|keyboard-interactive))[^)]*publickey",
        "{server} accepts none of your keys for {login}",
        _CHECK_KEYS,
        _LOGIN,
    ),
    Rule(
        _DENIED + r"[^)]*publickey",
        "{server} needs a password or a one-time code: it accepts none of your keys for {login}",
        _LOG_IN + "; to log in by key, see which your agent holds with `ssh-add -l`",
        _LOGIN,
    ),
    Rule(
        _DENIED + r"[^)]*(?:password|keyboard-interactive)",
        "{server} needs a password or a one-time code for {login}",
        _LOG_IN,
        _LOGIN,
    ),
    Rule(
        _DENIED + r"[^)]*gssapi",
        "{server} needs a Kerberos ticket for {login}",
        "get one with `kinit`",
        _LOGIN,
    ),
    Rule(
        _DENIED + r"(?P<methods>[^)]*)",
        "{server} lets {login} in only by {methods}",
        "see how far it gets with `ssh -v {host}`",
        _LOGIN,
    ),
    Rule(r"Authentication failed", "{server} didn't let you in", _CHECK_KEYS, _LOGIN),
    Rule(
        _CLOSED,
        "{server} wants your password changed: '{said}'",
        "log in with `ssh {host}` and change it",
        _LOGIN,
        (r"(?P<said>.*\bpassword (?:has|is) expired.*)",),
    ),
    Rule(
        _CLOSED,
        "{server} has closed your account: '{said}'",
        "ask its administrator",
        _NONE,
        (r"(?P<said>.*\baccount (?:has |is )?(?:been |currently )?(?:expired|locked|disabled).*)",),
    ),
    Rule(
        _CLOSED,
        "{server} lets nobody log in just now: '{said}'",
        "wait until it is up, or ask its administrator",
        _LATER,
        (r'"?(?P<said>System is (?:booting up|going down).*?)"?$',),
    ),
)

_DURING_LOGIN = (
    Rule(
        r"stdio forwarding failed",
        "{server} doesn't allow connections to {host}",
        "ask its administrator about AllowTcpForwarding and PermitOpen",
        _NONE,
        (r"channel \d+: open failed: administratively prohibited",),
    ),
    Rule(
        r"stdio forwarding failed",
        "{server} can't reach {host}: {why}",
        "check HostName and Port of {host} as the jump host sees them",
        _LATER,
        (r"channel \d+: open failed: (?:connect failed: )?(?P<why>.+)",),
    ),
    Rule(
        r"Received disconnect from .+?:\d+: (?P<said>.+)",
        "{server} ended the login: '{said}'",
        "see how far it gets with `ssh -v {host}`",
        _LATER,
    ),
    Rule(_CLOSED, "{server} closed the connection during the login", "ask what its sshd logged", _LATER),
    Rule(
        r"Connection to \S+ port \d+ timed out",
        "{server} stopped answering during the login",
        "check your network or VPN",
        _LATER,
    ),
    Rule(
        r"\w+: Connection to \S+ port \d+: (?P<why>.+)",
        "the connection to {server} broke during the login: {why}",
        "check your network or VPN",
        _LATER,
    ),
)

LOST = (
    *_SOCKET,
    Rule(r"Timeout, server .+ not responding", "{server} stopped answering", "", _RETRY),
    Rule(
        r"Received disconnect from .+?:\d+: (?P<said>.+)",
        "{server} ended the connection: '{said}'",
        "",
        _RETRY,
    ),
    Rule(
        r"(?:Connection to .+ closed by remote host|Connection closed by)",
        "{server} closed the connection",
        "",
        _RETRY,
    ),
    Rule(
        r"(?:\w+: send disconnect|Read from remote host .+?|\w+: Connection to \S+ port \d+): (?P<why>.+)",
        "the connection to {server} was lost: {why}",
        "",
        _RETRY,
    ),
    Rule(r"Connection reset by", "the connection to {server} was reset", "", _RETRY),
    Rule(r"Connection to .+ timed out", "{server} stopped answering", "", _RETRY),
    Rule(r"Disconnecting .+?: (?P<why>[^:]+)$", "ssh gave up the connection to {server}: {why}", "", _RETRY),
)

LOGIN_FAILED = (
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
PROXY_NOT_RUN = (
    Rule(
        r"(?:\S*/)?\w*sh: (?:line )?\d+: (?:exec: )?(?P<command>.+?): (?:cannot execute: )?(?P<why>[^:]+)$",
        "the ProxyCommand can't be run: {command}: {why}",
        _NO_PROXY,
        _NONE,
    ),
    Rule(
        r"zsh:\d+: (?P<why>[^:]+): (?P<command>.+)",
        "the ProxyCommand can't be run: {command}: {why}",
        _NO_PROXY,
        _NONE,
    ),
    Rule(
        r"(?P<command>/[^:]+): No such file or directory$",
        "the ProxyCommand can't be run: {command}: no such file or directory",
        "check that your $SHELL is there",
        _NONE,
    ),
)

# What an ssh prints when what it reached its server through ends: the address is that of a pipe.
PIPE_ENDED = r"(?:\w+ ?\w+: )?Connection (?:closed by|reset by|to) UNKNOWN port 65535"
PROXY_SILENT = (
    Rule(
        PIPE_ENDED + " timed out",
        "nothing came through the jump host or ProxyCommand in time",
        "check your network or VPN",
        _RETRY,
    ),
    _TURNED_AWAY,
    Rule(
        PIPE_ENDED,
        "the jump host or ProxyCommand gave no connection to {host}",
        "see how far it gets with `ssh -v {host}`",
        _MUCH_LATER,
    ),
)
