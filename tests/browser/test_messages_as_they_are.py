"""What the page shows of messages and requests is what they are, to the last digit."""

from __future__ import annotations

import json
import threading

import pytest
from browser.scene import Shop, messages

from kombu_cfqueues.emulator import Emulator, limits
from kombu_cfqueues.emulator.contents import celery_task

expect = pytest.importorskip("playwright.sync_api", reason="needs Playwright from PyPI").expect
BIG = 12345678901234567890


@pytest.fixture
def copied(open_page):
    """Press a button of a page, and return what is in the clipboard."""

    def press(page, name):
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.get_by_role("button", name=name, exact=True).click()
        expect(page.locator("#toasts")).to_contain_text("Copied")
        return page.evaluate("navigator.clipboard.readText()")

    return press


def test_a_large_number_keeps_its_digits(open_page, jobs, shop):
    shop.push("jobs", {"n": BIG})
    shop.push("jobs", celery_task("shop.pay", [BIG], {"of": [BIG] * 9}))
    page = open_page(f"#/queues/{jobs}")

    expect(messages(page)).to_have_count(2)
    for row in messages(page).all():
        expect(row.locator(".summary")).to_contain_text(str(BIG))
        row.locator(".open").click()
    expect(messages(page).nth(1).locator("pre")).to_have_text(f'{{\n  "n": {BIG}\n}}')
    expect(messages(page).nth(0).locator("dl")).to_contain_text(f"[{BIG}]")
    expect(messages(page).nth(0).locator(".block pre")).to_contain_text(f"    {BIG},\n    {BIG}")


def test_a_large_number_that_is_typed_arrives(open_page, emulator, jobs):
    page = open_page(f"#/queues/{jobs}")
    for kind, label in (("json", "Body"), ("celery", "Arguments, as JSON")):
        page.get_by_role("button", name="Publish").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("What").select_option(kind)
        dialog.get_by_label(label, exact=True).fill(f"[{BIG}]")
        if kind == "celery":
            dialog.get_by_role("textbox", name="Task").fill("t")
        dialog.get_by_role("button", name="Publish").click()
        expect(dialog).to_have_count(0)

    plain, task = emulator.messages("jobs")
    assert plain.value == [BIG]
    assert task.content[0] == [BIG]


def test_text_can_be_read_and_nothing_turns_it_around(open_page, jobs, shop):
    shop.push("jobs", celery_task("shop.greet", ["Grüße, 你好"]))
    shop.push("jobs", "invoice\u202egnp.exe")
    shop.push("jobs", {"name": "invoice\u202egnp.exe"})
    page = open_page(f"#/queues/{jobs}")

    expect(messages(page)).to_have_count(3)
    escaped, reversed_text, task = messages(page).all()
    expect(task.locator(".summary")).to_have_text('shop.greet("Grüße, 你好")')
    expect(reversed_text.locator(".summary")).to_have_text("invoiceU+202Egnp.exe")
    expect(escaped.locator(".summary")).to_have_text('{"name":"invoice\\u202egnp.exe"}')
    reversed_text.locator(".open").click()
    expect(reversed_text.locator("pre")).to_have_text("invoiceU+202Egnp.exe")
    assert "\u202e" not in page.locator("main").inner_text()


def test_arguments_use_the_width_there_is(open_page, jobs, shop):
    shop.push("jobs", celery_task("shop.pay", [{"text": "word " * 60}], {}))
    page = open_page(f"#/queues/{jobs}", viewport={"width": 1440, "height": 900})
    messages(page).locator(".open").click()

    expect(messages(page).locator(".block pre")).to_be_visible()
    # At one instant: the list may be drawn anew between two measurements.
    body, arguments = messages(page).evaluate(
        "one => ['.body', '.block pre'].map((part) => one.querySelector(part).clientWidth)"
    )
    assert arguments > 0.9 * (body - 24)


def test_a_request_is_opened_with_what_it_sent_and_got(open_page, emulator, jobs, shop):
    emulator.faults.error("push", status=503, code=15000)
    shop.push("jobs", {"n": BIG})
    page = open_page()
    row = page.locator("#request-rows > li").first
    row.locator(".request").click()

    expect(row).to_contain_text("authorization: Bearer ••••••••")
    expect(row).to_contain_text(str(BIG))
    expect(row).to_contain_text("Answer 503")
    expect(row).to_contain_text('"code": 15000')
    expect(row).to_contain_text("127.0.0.1, the default token")
    row.locator(".request").click()
    expect(row.locator(".body")).to_be_hidden()


def test_a_request_that_waits_shows_its_answer_when_it_comes(open_page, emulator, jobs, shop):
    page = open_page()
    emulator.faults.latency("push", seconds=3, times=1)
    threading.Thread(target=shop.push, args=("jobs", "x")).start()
    row = page.locator("#request-rows > li").first
    row.locator(".request").click()
    expect(row).to_contain_text("None yet.")
    expect(row).to_contain_text("Answer 200")


