"""What a notebook server is started with: decided from the versions that are installed."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from holdfast.jupyter import starter

OURS = "/tmp/holdfast-abcdefgh"
RUNTIME = "/home/u/.local/share/jupyter/runtime"
Versions = dict[str, tuple[int, ...]]
NOTHING: Versions = {"jupyterlab": (), "notebook": (), "jupyter_server": (), "ipykernel": ()}
# Environments of their year.
NEWEST: Versions = {"jupyterlab": (4, 6, 6), "notebook": (7, 6), "jupyter_server": (2, 21), "ipykernel": (7, 4)}
OF_2024: Versions = {**NOTHING, "jupyterlab": (4, 2, 0), "jupyter_server": (2, 14), "ipykernel": (6, 29)}
OF_2022: Versions = {**NOTHING, "notebook": (6, 4, 12), "jupyter_server": (1, 18), "ipykernel": (6, 15)}
OF_2020: Versions = {**NOTHING, "jupyterlab": (2, 2), "notebook": (6, 1), "ipykernel": (5, 3)}
OF_2018: Versions = {**NOTHING, "jupyterlab": (0, 35), "notebook": (5, 7), "ipykernel": (5, 1)}


def plan(
    found: Versions, kind: str = "socket", app: str = "", runtime_dir: str = RUNTIME, *, is_root: bool = False
) -> tuple[str, list[str], str, dict[str, str]]:
    return starter.plan(kind, app, found, OURS, runtime_dir, is_root)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("4.2.0", (4, 2, 0)),
        ("7", (7,)),
        ("10.20.30", (10, 20, 30)),
        ("", ()),
        ("dev", ()),
        ("2.21.dev0", (2, 21)),
        ("4.2.0rc1", (4, 2, 0)),
        ("7.0.0a18", (7, 0, 0)),
        ("7.3rc1", (7, 3)),
        ("1.2.3+local.5", (1, 2, 3)),
        ("1.2.3.post1", (1, 2, 3)),
        ("4.2rc1", (4, 2)),
        ("4.2.", (4, 2)),
        (".5", ()),
        ("v4", ()),
        ("1!4.2", (1,)),
        ("\u0663.1", ()),
    ],
)
def test_a_version_is_the_numbers_that_it_begins_with(text: str, wanted: tuple[int, ...]) -> None:
    assert starter.numbers(text) == wanted


def test_what_is_installed_has_a_version_and_what_is_not_has_none() -> None:
    found = starter.versions(["jupyterlab", "no-such-distribution"])
    assert found["jupyterlab"][:2] == tuple(map(int, version("jupyterlab").split(".")[:2]))
    assert found["no-such-distribution"] == ()


@pytest.mark.parametrize(
    ("found", "app", "module", "trait", "told"),
    [
        (NEWEST, "", "jupyterlab", "ServerApp", ("lab", "4.6.6")),
        (NEWEST, "lab", "jupyterlab", "ServerApp", ("lab", "4.6.6")),
        (NEWEST, "notebook", "notebook", "ServerApp", ("notebook", "7.6")),
        (NEWEST, "server", "jupyter_server", "ServerApp", ("server", "2.21")),
        ({**NEWEST, "jupyterlab": ()}, "", "notebook", "ServerApp", ("notebook", "7.6")),
        ({**NEWEST, "jupyterlab": (), "notebook": ()}, "", "jupyter_server", "ServerApp", ("server", "2.21")),
        (OF_2024, "", "jupyterlab", "ServerApp", ("lab", "4.2.0")),
        (OF_2022, "", "notebook", "NotebookApp", ("notebook", "6.4.12")),
        (OF_2022, "server", "jupyter_server", "ServerApp", ("server", "1.18")),
        (OF_2020, "", "jupyterlab", "NotebookApp", ("lab", "2.2")),
        (OF_2020, "notebook", "notebook", "NotebookApp", ("notebook", "6.1")),
        ({**NEWEST, "jupyterlab": (3, 0)}, "", "jupyterlab", "ServerApp", ("lab", "3.0")),
        ({**NEWEST, "notebook": (7,)}, "notebook", "notebook", "ServerApp", ("notebook", "7")),
    ],
)
def test_the_versions_tell_which_module_is_run_and_what_its_options_are_called(
    found: Versions, app: str, module: str, trait: str, told: tuple[str, str]
) -> None:
    chosen, options, _, facts = plan(found, app=app)
    assert chosen == module
    assert f"--{trait}.open_browser=False" in options
    assert not [one for one in options if "App." in one and not one.startswith(f"--{trait}.")]
    assert (facts["app"], facts["version"], facts["environment"]) == (*told, sys.prefix)


@pytest.mark.parametrize(
    ("found", "app", "missing"),
    [
        (NOTHING, "", "there is no jupyterlab, notebook or jupyter_server in the environment "),
        (NOTHING, "lab", "there is no jupyterlab in the environment "),
        (OF_2024, "notebook", "there is no notebook in the environment "),
        (OF_2020, "server", "there is no jupyter_server in the environment "),
    ],
)
def test_what_is_not_installed_is_named_with_the_environment(found: Versions, app: str, missing: str) -> None:
    with pytest.raises(starter.Failed) as told:
        plan(found, app=app)
    assert str(told.value) == missing + sys.prefix


@pytest.mark.parametrize(
    ("found", "kind", "took"),
    [
        (NEWEST, "socket", "socket"),
        (NEWEST, "tls", "tls"),
        (NEWEST, "tcp", "tcp"),
        (OF_2024, "socket", "socket"),
        (OF_2022, "socket", "socket"),
        (OF_2020, "socket", "socket"),
        # Before notebook 6.1 and jupyter_server 1.9 there is no `sock`.
        (OF_2018, "socket", "tcp"),
        (OF_2018, "tls", "tls"),
        ({**OF_2020, "notebook": (6, 0, 3)}, "socket", "tcp"),
        ({**OF_2024, "jupyter_server": (1, 8)}, "socket", "tcp"),
        ({**OF_2024, "jupyter_server": (1, 9)}, "socket", "socket"),
        ({**OF_2024, "jupyter_server": ()}, "socket", "tcp"),
    ],
)
def test_a_socket_is_listened_on_where_the_server_can(found: Versions, kind: str, took: str) -> None:
    _, options, _, facts = plan(found, kind)
    joined = " ".join(options)
    assert facts["kind"] == took
    assert (f".sock={OURS}/s" in joined, ".sock_mode=0600" in joined) == (took == "socket", took == "socket")
    assert (f".certfile={OURS}/cert.pem" in joined, f".keyfile={OURS}/key.pem" in joined) == (
        took == "tls",
        took == "tls",
    )
    assert f".ip={'localhost' if took == 'socket' else '127.0.0.1'}" in joined
    assert ".port=8888" in joined


@pytest.mark.parametrize(
    ("found", "kernels"),
    [
        (NEWEST, "encrypted"),
        ({**NEWEST, "jupyter_server": (2, 20), "ipykernel": (7, 3)}, "encrypted"),
        ({**NEWEST, "jupyter_server": (2, 19, 9)}, "sockets"),
        ({**NEWEST, "ipykernel": (7, 2)}, "sockets"),
        ({**NEWEST, "ipykernel": ()}, "sockets"),
        (OF_2024, "sockets"),
        (OF_2020, "sockets"),
        (OF_2018, "sockets"),
        # A classic server can't, whatever else is installed beside it.
        ({**NEWEST, "notebook": (6, 5), "jupyterlab": ()}, "sockets"),
    ],
)
def test_kernels_are_never_left_in_the_clear_on_tcp(found: Versions, kernels: str) -> None:
    _, options, _, facts = plan(found)
    assert facts["kernels"] == kernels
    assert ("--MappingKernelManager.transport_encryption=auto" in options) == (kernels == "encrypted")
    assert ("--KernelManager.transport=ipc" in options) == (kernels == "sockets")


@pytest.mark.parametrize(
    ("found", "runtime_dir", "own"),
    [
        (OF_2024, "/" + "x" * 56, ""),
        (OF_2024, "/" + "x" * 57, f"{OURS}/runtime"),
        (OF_2024, "/" + "é" * 29, f"{OURS}/runtime"),
        (NEWEST, "/" + "x" * 200, ""),
    ],
)
def test_a_runtime_directory_too_long_for_kernels_sockets_is_replaced(
    found: Versions, runtime_dir: str, own: str
) -> None:
    assert plan(found, runtime_dir=runtime_dir)[2] == own


def test_the_longest_runtime_directory_leaves_room_for_a_kernels_sockets() -> None:
    name = f"kernel-{'x' * 36}-ipc-5"  # the connection file's, without its suffix, and one to five for each socket
    assert (
        starter.LONGEST_RUNTIME_DIR + len("/") + len(name)
        <= 107
        < starter.LONGEST_RUNTIME_DIR + len("/") + len(name) + 1
    )


@pytest.mark.parametrize("is_root", [True, False])
def test_root_is_allowed_only_to_root(is_root: bool) -> None:
    assert ("--allow-root" in plan(NEWEST, is_root=is_root)[1]) == is_root


def test_no_option_has_a_token_in_it() -> None:
    for found in (NEWEST, OF_2024, OF_2022, OF_2020, OF_2018):
        assert "token" not in " ".join(plan(found)[1]).lower()


def test_the_pings_of_websockets_are_an_option_that_jupyter_can_read() -> None:
    (option,) = [one for one in plan(NEWEST)[1] if "tornado_settings" in one]
    assert json.loads(option.partition("=")[2].replace("'", '"')) == starter.PINGS


def test_run_by_a_python_without_jupyter_it_says_so_in_a_file(tmp_path: Path) -> None:
    own = tmp_path / "empty"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(own)], check=True)
    done = subprocess.run([own / "bin/python", starter.__file__, str(tmp_path), "socket", ""], check=False)
    assert done.returncode == 1
    assert (tmp_path / "failed").read_text() == f"there is no jupyter in the environment {own}"


def test_it_runs_what_is_installed_and_tells_the_facts_first(tmp_path: Path) -> None:
    """With a module of the test's own in the place of JupyterLab, which shows what it was run with."""
    (tmp_path / "jupyterlab").mkdir()
    (tmp_path / "jupyterlab/__init__.py").touch()
    (tmp_path / "jupyterlab/__main__.py").write_text(
        "import json, os, sys\nprint(json.dumps([sys.argv, sys.path[:1], dict(os.environ)]))"
    )
    ours = tmp_path / "ours"
    ours.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, starter.__file__, str(ours), "tcp", "lab"],
        env={**environment, "JUPYTER_TOKEN": "secret", "JUPYTER_PORT": "1"},
        cwd="/",
        capture_output=True,
        check=True,
    )
    words, first, seen = json.loads(done.stdout)
    assert words[0] == str(tmp_path / "jupyterlab/__main__.py")
    assert "--ServerApp.ip=127.0.0.1" in words
    assert ("--allow-root" in words) == (os.getuid() == 0)
    assert first == [str(tmp_path)]  # neither our own directory nor the current one
    assert seen["JUPYTER_TOKEN_FILE"] == f"{ours}/token"
    assert not {"JUPYTER_TOKEN", "JUPYTER_PORT"} & seen.keys()
    assert json.loads((ours / "facts").read_text())["app"] == "lab"
    assert (ours / "runtime-dir").read_text() == seen.get(
        "JUPYTER_RUNTIME_DIR", f"{tmp_path}/.local/share/jupyter/runtime"
    )


