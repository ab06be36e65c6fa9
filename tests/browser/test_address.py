"""What the page shows stands in its address: a reload, a link and the back button keep it."""

from __future__ import annotations

import re

import pytest
from browser.scene import messages

expect = pytest.importorskip("playwright.sync_api", reason="needs Playwright from PyPI").expect


@pytest.mark.long
def test_a_reload_shows_the_same(open_page, jobs, shop):
    for n in range(60):
        shop.push("jobs", f"message {n:02}", delay_seconds=60 if n % 2 else 0)
    page = open_page(f"#/queues/{jobs}")
    page.get_by_role("button", name="Delayed 30").click()
    page.get_by_label("Sort the messages").select_option("oldest")
    page.get_by_label("Find a text in the messages").fill("message 1")
    expect(messages(page)).to_have_count(5)
    messages(page).nth(2).locator(".open").click()
    page.locator("#request-rows .request").first.click()
    expect(messages(page).nth(2).locator("pre")).to_have_text("message 15")

    page.reload()

    expect(messages(page)).to_have_count(5)
    expect(messages(page).first).to_contain_text("message 11")
    expect(messages(page).nth(2).locator("pre")).to_have_text("message 15")
    expect(page.locator("#request-rows .body").first).to_contain_text("Answer 200")
    expect(page.get_by_label("Sort the messages")).to_have_value("oldest")
    expect(page.get_by_label("Find a text in the messages")).to_have_value("message 1")
    expect(page.get_by_role("button", name="Delayed 30")).to_have_attribute("aria-pressed", "true")


def test_the_back_button_leads_back(open_page, emulator, jobs, shop):
    emulator.create_queue("other")
    for n in range(60):
        shop.push("jobs", f"message {n}")
    page = open_page()
    page.get_by_role("link", name="jobs").click()
    expect(messages(page).first).to_contain_text("message 59")
    page.get_by_role("button", name="Next page").click()
    expect(messages(page)).to_have_count(10)
    page.get_by_role("link", name="other").click()
    expect(page.get_by_text("No messages")).to_be_visible()

    page.go_back()
    expect(messages(page)).to_have_count(10)
    page.go_back()
    expect(messages(page)).to_have_count(50)
    page.go_back()
    expect(page.locator("#queue")).to_be_hidden()
    page.go_forward()
    expect(messages(page)).to_have_count(50)


def test_an_open_message_stays_where_new_ones_push_it_off_the_page(open_page, jobs, shop):
    shop.push("jobs", "the one")
    page = open_page(f"#/queues/{jobs}")
    messages(page).locator(".open").click()
    expect(messages(page).locator("pre")).to_have_text("the one")

    for n in range(50):
        shop.push("jobs", f"message {n}")

    expect(messages(page)).to_have_count(51)
    expect(messages(page).first.locator("pre")).to_have_text("the one")
    messages(page).first.locator(".open").click()
    expect(messages(page)).to_have_count(50)


def test_a_link_to_what_is_gone_shows_the_rest(open_page, emulator, jobs, shop):
    shop.push("jobs", "there")
    page = open_page(f"#/queues/{jobs}?open=999.x&request=888&sort=nonsense-is-refused")
    expect(page.get_by_text("sort must be one of")).to_be_visible()
    page.close()
    page = open_page(f"#/queues/{jobs}?open=999.x&request=888&page=x")
    expect(messages(page)).to_have_count(1)
    expect(page).to_have_url(re.compile(r"\?page=x$"))


def test_a_request_opens_by_its_address_when_newer_ones_have_pushed_it_away(
    open_page, emulator, jobs, shop
):
    shop.push("jobs", "the first request")
    for _ in range(160):
        shop.call("jobs", "/batch", {"messages": []})
    page = open_page("#/?request=1")

    rows = page.locator("#request-rows > li")
    expect(rows).to_have_count(151)
    expect(rows.last.locator(".body")).to_contain_text("the first request")


def test_requests_are_found_and_sorted(open_page, emulator, jobs, shop):
    emulator.create_queue("other")
    shop.push("jobs", "x" * 500)
    shop.push("other", "x")
    emulator.faults.latency("push", seconds=0.3, times=1)
    shop.push("jobs", "x")
    page = open_page()
    rows = page.locator("#request-rows > li")
    expect(rows).to_have_count(3)

    page.get_by_label("Sort the requests").select_option("largest")
    expect(rows.first).to_contain_text(re.compile(r"5\d\d B"))
    page.get_by_label("Sort the requests").select_option("slowest")
    expect(rows.first).to_contain_text(re.compile(r"[3-9]\d\d ms|\d\.\d s"))
    page.get_by_label("Find a text in the requests").fill("OTHER")
    expect(rows).to_have_count(1)
    page.get_by_label("Find a text in the requests").fill("nobody")
    expect(page.get_by_text("None of the latest 3 requests matches.")).to_be_visible()
    page.reload()
    expect(page.get_by_text("None of the latest 3 requests matches.")).to_be_visible()


def test_queues_are_sorted_and_found(open_page, emulator, shop):
    for name in ("b", "a", "c", "d1", "d2", "d3", "d4", "d5"):
        emulator.create_queue(name)
    for _ in range(2):
        shop.push("c", "x")
    page = open_page()
    names = page.locator("#queue-rows a")
    expect(names.first).to_have_text("b")
    page.get_by_label("Sort the queues").select_option("name")
    expect(names.first).to_have_text("a")
    page.get_by_label("Sort the queues").select_option("ready")
    expect(names.first).to_have_text("c")
    page.reload()
    expect(names.first).to_have_text("c")
    page.get_by_label("Filter by name").fill("d")
    expect(names).to_have_count(5)
    page.get_by_label("Filter by name").fill("zebra")
    expect(page.get_by_text("No queue has “zebra” in its name.")).to_be_visible()
