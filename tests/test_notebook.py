"""The main job, end to end: a real Jupyter Server behind a real sshd, used through a tunnel."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_server import __version__ as jupyter_version
from websocket import create_connection

from tests.conftest import Run, get
from tests.sshd import Sshd, free_port, wait_for


class Jupyter(NamedTuple):
    port: int
    token: str


@pytest.fixture
def jupyter(home: Path) -> Iterator[Jupyter]:
    """A running Jupyter Server on 127.0.0.1."""
    token, port = secrets.token_hex(16), free_port()
    places = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", f"--port={port}"),
            *("--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={home}", "--ServerApp.port_retries=0"),
        ],
        env={**os.environ, **places, "JUPYTER_TOKEN": token, "IPYTHONDIR": str(home / "ipython")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> bool:
        assert process.poll() is None
        try:
            return bool(get(port, "/api"))
        except OSError:
            return False

    wait_for(answers, "Jupyter to answer", 40)
    yield Jupyter(port, token)
    process.terminate()
    process.wait(20)


def call(port: int, jupyter: Jupyter, method: str, path: str) -> Any:
    request = urllib.request.Request(
        f"http://localhost:{port}{path}", method=method, headers={"Authorization": f"token {jupyter.token}"}
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.loads(response.read() or b"null")


def test_a_notebooks_kernel_runs_code_through_the_tunnel(holdfast: Run, sshd: Sshd, jupyter: Jupyter) -> None:
    port = free_port()
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{jupyter.port}")
    assert up.returncode == 0, up.stderr
    assert json.loads(get(port, "/api", host="localhost"))["version"] == jupyter_version

    kernel = call(port, jupyter, "POST", "/api/kernels")["id"]
    printed = run_code(port, jupyter, kernel, "x = 6\nprint(x * 7)")

    assert printed == "42\n"
    call(port, jupyter, "DELETE", f"/api/kernels/{kernel}")
    assert holdfast("down", "lab").returncode == 0


def test_a_kernel_keeps_its_variables_when_the_server_drops_the_connection(
    holdfast: Run, sshd: Sshd, jupyter: Jupyter
) -> None:
    port = free_port()
    holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{jupyter.port}")
    kernel = call(port, jupyter, "POST", "/api/kernels")["id"]
    run_code(port, jupyter, kernel, "x = 6")
    sshd.drop_connections()
    wait_for(lambda: holdfast("status", "lab").returncode == 0, "the tunnel to be back")
    assert run_code(port, jupyter, kernel, "print(x * 7)") == "42\n"
    call(port, jupyter, "DELETE", f"/api/kernels/{kernel}")


def test_jupyter_client_runs_code_on_a_kernel_over_its_five_ports(holdfast: Run, sshd: Sshd, home: Path) -> None:
    far = home / "kernel.json"
    kernel = subprocess.Popen(
        [sys.executable, "-m", "ipykernel_launcher", "-f", str(far)],
        env={**os.environ, "JUPYTER_RUNTIME_DIR": str(home), "IPYTHONDIR": str(home / "ipython")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: far.exists() and far.read_text().endswith("}"), "the kernel's connection file", 30)
        connection = json.loads(far.read_text())
        ports = {name: free_port() for name in connection if name.endswith("_port")}
        forwards = [f"{here}:{connection[name]}" for name, here in ports.items()]
        up = holdfast("up", "-F", str(sshd.config), "lab", *forwards)
        assert up.returncode == 0, up.stderr
        near = home / "near.json"
        near.write_text(json.dumps({**connection, **ports}))
        assert run_on_kernel(near, "x = 6\nprint(x * 7)") == "42\n"
    finally:
        kernel.terminate()
        kernel.wait(20)


def run_on_kernel(connection_file: Path, code: str) -> str:
    """What `code` prints, run by jupyter-client."""
    client = BlockingKernelClient(connection_file=str(connection_file))
    client.load_connection_file()
    client.start_channels()
    printed: list[str] = []
    try:
        client.wait_for_ready(timeout=30)
        client.execute_interactive(
            code,
            timeout=30,
            output_hook=lambda message: printed.append(message["content"].get("text", "")),
        )
    finally:
        client.stop_channels()
        client.context.term()
    return "".join(printed)


def run_code(port: int, jupyter: Jupyter, kernel: str, code: str) -> str:
    """What `code` prints, run over the kernel's WebSocket as a notebook page does."""
    address = f"ws://localhost:{port}/api/kernels/{kernel}/channels?token={jupyter.token}"
    channel = create_connection(address, timeout=30)
    try:
        header = {"msg_id": "1", "msg_type": "execute_request", "session": "s", "username": "", "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        channel.send(json.dumps(message))
        printed = ""
        while True:
            answer = json.loads(channel.recv())
            if answer["parent_header"].get("msg_id") != "1":
                continue
            if answer["msg_type"] == "stream":
                printed += answer["content"]["text"]
            if answer["msg_type"] == "status" and answer["content"]["execution_state"] == "idle":
                return printed
    finally:
        channel.close()
