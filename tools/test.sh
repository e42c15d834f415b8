#!/bin/sh
# All tests. Those of pages in outages wait for most of their time, in networks of their own: they run beside the rest.
set -u
cd "$(dirname "$0")/.."
pages="tests/test_notebook_page.py tests/test_notebook_healing.py"
said=$(mktemp)
trap 'rm -f "$said"' EXIT
.venv/bin/pytest $pages >"$said" 2>&1 &
beside=$!
# shellcheck disable=SC2046
.venv/bin/pytest $(printf -- '--ignore=%s ' $pages)
rest=$?
wait $beside
pages=$?
cat "$said"
[ $rest = 0 ] && [ $pages = 0 ]
