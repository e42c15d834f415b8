"""What Prometheus is told: by its own parser, over a port and over a socket."""

from __future__ import annotations

import errno
import http.client
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from holdfast.cli import serving
from holdfast.control import TunnelStatus
from holdfast.errors import HoldfastError, KeeperError, UsageError
from holdfast.events import STATES
from holdfast.metrics import CONTENT_TYPE, METRICS, exposition
from tests.conftest import Run
from tests.records import forward, tunnel
from tests.sshd import free_port, wait_for

Samples = dict[str, list[tuple[dict[str, str], float]]]


def parsed(text: str) -> Samples:
    """The samples by their name, as Prometheus' own parser reads them."""
    parser = pytest.importorskip("prometheus_client.parser")
    samples: Samples = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


def told(*tunnels: TunnelStatus) -> Samples:
    return parsed(exposition(tunnels, "1.2.3"))


def value(samples: Samples, name: str) -> float:
    ((_, found),) = samples[name]
    return found


def test_a_tunnels_figures_are_what_status_says() -> None:
    samples = told(
        tunnel(
            "lab",
            forward(connections=3, leases=2, exposed=True),
            rtt_ms=1.26,
            drops=4,
            outages=3,
            down_seconds=90,
            held=5,
            sent_bytes=123456789012345,
            received_bytes=7,
        )
    )
    assert samples["holdfast_build_info"] == [({"version": "1.2.3"}, 1)]
    assert samples["holdfast_keeper_up"] == [({}, 1)]
    assert samples["holdfast_tunnel_info"] == [({"tunnel": "lab", "host": "lab.example"}, 1)]
    assert samples["holdfast_tunnel_up"] == [({"tunnel": "lab"}, 1)]
    assert value(samples, "holdfast_tunnel_rtt_seconds") == 0.00126
    assert value(samples, "holdfast_tunnel_drops_total") == 4
    assert value(samples, "holdfast_tunnel_outages_total") == 3
    assert value(samples, "holdfast_tunnel_down_seconds_total") == 90
    assert value(samples, "holdfast_tunnel_held_connections") == 5
    assert value(samples, "holdfast_tunnel_sent_bytes_total") == 123456789012345
    assert value(samples, "holdfast_tunnel_received_bytes_total") == 7
    ends = {"tunnel": "lab", "kind": "local", "listen": "localhost:8888", "target": "127.0.0.1:8888"}
    assert samples["holdfast_forward_up"] == [(ends, 1)]
    assert samples["holdfast_forward_connections"] == [(ends, 3)]
    assert samples["holdfast_forward_leases"] == [(ends, 2)]
    assert samples["holdfast_forward_exposed"] == [(ends, 1)]


def test_exactly_one_state_is_one() -> None:
    samples = told(tunnel(state="needs login"), tunnel("db"))
    states = [(labels["tunnel"], labels["state"], found) for labels, found in samples["holdfast_tunnel_state"]]
    assert [(name, state) for name, state, found in states if found] == [("lab", "needs login"), ("db", "up")]
    assert [state for name, state, _ in states if name == "lab"] == list(STATES)
    assert [found for _, found in samples["holdfast_tunnel_up"]] == [0, 1]


def test_what_is_not_known_has_no_sample() -> None:
    samples = told(tunnel("lab", forward(connections=None), rtt_ms=None))
    for name in (
        "holdfast_tunnel_rtt_seconds",
        "holdfast_tunnel_sent_bytes_total",
        "holdfast_forward_connections",
    ):
        assert name not in samples


def test_without_a_keeper_only_that_is_told() -> None:
    samples = parsed(exposition(None, "1"))
    assert value(samples, "holdfast_keeper_up") == 0
    assert set(samples) == {"holdfast_build_info", "holdfast_keeper_up"}
    assert value(parsed(exposition([], "1")), "holdfast_keeper_up") == 1


def test_forwards_that_look_alike_are_one_sample() -> None:
    alike = [forward("localhost:0", "db:80", "remote"), forward("localhost:0", "db:80", "remote", state="refused")]
    text = exposition([tunnel("lab", *alike)], "1")
    assert text.count("\nholdfast_forward_up{") == 1


@given(st.text(), st.text(), st.one_of(st.none(), st.text()))
@example("a\nb", 'a"b', "a\\nb\\")
def test_any_text_is_a_label_that_comes_back(host: str, listen: str, target: str | None) -> None:
    odd = tunnel("lab", forward(listen, target))
    odd["host"] = host
    samples = told(odd)
    ((info, _),) = samples["holdfast_tunnel_info"]
    ((ends, _),) = samples["holdfast_forward_up"]
    assert (info["host"], ends["listen"], ends["target"]) == (host, listen, target or "")


def test_each_metric_has_its_help_and_type_once_and_counters_end_in_total() -> None:
    text = exposition([tunnel(sent_bytes=1, received_bytes=1), tunnel("db")], "1")
    assert re.findall(r"^# TYPE (\S+)", text, re.MULTILINE) == [metric.name for metric in METRICS]
    assert re.findall(r"^# HELP (\S+)", text, re.MULTILINE) == [metric.name for metric in METRICS]
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert text.endswith("\n")


Serve = Callable[..., AbstractContextManager[serving.Server]]


@pytest.fixture
def serve() -> Serve:
    """Serves a text on an address, in a thread."""

    @contextmanager
    def served(address: str, text: Callable[[], str] = lambda: "holdfast_up 1\n") -> Iterator[serving.Server]:
        with serving.server(address, text) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield server
            finally:
                server.shutdown()
                thread.join()

    return served


