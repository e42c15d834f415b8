"""Speaks HTTP to a notebook server, through a forward that leads to it: as little as is needed. Blocking.

`/api` and `/api/status` don't count as activity over there; whatever else is asked says that it isn't any.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import ssl
import time
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

from holdfast.errors import HoldfastError
from holdfast.jupyter.audit import Login

# Seconds for one answer; and between tries while nobody answers yet.
ANSWER = 15.0
PAUSE = 0.05
# Bytes of one that are read.
LONGEST_ANSWER = 1 << 22


class NoAnswer(HoldfastError):
    """Nothing that is HTTP came back."""


class Kernel(NamedTuple):
    """A kernel that runs. `state` is Jupyter's: `busy`, `idle`, `starting`."""

    id: str
    name: str
    state: str
    last_activity: str


class Api:
    """One server, at 127.0.0.1:`port`. With a `fingerprint` (SHA-256, in hexadecimal), that certificate is."""

    def __init__(self, port: int, base_url: str, token: str, *, secure: bool, fingerprint: str = "") -> None:
        self._port = port
        self._base = base_url
        self._token = token
        self._secure = secure
        self._fingerprint = fingerprint

    def wait_for_answer(self, seconds: float) -> str:
        """The server's version, once it answers. Raises HoldfastError where none does within `seconds`."""
        deadline = time.monotonic() + seconds
        answer = None
        while answer is None:
            try:
                answer = self._ask("GET", "api")
            except NoAnswer:
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE)
        status, _, body = answer
        version = _json(body).get("version") if status == 200 else None
        if not isinstance(version, str):
            raise HoldfastError(f"what answers there is no notebook server (it says {status} to /api)")
        return version

    def landing_page(self) -> str:
        """The path of the page to begin with, such as `/lab`."""
        status, headers, _ = self._ask("GET", "")
        where = headers.get("location", "")
        if status in (301, 302, 303, 307, 308) and where:
            try:
                parts = urlsplit(where)
                following = parse_qs(parts.query).get("next", [""])[0]
                path = urlsplit(following).path if parts.path.endswith("/login") else parts.path
            except ValueError:
                path = ""
            if path.startswith(self._base):
                return quote(path, safe="/%~@:+,;=!$&'()*-._")
        return self._base

    def kernels(self) -> list[Kernel]:
        """The kernels that run. Raises HoldfastError when the server doesn't tell."""
        status, _, body = self._ask("GET", "api/kernels?no_track_activity=1")
        if status != 200:
            why = "it wants a password" if status == 403 else f"it says {status}"
            raise HoldfastError(f"the notebook server doesn't tell which kernels run: {why}")
        fields = ("id", "name", "execution_state", "last_activity")
        found = _json(b'{"kernels":%s}' % body).get("kernels")
        return [
            Kernel(*(str(one.get(field)) for field in fields))
            for one in (found if isinstance(found, list) else ())
            if isinstance(one, dict)
        ]

    def shut_down(self) -> bool:
        """Asks the server to end itself and its kernels. Whether it said yes."""
        try:
            status, _, _ = self._ask("POST", "api/shutdown")
        except NoAnswer:  # it may be gone already
            return True
        return status == 200

    def wants_login(self) -> bool:
        """Whether somebody without token and password is kept out."""
        status, _, _ = self._ask("GET", "api/status", with_token=False)
        return status != 200

    def login(self) -> Login:
        """What a server without a token asks for."""
        if not self.wants_login():
            return Login.NONE
        return Login.EMPTY_PASSWORD if self._takes_empty_password() else Login.PASSWORD

    def _takes_empty_password(self) -> bool:
        _, headers, _ = self._ask("GET", "login")
        found = re.search(r"_xsrf=([^;]+)", headers.get("set-cookie", ""))
        xsrf = found[1] if found else ""
        fields = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": f"_xsrf={xsrf}"}
        status, after, _ = self._ask("POST", "login", f"password=&_xsrf={quote(xsrf)}", fields)
        return status in (302, 303) and "login" not in after.get("location", "")

    def _ask(
        self,
        method: str,
        path: str,
        body: str | None = None,
        headers: dict[str, str] | None = None,
        *,
        with_token: bool = True,
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, header fields by their names in lower case, and body. Raises OSError, HTTPException.

        The token is sent where it is needed only: `/api` and the landing page tell without.
        """
        fields = dict(headers or {})
        if self._token and with_token and path.startswith("api/"):
            fields["Authorization"] = f"token {self._token}"
        try:
            with contextlib.closing(self._connected()) as connection:
                connection.request(method, self._base + path, body, fields)
                answer = connection.getresponse()
                found: dict[str, str] = {}
                for name, value in answer.getheaders():
                    found[name.lower()] = f"{found[name.lower()]}; {value}" if name.lower() in found else value
                return answer.status, found, answer.read(LONGEST_ANSWER)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NoAnswer(
                f"the notebook server does not answer ({type(error).__name__})", "holdfast status tells more"
            ) from None

    def _connected(self) -> http.client.HTTPConnection:
        if not self._secure:
            return http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER)
        # No authority vouches for a name behind a tunnel: ssh has proven the machine, a fingerprint the rest.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", self._port, timeout=ANSWER, context=context)
        connection.connect()
        assert isinstance(connection.sock, ssl.SSLSocket)
        shown = hashlib.sha256(connection.sock.getpeercert(binary_form=True) or b"").hexdigest()
        if self._fingerprint and shown != self._fingerprint:
            connection.close()
            raise HoldfastError(
                f"the server's certificate has the fingerprint {shown}, and not the one that was made for it",
                "somebody else may be answering there: holdfast doctor HOST",
            )
        return connection


def _json(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`; an empty one where there is none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
