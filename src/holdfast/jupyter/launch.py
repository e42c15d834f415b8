"""Starting a notebook server over there, reading its log, and tidying up after it: the programs for that. Pure.

Each start has a directory of its own, `/tmp/holdfast-XXXXXXXX`: 0700, short enough for sockets, and gone with the
next start once the server is. In it are the socket, the token, the log, the certificate, and the two programs that
the user's login shell is left with: `run` finds the environment's Python, and `jupyter` (starter.py) becomes the
server. So the server has the environment that its user has in a terminal.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import Any, NamedTuple

from holdfast.errors import HoldfastError, UsageError
from holdfast.jupyter.servers import COMMON, fingerprint_in
from holdfast.openssh import script

KINDS = ("conda", "venv", "pixi", "uv", "module")
APPS = ("lab", "notebook", "server")
# Seconds that a server may take to start: Python and its packages may be on a slow network file system.
STARTING = 90
# Lines of a failed server's log that are shown.
_LAST_WORDS = 12
# What an interactive bash without a terminal says first.
_NOISE = ("bash: cannot set terminal process group", "bash: no job control")

# Finds the environment, and becomes its Python. `$ours` and `$environment` are set before it.
_RUN = r"""
echo $$ > "$ours/pid"
umask 077
cd "$(cat "$ours/directory")" || exit 1
directory=$PWD
jupyters="jupyter-lab jupyter-server jupyter-notebook"
has_jupyter() {
    for name in $jupyters; do [ -x "$1/bin/$name" ] && return 0; done
    return 1
}
bases() {
    for base in "${CONDA_EXE%/bin/conda}" "$MAMBA_ROOT_PREFIX" "$HOME/miniforge3" "$HOME/miniconda3" \
        "$HOME/mambaforge" "$HOME/anaconda3" "$HOME/micromamba" "$HOME/.local/share/mamba" \
        /opt/conda /opt/miniforge3 /opt/miniconda3 /opt/anaconda3
    do [ -n "$base" ] && [ -d "$base" ] && put "$base"; done
}
conda_prefixes() {
    {
        bases | while IFS= read -r base; do
            [ -d "$base/conda-meta" ] && put "$base"
            for prefix in "$base"/envs/*; do put "$prefix"; done
        done
        for prefix in "$HOME"/.conda/envs/*; do put "$prefix"; done
        cat "$HOME/.conda/environments.txt"
    } 2>/dev/null | sort -u | while IFS= read -r prefix; do [ -d "$prefix" ] && put "$prefix"; done
}
environments() {
    conda_prefixes | while IFS= read -r prefix; do
        case $prefix in
            */envs/*) has_jupyter "$prefix" && put "conda:${prefix##*/}";;
            *) has_jupyter "$prefix" && put "conda:$prefix";;
        esac
    done
    for prefix in "$directory/.venv" "$directory/venv" "$HOME/.venv" "$HOME/venv" "$HOME"/.virtualenvs/* \
        "$HOME"/.venvs/* "$HOME"/venvs/* "$HOME"/envs/*
    do [ -f "$prefix/pyvenv.cfg" ] && has_jupyter "$prefix" && put "venv:$prefix"; done
    for prefix in "$directory"/.pixi/envs/*; do has_jupyter "$prefix" && put "pixi:$prefix"; done
}
fail() {
    environments | sort -u > "$ours/environments"
    put "$1" > "$ours/failed"
    exit 1
}
placed() {
    case $1 in
        '~') put "$HOME";;
        '~/'*) put "$HOME/${1#'~/'}";;
        /*) put "$1";;
        *) put "$directory/$1";;
    esac
}
use() {
    PATH=$1/bin:$PATH
    export PATH
    for python in "$1/bin/python" "$1/bin/python3"; do [ -x "$python" ] && return 0; done
    fail "there is no Python in $1"
}
use_conda() {
    export CONDA_PREFIX="$1" CONDA_DEFAULT_ENV="${1##*/}"
    use "$1"
    for hook in "$1"/etc/conda/activate.d/*.sh; do
        [ -f "$hook" ] && (. "$hook") >/dev/null 2>&1 && . "$hook"
    done
}
use_venv() {
    export VIRTUAL_ENV="$1"
    use "$1"
}
python_of_script() {
    python=$(sed -n -e '1s/^#! *\([^ ]*python[^ ]*\).*/\1/p' \
        -e "2s/^'''exec' \"\{0,1\}\([^\"]*\)\"\{0,1\} .*/\1/p" "$1")
    for python in "$python" "${1%/*}/python3" "${1%/*}/python"; do
        [ -n "$python" ] && [ -x "$python" ] && return 0
    done
    python=$(command -v python3) || fail "there is no python3 for $1"
}
find_environment() {
    for prefix in "$directory/.pixi/envs/default" "$directory/.venv" "$directory/venv"; do
        has_jupyter "$prefix" || continue
        case $prefix in */.pixi/*) use_conda "$prefix";; *) use_venv "$prefix";; esac
        return
    done
    for name in $jupyters jupyter; do
        found=$(command -v $name) && python_of_script "$found" && return
    done
    found=$(environments | sort -u)
    case $found in
        ''|*'
'*) fail "there is no jupyter in your PATH";;
    esac
    environment=$found
    use_environment
}
use_environment() {
    wanted=${environment#*:}
    case $environment in
        conda:*/*) prefix=$(placed "$wanted");;
        conda:base) prefix=$(bases | head -n 1);;
        conda:*) prefix=$(conda_prefixes | while IFS= read -r one; do
                [ "${one##*/}" = "$wanted" ] && put "$one"; done | head -n 1);;
        venv:*) prefix=$(placed "$wanted");;
        pixi:*) prefix=$(placed "$wanted"); [ -d "$prefix/.pixi" ] && prefix=$prefix/.pixi/envs/default;;
        uv:*) prefix=$(placed "$wanted")/.venv;;
        *) find_environment; return;;
    esac
    [ -n "$prefix" ] && [ -d "$prefix" ] || fail "there is no environment '$environment'"
    case $environment in conda:*|pixi:*) use_conda "$prefix";; *) use_venv "$prefix";; esac
}
use_environment
exec "$python" "$ours/jupyter" "$ours" "$kind" "$app"
"""

# Starts it, detached from the connection, and waits for the file in which the server announces itself.
_START = r"""
umask 077
directory=$(placed "$directory")
if ! cd "$directory" 2>/dev/null; then
    tell failed
    put "there is no directory $directory"
    return
