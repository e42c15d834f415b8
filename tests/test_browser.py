"""What tests may rely on when they drive a browser."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.browser import Browser, BrowserError, needs_chromium
from tests.conftest import Web
from tests.sshd import free_port

pytestmark = needs_chromium


def test_a_page_is_driven_its_errors_are_seen_and_no_process_stays(home: Path, web: Web) -> None:
    with Browser(home / "profile", width=400, height=300) as browser:
        pid = browser._process.pid
        browser.open(f"http://127.0.0.1:{web.port}/")
        browser.wait_until("document.body.textContent == 'hello'")
        assert browser.evaluate("Promise.resolve([innerWidth, 'ä'])") == [400, "ä"]
        with pytest.raises(BrowserError, match="Error: asked for"):
            browser.evaluate("(() => { throw new Error('asked for') })()")
        browser.evaluate("console.error('it broke', 3); setTimeout(() => missing(), 0)")
        browser.wait_until("true")
        assert "error: it broke 3" in browser.console
        assert any("missing is not defined" in line for line in browser.console)
        browser.screenshot(home / "page.png")
        assert (home / "page.png").read_bytes().startswith(b"\x89PNG")
        closed = f"http://127.0.0.1:{free_port()}/"
        with pytest.raises(BrowserError, match="ERR_CONNECTION_REFUSED"):
            browser.open(closed)
        assert f"net::ERR_CONNECTION_REFUSED {closed}" in browser.failures
    assert not psutil.pid_exists(pid)
