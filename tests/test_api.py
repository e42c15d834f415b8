"""What is said to a notebook server over HTTP, and what is made of its answers, by small servers that are real."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from holdfast.errors import HoldfastError
from holdfast.jupyter import api as module
from holdfast.jupyter.api import Api, Kernel, NoAnswer
from holdfast.jupyter.audit import Login
from tests.sshd import free_port, wait_for

TOKEN = "the-secret-token"


class Answer(NamedTuple):
    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


class Asked(NamedTuple):
    """One request that came."""

    method: str
    path: str
    authorization: str | None
    cookie: str | None
    body: bytes


# Nothing is answered: the connection is closed.
HANG_UP = None


class Far(ThreadingHTTPServer):
    """A notebook server that gives the answers in `answers`, by method and path, and 404 to all else."""

    daemon_threads = False

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.port = self.server_address[1]
        self.answers: dict[str, Answer | Callable[[Asked], Answer] | None] = {}
        self.asked: list[Asked] = []

    def api(self, base_url: str = "/", token: str = TOKEN, *, secure: bool = False, fingerprint: str = "") -> Api:
        return Api(self.port, base_url, token, secure=secure, fingerprint=fingerprint)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: Far

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fields = (self.headers.get("Authorization"), self.headers.get("Cookie"))
        asked = Asked(self.command, self.path, *fields, body)
        self.server.asked.append(asked)
        found = self.server.answers.get(f"{self.command} {self.path}", Answer(404))
        if callable(found):
            found = found(asked)
        if found is HANG_UP:
            return
        self.send_response(found.status)
        for name, value in found.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(found.body)

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(far: Far) -> Iterator[Far]:
    thread = threading.Thread(target=far.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield far
    finally:
        far.shutdown()
        thread.join()
        far.server_close()


@pytest.fixture
def far() -> Iterator[Far]:
    with serving(Far()) as made:
        yield made


class Pair(NamedTuple):
    """A certificate with its key, and its fingerprint."""

    certificate: Path
    key: Path
    fingerprint: str


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "cert.pem", directory / "key.pem"
    words = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost"]
    command = ["openssl", "req", *words, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    raw = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    return Pair(certificate, key, hashlib.sha256(raw).hexdigest())


@pytest.fixture
def over_tls(pair: Pair) -> Iterator[Far]:
    made = Far()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    made.socket = context.wrap_socket(made.socket, server_side=True, do_handshake_on_connect=False)
    with serving(made):
        yield made


def says(record: object, status: int = 200) -> Answer:
    return Answer(status, json.dumps(record).encode())


VERSION = says({"version": "2.21.1"})


def test_a_server_tells_its_version_without_the_token(far: Far) -> None:
    far.answers["GET /api"] = VERSION
    assert far.api().wait_for_answer(5) == "2.21.1"
    assert [asked.authorization for asked in far.asked] == [None]


def test_a_server_is_asked_below_its_base_url(far: Far) -> None:
    far.answers["GET /user/u/api"] = VERSION
    assert far.api("/user/u/").wait_for_answer(5) == "2.21.1"


@pytest.mark.parametrize(
    "answer",
    [
        Answer(404),
        Answer(500, b'{"version": "2"}'),
        Answer(302, b"", (("Location", "/login"),)),
        Answer(200, b""),
        Answer(200, b"hello"),
        Answer(200, b"\xff\xfe"),
        Answer(200, b"[" * 100_000),
        says({"version": 2}),
        says({"version": None}),
        says({}),
        says(["version"]),
        says("version"),
        Answer(200, b'{"version": "2", "junk": "' + b"x" * (module.LONGEST_ANSWER + 1) + b'"}'),
    ],
)
def test_what_answers_but_is_no_notebook_server_is_told_at_once(far: Far, answer: Answer) -> None:
    far.answers["GET /api"] = answer
    began = time.monotonic()
    with pytest.raises(
        HoldfastError, match=rf"^what answers there is no notebook server \(it says {answer.status} "
    ):
        far.api().wait_for_answer(30)
    assert time.monotonic() - began < 10
    assert len(far.asked) == 1


def test_a_server_that_does_not_listen_yet_is_waited_for() -> None:
    port = free_port()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(Api(port, "/", TOKEN, secure=False).wait_for_answer, 20)
        time.sleep(0.2)
        far = Far(port)
        far.answers["GET /api"] = VERSION
        with serving(far):
            assert waiting.result(20) == "2.21.1"


def test_a_server_that_hangs_up_at_first_is_asked_again(far: Far) -> None:
    far.answers["GET /api"] = HANG_UP
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(far.api().wait_for_answer, 20)
        wait_for(lambda: far.asked, "it to be asked")
        far.answers["GET /api"] = VERSION
        assert waiting.result(20) == "2.21.1"


@contextlib.contextmanager
def speaking(said: bytes | None) -> Iterator[int]:
    """The port of something that says this to whoever connects, and hangs up; None: nothing, and it doesn't."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.02)
        over = threading.Event()
        kept: list[socket.socket] = []

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError, ConnectionError):
                    connection, _ = listener.accept()
                    kept.append(connection)
                    if said is not None:
                        connection.settimeout(1)
                        connection.recv(65536)
                        connection.sendall(said)
                        connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()
            thread.join()
            for connection in kept:
                connection.close()


