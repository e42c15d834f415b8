"""What a browser is shown while the link is down: a page that reloads itself the moment the link is back.

Pure: bytes in, bytes out. Only a navigation may be answered: JupyterLab gives kernels up if its own requests are.
Whoever sends the page must have read the request, not only peeked at it, or closing the connection resets it.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from html import escape

# Bytes of a request head that are looked at; browsers send 1 to 4 KiB.
LONGEST_HEAD = 16 * 1024

# The origin form only (RFC 9112, 3.2.1): the absolute form is for a proxy, and the page isn't its to send.
_METHOD = b"GET /"
_REQUEST_LINE = re.compile(rb"GET /[!-~]* HTTP/1\.[01]")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*")
# No name that a stranger's DNS could make resolve to this machine: the stranger's pages could then read ours.
_LOCAL = re.compile(rb"((.+\.)?localhost|[0-9.]+|\[[0-9a-f:.]+\])(:[0-9]*)?", re.IGNORECASE)
# Sent with what looks like a navigation and is none, or is one that our page would spoil: by scripts, prefetches
# (in the words of Chromium, Firefox and Safari), service workers, resumed downloads.
_NOT_SENT_BY_NAVIGATIONS = frozenset(
    {
        b"upgrade",
        b"transfer-encoding",
        b"origin",
        b"x-requested-with",
        b"sec-purpose",
        b"purpose",
        b"x-purpose",
        b"x-moz",
        b"service-worker-navigation-preload",
        b"range",
    }
)


def is_navigation(head: bytes) -> bool | None:
    """Whether the first bytes that a client sent are a browser's request for a page to show.

    None while that can't be told yet. `head` may be peeked at, up to LONGEST_HEAD bytes of it.
    """
    lines, end, rest = head.partition(b"\r\n\r\n")
    start, *fields = lines.split(b"\r\n")
    if rest or len(head) > LONGEST_HEAD:
        return False
    if end:
        return _may_be_navigation(start, fields) and _asks_for_document(_parsed(fields))
    if len(head) == LONGEST_HEAD:
        return False
    if fields:
        return None if _may_be_navigation(start, fields[:-1]) else False
    return None if start.startswith(_METHOD[: len(start)]) else False


def _may_be_navigation(start: bytes, fields: Sequence[bytes]) -> bool:
    """Whether nothing in these lines of a head rules a navigation out."""
    if not _REQUEST_LINE.fullmatch(start) or not all(map(_FIELD.fullmatch, fields)):
        return False
    sent = _parsed(fields)
    return (
        _NOT_SENT_BY_NAVIGATIONS.isdisjoint(sent)
        and sent.get(b"content-length", b"0") == b"0"
        and sent.get(b"sec-fetch-dest", b"document") == b"document"
        and sent.get(b"sec-fetch-mode", b"navigate") == b"navigate"
        and _LOCAL.fullmatch(sent.get(b"host", b"localhost")) is not None
    )


def _asks_for_document(sent: Mapping[bytes, bytes]) -> bool:
    """Whether a complete head asks for a page. Older browsers send no Sec-Fetch-Dest."""
    first_type = re.split(rb"[,;]", sent.get(b"accept", b""), maxsplit=1)[0]
    return b"sec-fetch-dest" in sent or first_type.strip().lower() == b"text/html"


def _parsed(fields: Iterable[bytes]) -> dict[bytes, bytes]:
    """The header fields by their names in lower case. One sent twice is empty: it says nothing for sure."""
    sent: dict[bytes, bytes] = {}
    for field in fields:
        name, _, value = field.partition(b":")
        sent[name.lower()] = b"" if name.lower() in sent else value.strip()
    return sent


_STYLE = """
:root {
  color-scheme: light dark;
  --ground: #f3f5f8; --card: #fff; --line: #dfe4ea; --text: #1b232d; --dim: #58636f; --accent: #e0952b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #12161c; --card: #1c2128; --line: #353d47; --text: #e8edf3; --dim: #a3aebb; --accent: #f2b758;
  }
}
* { box-sizing: border-box; margin: 0; }
body {
  min-height: 100vh; padding: 1rem; display: grid; place-items: center;
  background: var(--ground); color: var(--text); overflow-wrap: anywhere;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif;
}
main {
  width: min(38rem, 100%); padding: clamp(1.25rem, 5vw, 2.5rem);
  background: var(--card); border: 1px solid var(--line); border-radius: 14px; box-shadow: 0 8px 30px #0000000f;
}
h1 { display: flex; gap: .8rem; align-items: baseline; font-size: 1.6rem; line-height: 1.25; }
h1::before {
  content: ""; flex: none; width: .7rem; height: .7rem; border-radius: 50%;
  background: var(--accent); animation: pulse 2s ease-in-out infinite;
}
@keyframes pulse { 50% { opacity: .35; } }
@media (prefers-reduced-motion: reduce) { h1::before { animation: none; } }
h1 + p, dt, footer { color: var(--dim); }
h1 + p { margin-top: .35rem; }
dl {
  margin: 1.5rem 0; padding: 1.25rem 0; border: solid var(--line); border-width: 1px 0;
  display: grid; grid-template-columns: max-content 1fr; gap: .5rem 1.5rem; font-variant-numeric: tabular-nums;
}
@media (max-width: 30rem) { dl { display: block; } dd + dt { margin-top: .7rem; } }
footer { margin-top: .6rem; font-size: .875rem; }
code { white-space: nowrap; }
"""

# The question is no navigation, so it is held, and answered the moment that the link is back. It goes to the
# origin and not to the page's address, whose query may be a token that is good for one time only. After a minute
# the page has grown old; that the question is still held shows that somebody listens, so that reloading it won't
# end on an error page.
_SCRIPT = """
const status = document.querySelector("[role=status]");
const since = document.querySelector("[role=timer]");
const next = document.getElementById("next");
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