fi
starts | while IFS= read -r old; do
    pid=$(pid_of "$old") && ! kill -0 "$pid" 2>/dev/null || continue
    [ -n "$(find "$old" -prune -mmin +1)" ] || continue  # its own start may still want to say why
    # A container's server, whose processes aren't seen from here, holds a lock (starter.py).
    command -v flock >/dev/null && ! flock -n "$old" true && continue
    rm -rf "$old"
done
ours=$(mktemp -d /tmp/holdfast-XXXXXXXX) || { tell failed; echo "can't make a directory in /tmp"; return; }
fail() {
    tell failed
    put "$1"
    rm -rf "$ours"
}
fail_to_write() { fail "can't write to $ours: is the disk full?"; }
pwd -P > "$ours/directory" || { fail_to_write; return; }
head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$ours/token"
if [ "$kind" = tls ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 825 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1 -keyout "$ours/key.pem" -out "$ours/cert.pem" \
        2>"$ours/log" || { fail "openssl could not make a certificate: $(tail -n 1 "$ours/log")"; return; }
fi
printf 'ours=%s\nkind=%s\napp=%s\n%s\n' "$ours" "$kind" "$app" "$environment_line" > "$ours/run"
cat >> "$ours/run" <<'HOLDFAST_END_OF_RUN' || { fail_to_write; return; }
@RUN@
HOLDFAST_END_OF_RUN
cat > "$ours/jupyter" <<'HOLDFAST_END_OF_JUPYTER' || { fail_to_write; return; }
@STARTER@
HOLDFAST_END_OF_JUPYTER
put room > "$ours/log" && [ -s "$ours/token" ] || { fail_to_write; return; }
: > "$ours/log"
shell=${SHELL:-/bin/sh}
command="${modules}exec sh $ours/run"
case ${shell##*/} in
    bash|zsh|fish|ksh|ksh93|mksh) flags=-lic;;
    tcsh|csh) flags=-c command="if (-r ~/.login) source ~/.login; $command";;
    *) flags=-lc;;
esac
linger=$(loginctl show-user "$(id -un)" -p Linger --value 2>/dev/null)
kills=$(loginctl show-session -p KillUserProcesses --value 2>/dev/null)
if [ "$linger" = yes ] && systemd-run --user --scope --quiet --collect true 2>/dev/null; then
    set -- systemd-run --user --scope --quiet --collect --unit="holdfast-jupyter-${ours##*-}"