NOT_HTTP = [
    b"",
    b"SSH-2.0-OpenSSH_9.9\r\n",
    b"HTTP/1.1 two hundred\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    b"HTTP/1.1 200 " + b"x" * 70_000,
    bytes(range(256)) * 9,
]

Ask = Callable[[Api], object]
ASKS: dict[str, Ask] = {
    "wait_for_answer": lambda api: api.wait_for_answer(0),
    "landing_page": lambda api: api.landing_page(),
    "kernels": lambda api: api.kernels(),
    "wants_login": lambda api: api.wants_login(),
    "login": lambda api: api.login(),
}


@pytest.mark.parametrize("said", NOT_HTTP)
def test_what_is_not_http_is_no_answer_and_tells_no_token(said: bytes) -> None:
    with speaking(said) as port:
        for ask in ASKS.values():
            with pytest.raises(NoAnswer) as told:
                ask(Api(port, "/", TOKEN, secure=False))
            assert TOKEN not in f"{told.value!r} {told.value.message} {told.value.hint}"
            assert told.value.message.isprintable()


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_nobody_listening_is_no_answer(ask: Ask, secure: bool) -> None:
    with pytest.raises(NoAnswer) as told:
        ask(Api(free_port(), "/", TOKEN, secure=secure))
    assert TOKEN not in f"{told.value.message} {told.value.hint}"


def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER", 0.2)
    with speaking(None) as port:
        for secure in (False, True):
            for ask in ASKS.values():
                with pytest.raises(NoAnswer):
                    ask(Api(port, "/", TOKEN, secure=secure))


def test_nothing_that_answers_is_waited_for_no_longer_than_is_wished() -> None:
    began = time.monotonic()
    with pytest.raises(NoAnswer):
        Api(free_port(), "/", TOKEN, secure=False).wait_for_answer(0.5)
    assert 0.5 <= time.monotonic() - began < 5


@pytest.mark.parametrize("base_url", ["/a b/", "/caf\u00e9/", "/\U0001f680/"])
def test_a_base_url_that_http_cannot_carry_is_an_error_for_the_user(far: Far, base_url: str) -> None:
    for ask in ASKS.values():
        with pytest.raises(HoldfastError):
            ask(far.api(base_url))


# The page to begin with.


@pytest.mark.parametrize(
    ("base_url", "status", "location", "page"),
    [
        ("/", 302, "/lab", "/lab"),
        ("/", 302, "/lab?", "/lab"),
        ("/", 301, "/tree", "/tree"),
        ("/", 303, "/lab/tree/a%20b.ipynb", "/lab/tree/a%20b.ipynb"),
        ("/", 307, "/lab/workspaces/auto-x", "/lab/workspaces/auto-x"),
        ("/", 308, "/tree?", "/tree"),
        ("/", 302, "/login?next=%2Flab", "/lab"),
        ("/", 302, "/login?next=%2Flab%3Freset", "/lab"),
        ("/", 302, "/login?next=%2Ftree%2Fa%2520b", "/tree/a%20b"),
        ("/", 302, "/login", "/"),
        ("/", 302, "/login?next=", "/"),
        ("/", 302, "/login?other=%2Flab", "/"),
        ("/user/u/", 302, "/user/u/lab?", "/user/u/lab"),
        ("/user/u/", 302, "/user/u/login?next=%2Fuser%2Fu%2Flab", "/user/u/lab"),
        ("/user/u/", 302, "http://localhost:8888/user/u/lab", "/user/u/lab"),
        # Not a page of this server's.
        ("/user/u/", 302, "/hub/login?next=%2Fhub%2Fhome", "/user/u/"),
        ("/user/u/", 302, "/user/other/lab", "/user/u/"),
        ("/user/u/", 302, "https://evil.example/x", "/user/u/"),
        ("/user/u/", 302, "/login?next=https%3A%2F%2Fevil.example%2Fx", "/user/u/"),
        ("/", 302, "lab", "/"),
        ("/", 302, "", "/"),
        ("/", 200, "/lab", "/"),
        ("/", 403, "/lab", "/"),
        # Nothing that a terminal or a shell would read something into.
        ("/", 302, '/a b"<>`|{}^', "/a%20b%22%3C%3E%60%7C%7B%7D%5E"),
    ],
)
def test_the_page_to_begin_with_is_where_the_server_leads(
    far: Far, base_url: str, status: int, location: str, page: str
) -> None:
    far.answers[f"GET {base_url}"] = Answer(status, b"", (("Location", location),))
    assert far.api(base_url).landing_page() == page
    assert [asked.authorization for asked in far.asked] == [None]


