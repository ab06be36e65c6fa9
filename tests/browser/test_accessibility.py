"""The page for everybody: axe finds nothing in any view, and the focus never gets lost.

axe looks at a phone and at a wide page, each in the dark and in light, in `make long`.
"""

from __future__ import annotations

import pytest
from browser.scene import PULL, Shop, messages
from support.processes import eventually

from kombu_cfqueues.emulator import Emulator

expect = pytest.importorskip("playwright.sync_api", reason="needs Playwright from PyPI").expect
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe from PyPI")

LOOKS = [(390, "dark"), (390, "light"), (1440, "dark"), (1440, "light")]
OPTIONS = {
    "resultTypes": ["violations"],
    "runOnly": {
        "type": "tag",
        "values": [
            *("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"),
            *("best-practice", "experimental"),
        ],
    },
}


def finds(page) -> list[str]:
    """What axe finds, and where."""
    # Not `wait_for_function`: it calls `eval` for each look but the first, which the page forbids.
    assert eventually(lambda: page.evaluate("document.getAnimations().length") == 0)
    violations = axe.Axe().run(page, options=OPTIONS).response["violations"]
    return [f"{v['id']}: {node['html'][:200]}" for v in violations for node in v["nodes"]]


@pytest.fixture(params=LOOKS, ids=lambda look: f"{look[1]}-{look[0]}")
def look(request):
    width, scheme = request.param
    return {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}


@pytest.mark.long
def test_axe_finds_nothing_in_queues_messages_and_requests(open_page, emulator, shop, look):
    shop.fill()
    emulator.faults.error("create", status=503)
    page = open_page(f"#/queues/{emulator.queue_id('emails')}", **look)
    expect(messages(page)).to_have_count(14)
    messages(page).nth(1).locator(".open").click()
    expect(messages(page).nth(1).locator("dl")).to_be_visible()
    messages(page).nth(1).get_by_text("Headers", exact=True).click()
    page.locator("#request-rows .request").first.click()
    expect(page.locator("#request-rows h3").first).to_be_visible()
    assert finds(page) == []

    page.get_by_role("link", name="emails-dead").click()
    expect(messages(page).first).to_contain_text("died in emails")
    assert finds(page) == []


@pytest.mark.long
def test_axe_finds_nothing_in_dialogs(open_page, emulator, look):
    jobs = emulator.create_queue("jobs", consumer=PULL)
    page = open_page(f"#/queues/{jobs}", **look)
    for name in ("New queue", "Publish", "Import", "Purge"):
        page.get_by_role("button", name=name, exact=True).click()
        dialog = page.get_by_role("dialog")
        if name != "Purge":  # which needs nothing, and would be done
            dialog.locator("button[type=submit]").click()
            expect(dialog.get_by_role("alert")).not_to_be_empty()
        assert finds(page) == [], name
        page.keyboard.press("Escape")


@pytest.mark.long
def test_axe_finds_nothing_where_there_is_nothing_or_nobody(browser, emulator, look):
    context = browser.new_context(**look)
    page = context.new_page()
    page.goto(emulator.page_url)
    page.get_by_text("No queues yet").wait_for()
    assert finds(page) == []
    emulator.create_queue("jobs")
    page.get_by_role("link", name="jobs").click()
    page.get_by_text("No messages").wait_for()
    with emulator.outage():
        page.get_by_role("alert").get_by_text("does not answer").wait_for()
        assert finds(page) == []
    context.close()


@pytest.mark.long
def test_axe_finds_nothing_in_a_block_and_at_the_door(open_page, look):
    with Emulator("0.0.0.0", token="mine", rate_limit=2) as guarded:
        shop = Shop(guarded)
        guarded.create_queue("jobs")
        guarded.host = "127.0.0.1"
        for _ in range(4):
            shop.push("jobs", "x")
        shop.close()
        page = open_page(of=guarded, **look)
        page.get_by_role("dialog").get_by_label("Token").wait_for()
        assert finds(page) == []
        page.get_by_role("dialog").get_by_label("Token").fill("mine")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="is blocked by the request limit").wait_for()
        assert finds(page) == []
        page.close()


def test_whoever_deletes_by_keyboard_stays_in_the_list(open_page, emulator, shop):
    jobs = emulator.create_queue("jobs", consumer=PULL)
    for n in range(3):
        shop.push("jobs", f"message {n}")
    page = open_page(f"#/queues/{jobs}")
    messages(page).nth(1).get_by_role("button", name="Delete").focus()
    page.keyboard.press("Enter")

    expect(messages(page)).to_have_count(2)
    expect(messages(page).nth(1).locator(".open")).to_be_focused()  # what came after it
    expect(messages(page).nth(1)).to_contain_text("message 0")
    for left in (1, 0):
        messages(page).last.get_by_role("button", name="Delete").focus()
        page.keyboard.press("Enter")
        expect(messages(page)).to_have_count(left)
        expect(page.locator(":is(#message-rows, .empty):focus-within").first).to_be_attached()
    expect(page.get_by_text("No messages")).to_be_focused()


def test_a_message_that_somebody_else_takes_leaves_the_focus_in_the_list(open_page, emulator, shop):
    jobs = emulator.create_queue("jobs", consumer=PULL)
    for n in range(2):
        shop.push("jobs", f"message {n}")
    page = open_page(f"#/queues/{jobs}")
    messages(page).nth(0).locator(".open").focus()

    _, lease = shop.pull("jobs", 2)
    shop.call("jobs", "/ack", {"acks": [{"lease_id": lease}]})

    expect(messages(page)).to_have_count(1)
    expect(messages(page).first.locator(".open")).to_be_focused()


def test_whoever_retries_or_removes_by_keyboard_stays_there_too(open_page, emulator, shop):
    jobs = emulator.create_queue("jobs", consumer=PULL)
    shop.push("jobs", "x", delay_seconds=60)
    emulator.faults.error("push", status=503)
    page = open_page(f"#/queues/{jobs}")
    messages(page).get_by_role("button", name="Retry now").focus()
    page.keyboard.press("Enter")
    expect(messages(page).locator(".state")).to_have_text("ready")
    expect(messages(page).locator(".open")).to_be_focused()

    page.get_by_role("button", name="Remove the fault").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Set fault")).to_be_focused()

    page.get_by_role("button", name="Delete queue").focus()
    page.keyboard.press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Delete queue").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("No queues yet")).to_be_visible()
    expect(page.locator("#queues")).to_be_focused()


def test_a_link_skips_to_the_messages_and_leaves_the_queue_open(open_page, emulator, shop):
    jobs = emulator.create_queue("jobs", consumer=PULL)
    shop.push("jobs", "x")
    page = open_page(f"#/queues/{jobs}")
    expect(messages(page)).to_have_count(1)
    address = page.url

    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the messages")).to_be_focused()
    page.keyboard.press("Enter")

    expect(page.get_by_role("heading", name="Messages")).to_be_focused()
    assert page.url == address
    for _ in range(8):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('open')"):
            break
    expect(messages(page).locator(".open")).to_be_focused()
