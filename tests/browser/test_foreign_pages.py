"""A page of another site, open in a real browser on the machine where the emulator runs."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kombu_cfqueues.emulator import Emulator

from .conftest import FLAGS, find_chromium

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright from PyPI")

PUBLISH = """async ([url, token, mode]) => {
    const headers = token ? {"Authorization": `Bearer ${token}`} : {};
    const body = JSON.stringify({body: {task: "theirs"}});
    try {
        const answer = await fetch(url, {method: "POST", mode, headers, body});
        return answer.status;
    } catch (error) {
        return String(error);
    }
}"""


@pytest.fixture(scope="module")
def page():
    """In a browser for which ``evil.example`` is this machine, as after DNS rebinding."""
    path = find_chromium()
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium, or CHROMIUM=path")
    flags = [*FLAGS, "--host-resolver-rules=MAP evil.example 127.0.0.1"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser.new_page()
        browser.close()


@pytest.fixture
def site():
    """The port of a server on this machine that has an empty page."""

    class Empty(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>theirs</title>")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Empty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def emulator():
    with Emulator() as emulator:
        emulator.create_queue("jobs")
        yield emulator


def push_path(emulator: Emulator) -> str:
    queue = emulator.queue_id("jobs")
    return f"/client/v4/accounts/{emulator.account_id}/queues/{queue}/messages"


def test_a_page_that_took_over_the_emulators_address_cannot_publish(page, emulator):
    page.goto(f"http://evil.example:{emulator.port}/")
    status = page.evaluate(PUBLISH, [push_path(emulator), emulator.token, "same-origin"])
    assert status == 403
    assert emulator.messages("jobs") == []
    assert len(emulator.requests) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "evil.example"])
def test_a_request_that_any_page_may_send_uses_up_no_fault(page, site, emulator, host):
    """A browser sends it without asking the emulator first."""
    emulator.faults.error("push", status=503)
    page.goto(f"http://{host}:{site}/")
    url = f"http://127.0.0.1:{emulator.port}{push_path(emulator)}"
    page.evaluate(PUBLISH, [url, "", "no-cors"])
    assert len(emulator.requests) == 0
    assert len(emulator.faults.active) == 1


def test_the_emulators_own_page_may(page, emulator):
    page.goto(emulator.page_url)
    status = page.evaluate(PUBLISH, [push_path(emulator), emulator.token, "same-origin"])
    assert status == 200
    assert len(emulator.messages("jobs")) == 1