def test_a_server_that_leads_nowhere_begins_at_its_base_url(far: Far) -> None:
    far.answers["GET /"] = Answer(302)
    assert far.api().landing_page() == "/"
    assert far.api("/user/u/").landing_page() == "/user/u/"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="/:?#[]@%2F.lab-login=next&\u00e9 \\", max_size=40))
@example("http://[")
@example("/login?next=http%3A%2F%2F%5B")
@example("//[::1")
def test_no_location_leads_anywhere_but_below_the_base_url(far: Far, location: str) -> None:
    far.answers["GET /user/u/"] = Answer(302, b"", (("Location", location),))
    page = far.api("/user/u/").landing_page()
    assert page.startswith("/user/u/")
    assert page.isascii()
    assert page.isprintable()
    assert " " not in page


# Kernels.

KERNELS = "GET /api/kernels?no_track_activity=1"


def test_kernels_are_told_to_whoever_has_the_token(far: Far) -> None:
    far.answers[KERNELS] = says(
        [{"id": "1", "name": "python3", "execution_state": "busy", "last_activity": "2026", "connections": 1}]
    )
    assert far.api().kernels() == [Kernel("1", "python3", "busy", "2026")]
    assert [asked.authorization for asked in far.asked] == [f"token {TOKEN}"]


def test_without_a_token_none_is_sent(far: Far) -> None:
    far.answers[KERNELS] = says([])
    assert far.api(token="").kernels() == []
    assert [asked.authorization for asked in far.asked] == [None]


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        (b"", []),
        (b"null", []),
        (b"[]", []),
        (b"{}", []),
        (b"hello", []),
        (b"\xff", []),
        (b"[" * 100_000, []),
        (b'"text"', []),
        (b"true", []),
        (b"5", []),
        (b"1.5", []),
        (b'{"id": "a"}', []),
        (b'[1, null, "x", [], {"id": "a"}]', ["a"]),
        (b'[{"id": 5}, {}]', ["5", "None"]),
    ],
)
def test_whatever_a_server_says_of_its_kernels_is_read_or_passed_over(
    far: Far, body: bytes, ids: list[str]
) -> None:
    far.answers[KERNELS] = Answer(200, body)
    assert [kernel.id for kernel in far.api().kernels()] == ids


@pytest.mark.parametrize(
    ("status", "why"), [(403, "it wants a password"), (404, "it says 404"), (500, "it says 500")]
)
def test_a_server_that_does_not_tell_its_kernels_is_told(far: Far, status: int, why: str) -> None:
    far.answers[KERNELS] = Answer(status, b"[]")
    with pytest.raises(HoldfastError) as told:
        far.api().kernels()
    assert told.value.message == f"the notebook server doesn't tell which kernels run: {why}"


# The end.


@pytest.mark.parametrize(("status", "ended"), [(200, True), (403, False), (404, False), (500, False)])
def test_a_server_is_asked_to_end_itself_and_says_whether_it_does(far: Far, status: int, ended: bool) -> None:
    far.answers["POST /api/shutdown"] = Answer(status)
    assert far.api().shut_down() is ended
    assert [(asked.method, asked.authorization) for asked in far.asked] == [("POST", f"token {TOKEN}")]


def test_a_server_that_hangs_up_when_it_is_asked_to_end_has_said_yes(far: Far) -> None:
    far.answers["POST /api/shutdown"] = HANG_UP
    assert far.api().shut_down() is True


# Who is let in.

LOGIN = "POST /login"
WRONG = Answer(401)


def with_password(password: str, *cookies: str) -> dict[str, Answer | Callable[[Asked], Answer] | None]:
    """The answers of a server behind that password, as Jupyter gives them."""

    def log_in(asked: Asked) -> Answer:
        if asked.cookie != "_xsrf=2|abc|x" or b"_xsrf=2%7Cabc%7Cx" not in asked.body:
            return Answer(403)
        fields = dict(field.partition("=")[::2] for field in asked.body.decode().split("&"))
        return Answer(302, b"", (("Location", "/"),)) if fields["password"] == password else WRONG

    set_cookies = tuple(("Set-Cookie", cookie) for cookie in (cookies or ("_xsrf=2|abc|x; Path=/",)))
    return {
        "GET /api/status": lambda asked: Answer(403) if asked.authorization is None else says({}),
        "GET /login": Answer(200, b"", set_cookies),
        LOGIN: log_in,
    }


