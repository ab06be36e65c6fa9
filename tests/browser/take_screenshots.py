"""Take the pictures of the page that the documentation shows: run as a script.

Needs Playwright from PyPI and a Chromium.  Usage: ``take_screenshots.py [FOLDER]``.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from browser.scene import Shop
from playwright.sync_api import Browser, Page, sync_playwright

from kombu_cfqueues.emulator import Emulator

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


def main(folder: Path) -> None:
    """Take them all."""
    folder.mkdir(parents=True, exist_ok=True)
    seconds = float(os.environ.get("SCENE_SECONDS", "40"))
    with Emulator(port=8787, rate_limit=1200, seed=1) as emulator, sync_playwright() as playwright:
        shop = Shop(emulator)
        shop.fill()
        emulator.faults.latency("pull", seconds=(0.01, 0.05))
        shop.open_for(seconds)
        trade = threading.Thread(target=shop.open_for, args=(15,))
        trade.start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        desktop = {"width": 1440, "height": 1000}
        phone = {"width": 390, "height": 1700}
        take(browser, emulator, folder / "emulator-light.png", desktop, "light")
        take(browser, emulator, folder / "emulator-dark.png", desktop, "dark")
        take(browser, emulator, folder / "emulator-phone.png", phone, "light")
        publish(browser, emulator, folder / "emulator-publish.png")
        trade.join()
        browser.close()
        shop.close()
    with Emulator(port=8787) as emulator, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 760})
        page.goto(emulator.page_url)
        page.get_by_text("No queues yet").wait_for()
        page.screenshot(path=folder / "emulator-empty.png")
        browser.close()
    with Emulator(port=8787, rate_limit=1200) as emulator, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        blocked(browser, emulator, folder / "emulator-blocked.png")
        browser.close()


def blocked(browser: Browser, emulator: Emulator, path: Path) -> None:
    """Take the page while the token is blocked, with the request open that was refused first."""
    emulator.create_queue("emails")
    for agent, number in (("terraform/1.9", 263), ("kombu-cfqueues", 951)):
        shop = Shop(emulator, agent=agent)
        for n in range(number):
            shop.push("emails", {"order": 1000 + n})
        shop.close()
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(emulator.page_url)
    page.locator(".blocked").wait_for()
    page.locator("#request-rows .request").first.click()
    page.get_by_text("Answer 429").wait_for()
    page.screenshot(path=path)
    page.close()


def take(
    browser: Browser,
    emulator: Emulator,
    path: Path,
    size: dict[str, int],
    scheme: str,
) -> None:
    """Take the page with one queue chosen and one message opened."""
    page: Page = browser.new_page(viewport=size, color_scheme=scheme, device_scale_factor=1)
    page.goto(f"{emulator.page_url}#/queues/{emulator.queue_id('emails')}")
    rows = page.locator("#message-rows > li")
    rows.first.wait_for()
    rows.nth(1).locator(".open").click()
    page.get_by_text("Task id").first.wait_for()  # the row has moved on, if another came
    page.wait_for_timeout(1200)
    page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=path)
    page.close()


def publish(browser: Browser, emulator: Emulator, path: Path) -> None:
    """Take the dialog that publishes a task."""
    page = browser.new_page(viewport={"width": 1200, "height": 860})
    page.goto(f"{emulator.page_url}#/queues/{emulator.queue_id('emails')}")
    page.get_by_role("button", name="Publish").click()
    page.get_by_role("textbox", name="Task").fill("shop.tasks.send_receipt")
    page.get_by_label("Arguments, as JSON", exact=True).fill("[1042]")
    page.screenshot(path=path)
    page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "docs" / "images")