else set --
fi
if command -v setsid >/dev/null; then set -- setsid "$@"; else set -- nohup "$@"; fi
begin() {
    "$@" </dev/null >>"$ours/log" 2>&1 &
    child=$!
}
begin "$@" "$shell" $flags "$command"
deadline=$(($(date +%s) + @SECONDS@))
while [ "$(date +%s)" -lt $deadline ]; do
    pid=$(cat "$ours/pid" 2>/dev/null)
    [ -s "$ours/failed" ] && break
    if runtime=$(cat "$ours/runtime-dir" 2>/dev/null); then
        for file in "$runtime/jpserver-$pid.json" "$runtime/nbserver-$pid.json"; do
            [ -s "$file" ] || continue
            tell "started $pid ${linger:-unknown} ${kills:-unknown}"
            tell facts
            cat "$ours/facts"
            echo
            if [ "$kind" = tls ]; then
                tell fingerprint
                openssl x509 -in "$ours/cert.pem" -noout -fingerprint -sha256
            fi
            return
        done
    fi
    if ! kill -0 "${pid:-$child}" 2>/dev/null; then
        # A login file that runs something else in its place does so for an interactive shell only, as a rule.
        pid=$(cat "$ours/pid" 2>/dev/null)  # it may have come and gone since
        [ -z "$pid" ] && [ $flags = -lic ] || break
        flags=-lc
        begin "$@" "$shell" $flags "$command"
    fi
    sleep 0.1 2>/dev/null || sleep 1
done
tell failed
if [ -s "$ours/failed" ]; then put "$(cat "$ours/failed")"
elif kill -0 "${pid:-$child}" 2>/dev/null; then echo "the server did not start within @SECONDS@ s"
elif [ -e "$ours/pid" ] && [ ! -s "$ours/pid" ]; then echo "can't write to $ours: is the disk full?"
elif [ -z "$pid" ]; then echo "your login files there end the shell, or run something else in its place"
else echo "the server ended while it started"
fi
tell environments
cat "$ours/environments" 2>/dev/null
tell log
tail -n @LAST_WORDS@ "$ours/log"
kill "${pid:-$child}" 2>/dev/null
rm -rf "$ours"
"""


class Wish(NamedTuple):
    """What is to be started. `kind` is what it listens on: `socket`, `tls` or `tcp`. '' is: whatever."""

    directory: str = ""
    environment: str = ""
    app: str = ""
    kind: str = "socket"


class Started(NamedTuple):
    """A server that has just announced itself. `kind` is what it really listens on.

    `kernels`: how its kernels' traffic is kept from others, `encrypted` or `sockets`. `warning` is what the host
    may do to it, or ''. `fingerprint` is the SHA-256 of its certificate, in hexadecimal, or ''.
    """

    pid: int
    app: str
    version: str
    environment: str
    kind: str
    kernels: str
    fingerprint: str
    warning: str


def check_environment(text: str) -> str:
    """`text` as an environment to start in. Raises UsageError."""
    kind, colon, name = text.partition(":")
    if kind not in KINDS or not colon or not name or not text.isprintable():
        raise UsageError(
            f"'{text[:80]}' is not an environment",
            "conda:NAME, venv:PATH, pixi:PATH, uv:PATH or module:NAME, as they are called over there",
        )
    if kind == "module" and not re.fullmatch(r"[\w./+@:-]+( [\w./+@:-]+)*", name, re.ASCII):
        raise UsageError(f"'{name[:80]}' is not the name of a module", "as in --env module:jupyter/4.2")
    return text


def check_directory(text: str) -> str:
    """`text` as a directory over there. Raises UsageError."""
    if not text.isprintable() or len(text) > 1024 or text.startswith("-"):
        raise UsageError(f"{text[:60]!r} can't be a directory over there", "as in --dir work or --dir '~/work'")
    return text


def start_program(wish: Wish) -> str:
    """The program that starts what is wished for. It takes up to STARTING seconds."""
    from importlib import resources  # 10 ms, for this alone

    source = (resources.files("holdfast.jupyter") / "starter.py").read_text()
    modules = (
        f"module load {wish.environment.partition(':')[2]}; " if wish.environment.startswith("module:") else ""
    )
    values = script.assign(
        directory=wish.directory,
        kind=wish.kind,
        app=wish.app,
        modules=modules,
        environment_line=script.assign(environment="" if modules else wish.environment).strip(),
    )
    filled = {
        "@RUN@": script.PUT + _RUN.strip(),
        "@STARTER@": source.strip(),
        "@SECONDS@": str(STARTING - 10),
        "@LAST_WORDS@": str(_LAST_WORDS),
    }
    program = COMMON + _START
    for name, value in filled.items():
        program = program.replace(name, value)
    return values + program


def read_started(printed: str, host: str, wish: Wish) -> Started:
    """What `start_program` has printed on `host`. Raises HoldfastError, with the last words of what failed."""
    parts = {name: (words, text.strip()) for name, words, text in script.sections(printed)}
    if "started" not in parts:
        raise _failure({name: text for name, (_, text) in parts.items()}, host, wish)
    pid, linger, kills = parts["started"][0]
    facts: dict[str, Any] = json.loads(parts["facts"][1])
    fingerprint = fingerprint_in(parts.get("fingerprint", ([], ""))[1])
    warning = ""
    if kills == "yes" and linger != "yes":
        warning = f"{host} ends your processes when you log out (KillUserProcesses), this server too"
    return Started(
        int(pid),
        facts["app"],
        facts["version"],
        facts["environment"],
        facts["kind"],
        facts["kernels"],
        fingerprint,
        warning,
    )


def _failure(parts: dict[str, str], host: str, wish: Wish) -> HoldfastError:
    reason = parts.get("failed") or "it said nothing"
    environments = parts.get("environments", "").splitlines()
    lines = [f"no notebook server was started on {host}: {reason}"]
    lines += [f"  {line}" for line in without_tokens(parts.get("log", "")).splitlines() if line.strip()]
    quoted = [shlex.quote(environment) for environment in environments]
    command = f"holdfast jupyter {host} --start"
    if "there is no directory" in reason:
        hint = f"name one that is over there: {command} --dir work, or --dir '~/work'"
    elif len(quoted) > 1:
        hint = f"environments with jupyter over there: {', '.join(quoted)}; as in {command} --env {quoted[0]}"
    elif quoted and environments[0] != wish.environment:
        hint = f"{command} --env {quoted[0]}"
    elif "is the disk full" in reason:
        hint = f"see how much is left: ssh {host} df -h /tmp"
    elif "there is no environment" in reason:
        hint = f"see what is there: ssh {host} conda env list, or ls; without --env your PATH over there counts"
    elif "no jupyter" in reason or "in the environment" in reason:
        hint = f"install it there, as in: ssh {host} python3 -m pip install --user jupyterlab"
    else:
        hint = f"try it there: ssh {host}, then jupyter lab --no-browser"
    return HoldfastError("\n".join(lines), hint)


def without_tokens(log: str) -> str:
    """`log` as it may be shown: Jupyter itself leaves out the tokens that it was given, not those that it made.

    Nor is there anything in it for a terminal to obey, or that any interactive bash says.
    """
    log = "".join(line for line in log.splitlines(keepends=True) if not line.startswith(_NOISE))
    plain = "".join(character for character in log if character.isprintable() or character in "\n\t")
    return re.sub(r"(token=)[^&\s\"']{4,}", r"\1...", plain)


# Removes what a start left, once its server has ended; `$ended` is the server's pid.
_TIDY = r"""
starts | while IFS= read -r old; do [ "$(pid_of "$old")" = "$ended" ] && rm -rf "$old"; done
"""

# Waits until a server has ended (10 s), telling it to where it can't be told by HTTP.
_END = r"""
[ "$signal" = yes ] && kill "$ended" 2>/dev/null
deadline=$(($(date +%s) + 10))
while kill -0 "$ended" 2>/dev/null; do
    if [ "$(date +%s)" -ge $deadline ]; then tell runs; return; fi
    sleep 0.1 2>/dev/null || sleep 1
