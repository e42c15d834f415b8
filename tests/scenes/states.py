"""docs/states.md and docs/healing.md: nothing comes through for a while, and then it does."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

from tests.conftest import tunnel
from tests.reader import Reader, Scene
from tests.sshd import wait_for

# Seconds of silence after which nobody at either end has the old connection any more.
SWITCHED = 20.0


def is_silent(reader: Reader) -> None:
    """Nothing comes through, and two clients ask meanwhile."""
    reader.say("holdfast up lab")
    reader.network.drop()
    reader.say("holdfast wait lab --state stalled --timeout 60")
    for _ in range(2):
        asks = ("curl", "-s", "-o", "/dev/null", "http://localhost:8888/")
        client = subprocess.Popen([*reader.network.client.prefix, *asks], stdin=subprocess.DEVNULL)
        reader.running.callback(client.wait)
        reader.running.callback(client.kill)
    reader.say("until holdfast status lab | grep -q '2 connections wait'; do :; done")


def passes_again(reader: Reader) -> None:
    """After so long that the far side has ended the old connection."""

    def seconds() -> float:
        return float(tunnel(reader.network.holdfast("status", "--json"))["last_outage"]["seconds"])

    wait_for(lambda: seconds() > SWITCHED, "the old connection to be given up", 60)
    reader.network.pass_again()
    reader.say("holdfast wait lab --timeout 60")


def has_been_silent(reader: Reader) -> None:
    is_silent(reader)
    passes_again(reader)


SILENCE: Mapping[str, Scene] = {
    "      2 connections wait": Scene(is_silent),
    "$ holdfast logs lab": Scene(passes_again),
}
LOG: Mapping[str, Scene] = {"What happened": Scene(has_been_silent)}
