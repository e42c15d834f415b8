"""Who is shown the page, what is on it, and that a real browser leaves it at the right moment."""

from __future__ import annotations

import base64
import hashlib
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.keeper.waiting_room import LONGEST_HEAD, is_navigation, page
from tests.browser import Browser, needs_chromium
from tests.sshd import wait_for

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=timezone(timedelta(hours=2)))
HTML = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def head(*fields: str, start: str = "GET /lab?token=x HTTP/1.1", host: str = "localhost:8888") -> bytes:
    return "\r\n".join([start, f"Host: {host}", *fields, "", ""]).encode("latin-1")


CHROMIUM = head(
    "Connection: keep-alive",
    'sec-ch-ua: "Not:A-Brand";v="8", "Chromium";v="156"',
    "Upgrade-Insecure-Requests: 1",
    f"Accept: {HTML}",
    "Sec-Fetch-Site: none",
    "Sec-Fetch-Mode: navigate",
    "Sec-Fetch-User: ?1",
    "Sec-Fetch-Dest: document",
    "Cookie: _xsrf=2|a; username-localhost-8888=b",
)
# Safari before 16.4, and Firefox before 90.
NO_SEC_FETCH = head("Upgrade-Insecure-Requests: 1", f"Accept: {HTML}", "Accept-Language: de")


@pytest.mark.parametrize(
    "sent",
    [
        CHROMIUM,
        NO_SEC_FETCH,
        head("accept:TEXT/HTML;q=0.9"),
        head("Sec-Fetch-Dest: document", "Accept: */*"),
        head("Sec-Fetch-Dest: document", "Content-Length: 0"),
        head("Sec-Fetch-Dest: document", start="GET / HTTP/1.0"),
        *(
            head("Sec-Fetch-Dest: document", host=host)
            for host in ("127.0.0.1:8888", "[::1]:8888", "LocalHost", "lab.localhost:80", "192.168.1.7:8888")
        ),
        b"GET / HTTP/1.0\r\nAccept: text/html\r\n\r\n",
    ],
)
def test_a_request_for_a_page_is_a_navigation(sent: bytes) -> None:
    assert is_navigation(sent) is True


@pytest.mark.parametrize(
    "sent",
    [
        head("Sec-Fetch-Dest: empty", "Sec-Fetch-Mode: cors", "Accept: text/html"),
        head("Sec-Fetch-Dest: empty", "Sec-Fetch-Mode: navigate", "Accept: text/html"),
        head("Sec-Fetch-Dest: document", "Sec-Fetch-Mode: same-origin"),
        head("Sec-Fetch-Dest: iframe", "Sec-Fetch-Mode: navigate", f"Accept: {HTML}"),
        head("Sec-Fetch-Dest: image", "Accept: image/*"),
        head("Sec-Fetch-Dest: document", "Sec-Fetch-Dest: document"),
        head("Sec-Fetch-Dest: websocket", "Connection: Upgrade", "Upgrade: websocket"),
        head("Sec-Fetch-Dest: document", "Upgrade: h2c"),
        head("Sec-Fetch-Dest: document", "Sec-Purpose: prefetch;prerender"),
        head("Sec-Fetch-Dest: document", "Purpose: prefetch"),
        head("Sec-Fetch-Dest: document", "Service-Worker-Navigation-Preload: true"),
        head("Sec-Fetch-Dest: document", "Range: bytes=100-"),
        head("Accept: text/html", "Origin: http://localhost:8888"),
        head("Sec-Fetch-Dest: document", "Content-Length: 3"),
        head("Sec-Fetch-Dest: document", "Content-Length: 3", "Content-Length: 0"),
        head("Sec-Fetch-Dest: document", "Transfer-Encoding: chunked"),
        head("Sec-Fetch-Dest: document", "Bad name: x"),
        head("Sec-Fetch-Dest: document", " folded"),
        head("Sec-Fetch-Dest: document", "X: a\0b"),
        head("Sec-Fetch-Dest: document", start="HEAD / HTTP/1.1"),
        head("Sec-Fetch-Dest: document", start="POST / HTTP/1.1"),
        head("Sec-Fetch-Dest: document", start="GET / HTTP/2.0"),
        head("Sec-Fetch-Dest: document", start="GET http://example.org/ HTTP/1.1"),
        head("Sec-Fetch-Dest: document", start="GET  / HTTP/1.1"),
        head("X-Requested-With: XMLHttpRequest", "Accept: text/html, */*"),
        head("Accept: */*"),  # curl
        head("Accept: application/json, text/html"),
        head("Accept: text/htmlx"),
        head(),
        CHROMIUM + b"GET /api HTTP/1.1\r\n",
        b"\r\n" + CHROMIUM,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\0\0\0\x08\x04\xd2\x16\x2f",  # PostgreSQL asking for TLS
        b"GETTY /",
    ],
)
def test_anything_else_is_held(sent: bytes) -> None:
    assert is_navigation(sent) is False


