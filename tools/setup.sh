#!/bin/sh
# Makes .venv and whatever the demo and the tests need. As root it installs missing Debian packages
# itself; without root it names them. Safe to run again: it does nothing when nothing has changed.
set -eu
cd "$(dirname "$0")/.."

missing=""
command -v ssh >/dev/null 2>&1 || missing="$missing openssh-client"
[ -x /usr/sbin/sshd ] || command -v sshd >/dev/null 2>&1 || missing="$missing openssh-server"
python=${PYTHON:-python3}
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"

wanted=""
for shell in zsh fish; do # for the tests of what goes into a shell's start-up file; they skip without
    command -v $shell >/dev/null 2>&1 || wanted="$wanted $shell"
done
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 && missing="$missing$wanted"

if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "setup: installing$missing"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        # shellcheck disable=SC2086 # a list of package names
        apt-get install -y -qq --no-install-recommends $missing >/dev/null
    else
        echo "setup: these are missing:$missing" >&2
        echo "setup: hint: sudo apt-get install$missing" >&2
        exit 1
    fi
fi

stamp=.venv/.set-up-for
inputs=$(cat pyproject.toml uv.lock tools/setup.sh | cksum)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$inputs" ] && exit 0

[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
UV_PROJECT_ENVIRONMENT=.venv .venv/bin/uv sync --frozen --quiet --inexact --compile-bytecode --extra demo
echo "$inputs" >"$stamp"