def fetch(url: str, **headers: str) -> tuple[int, str, str]:
    """The status, the content's type and the body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as response:
            return response.status, response.headers["Content-Type"], response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def test_a_port_serves_metrics_and_nothing_else(serve: Serve) -> None:
    with serve("0") as server:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", server.url)
        assert fetch(server.url) == (200, CONTENT_TYPE, "holdfast_up 1\n")
        assert fetch(server.url + "?x=1")[0] == 200
        assert fetch(server.url.removesuffix("metrics"))[0] == 404
        assert fetch(server.url + "/../../etc/passwd")[0] == 404
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(server.url, data=b"x", timeout=10)
        caught.value.close()
        assert caught.value.code == 501


def test_a_page_that_had_its_name_lead_here_reads_nothing(serve: Serve) -> None:
    with serve("localhost:0") as server:
        assert fetch(server.url, Host="evil.example:9101")[0] == 403
        for host in ("localhost:9101", "127.0.0.1", "[::1]:9101"):
            assert fetch(server.url, Host=host)[0] == 200


def test_one_connection_serves_several_scrapes(serve: Serve) -> None:
    with serve("0") as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.socket.getsockname()[1], timeout=10)
        try:
            for _ in range(2):
                connection.request("GET", "/metrics")
                assert connection.getresponse().read() == b"holdfast_up 1\n"
                assert connection.sock is not None
        finally:
            connection.close()


def test_ipv6s_loopback_is_served_as_well(serve: Serve) -> None:
    with serve("[::1]:0") as server:
        assert server.url.startswith("http://[::1]:")
        assert fetch(server.url)[0] == 200


def test_a_keeper_that_cant_be_asked_is_a_503_and_the_next_scrape_is_served(serve: Serve) -> None:
    answers = iter([KeeperError("the keeper went away"), TimeoutError(), None])

    def text() -> str:
        error = next(answers)
        if error is not None:
            raise error
        return "x 1\n"

    with serve("0", text) as server:
        assert fetch(server.url)[::2] == (503, "the keeper went away\n")
        assert fetch(server.url)[::2] == (503, "the keeper did not answer in time\n")
        assert fetch(server.url)[::2] == (200, "x 1\n")


@pytest.mark.parametrize("address", ["0.0.0.0:9101", "[::]:9101", "192.0.2.1:9101", "lab:9101", ":9101", "*:9101"])
def test_an_address_that_others_can_reach_is_refused_with_a_way(address: str) -> None:
    with (
        pytest.raises(UsageError, match="not an address of this machine alone") as caught,
        serving.server(address, str),
    ):
        pass
    assert "--serve 9101" in caught.value.hint


@pytest.mark.parametrize("address", ["", "x", "99999", "0000001234567", "127.0.0.1:", "127.0.0.1:x", "-1", "٣"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="is not a port or a path"), serving.server(address, str):
        pass


def test_a_port_that_is_taken_is_said(serve: Serve) -> None:
    with serve("0") as server:
        port = str(server.socket.getsockname()[1])
        with pytest.raises(HoldfastError, match=f"can't listen on 127.0.0.1:{port}: "), serving.server(port, str):
            pass


def ask_socket(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        received = b""
        while chunk := client.recv(4096):
            received += chunk
    return received


def test_a_socket_is_its_users_alone_and_goes_with_the_server(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with serve(str(path)) as server:
        assert server.url == str(path)
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert ask_socket(path).endswith(b"\r\n\r\nholdfast_up 1\n")
    assert not path.exists()


def test_a_socket_on_which_nobody_listens_is_replaced(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with serve(str(path)):
        assert b"200 OK" in ask_socket(path)


def test_a_socket_in_use_and_a_file_stay(serve: Serve, tmp_path: Path) -> None:
    path, file = tmp_path / "s", tmp_path / "file"
    file.write_text("mine")
    with serve(str(path)):
        for taken in (path, file):
            with pytest.raises(HoldfastError, match="can't listen at"), serving.server(str(taken), str):
                pass
        assert b"200 OK" in ask_socket(path)
    assert file.read_text() == "mine"


def test_a_socket_that_others_left_where_only_they_may_take_it_away_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))

    def refuse(path: Path) -> None:  # as the sticky bit of /tmp has the system do, but for root
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with (
        pytest.raises(HoldfastError, match=r"can't listen at .*: Operation not permitted"),
        serving.server(str(path), str),
    ):
        pass


def test_the_socket_of_another_that_took_its_place_stays(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with serve(str(path)), socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "other"))
        (tmp_path / "other").rename(path)
    assert path.is_socket()


def test_metrics_of_a_real_tunnel_are_printed_and_no_keeper_is_started_for_them(holdfast: Run, home: Path) -> None:
    assert value(parsed(holdfast("metrics").stdout), "holdfast_keeper_up") == 0
    assert not (home / "state" / "keeper.lock").exists()
    assert holdfast("up", "nowhere.invalid", str(free_port()), "--no-wait").returncode == 0
    samples = parsed(holdfast("metrics", "nowhere*").stdout)
    assert value(samples, "holdfast_tunnel_up") == 0
    assert holdfast("metrics", "nope").returncode == 1


def test_served_metrics_end_with_the_program_and_its_socket(environment: Mapping[str, str], home: Path) -> None:
    path = home / "metrics"
    process = subprocess.Popen(
        [sys.executable, "-m", "holdfast", "metrics", "--serve", str(path)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{path}\n"
        assert b"holdfast_keeper_up 0" in ask_socket(path)
    finally:
        process.terminate()
        process.communicate(timeout=10)
    assert process.returncode == 0
    wait_for(lambda: not os.path.lexists(path), "the socket to go", 5)