def test_a_name_that_a_stranger_could_resolve_to_this_machine_gets_no_page() -> None:
    assert is_navigation(head("Sec-Fetch-Dest: document", host="localhost.example.org:8888")) is False
    assert is_navigation(head("Sec-Fetch-Dest: document", host="example.org:8888")) is False


@pytest.mark.parametrize("whole", [CHROMIUM, NO_SEC_FETCH])
def test_no_part_of_a_navigation_is_decided_on(whole: bytes) -> None:
    assert {is_navigation(whole[:length]) for length in range(len(whole))} == {None}


def test_a_head_is_given_up_as_soon_as_a_line_rules_a_navigation_out() -> None:
    assert is_navigation(b"GET / HTTP/1.1\r\nSec-Fetch-Dest: ima") is None
    assert is_navigation(b"GET / HTTP/1.1\r\nSec-Fetch-Dest: image\r\n") is False


def test_a_head_may_be_as_long_as_the_limit_and_no_longer() -> None:
    short = head("Sec-Fetch-Dest: document", "Cookie: ")
    longest = head("Sec-Fetch-Dest: document", "Cookie: " + "x" * (LONGEST_HEAD - len(short)))
    assert is_navigation(longest) is True
    assert is_navigation(longest.replace(b"Cookie: ", b"Cookie: x")) is False
    assert is_navigation(longest[:-1]) is None
    assert is_navigation(longest.replace(b"Cookie: ", b"Cookie: x")[:LONGEST_HEAD]) is False


LINES = [
    b"GET / HTTP/1.1",
    b"Host: localhost",
    b"Sec-Fetch-Dest: document",
    b"Accept: text/html",
    b"\r\n",
    b"GET /",
    b":",
]
PIECES = st.lists(st.sampled_from([*LINES, b"\r\n", b"\r", b"\n"]) | st.binary(max_size=20), max_size=12).map(
    b"".join
)


@given(st.binary() | PIECES, st.integers(0, 400))
def test_more_bytes_never_change_a_no_and_nothing_raises(sent: bytes, length: int) -> None:
    if is_navigation(sent[:length]) is False:
        assert is_navigation(sent) is False


