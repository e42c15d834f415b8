"""docs/machines.md: tunnels to `lab`, whose connection is lost, and whose services come and go."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

from tests.reader import Reader, Scene, nothing


def has_no_service(reader: Reader) -> None:
    """`lab` is up, but nothing listens at 8888 over there."""
    reader.stop_serving(8888)
    reader.say("holdfast up lab")


def is_up(reader: Reader) -> None:
    reader.be_new()
    reader.serve(8888)
    reader.say("holdfast up lab")


def has_a_day(reader: Reader) -> None:
    """The tunnel is lost and comes back, gets another forward, and goes."""
    reader.lose("lab")
    reader.say("holdfast up lab 5432:db:5432; holdfast down lab")


def has_one_that_does_not_answer(reader: Reader) -> None:
    """Two tunnels are up; the host of a third one has stopped."""
    reader.say("holdfast up bastion -D 1080; holdfast up bastion -D 1081 --name proxy; holdfast up lab")
    reader.network.freeze()
    reader.say("holdfast wait lab --state stalled --timeout 60")


def has_two_of_one_connection(reader: Reader) -> None:
    reader.network.thaw()
    reader.be_new()
    reader.say("holdfast up lab 8888 6007; holdfast up lab 9999:8888 --name second")


def has_traffic(reader: Reader) -> None:
    """Two clients of `lab` are given something long."""
    for _ in range(2):
        asks = ("curl", "-s", "-o", "/dev/null", "--limit-rate", "400k", "http://localhost:8888/big")
        client = subprocess.Popen([*reader.network.client.prefix, *asks], stdin=subprocess.DEVNULL)
        reader.running.callback(client.wait)
        reader.running.callback(client.kill)


SCENES: Mapping[str, Scene] = {
    "Waiting for a tunnel": Scene(has_no_service),
    "What happens, as it happens": Scene(is_up, meanwhile=has_a_day),
    "A prompt": Scene(has_one_that_does_not_answer),
    "A screen that redraws itself": Scene(has_two_of_one_connection, meanwhile=has_traffic),
    "Prometheus": Scene(meanwhile=nothing),
}