@pytest.mark.parametrize(("status", "wants"), [(401, True), (403, True), (200, False)])
def test_a_server_that_tells_its_status_to_anybody_wants_no_login(far: Far, status: int, wants: bool) -> None:
    far.answers["GET /api/status"] = Answer(status)
    assert far.api().wants_login() is wants
    assert [asked.authorization for asked in far.asked] == [None]


def test_a_server_without_a_token_asks_for_nothing_for_an_empty_password_or_for_one(far: Far) -> None:
    far.answers = {"GET /api/status": says({})}
    assert far.api(token="").login() is Login.NONE
    far.answers = with_password("")
    assert far.api(token="").login() is Login.EMPTY_PASSWORD
    far.answers = with_password("x")
    assert far.api(token="").login() is Login.PASSWORD


@pytest.mark.parametrize(
    "cookies",
    [
        ("_xsrf=2|abc|x; Path=/", "username-localhost-8888=; expires=Thu, 01 Jan 1970"),
        ("username-localhost-8888=; expires=Thu, 01 Jan 1970", "_xsrf=2|abc|x; Path=/"),
    ],
)
def test_an_empty_password_is_tried_whatever_other_cookies_are_set(far: Far, cookies: tuple[str, ...]) -> None:
    far.answers = with_password("", *cookies)
    assert far.api(token="").login() is Login.EMPTY_PASSWORD


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200),
        Answer(401),
        Answer(403),
        Answer(404),
        Answer(500),
        Answer(302, b"", (("Location", "/login?next=%2F"),)),
        Answer(302, b"", (("Location", "/hub/login"),)),
    ],
)
def test_a_login_that_does_not_lead_in_is_behind_a_password(far: Far, answer: Answer) -> None:
    far.answers = {**with_password("x"), LOGIN: answer}
    assert far.api(token="").login() is Login.PASSWORD


def test_a_server_without_a_login_page_is_behind_a_password(far: Far) -> None:
    far.answers = {"GET /api/status": Answer(403)}
    assert far.api(token="").login() is Login.PASSWORD


def test_the_token_goes_to_the_api_alone(far: Far) -> None:
    far.answers = {**with_password(""), "GET /api": VERSION, KERNELS: says([]), "POST /api/shutdown": Answer(200)}
    api = far.api()
    api.wait_for_answer(5)
    api.landing_page()
    api.kernels()
    assert api.wants_login()
    assert api.login() is Login.EMPTY_PASSWORD
    api.shut_down()
    sent = {urlsplit(asked.path).path for asked in far.asked if asked.authorization}
    assert sent == {"/api/kernels", "/api/shutdown"}
    assert all(TOKEN not in f"{asked.path}{asked.cookie}{asked.body!r}" for asked in far.asked)


# Certificates.


def test_over_tls_the_certificate_with_the_fingerprint_is_believed(over_tls: Far, pair: Pair) -> None:
    over_tls.answers = {"GET /api": VERSION, KERNELS: says([])}
    api = over_tls.api(secure=True, fingerprint=pair.fingerprint)
    assert api.wait_for_answer(5) == "2.21.1"
    assert api.kernels() == []


def test_without_a_fingerprint_any_certificate_is_believed(over_tls: Far) -> None:
    over_tls.answers["GET /api"] = VERSION
    assert over_tls.api(secure=True).wait_for_answer(5) == "2.21.1"


def test_another_certificate_is_told_at_once_and_nothing_is_sent_to_it(over_tls: Far, pair: Pair) -> None:
    over_tls.answers = {"GET /api": VERSION, KERNELS: says([]), "POST /api/shutdown": Answer(200)}
    api = over_tls.api(secure=True, fingerprint="ab" * 32)
    for ask in (*ASKS.values(), Api.shut_down):
        began = time.monotonic()
        with pytest.raises(
            HoldfastError, match=f"the server's certificate has the fingerprint {pair.fingerprint}"
        ):
            ask(api)
        assert time.monotonic() - began < 5
    with pytest.raises(HoldfastError, match="fingerprint"):
        api.wait_for_answer(30)
    assert over_tls.asked == []


def test_a_server_without_tls_is_no_answer_to_whoever_expects_it(far: Far, over_tls: Far) -> None:
    for ask in ASKS.values():
        with pytest.raises(NoAnswer):
            ask(far.api(secure=True, fingerprint="ab" * 32))
        with pytest.raises(NoAnswer):
            ask(over_tls.api())
    assert far.asked == over_tls.asked == []
