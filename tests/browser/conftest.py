"""A real Chromium, headless, and an emulator to look at with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from browser.scene import PULL, Shop

from kombu_cfqueues.emulator import Emulator

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

try:
    from playwright import sync_api
except ImportError:  # test_page.py skips itself
    sync_api = None

PATIENCE_MS = 20_000
"""How long something may take to appear on a busy machine."""

# As root in a container Chromium runs only without its sandbox; the others keep it off the network.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def find_chromium() -> str | None:
    """Return a Chromium of this machine."""
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if name and (found := shutil.which(name))), None)


# Not for the whole session: Playwright keeps an event loop in this thread, where other tests have
# theirs.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_chromium()
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium, or CHROMIUM=path")
    sync_api.expect.set_options(timeout=PATIENCE_MS)
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(order="fifo") as running:
        yield running


@pytest.fixture
def shop(emulator: Emulator) -> Iterator[Shop]:
    """Publishes to the queues of the page, and pulls from them."""
    running = Shop(emulator)
    yield running
    running.close()


@pytest.fixture
def jobs(emulator: Emulator) -> str:
    """The id of a queue that is pulled."""
    return emulator.create_queue("jobs", consumer=PULL)


@pytest.fixture
def open_page(browser: Browser, emulator: Emulator) -> Iterator[Callable[..., Page]]:
    """Open the page; whatever it logs as an error fails the test."""
    contexts, errors = [], []

    def start(path: str = "", *, of: Emulator | None = None, **options: object) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1300, "height": 900}, **options})
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console",
            lambda said: (
                errors.append(said.text)
                # The browser reports refusals too, which the page shows or expects.
                if said.type == "error" and "/_emulator/" not in said.location["url"]
                else None
            ),
        )
        page.goto((of or emulator).page_url + path)
        return page

    yield start
    for context in contexts:
        context.close()
    assert errors == []
