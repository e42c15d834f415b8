"""What the heartbeat session runs over there: an echo, or an echo with a dead-man's switch.

The switch ends the session's own sshd, and with it the far end of the link, once nothing has come from us for a
while. All of it is one line for any login shell. Pure.
"""

from __future__ import annotations

# Understood by every login shell, fish and tcsh included; leaves by itself when its input ends.
ECHO = "exec cat"
# Seconds without a line from us until the far side asks for one, and that it then waits for the answer.
SILENCE = 9
ANSWER = 4
# The lines that the switch prints of itself begin with these; the number of seconds follows the first.
ARMED = b"holdfast armed "
QUESTION = b"holdfast asks"

# Matches our connection in /proc/net/tcp, its ports filled in by printf, if the machine here has acknowledged all
# that was sent (an empty queue), or on a busy link all but what is on its way (no retransmission or probe
# unanswered).
_ACKNOWLEDGED = ":%04X [0-9A-F]+:%04X 01 (0+:|[^ ]+ [^ ]+ 0+ +[0-9]+ +0 )"

# Finds a shell whose `read` has a time-out, and gives it the loop ($1) with its arguments. Arms only if the parent
# is an sshd that we may end. Login files are kept away from the shell: they might read our lines.
_FIND = f"""
    unset ENV BASH_ENV;
    loop=$1; silence=$2; answer=$3; acknowledged=;
    if [ "$4" = veto ]; then
        set -- $SSH_CONNECTION;
        acknowledged=$(printf "{_ACKNOWLEDGED}" $4 $2);
    fi;
    parent=$(cat /proc/$PPID/comm || ps -o comm= -p $PPID);
    case ${{parent##*/}} in
        sshd*|dropbear*)
            kill -0 $PPID && for shell in "bash --norc" "zsh -f" ksh mksh sh; do
                echo | $shell -c "read -r -t 1 line" &&
                exec $shell -c "$loop" holdfast $silence $answer "$acknowledged";
            done;;
    esac;
    exec cat
"""

# At the end of the input every read fails at once, and says so with the same status as after a time-out in zsh and
# ksh93 and busybox: only the clock tells. `cat` then leaves, or goes on echoing if it was the clock that lied.
_LOOP = f"""
    echo "{ARMED.decode()}$(($1 + $2))";
    while :; do
        if read -r -t $1 line; then echo "$line"; continue; fi;
        echo "{QUESTION.decode()}";
        asked=$(date +%s);
        if read -r -t $2 line; then echo "$line"; continue; fi;
        [ $(($(date +%s) - asked)) -ge $2 ] || exec cat;
        [ -n "$3" ] && grep -qsE "$3" /proc/net/tcp /proc/net/tcp6 && continue;
        kill $PPID; sleep 1; kill -9 $PPID; exit;
    done
"""


def switch(silence: int = SILENCE, answer: int = ANSWER, *, direct: bool) -> str:
    """The command of an echo that ends its sshd after `silence` + `answer` seconds without a line.

    After `silence` seconds it prints `QUESTION`; any line is an answer. `answer` is at least 2, or the end of the
    input could be taken for silence. With `direct`, when the TCP connection over there ends at this machine, the
    switch doesn't go off while the connection's acknowledgements show that this machine lives.
    Where no switch can be had, the command is `ECHO` and never prints `ARMED`.
    """
    if answer < 2:
        raise ValueError(f"{answer} s for an answer can't be told from the end of the input")
    veto = "veto" if direct else "none"
    return f"exec sh -c '{_one_line(_FIND)}' holdfast '{_one_line(_LOOP)}' {silence} {answer} {veto}"


def _one_line(program: str) -> str:
    return " ".join(program.split())