def test_the_directory_is_locked_for_as_long_as_the_server_lives_and_by_none_of_its_kernels(
    tmp_path: Path,
) -> None:
    """With a module of the test's own in the place of JupyterLab, which starts a child and stays."""
    (tmp_path / "jupyterlab").mkdir()
    (tmp_path / "jupyterlab/__init__.py").touch()
    (tmp_path / "jupyterlab/__main__.py").write_text(
        "import subprocess, sys\nwith subprocess.Popen(['sleep', '1000']) as child:\n"
        "    print(child.pid, flush=True)\n    sys.stdin.read()\n"
    )
    ours = tmp_path / "ours"
    ours.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, starter.__file__, str(ours), "tcp", "lab"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as server:
        assert server.stdout is not None
        child = int(server.stdout.readline())
        try:
            assert is_locked(ours)
            server.kill()
            server.wait(10)
            assert not is_locked(ours)
        finally:
            os.kill(child, signal.SIGKILL)


def is_locked(directory: Path) -> bool:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_it_needs_no_python_newer_than_3_8() -> None:
    """The syntax at least, and only modules of that library."""
    import ast

    tree = ast.parse(Path(starter.__file__).read_text(), feature_version=(3, 8))
    imported = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom | ast.Import)
    }
    known = {"__future__", "fcntl", "json", "os", "re", "runpy", "sys"}
    assert imported <= known | {"importlib.metadata", "pathlib", "jupyter_core.paths"}
