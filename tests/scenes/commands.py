"""docs/commands.md: each block has somebody new, who has what that command is about."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from tests.conftest import is_open
from tests.jupyters import NEWEST
from tests.reader import SERVICES, Reader, Scene, nothing
from tests.scenes import coming_from
from tests.scenes.config import FILE
from tests.scenes.notebooks import ALONE, kernel_of, let_bob_in, own_server, server_in_work
from tests.sshd import wait_for
from tests.test_notebook import call

LAB = """[tunnels.lab]
forwards = ["8888", "5432:db:5432"]
groups = ["work"]
start = "login"
"""
GPU = """
[tunnels.gpu]
forwards = ["6006"]
groups = ["work"]
"""
BORING = """[[tunnels]]
name = "prod"
local = "5001"
remote = "localhost:5001"
host = "prod.example.com"

[[tunnels]]
name = "proxy"
local = "1080"
host = "dev-server"
mode = "socks"
"""
HUB = """[[channels]]
name = "db-tunnel"
hostname = "my-server"
direction = "local->remote"
local = "3306"
remote = "3306"
"""
SSH_CONFIG = """Host gpu
  LocalForward 8888 localhost:8888
  LocalForward 6006 localhost:6006
"""


def new(*said: str) -> Callable[[Reader], None]:
    """Somebody new who has said this before."""

    def before(reader: Reader) -> None:
        reader.be_new()
        for command in said:
            reader.say(command)

    return before


def configured(*said: str) -> Callable[[Reader], None]:
    """Somebody new who has a configuration file, and has said this since."""

    def before(reader: Reader) -> None:
        reader.be_new()
        reader.write(FILE, LAB + GPU)
        for command in said:
            reader.say(command)

    return before


def has_the_port_taken_and_a_host_out_of_reach(reader: Reader) -> None:
    reader.be_new()
    serve = f"{NEWEST}/bin/python3 -m http.server 8888 --bind 127.0.0.1"
    reader.say(f"{serve} >web.log 2>&1 & echo $! >web.pid")
    wait_for(lambda: reader.network.client.call(lambda: is_open(8888)), "it to listen", 30)
    with (reader.home / "config").open("a") as config:
        config.write("Host nowhere\n  HostName 10.9.0.77\n")
    reader.network.client.ip("route", "add", "unreachable", "10.9.0.77")


def has_the_port_again(reader: Reader) -> None:
    reader.say("kill $(cat web.pid)")
    wait_for(lambda: not reader.network.client.call(lambda: is_open(8888)), "it to end", 30)
    configured()(reader)


def shares_lab_with_bob(reader: Reader) -> None:
    """That has not been told of yet."""
    reader.be_new()
    (reader.home / "state" / "people.json").unlink()
    let_bob_in(reader)


def changed_the_file(reader: Reader) -> None:
    configured("holdfast up work", "holdfast up lab 9999:8888 --name train")(reader)
    reader.write(FILE, LAB.replace('"]', '", "8787"]', 1))


def has_a_file_of_borings(reader: Reader) -> None:
    reader.be_new()
    reader.write(".config/boring/.boring.toml", BORING)


def has_lines_in_ssh_config(reader: Reader) -> None:
    coming_from.is_new_and_has_an_ssh_that_reads_what_the_page_shows(reader)
    reader.write(".ssh/config", SSH_CONFIG)


def has_a_mistake_in_a_project(reader: Reader) -> None:
    configured()(reader)
    (reader.home / "vision").mkdir()


def has_a_project(reader: Reader) -> None:
    reader.be_new()
    (reader.home / "vision" / ".holdfast.toml").unlink()


def runs_a_server(reader: Reader) -> None:
    """Theirs is in `train`, on every address of `lab`. In `work` is an environment."""
    reader.be_new()
    (reader.home / "work" / ".venv").symlink_to(NEWEST)
    own_server(reader, "train", 8890, "--ip=0.0.0.0", "--ServerApp.default_url=/lab")


def has_had_an_outage(reader: Reader) -> None:
    new("holdfast up lab")(reader)
    reader.lose("lab")


def takes_it_down(reader: Reader) -> None:
    reader.say("holdfast down lab")


def has_worked_in_a_notebook(reader: Reader) -> None:
    """Jupyter's language servers, which they don't have, would log whenever they are looked for."""
    reader.be_new()
    settings = {"ServerApp": {"jpserver_extensions": {"jupyter_lsp": False}}}
    reader.write(".jupyter/jupyter_server_config.json", json.dumps(settings))
    server = server_in_work(reader)
    reader.network.client.call(lambda: call(server.port, server, "POST", "/api/kernels"))


def has_nothing_that_listens(reader: Reader) -> None:
    reader.be_new()
    reader.stop_serving(8888)
    reader.say("holdfast up lab")


def has_something_that_listens(reader: Reader) -> None:
    reader.serve(8888)
    new("holdfast up lab")(reader)


def has_a_notebook_open_where_bob_is(reader: Reader) -> None:
    """It is in `work`; the one in `train` is still there, and so is bob. On their own machine they are alone."""
    reader.be_new()
    kernel_of(reader, server_in_work(reader))
    for port in SERVICES:
        reader.stop_serving(port)
    reader.write("bin/holdfast", ALONE, mode=0o755)


def sees_the_keeper_run(reader: Reader) -> None:
    wait_for(lambda: "the keeper runs" in reader.say("holdfast doctor"), "the keeper to run", 30)


SCENES: Mapping[str, Scene] = {
    "$ holdfast up lab 8888": Scene(has_the_port_taken_and_a_host_out_of_reach),
    "$ holdfast up work": Scene(has_the_port_again),
    "$ holdfast up lab 8888 --lazy --idle 30m": Scene(new()),
    "$ holdfast up lab --no-switch": Scene(new()),
    "holdfast: bob can connect to that port on lab as well": Scene(shares_lab_with_bob),
    "holdfast status": Scene(new("holdfast up lab --name train")),
    "holdfast down": Scene(
        configured(
            "holdfast up work",
            "holdfast up lab 9999:8888",
            "holdfast up lab 7001:8888 --name train",
            "holdfast up gpu -D 1080 --name proxy",
            "holdfast up lab 7002:8888 --name other",
        )
    ),
    "holdfast restart": Scene(new("holdfast up lab --name train")),
    "holdfast jupyter": Scene(runs_a_server),
    "holdfast config check": Scene(has_a_mistake_in_a_project),
    "holdfast config add": Scene(new()),
    "holdfast config allow": Scene(has_a_project),
    "holdfast save": Scene(configured("holdfast up lab")),
    "holdfast apply": Scene(changed_the_file),
    "holdfast import autossh": Scene(new()),
    "holdfast import boring": Scene(has_a_file_of_borings),
    "holdfast import ssh-channels-hub": Scene(lambda reader: reader.write("hub.toml", HUB)),
    "holdfast import ssh-config": Scene(has_lines_in_ssh_config),
    "$ holdfast logs lab -n 20": Scene(has_had_an_outage, meanwhile=takes_it_down),
    "$ holdfast logs lab --remote -n 2": Scene(has_worked_in_a_notebook),
    "holdfast events": Scene(new("holdfast up lab"), meanwhile=lambda reader: reader.lose("lab")),
    "holdfast wait": Scene(has_nothing_that_listens),
    "holdfast metrics": Scene(has_something_that_listens, meanwhile=nothing),
    "$ holdfast doctor": Scene(new("holdfast up lab")),
    "$ holdfast doctor lab": Scene(has_a_notebook_open_where_bob_is),
    "holdfast keeper run": Scene(new(), meanwhile=sees_the_keeper_run),
    "holdfast keeper stop": Scene(new("holdfast up lab")),
    "holdfast demo": Scene(new()),
}