@pytest.mark.parametrize(
    "piece", [b" ", b"\t", b"a", b"a:\r\n", b":", b"\r", b"\r\n", b",", b".", b"localhost.", b"0"]
)
@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nHost:", b"GET / HTTP/1.1\r\nAccept:"])
@pytest.mark.parametrize("end", [b"", b"\0\r\n", b"\r\n\r\n"])
def test_no_head_takes_long_to_judge(start: bytes, piece: bytes, end: bytes) -> None:
    # One byte less than what is turned away unread.
    filling = piece * ((LONGEST_HEAD - 1 - len(start) - len(end)) // len(piece))
    began = time.process_time()
    is_navigation(start + filling + end)
    assert time.process_time() - began < 0.1


def waiting(
    host: str = "lab",
    target: str = "127.0.0.1:8888",
    reason: str = "lab does not answer any more",
    hint: str = "it may come back by itself",
    since: datetime = NOW - timedelta(seconds=72),
    next_try: datetime | None = NOW + timedelta(seconds=12.5),
) -> tuple[str, dict[str, str], str]:
    """The status line, the header fields and the document of a page."""
    before, _, body = page(host, target, since, NOW, reason, hint, next_try).partition(b"\r\n\r\n")
    status, *fields = before.decode("ascii").split("\r\n")
    named = dict(field.split(": ", 1) for field in fields)
    assert len(named) == len(fields)
    assert int(named["Content-Length"]) == len(body)
    return status, named, body.decode()


class Document(HTMLParser):
    """The elements of a page in their order, and the text in each kind of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.text: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)

    def handle_data(self, data: str) -> None:
        if self.elements:
            self.text[self.elements[-1]] = self.text.get(self.elements[-1], "") + data


def test_the_answer_is_a_503_that_nobody_keeps_frames_or_tells_of() -> None:
    status, fields, _ = waiting()
    assert status == "HTTP/1.1 503 Service Unavailable"
    del fields["Content-Length"], fields["Content-Security-Policy"]
    assert fields == {
        "Content-Type": "text/html; charset=utf-8",
        "Retry-After": "13",
        "Cache-Control": "no-store",
        "Connection": "close",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
    }


def test_the_policy_allows_the_very_style_and_script_that_are_on_the_page_and_no_other() -> None:
    _, fields, body = waiting()
    policy = dict(directive.split(" ", 1) for directive in fields["Content-Security-Policy"].split("; "))

    def hash_of(element: str) -> str:
        (text,) = re.findall(f"<{element}[^>]*>(.*?)</{element}>", body, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert policy == {
        "default-src": "'none'",
        "style-src": hash_of("style"),
        "script-src": hash_of("script"),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


def test_the_page_says_what_is_missing_since_when_why_and_what_to_do() -> None:
    _, _, body = waiting()
    assert "<title>Waiting for lab</title>" in body
    assert "127.0.0.1:8888 on lab" in body
    assert '<time datetime="2026-05-01T11:58:48+02:00">11:58:48</time>' in body
    assert "<dd>lab does not answer any more</dd>" in body
    assert "<dd>it may come back by itself</dd>" in body
    assert ">12:00:12</time>" in body
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in body
    assert len(body) < 8192


def test_the_page_leaves_out_what_isnt_known() -> None:
    _, fields, body = waiting(reason="", hint="", next_try=None)
    assert re.findall("<dt>(.*?)</dt>", body) == ["Since"]
    assert fields["Retry-After"] == "5"


def test_a_try_that_is_due_is_asked_after_in_a_second() -> None:
    _, fields, _ = waiting(next_try=NOW - timedelta(seconds=3))
    assert fields["Retry-After"] == "1"


def test_an_outage_of_another_day_is_shown_with_its_date() -> None:
    _, _, body = waiting(since=NOW - timedelta(days=1))
    assert ">2026-04-30 12:00:00</time>" in body


HOSTILE = st.text() | st.just("</title></dd><script>alert('&quot;')</script>{style}\0\r\n\r\n\udc80")


@given(host=HOSTILE, target=HOSTILE, reason=HOSTILE, hint=HOSTILE)
def test_no_text_can_add_an_element_to_the_page(host: str, target: str, reason: str, hint: str) -> None:
    # Texts that aren't empty, for the same rows.
    _, _, hostile = waiting(f"h{host}", f"t{target}", f"r{reason}", f"h{hint}")
    _, _, harmless = waiting()
    assert Document(hostile).elements == Document(harmless).elements
    assert Document(hostile).text["script"] == Document(harmless).text["script"]


class HoldingServer:
    """Does what the guard does: navigations get the page, all else is held until `back` is set, and answered."""

    ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<title>The notebook</title>"

    def __init__(self) -> None:
        self.back = threading.Event()
        self.held: list[str] = []
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            if select.select([self._listener], [], [], 0.02)[0]:
                client, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            while not select.select([client], [], [], 0.02)[0]:
                if self._closing.is_set():
                    return
            sent = client.recv(LONGEST_HEAD)
            if not sent:
                return
            if is_navigation(sent) and not self.back.is_set():
                since = datetime.now().astimezone() - timedelta(hours=3, minutes=2)
                client.sendall(page("lab", "127.0.0.1:8888", since, since, "no <answer>", "wait", since))
                return
            self.held.append(sent.split(b" HTTP")[0].decode())
            while not self.back.wait(0.01):
                if self._closing.is_set():
                    return
            client.sendall(self.ANSWER if sent.startswith(b"GET") else self.ANSWER.partition(b"<")[0])


@pytest.fixture
def holding() -> Iterator[HoldingServer]:
    server = HoldingServer()
    yield server
    server.close()


@needs_chromium
def test_a_browser_leaves_the_page_the_moment_the_link_is_back(home: Path, holding: HoldingServer) -> None:
    with Browser(home / "profile") as browser:
        browser.open(f"http://localhost:{holding.port}/lab?token=once#cell")
        browser.wait_until("document.querySelector('[role=timer]').textContent == ', for 3 h 2 min'")
        assert browser.evaluate("document.getElementById('next').textContent") == "any moment"
        assert "no <answer>" in browser.evaluate("document.querySelector('dl').textContent")
        wait_for(lambda: holding.held, "the page's question")
        assert holding.held == ["HEAD /"]
        began = time.monotonic()
        holding.back.set()
        browser.wait_until("document.title == 'The notebook'")
        assert time.monotonic() - began < 1
        assert browser.evaluate("location.pathname + location.search + location.hash") == "/lab?token=once#cell"
        assert [line for line in browser.console if "503" not in line] == []
