"""Requests per second: one at a time, each on a connection of its own, and many on one connection."""

from __future__ import annotations

import socket
import sys
import time

from bench.contenders import ways
from bench.report import Section, median, ratio, spread
from bench.rig import Holdfast, Rig, quiet
from bench.servers import BODY

ROUNDS = 5
# Seconds for each contender in each round.
FRESH, KEPT = 0.8, 0.4
# For a server that answers in one write, those who can be compared with holdfast at all.
WHOLE = ("direct", "holdfast", "ssh -NTL")

Figures = dict[str, tuple[list[float], list[float]]]


def measure(rig: Rig, holdfast: Holdfast) -> list[Section]:
    contenders, missing = ways(holdfast)
    pieces, whole = rig.serve("pieces"), rig.serve("whole")
    ports, lost = {}, list(missing)
    for name, way in contenders.items():
        try:
            ports[name] = way(rig, pieces)
        except (RuntimeError, AssertionError) as error:
            lost.append(f"{name} could not be measured: {error}")
            print(f"bench: {lost[-1]}", file=sys.stderr)
    figures = _take_turns(ports)
    figures_whole = _take_turns({name: contenders[name](rig, whole) for name in WHOLE})
    return [_in_pieces(figures, lost), _in_one(figures_whole)]


def _take_turns(ports: dict[str, int]) -> Figures:
    figures: Figures = {name: ([], []) for name in ports}
    for port in ports.values():
        fresh(port, 0.2)  # the first connections pay for what is set up only once
    for _ in range(ROUNDS):
        quiet()
        for name, port in ports.items():
            figures[name][0].append(fresh(port, FRESH))
            figures[name][1].append(kept(port, KEPT))
    return figures


def _in_pieces(figures: Figures, lost: list[str]) -> Section:
    new = {name: found[0] for name, found in figures.items()}
    old = {name: found[1] for name, found in figures.items()}
    section = Section("Requests per second, a reply in two writes")
    section.goals = [
        ratio("requests, a connection each: holdfast / ssh", new["holdfast"], new["ssh -NTL"], 10),
        ratio("requests, a connection each: holdfast / direct", new["holdfast"], new["direct"], 0.5),
        ratio("requests on one connection: holdfast / ssh", old["holdfast"], old["ssh -NTL"], 10),
    ]
    _fill(section, figures)
    section.remarks = [f"Not in this run: {reason}." for reason in lost]
    return section


def _in_one(figures: Figures) -> Section:
    section = Section("Requests per second, a reply in one write")
    _fill(section, figures)
    return section


def _fill(section: Section, figures: Figures) -> None:
    section.header = ["through", "a connection each", "min - max", "on one connection", "min - max"]
    section.rows = [
        [name, median(new), spread(new), median(old), spread(old)] for name, (new, old) in figures.items()
    ]


def fresh(port: int, seconds: float) -> float:
    """Requests per second, each on a connection of its own."""
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        with _connect(port) as connection:
            _get(connection, b"Connection: close\r\n")
        count += 1
    return count / passed


def kept(port: int, seconds: float) -> float:
    """Requests per second on one connection."""
    with _connect(port) as connection:
        count, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            _get(connection)
            count += 1
    return count / passed


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _get(connection: socket.socket, header: bytes = b"") -> None:
    connection.sendall(b"GET /api HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % header)
    reply = b""
    while not reply.endswith(BODY):
        received = connection.recv(65536)
        if not received:
            raise ConnectionResetError("the reply ended too soon")
        reply += received
