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

wanted="" # what some tests need, and skip without
want() {
    command -v "$1" >/dev/null 2>&1 || wanted="$wanted $2"
}
for shell in zsh fish ksh mksh tcsh; do want $shell $shell; done
if ! ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1; then
    want postgres postgresql
    [ "$(id -u)" != 0 ] || { # without a database of its own on port 5432
        mkdir -p /etc/postgresql-common/createcluster.d
        echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/holdfast.conf
    }
fi
want busybox busybox
want systemd-analyze systemd
want curl curl
want groff groff-base
want ip iproute2
want dbus-daemon dbus-daemon
command -v chromium-browser >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 || want chromium chromium

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    export DEBIAN_FRONTEND=noninteractive
    [ -z "$missing$wanted" ] || apt-get update -qq
    for package in $missing $wanted; do
        echo "setup: installing $package"
        apt-get install -y -qq --no-install-recommends "$package" >/dev/null || case " $missing " in
            *" $package "*) exit 1 ;;
            *) echo "setup: there is no $package; its tests will be skipped" >&2 ;;
        esac
    done
elif [ -n "$missing" ]; then
    echo "setup: these are missing:$missing" >&2
    echo "setup: hint: sudo apt-get install$missing" >&2
    exit 1
fi

stamp=.venv/.set-up-for
inputs=$(cat pyproject.toml uv.lock tests/old/*.txt tools/setup.sh | cksum)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$inputs" ] && exit 0

[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
UV_PROJECT_ENVIRONMENT=.venv .venv/bin/uv sync --frozen --quiet --inexact --compile-bytecode --extra demo

for old in lab3 notebook6; do # Jupyters of years ago, which some tests need and skip without
    made=.venv/old/$old
    .venv/bin/uv venv --quiet --allow-existing --python .venv/bin/python "$made" &&
        .venv/bin/uv pip sync --quiet --compile-bytecode --python "$made/bin/python" "tests/old/$old.txt" || {
        rm -rf "$made"
        echo "setup: there is no $made with what tests/old/$old.txt names; its tests will be skipped" >&2
    }
done
echo "$inputs" >"$stamp"
