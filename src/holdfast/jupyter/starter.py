"""Starts a notebook server, in its own process. Run over there, by the Python of the server's own environment.

Python 3.8 and nothing else is taken for granted; here it is only read as text (see launch.py). It is given the
directory in which everything of this start is, what to listen on (`socket`, `tls` or `tcp`) and what to start
(`lab`, `notebook`, `server`, or '' for the first of them that is installed).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import runpy
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

MODULES = {"lab": "jupyterlab", "notebook": "notebook", "server": "jupyter_server"}
# A kernel's five sockets are in the runtime directory, with names of up to 50 characters; 107 is the most in all.
LONGEST_RUNTIME_DIR = 57
# Milliseconds, for a server that is to notice soon that a page's WebSocket is dead, and then to keep its output.
PINGS = {"ws_ping_interval": 3000, "ws_ping_timeout": 6000}


class Failed(Exception):
    """The message is for the user."""


def versions(names: list[str]) -> dict[str, tuple[int, ...]]:
    """The installed versions of these distributions, as tuples of numbers; () where there is none."""
    found: dict[str, tuple[int, ...]] = {}
    for name in names:
        try:
            found[name] = numbers(version(name))
        except PackageNotFoundError:
            found[name] = ()
    return found


def numbers(text: str) -> tuple[int, ...]:
    """The numbers that a version begins with: (4, 2) for 4.2rc1."""
    found = re.match(r"[0-9]+(\.[0-9]+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def plan(
    kind: str, app: str, found: dict[str, tuple[int, ...]], ours: str, runtime_dir: str, is_root: bool
) -> tuple[str, list[str], str, dict[str, str]]:
    """The module to run, its options, a runtime directory of its own or '', and what is told of the start.

    `found` are the versions, `ours` is our directory. Raises Failed.
    """
    if not app:
        app = next((name for name in MODULES if found[MODULES[name]]), "")
    if not app or not found[MODULES[app]]:
        what = MODULES[app] if app else "jupyterlab, notebook or jupyter_server"
        raise Failed(f"there is no {what} in the environment {sys.prefix}")
    module = MODULES[app]
    is_classic = (app == "notebook" and found["notebook"] < (7,)) or (app == "lab" and found["jupyterlab"] < (3,))
    engine = found["notebook"] if is_classic else found["jupyter_server"]
    trait = "NotebookApp" if is_classic else "ServerApp"
    took = kind
    if kind == "socket" and engine < ((6, 1) if is_classic else (1, 9)):
        took = "tcp"
    options = [
        f"--{trait}.open_browser=False",
        # Against what a configuration file may say; with a socket, any other is refused.
        f"--{trait}.port=8888",
        f"--{trait}.ip={'localhost' if took == 'socket' else '127.0.0.1'}",
        f"--{trait}.tornado_settings={PINGS!r}",
    ]
    if took == "socket":
        options += [f"--{trait}.sock={ours}/s", f"--{trait}.sock_mode=0600"]
    if took == "tls":
        options += [f"--{trait}.certfile={ours}/cert.pem", f"--{trait}.keyfile={ours}/key.pem"]
    if is_root:
        options.append("--allow-root")
    runtime = ""
    if not is_classic and engine >= (2, 20) and found["ipykernel"] >= (7, 3):
        kernels = "encrypted"
        options.append("--MappingKernelManager.transport_encryption=auto")
    else:
        kernels = "sockets"
        options.append("--KernelManager.transport=ipc")
        if len(os.fsencode(runtime_dir)) > LONGEST_RUNTIME_DIR:
            runtime = f"{ours}/runtime"
    told = {
        "app": app,
        "version": ".".join(map(str, found[module])),
        "environment": sys.prefix,
        "kind": took,
        "kernels": kernels,
    }
    return module, options, runtime, told


def main(ours: str, kind: str, app: str) -> None:
    try:
        from jupyter_core.paths import jupyter_runtime_dir
    except ImportError:
        raise Failed(f"there is no jupyter in the environment {sys.prefix}") from None
    found = versions([*MODULES.values(), "ipykernel"])
    module, options, runtime, told = plan(kind, app, found, ours, jupyter_runtime_dir(), os.getuid() == 0)
    if runtime:
        Path(runtime).mkdir(0o700)
        os.environ["JUPYTER_RUNTIME_DIR"] = runtime
    # A file, and not the token itself: other programs of the user's, kernels first, inherit the environment.
    os.environ["JUPYTER_TOKEN_FILE"] = f"{ours}/token"
    for name in ("JUPYTER_TOKEN", "JUPYTER_PORT"):
        os.environ.pop(name, None)
    # For as long as this process lives: systemd-tmpfiles leaves what is locked alone, however old it is.
    fcntl.flock(os.open(ours, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    Path(ours, "facts").write_text(json.dumps(told))
    Path(ours, "runtime-dir").write_text(jupyter_runtime_dir())
    sys.argv[1:] = options
    del sys.path[0]  # our directory; and not the current one, whose files are no modules of Jupyter's
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:4])
    except Failed as failure:
        Path(sys.argv[1], "failed").write_text(str(failure))
        sys.exit(1)
