"""What each option of ssh's and autossh's command lines becomes, or why it becomes nothing. Tables.

From ssh(1) and ssh_config(5) of OpenSSH 10, and autossh(1) of 1.4g. -2, of the protocol, is in no manual any more,
but in many a script, and ssh still takes it.
"""

from __future__ import annotations

from holdfast.forward import Kind

FORWARDS = {"L": Kind.LOCAL, "R": Kind.REMOTE, "D": Kind.DYNAMIC}
FORWARD_SETTINGS = {
    "localforward": Kind.LOCAL,
    "remoteforward": Kind.REMOTE,
    "dynamicforward": Kind.DYNAMIC,
}
# Options that `holdfast up` has as well.
KEPT = frozenset("FJilp")
# Options with a value that are the same as a setting, and those without one.
AS_SETTING = {
    "c": "Ciphers",
    "m": "MACs",
    "b": "BindAddress",
    "B": "BindInterface",
    "I": "PKCS11Provider",
    "P": "Tag",
}
AS_WHOLE_SETTING = {
    "4": "AddressFamily=inet",
    "6": "AddressFamily=inet6",
    "C": "Compression=yes",
    "K": "GSSAPIAuthentication=yes",
    "k": "GSSAPIDelegateCredentials=no",
}
# Every connection of holdfast's is made this way already.
OURS = frozenset("NTfnax2")
EVERYWHERE = "g"
# With one of these no tunnel is made.
NO_TUNNEL = frozenset("VQG")
VALUED = frozenset("BbcDEeFIiJLlmOoPpQRSWw")
FLAGS = frozenset("246AaCfGgKkMNnqsTtVvXxYy")
CONTROL = "O"
MAKES_FORWARD = "forward"
ORDER = "holdfast has status, restart and down for that"

_SESSION = "a tunnel has no session that it would be for"
_LOG = "what happens is in holdfast logs"
_MASTER = "holdfast has a master of its own, or takes over the one at your configuration's ControlPath"
_HEARTBEAT = "holdfast asks the far side every few seconds by itself"
_TOLD = "holdfast status says which forward can't be had, and why"
_ASKS = "holdfast asks in your terminal where a login needs you, and never behind your back"

LEFT_OUT = {
    "M": _MASTER,
    "S": _MASTER,
    "q": _LOG,
    "v": _LOG,
    "E": _LOG,
    "y": _LOG,
    "A": _SESSION,
    "X": _SESSION,
    "Y": _SESSION,
    "e": _SESSION,
    "s": _SESSION,
    "t": _SESSION,
    "W": "it joins one connection to the terminal, which is no tunnel",
    "w": "holdfast forwards ports and sockets, no network devices",
}
MONITOR_PORT = "holdfast needs no port to see that a connection is dead"

SETTINGS_LEFT_OUT = {
    "serveraliveinterval": _HEARTBEAT,
    "serveralivecountmax": _HEARTBEAT,
    "tcpkeepalive": _HEARTBEAT,
    "exitonforwardfailure": _TOLD,
    "controlmaster": _MASTER,
    "controlpath": _MASTER,
    "controlpersist": _MASTER,
    "batchmode": _ASKS,
    "loglevel": _LOG,
    "logverbose": _LOG,
    "streamlocalbindunlink": "holdfast removes the sockets that are left over, and no others",
    "clearallforwardings": "the forwards are those that stand in the tunnel",
    "tunnel": LEFT_OUT["w"],
    "tunneldevice": LEFT_OUT["w"],
    **dict.fromkeys(("forkafterauthentication", "sessiontype", "stdinnull"), "holdfast does as much by itself"),
    **dict.fromkeys(
        (
            "enableescapecommandline",
            "escapechar",
            "forwardagent",
            "forwardx11",
            "forwardx11timeout",
            "forwardx11trusted",
            "localcommand",
            "permitlocalcommand",
            "remotecommand",
            "requesttty",
            "sendenv",
            "setenv",
            "xauthlocation",
        ),
        _SESSION,
    ),
}
EVERYWHERE_SETTING = "gatewayports"
# Kept, since the user asked for it; said, since nothing else in holdfast goes without.
UNCHECKED = {
    ("stricthostkeychecking", "no"),
    ("stricthostkeychecking", "off"),
    ("userknownhostsfile", "/dev/null"),
}

VARIABLES = {
    "AUTOSSH_DEBUG": _LOG,
    "AUTOSSH_FIRST_POLL": _HEARTBEAT,
    "AUTOSSH_GATETIME": "holdfast goes on trying, the first time as well",
    "AUTOSSH_LOGFILE": _LOG,
    "AUTOSSH_LOGLEVEL": _LOG,
    "AUTOSSH_MAXLIFETIME": "a tunnel ends with holdfast down, not by the clock",
    "AUTOSSH_MAXSTART": "holdfast goes on trying for as long as the tunnel is wanted",
    "AUTOSSH_MESSAGE": MONITOR_PORT,
    "AUTOSSH_NTSERVICE": "holdfast doesn't run as a Windows service",
    "AUTOSSH_PATH": "holdfast runs the ssh that your PATH names",
    "AUTOSSH_PIDFILE": "holdfast status --json has the pid of each master",
    "AUTOSSH_POLL": _HEARTBEAT,
    "AUTOSSH_PORT": MONITOR_PORT,
}
