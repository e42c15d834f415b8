#!/bin/sh
# All tests, in four groups beside each other: nearly all of their time is waiting, for outages to pass and for
# programs to start. They are to take equally long. What no group names is in the last, shown as it goes on.
# Then come the others, and in the end the last line of each. Whatever holds port 8888 is among the notebooks.
# A few that failed in the crowd are run once more, alone, and count as that ends; each is named, and is to be mended.
set -u
cd "$(dirname "$0")/.."
outages="tests/test_healing.py tests/test_soak.py tests/test_notebook_healing.py tests/test_keeper.py
    tests/test_server.py tests/test_ports.py tests/test_heartbeat.py tests/test_network.py"
notebooks="tests/test_notebook_page.py tests/test_shared_host.py tests/test_jupyter.py tests/test_notebook.py
    tests/test_demo.py"
pages="tests/test_tutorial.py tests/test_examples.py"

said=$(mktemp -d)
trap 'rm -rf "$said"' EXIT
trap : INT # the groups hear it, too, and are waited for

few=5 # more than that is no accident

# As `pytest`, but for Ctrl-C: a shell has its background jobs ignore it, and so would all that they test.
pytest='import signal, sys, pytest
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(pytest.main())'
run() { # NAME ARGUMENTS...: what pytest says is printed, and in $said/NAME; how it fails is in $said/NAME.failed
    name=$1
    shift
    { .venv/bin/python -c "$pytest" -o cache_dir=".pytest_cache/$name" "$@" 2>&1 || echo $? >"$said/$name.failed"; } |
        tee "$said/$name"
}
again() { # NAME: those of a group that failed, alone; if they pass there is no $said/NAME.failed any more
    [ "$(cat "$said/$1.failed")" = 1 ] || return # it was broken off, or couldn't begin
    failed=".pytest_cache/$1/v/cache/lastfailed"
    count=$(.venv/bin/python -c 'import json, sys; print(len(json.load(open(sys.argv[1]))))' "$failed") || return
    [ "$count" -le "$few" ] || return
    printf '\nAgain, alone, of the %s:\n' "$1"
    .venv/bin/python -c "$pytest" -o cache_dir=".pytest_cache/$1" -v --last-failed --last-failed-no-failures none &&
        rm "$said/$1.failed"
}

# shellcheck disable=SC2046,SC2086
{
    run outages $outages >/dev/null &
    run notebooks $notebooks >/dev/null &
    run pages $pages >/dev/null &
    run rest $(printf -- '--ignore=%s ' $outages $notebooks $pages) &
}
until wait; do :; done
for name in outages notebooks pages; do
    printf '\n%s:\n' "$name"
    cat "$said/$name"
done
for name in outages notebooks pages rest; do
    [ ! -e "$said/$name.failed" ] || again "$name"
done
printf '\nIn all:\n'
for name in outages notebooks pages rest; do tail -n 1 "$said/$name"; done
! ls "$said"/*.failed >/dev/null 2>&1