done
tell ended
"""

_LOG = r"""
log=$(starts | {
    newest=''
    while IFS= read -r start; do
        is_own_file "$start/log" || continue
        [ -z "$wanted" ] || [ "$(pid_of "$start")" = "$wanted" ] || continue
        [ -z "$newest" ] || [ -n "$(find "$start/log" -newer "$newest")" ] && newest=$start/log
    done
    put "$newest"
})
if [ -z "$log" ]; then tell none; return; fi
if [ "$follow" = yes ]; then
    tail -n "$lines" -f "$log" &
    cat > /dev/null
    kill $!
else
    tail -n "$lines" "$log"
fi
"""


def end_program(pid: int, *, signal: bool) -> str:
    """Waits until the server `pid` has ended, for at most 10 s, and tidies up; with `signal` it is told to first.

    Tells `ended`, or `runs` when it hasn't.
    """
    return script.assign(ended=str(pid), signal="yes" if signal else "no") + COMMON + _END + _TIDY


def has_ended(printed: str) -> bool:
    """Whether the server of `end_program` has."""
    return any(name == "ended" for name, _, _ in script.sections(printed))


def log_program(pid: int | None, lines: int, *, follow: bool) -> str:
    """Prints the last lines of the log of the server `pid` that we started, or of the last one; or tells `none`.

    With `follow` it goes on to the end of its input.
    """
    wanted = script.assign(wanted=str(pid or ""), lines=str(lines), follow="yes" if follow else "no")
    return wanted + COMMON + _LOG
