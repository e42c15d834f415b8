"""The commands about notebooks and hosts take a tunnel of the configuration file as well as a host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.cli.asking import Far, far_or_described
from holdfast.cli.reaching import up_request
from holdfast.errors import UsageError
from tests.conftest import Run
from tests.sshd import Sshd

GIVEN: dict[str, Any] = {
    "config": None,
    "settings": (),
    "ssh_port": None,
    "identities": (),
    "jump": None,
    "login": None,
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration file with the tunnel `gpu`, of a user who has `train` up."""
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "state.json").write_text('{"tunnels": [{"name": "train", "wanted": true}]}')
    monkeypatch.setenv("HOLDFAST_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HOLDFAST_CONFIG", str(tmp_path / "config.toml"))
    path = tmp_path / "config.toml"
    path.write_text(
        '[tunnels.gpu]\nhost = "lab"\nssh = ["-J", "bastion", "-p", "22"]\n[tunnels.train]\nhost = "x"\n'
    )
    return path


def test_a_described_tunnel_is_its_host_with_its_options_and_those_of_the_command_line_win(file: Path) -> None:
    assert far_or_described("gpu", GIVEN) == Far("lab", ("-J", "bastion", "-p", "22"), "gpu")
    assert far_or_described("gpu", {**GIVEN, "ssh_port": "23"}) == Far("lab", ("-p", "23", "-J", "bastion"), "gpu")
    assert far_or_described("lab", GIVEN) == Far("lab", ())
    file.unlink()
    assert far_or_described("gpu", GIVEN) == Far("gpu", ())


def test_a_tunnel_that_is_up_is_left_to_the_keeper_which_knows_how_it_runs(file: Path) -> None:
    assert far_or_described("train", GIVEN) == Far("train", ())
    file.write_text("[tunnels.gpu")
    assert far_or_described("train", GIVEN) == Far("train", ())
    with pytest.raises(UsageError, match="this is not TOML"):
        far_or_described("gpu", GIVEN)


def test_forwards_to_a_notebook_are_those_of_the_described_tunnel_and_so_are_the_hints() -> None:
    there = Far("lab", (), "gpu")
    assert (up_request(there, []).name, up_request(there, [], name="moment-1").name) == ("gpu", "moment-1")
    assert (there.called, Far("lab", ()).called) == ("gpu", "lab")


def test_jupyter_doctor_and_logs_reach_the_host_of_a_described_tunnel(
    holdfast: Run, sshd: Sshd, home: Path
) -> None:
    sshd.stop()
    sshd.start(f"SetEnv HOME={home}")
    config = home / "config.toml"
    config.write_text(f"[tunnels.gpu]\nhost = 'lab'\nssh = ['-F', '{sshd.config}']\n")
    more = {"HOLDFAST_CONFIG": str(config)}
    listed = holdfast("jupyter", "gpu", "--list", "--json", **more)
    assert listed.returncode == 0, listed.stderr
    assert json.loads(listed.stdout) == {"version": 1, "servers": []}
    assert "no server that holdfast started has a log on gpu" in holdfast("logs", "gpu", "--remote", **more).stderr
    assert "no notebook server of yours runs on lab" in holdfast("doctor", "gpu", **more).stdout
