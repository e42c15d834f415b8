"""Bulk throughput: memory to memory, one connection, both directions."""

from __future__ import annotations

import socket
import time

from bench.contenders import ssh
from bench.report import Section, median, ratio, spread
from bench.rig import Holdfast, Rig, quiet
from bench.servers import CHUNK, UPLOAD, give, take

ROUNDS = 11
SIZE = 250_000_000
GCM = "ssh -c aes128-gcm"
# The same once more, to show how far two equals lie apart on this machine.
AGAIN = f"{GCM}, a second one"


def measure(rig: Rig, holdfast: Holdfast) -> list[Section]:
    target = rig.serve("bulk")
    ports = {
        "holdfast": holdfast.forward(target),
        "ssh": ssh()(rig, target),
        GCM: ssh("-c", "aes128-gcm@openssh.com")(rig, target),
        AGAIN: ssh("-c", "aes128-gcm@openssh.com")(rig, target),
    }
    down: dict[str, list[float]] = {name: [] for name in ports}
    up: dict[str, list[float]] = {name: [] for name in ports}
    for _ in range(ROUNDS):
        quiet()
        for name, port in ports.items():
            down[name].append(download(port))
            up[name].append(upload(port))
    section = Section("Bulk throughput, MB/s")
    for direction, found in (("download", down), ("upload", up)):
        section.goals += [
            ratio(f"{direction}: holdfast / ssh", found["holdfast"], found["ssh"], 1.3),
            ratio(f"{direction}: holdfast / {GCM}", found["holdfast"], found[GCM], 0.97),
        ]
        noise = ratio("", found[AGAIN], found[GCM], 0)
        section.remarks.append(
            f"Two equal ones differ by this much, {direction}: {noise.found:.2f} x ({noise.spread.strip()})."
        )
    section.header = ["through", "download", "min - max", "upload", "min - max"]
    section.rows = [
        [name, median(down[name]), spread(down[name]), median(up[name]), spread(up[name])] for name in ports
    ]
    return [section]


def download(port: int) -> float:
    """MB/s from over there to here."""
    buffer = memoryview(bytearray(CHUNK))
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        began = time.perf_counter()
        connection.sendall(SIZE.to_bytes(8))
        take(connection, SIZE, buffer)
        return SIZE / 1e6 / (time.perf_counter() - began)


def upload(port: int) -> float:
    """MB/s from here to over there: until the far side says that it has it all."""
    buffer = memoryview(bytearray(CHUNK))
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        began = time.perf_counter()
        connection.sendall((SIZE | UPLOAD).to_bytes(8))
        give(connection, SIZE, buffer)
        take(connection, 1, buffer)
        return SIZE / 1e6 / (time.perf_counter() - began)
