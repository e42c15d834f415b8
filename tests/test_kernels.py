"""A kernel's connection file: found over there by every shell, read, and made into one for this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import HoldfastError
from holdfast.forward import Address, Forward, Kind, parse
from holdfast.jupyter import kernels
from holdfast.openssh import script
from tests.jupyters import RUNTIME_DIRS
from tests.test_far_side import path_of
from tests.test_servers import needs_root

MARK = "0123456789abcdef"
SHELLS = ("dash", "bash", "busybox", "mksh")
ID = "01234567-89ab-cdef-0123-456789abcdef"
PORTS = dict(zip(kernels.PORTS, (51001, 51002, 51003, 51004, 51005), strict=True))
TCP: dict[str, Any] = {
    **PORTS,
    "ip": "127.0.0.1",
    "key": "c0ffee",
    "transport": "tcp",
    "signature_scheme": "hmac-sha256",
    "kernel_name": "python3",
}
SOCKETS: dict[str, Any] = {
    **TCP,
    **dict(zip(kernels.PORTS, (1, 2, 3, 4, 5), strict=True)),
    "ip": f"/home/u/runtime/kernel-{ID}-ipc",
    "transport": "ipc",
}
BESIDE = Path("/home/me/state/kernel")


def printed(record: object) -> str:
    return f"@file\n{json.dumps(record)}"


@pytest.mark.parametrize("record", [TCP, SOCKETS, {**TCP, "curve_publickey": "x"}])
def test_a_connection_file_is_read_whole(record: dict[str, Any]) -> None:
    assert kernels.read(printed(record), "lab") == record


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@file\n",
        "@file\n{",
        "@file\nnull",
        "@file\n7",
        '@file\n"ip"',
        "@file\n[1, 2]",
        "@file\n" + "[" * 100_000,
        f"@other\n{json.dumps(TCP)}",
        json.dumps(TCP),
        printed(TCP)[:-1],
        *(
            printed({name: value for name, value in TCP.items() if name != lost})
            for lost in (*kernels.PORTS, "ip")
        ),
        *(printed({**TCP, "hb_port": wrong}) for wrong in ("51001", 51001.0, True, None, [1])),
        *(printed({**TCP, "ip": wrong}) for wrong in (None, 7, ["127.0.0.1"])),
    ],
)
def test_what_is_no_connection_file_is_told_with_where_to_look(text: str) -> None:
    with pytest.raises(HoldfastError, match=r"^the kernel's connection file can't be found on lab$") as told:
        kernels.read(text, "lab")
    assert "jupyter --runtime-dir" in told.value.hint


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(printed))
def test_no_text_makes_it_fail(text: str) -> None:
    with pytest.raises(HoldfastError):
        kernels.read(text, "lab")


@given(
    st.dictionaries(
        st.sampled_from([*kernels.PORTS, "ip", "transport"]), st.integers() | st.text() | st.booleans()
    )
)
def test_any_record_has_ports_and_an_address_or_is_refused(change: Mapping[str, object]) -> None:
    try:
        record = kernels.read(printed({**TCP, **change}), "lab")
    except HoldfastError:
        return
    assert all(type(record[name]) is int for name in kernels.PORTS)
    assert isinstance(record["ip"], str)


def test_where_a_kernel_talks_and_whether_it_encrypts_is_in_its_file() -> None:
    assert not kernels.is_on_sockets(TCP)
    assert kernels.is_on_sockets(SOCKETS)
    assert not kernels.is_on_sockets({name: value for name, value in TCP.items() if name != "transport"})
    assert not kernels.is_encrypted(TCP)
    assert kernels.is_encrypted({**TCP, "curve_publickey": "x", "curve_secretkey": "y"})


def test_a_kernel_on_tcp_is_forwarded_from_five_free_ports() -> None:
    wanted = [Forward(Kind.LOCAL, Address("127.0.0.1"), Address("127.0.0.1", port)) for port in PORTS.values()]
    assert kernels.forwards(TCP, BESIDE) == wanted


def test_a_kernel_at_another_address_over_there_is_reached_at_that() -> None:
    targets = [forward.target for forward in kernels.forwards({**TCP, "ip": "10.0.0.5"}, BESIDE)]
    assert targets == [Address("10.0.0.5", port) for port in PORTS.values()]


def test_a_kernel_on_sockets_is_forwarded_from_sockets_beside_its_file_with_the_names_that_zmq_looks_for() -> None:
    found = kernels.forwards(SOCKETS, BESIDE)
    assert [forward.listen.path for forward in found] == [f"{BESIDE}-{number}" for number in range(1, 6)]
    assert [forward.target for forward in found] == [
        Address(path=f"/home/u/runtime/kernel-{ID}-ipc-{number}") for number in range(1, 6)
    ]


@pytest.mark.parametrize("record", [TCP, SOCKETS])
def test_the_forwards_of_a_kernel_are_such_as_a_person_may_write(record: dict[str, Any]) -> None:
    for forward in kernels.forwards(record, BESIDE):
        listen = forward.listen.path or f"127.0.0.1:{forward.listen.port}"
        assert parse(f"{listen}:{forward.target}") == forward


def test_the_file_for_this_machine_names_the_ports_that_are_listened_on_here() -> None:
    listens = [Address("127.0.0.1", port) for port in range(40001, 40006)]
    made = json.loads(kernels.connection_file({**TCP, "ip": "10.0.0.5", "extra": ["kept"]}, BESIDE, listens))
    here = dict(zip(kernels.PORTS, range(40001, 40006), strict=True))
    assert made == {**TCP, **here, "ip": "127.0.0.1", "extra": ["kept"]}


def test_the_file_for_this_machine_names_the_sockets_that_are_listened_on_here() -> None:
    listens = [forward.listen for forward in kernels.forwards(SOCKETS, BESIDE)]
    made = json.loads(kernels.connection_file(SOCKETS, BESIDE, listens))
    assert made == {**SOCKETS, "ip": str(BESIDE)}
    assert [f"{made['ip']}-{made[name]}" for name in kernels.PORTS] == [listen.path for listen in listens]


def test_a_kernel_that_lacks_a_forward_has_no_file() -> None:
    with pytest.raises(ValueError, match="shorter"):
        kernels.connection_file(TCP, BESIDE, [Address("127.0.0.1", 1)])


@given(st.uuids())
def test_every_kernels_id_is_one(made: uuid.UUID) -> None:
    assert f"id={made}\n" in kernels.program(str(made))


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "x",
        "None",
        ID[:-1],
        f"{ID}0",
        ID.upper(),
        ID.replace("-", ""),
        f"{ID}\n",
        f"../{ID}",
        "*",
        f"{ID[:-1]}*",
        f"{ID}; id",
        "\x1b[2J" * 99,
        ID.replace("0", "\u0660"),
    ],
)
def test_what_is_no_kernels_id_never_gets_into_a_program(wrong: str) -> None:
    with pytest.raises(HoldfastError, match="the server has a kernel whose id is ") as told:
        kernels.program(wrong)
    assert told.value.message.isprintable()
    assert len(told.value.message) < 400


# From here on the program, run by real shells.


class Far:
    """A home with blanks and quotes in its path."""

    def __init__(self, home: Path) -> None:
        self.home = home / 'it\'s "my"  home'
        self.runtime = self.home / ".local/share/jupyter/runtime"
        self.runtime.mkdir(parents=True)

    def write(self, directory: Path | None = None, record: object = TCP, name: str = f"kernel-{ID}.json") -> Path:
        path = (directory or self.runtime) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1))
        return path

    def look(self, shell: str, **environment: str) -> str:
        done = subprocess.run(
            path_of(shell).split(),
            input=script.wrap(kernels.program(ID), MARK).encode(),
            capture_output=True,
            env={"PATH": os.environ["PATH"], "HOME": str(self.home), **environment},
            timeout=30,
            check=False,
        )
        return script.unwrap(done.stdout.decode(), MARK, "lab")

    def find(self, shell: str = "dash", **environment: str) -> dict[str, Any] | None:
        """The record of the kernel, or None: it isn't found."""
        try:
            return kernels.read(self.look(shell, **environment), "lab")
        except HoldfastError:
            return None