def test_what_is_copied_is_what_it_says(open_page, emulator, jobs, shop, copied):
    shop.push("jobs", {"n": BIG, "t": "ü"})
    [message] = emulator.messages("jobs")
    page = open_page(f"#/queues/{jobs}")
    messages(page).locator(".open").click()

    assert copied(page, "Copy id") == message.id
    assert copied(page, "Copy body") == message.body == f'{{"n":{BIG},"t":"ü"}}'
    assert copied(page, "Copy as curl").startswith("curl -X POST")
    assert "cloudflare" in copied(page, "Copy as Python (SDK)")
    assert "Producer().publish(" in copied(page, "Copy as Python (Kombu)")


def test_a_page_without_a_clipboard_copies_too(open_page, jobs, shop):
    """Over plain HTTP, browsers have one only for pages of this machine."""
    shop.push("jobs", "what is copied")
    page = open_page(f"#/queues/{jobs}")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    messages(page).locator(".open").click()
    page.get_by_role("button", name="Copy body").click()
    expect(page.locator("#toasts")).to_contain_text("Copied the body")

    page.get_by_role("button", name="Publish").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("What").select_option("text")
    dialog.get_by_label("Body").focus()
    page.keyboard.press("Control+V")
    expect(dialog.get_by_label("Body")).to_have_value("what is copied")


def test_the_first_steps_are_copied_as_they_stand(open_page, emulator, copied):
    page = open_page()

    assert copied(page, "Copy the broker URL") == emulator.broker_url
    code = copied(page, "Copy the Python code")
    assert code == page.locator("#no-queues pre").nth(1).inner_text() + "\n"
    compile(code, "pasted", "exec")
    assert emulator.broker_url in code


def test_messages_leave_as_a_file_and_come_back(open_page, emulator, jobs, shop, tmp_path):
    shop.push("jobs", {"n": BIG})
    shop.push("jobs", "two\nlines")
    page = open_page(f"#/queues/{jobs}")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.name == "jobs.jsonl"
    assert [json.loads(line)["body"] for line in file.read_text().splitlines()] == [
        {"n": BIG},
        "two\nlines",
    ]

    page.get_by_role("button", name="Import").click()
    page.get_by_role("dialog").get_by_label("File with JSON lines").set_input_files(file)
    page.get_by_role("dialog").get_by_role("button", name="Import").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(messages(page)).to_have_count(4)
    bodies = [message.body for message in emulator.messages("jobs")]
    assert bodies[:2] == bodies[2:]

    file.write_text('{"body": 1}\nnonsense\n')
    page.get_by_role("button", name="Import").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("File with JSON lines").set_input_files(file)
    dialog.get_by_role("button", name="Import").click()
    expect(dialog.get_by_role("alert")).to_contain_text("line 2: it is not valid JSON")
    assert len(emulator.messages("jobs")) == 4


def test_a_dialog_says_what_the_banner_says(browser, emulator, jobs):
    """Not the browser's own "Failed to fetch"."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{emulator.page_url}#/queues/{jobs}")
    page.get_by_role("button", name="New queue").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("more")
    with emulator.outage():
        dialog.get_by_role("button", name="Create queue").click()
        expect(dialog.get_by_role("alert")).to_have_text("The emulator does not answer.")
        expect(page.locator("#banner")).to_contain_text("The emulator does not answer.")
    dialog.get_by_role("button", name="Create queue").click()
    expect(dialog).to_have_count(0)
    assert emulator.queue_names() == ["jobs", "more"]
    context.close()


def test_a_block_is_shown_with_its_end_its_size_and_its_causes(open_page):
    with Emulator(rate_limit=5, tokens={"viewer": "read"}) as limited:
        limited.create_queue("jobs")
        shop = Shop(limited)
        page = open_page(of=limited)
        for _ in range(8):
            shop.push("jobs", "x")
        shop.close()

        block = page.locator(".blocked")
        expect(block).to_contain_text("The default token is blocked by the request limit until ")
        expect(block).to_contain_text("6 requests in the window of 5 min, where 5 are allowed; 3")
        row = block.locator("tbody tr")
        assert row.locator("th, td").all_inner_texts() == ["127.0.0.1", "kombu-cfqueues/0.1", "8"]
        block.get_by_role("button", name="End the block").click()
        expect(block).to_have_count(0)
        expect(page.locator("#allowance-text")).to_have_text("5 of 5")
        page.close()


def test_more_than_cloudflare_allows_is_shown_without_a_limit(
    open_page, emulator, jobs, monkeypatch
):
    monkeypatch.setattr(limits, "REQUESTS", 20)  # each takes a while
    shop = Shop(emulator)
    for _ in range(21):
        shop.call("jobs", "/batch", {"messages": []})
    shop.close()

    page = open_page()
    block = page.locator(".blocked")
    expect(block).to_contain_text("The default token is over Cloudflare\u2019s request limit")
    expect(block).to_contain_text("21 requests in the last 5 min, where Cloudflare allows 20.")
    emulator.clock.advance(301)
    expect(block).to_have_count(0)
