"""Speaks HTTP to a notebook server, through a forward that leads to it: as little as is needed. Blocking.

`/api` and `/api/status` don't count as activity over there; whatever else is asked says that it isn't any.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import ssl
import time
from typing import NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

from holdfast.errors import HoldfastError

# Seconds for one answer; and between tries while nobody answers yet.
ANSWER = 15.0
PAUSE = 0.05


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
        while True:
            status = 0
            try:
                status, _, body = self._ask("GET", "api")
                version = json.loads(body)["version"] if status == 200 else None
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() > deadline:
                    raise HoldfastError(
                        f"the notebook server does not answer: {error!r}", "what it says: holdfast logs --remote"
                    ) from None
                time.sleep(PAUSE)
                continue
            except (ValueError, TypeError, KeyError):
                version = None
            if isinstance(version, str):
                return version
            raise HoldfastError(f"what answers there is no notebook server (it says {status} to /api)")

    def landing_page(self) -> str:
        """The path of the page to begin with, such as `/lab`."""
        status, headers, _ = self._ask("GET", "")
        where = headers.get("location", "")
        if status in (301, 302, 303, 307, 308) and where:
            parts = urlsplit(where)
            following = parse_qs(parts.query).get("next", [""])[0]
            path = urlsplit(following).path if parts.path.endswith("/login") else parts.path
            if path.startswith(self._base):
                return quote(path, safe="/%~@:+,;=!$&'()*-._")
        return self._base

    def kernels(self) -> list[Kernel]:
        """The kernels that run. Raises HoldfastError when the server doesn't tell."""
        status, _, body = self._ask("GET", "api/kernels?no_track_activity=1")
        if status != 200:
            raise HoldfastError(f"the notebook server doesn't tell its kernels (it says {status})")
        return [
            Kernel(*(str(one.get(name)) for name in ("id", "name", "execution_state", "last_activity")))
            for one in json.loads(body)
        ]

    def shut_down(self) -> bool:
        """Asks the server to end itself and its kernels. Whether it said yes."""
        status, _, _ = self._ask("POST", "api/shutdown")
        return status == 200

    def takes_empty_password(self) -> bool:
        """Whether an empty password is enough to log in."""
        _, headers, _ = self._ask("GET", "login")
        found = re.search(r"_xsrf=([^;]+)", headers.get("set-cookie", ""))
        xsrf = found[1] if found else ""
        fields = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": f"_xsrf={xsrf}"}
        status, after, _ = self._ask("POST", "login", f"password=&_xsrf={quote(xsrf)}", fields, with_token=False)
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
        connection = self._connected()
        try:
            connection.request(method, self._base + path, body, fields)
            answer = connection.getresponse()
            return (
                answer.status,
                {name.lower(): value for name, value in answer.getheaders()},
                answer.read(1 << 22),
            )
        finally:
            connection.close()

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