@pytest.fixture
def far(home: Path) -> Far:
    return Far(home)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_file_of_the_kernel_that_is_meant_is_found(far: Far, shell: str) -> None:
    assert far.look(shell) == ""
    far.write()
    far.write(record=SOCKETS, name=f"kernel-{ID[:-1]}e.json")
    assert far.find(shell) == TCP


@pytest.mark.parametrize(("variable", "value", "runtime"), RUNTIME_DIRS)
def test_the_file_is_found_wherever_a_server_may_have_put_it(
    far: Far, variable: str, value: str, runtime: str
) -> None:
    far.write(far.home / runtime)
    assert far.find(**{variable: str(far.home / value)}) == TCP


@pytest.mark.parametrize("shell", SHELLS)
def test_the_file_is_found_in_the_directory_of_a_start(far: Far, shell: str) -> None:
    start = Path("/tmp/holdfast-kertests")
    start.mkdir(mode=0o700)
    try:
        far.write(start / "runtime")
        assert far.find(shell) == TCP
        start.rename(far.home / "moved")
        start.symlink_to(far.home / "moved")
        assert far.find(shell) is None
    finally:
        if start.is_symlink():
            start.unlink()
        shutil.rmtree(start, ignore_errors=True)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_link_and_a_fifo_are_passed_over(far: Far, shell: str) -> None:
    path = far.write()
    path.rename(far.home / "moved")
    path.symlink_to(far.home / "moved")
    assert far.look(shell) == ""
    path.unlink()
    os.mkfifo(path)
    assert far.look(shell) == ""
    # It doesn't hide the real one.
    far.write(far.home / "other")
    assert far.find(shell, JUPYTER_RUNTIME_DIR=str(far.home / "other")) == TCP


@needs_root
@pytest.mark.parametrize("shell", SHELLS)
def test_a_file_or_a_directory_of_another_users_is_not_believed(far: Far, shell: str) -> None:
    path = far.write()
    os.chown(path, 12345, -1)
    assert far.look(shell) == ""
    os.chown(path, os.getuid(), -1)
    os.chown(far.runtime, 12345, -1)
    assert far.look(shell) == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_only_one_file_is_printed_and_nothing_in_it_begins_a_part(far: Far, shell: str) -> None:
    for name in ("a", "b/jupyter"):
        far.write(far.home / name).write_text("@file\n{}\n@other\n")
    places = {"JUPYTER_RUNTIME_DIR": str(far.home / "a"), "XDG_RUNTIME_DIR": str(far.home / "b")}
    assert [name for name, _, _ in script.sections(far.look(shell, **places))] == ["file"]
    assert far.find(shell, **places) is None


def test_a_file_of_any_size_costs_little(far: Far) -> None:
    far.write(record={**TCP, "junk": "x" * 5_000_000})
    assert len(far.look("dash")) < 20_000
    assert far.find() is None