function span(milliseconds) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  const minutes = Math.floor(seconds / 60);
  const hours = Math.floor(minutes / 60);
  if (minutes < 1) return `${seconds} s`;
  if (hours < 1) return `${minutes} min ${seconds % 60} s`;
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

function showTimes() {
  since.textContent = `, for ${span(Date.now() - Date.parse(since.dataset.since))}`;
  if (!next) return;
  const left = Date.parse(next.dateTime) - Date.now();
  next.textContent = left > 0 ? `in ${span(left + 999)}` : "any moment";
}

async function untilAnsweredOrOld() {
  for (;;) {
    await pause(1000);
    const answered = fetch(location.origin, {
      method: "HEAD", cache: "no-store", redirect: "manual", credentials: "same-origin",
    }).then(() => { status.textContent = "The connection is back. Loading\u2026"; });
    try { return await Promise.race([answered, pause(60000)]); } catch { /* nobody listens just now */ }
  }
}

showTimes();
setInterval(showTimes, 1000);
untilAnsweredOrOld().then(() => location.reload());
"""

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Waiting for {host}</title>
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E%3Ccircle \
cx='4' cy='4' r='3' fill='%23e0952b'/%3E%3C/svg%3E">
<noscript><meta http-equiv="refresh" content="5"></noscript>
<style>{style}</style>
</head>
<body>
<main>
<h1>Waiting for {host}</h1>
<p>{target} on {host} can\N{RIGHT SINGLE QUOTATION MARK}t be reached just now.</p>
<dl>
{facts}
</dl>
<p role="status" aria-live="polite">There is nothing to do on this page: it reloads itself the moment the \
connection is back.</p>
<footer>holdfast keeps this address for you meanwhile. In a terminal, <code>holdfast status</code> says more.\
</footer>
</main>
<script type="module">{script}</script>
</body>
</html>
"""


def page(
    host: str, target: str, since: datetime, now: datetime, reason: str, hint: str, next_try: datetime | None
) -> bytes:
    """The HTTP response that tells why `host` isn't reached, since when, and what to do.

    `target` is what the forward leads to over there. The times carry their zone, in which they are shown;
    `next_try` is None while none is planned. Empty texts are left out.
    """
    body = _PAGE.format(
        host=escape(host),
        target=escape(target),
        facts="\n".join(_facts(since, now, reason, hint, next_try)),
        style=_STYLE,
        script=_SCRIPT,
    ).encode(errors="replace")
    head = [
        "HTTP/1.1 503 Service Unavailable",
        "Content-Type: text/html; charset=utf-8",
        f"Content-Length: {len(body)}",
        f"Retry-After: {_seconds_until(next_try, now)}",
        "Cache-Control: no-store",
        "Connection: close",
        f"Content-Security-Policy: {_policy()}",
        "X-Content-Type-Options: nosniff",
        "X-Frame-Options: DENY",
        "Referrer-Policy: no-referrer",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def _facts(since: datetime, now: datetime, reason: str, hint: str, next_try: datetime | None) -> Iterator[str]:
    timer = f'<span role="timer" data-since="{since.isoformat()}"></span>'
    yield _fact("Since", f'<time datetime="{since.isoformat()}">{_clock(since, now)}</time>{timer}')
    if reason:
        yield _fact("Why", escape(reason))
    if hint:
        yield _fact("Hint", escape(hint))
    if next_try:
        yield _fact(
            "Next try", f'<time id="next" datetime="{next_try.isoformat()}">{_clock(next_try, now)}</time>'
        )


def _fact(name: str, value: str) -> str:
    return f"<dt>{name}</dt><dd>{value}</dd>"


def _clock(moment: datetime, now: datetime) -> str:
    """The time of day, and the date where it isn't today."""
    return moment.strftime("%H:%M:%S" if moment.date() == now.date() else "%Y-%m-%d %H:%M:%S")


def _seconds_until(next_try: datetime | None, now: datetime) -> int:
    """For Retry-After; where no try is planned, as often as the page asks without its script."""
    return max(1, math.ceil((next_try - now).total_seconds())) if next_try else 5


def _policy() -> str:
    """The Content-Security-Policy that allows this page's very own style and script, its icon and its question.

    The icon is for what browsers would ask for otherwise, and be held with: /favicon.ico.
    """
    directives = [
        "default-src 'none'",
        f"style-src '{_hash(_STYLE)}'",
        f"script-src '{_hash(_SCRIPT)}'",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return "; ".join(directives)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
