"""The page at ``/`` in a real browser: what a person sees, and what they can do."""

from __future__ import annotations

import os
import re
import socket
import threading

import pytest
import requests
from browser.scene import PULL, Shop, messages
from celery import Celery
from kombu import Connection, Exchange, Queue
from support.forms import long
from support.processes import needs

from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.emulator.contents import celery_task

expect = pytest.importorskip("playwright.sync_api", reason="needs Playwright from PyPI").expect


def row_of(page, name):
    return page.locator("#queue-rows > tr", has=page.get_by_role("link", name=name, exact=True))


def test_an_empty_emulator_says_how_to_reach_it(open_page, emulator):
    page = open_page()

    expect(page.get_by_text("No queues yet")).to_be_visible()
    expect(page.locator("#no-queues")).to_contain_text(emulator.broker_url)
    expect(page.locator("#no-queues")).to_contain_text(emulator.base_url)


def test_queues_show_their_counts_and_follow_live(open_page, emulator, shop):
    """No reload: what a client does is there a second later."""
    shop.fill()
    page = open_page()

    expect(row_of(page, "emails")).to_be_visible()
    counts = [cell.inner_text() for cell in row_of(page, "emails").locator("td.number").all()]
    assert counts[:4] == ["9", "2", "3", "2"]
    expect(row_of(page, "webhooks")).to_contain_text("paused")

    shop.push("webhooks", {"event": "order.refunded"})
    expect(row_of(page, "webhooks").locator("td.ready")).to_have_text("13")


def test_a_slow_answer_does_not_stop_the_list(open_page, emulator, jobs, shop):
    """A busy machine or network says nothing about what the query costs the emulator."""
    page = open_page()
    page.route(
        "**/messages?*",
        # As slow as that, the query would not be repeated within the patience of a test.
        lambda route: (page.wait_for_timeout(3_000), route.continue_()),
        times=1,
    )
    shop.push("jobs", "early")
    page.goto(f"{emulator.page_url}#/queues/{jobs}")
    expect(messages(page)).to_have_count(1)

    shop.push("jobs", "late")
    expect(messages(page)).to_have_count(2)


def test_rates_show_what_flows(open_page, emulator, jobs, shop):
    page = open_page()
    expect(row_of(page, "jobs")).to_be_visible()
    for n in range(20):
        shop.push("jobs", {"n": n})
    shop.pull("jobs", 10)

    into, out = row_of(page, "jobs").locator("td.rate").all()
    expect(into).to_have_text("4.0")
    expect(out).to_have_text("2.0")


def test_a_celery_task_is_shown_as_one(open_page, emulator, jobs):
    """Published by Celery itself, with its arguments, eta and retries."""
    app = Celery(broker=emulator.broker_url, broker_transport="kombu_cfqueues:Transport")
    app.conf.task_default_queue = "jobs"
    sent = app.send_task(
        "shop.tasks.send_receipt", (1042, "ü"), {"locale": "de"}, countdown=3600, retries=2
    )
    app.close()
    page = open_page(f"#/queues/{jobs}")

    row = messages(page).first
    expect(row).to_contain_text('shop.tasks.send_receipt(1042, "ü", locale="de")')
    expect(row).to_contain_text(re.compile("delayed, (59|60) min left"))
    row.get_by_role("button", name="shop.tasks").click()
    expect(row.locator(".body")).to_contain_text(sent.id)
    facts = {
        fact.locator("dt").inner_text(): fact.locator("dd").inner_text()
        for fact in row.locator(".facts-list > div").all()
    }
    assert facts["Task"] == "shop.tasks.send_receipt"
    assert facts["Arguments"] == '[1042, "ü"]'
    assert facts["Keyword arguments"] == '{"locale": "de"}'
    assert facts["Retries"] == "2"
    assert re.match(r"\d{4}-\d\d-\d\dT", facts["Eta"])


def test_a_dead_letter_says_why_it_died(open_page, emulator, jobs):
    """As a worker has written it; what others write there breaks nothing."""
    death = {
        "queue": "mails",
        "reason": "rejected",
        "exception": "ValueError",
        "text": "no <b>customer</b>",
        "hostname": "celery@host",
        "attempts": 3,
        "time": "2026-05-04T09:30:00+00:00",
    }
    with Connection(emulator.broker_url) as connection:
        for deaths in [[death], "forged", [], [None]]:
            headers = {"x-death": deaths}
            connection.Producer().publish({"n": 1}, routing_key="jobs", headers=headers)
    page = open_page(f"#/queues/{jobs}")
    expect(messages(page)).to_have_count(4)
    for row in messages(page).all():
        row.locator(".open").click()
    expect(page.locator(".facts-list dt", has_text="Died")).to_have_count(1)
    expect(page.locator(".facts-list").filter(has_text="Died")).to_contain_text(
        "rejected in mails on celery@host after delivery 3, 2026-05-04T09:30:00+00:00: "
        "ValueError: no <b>customer</b>"
    )


def test_json_and_text_are_shown_as_what_they_are(open_page, jobs, shop):
    shop.push("jobs", {"order": [1, {"deep": True}]})
    shop.push("jobs", "just words")
    shop.pull("jobs", 1)
    page = open_page(f"#/queues/{jobs}")

    expect(messages(page)).to_have_count(2)
    text, structure = messages(page).all()
    expect(text.locator(".badge").first).to_have_text("Text")
    expect(text).to_contain_text("never delivered")
    expect(structure.locator(".badge").first).to_have_text("JSON")
    expect(structure).to_contain_text("1 attempt")
    expect(structure).to_contain_text(re.compile("leased, [23]. s left"))
    structure.locator(".open").click()
    expect(structure.locator("pre")).to_have_text(
        '{\n  "order": [\n    1,\n    {\n      "deep": true\n    }\n  ]\n}'
    )


def test_an_opened_message_stays_open_while_the_page_updates(open_page, jobs, shop):
    shop.push("jobs", "first")
    page = open_page(f"#/queues/{jobs}")
    messages(page).first.locator(".open").click()

    shop.push("jobs", "second")

    expect(messages(page)).to_have_count(2)
    expect(messages(page).nth(1).locator("pre")).to_have_text("first")
    expect(messages(page).nth(1).locator(".open")).to_be_focused()


HOSTILE = [
    "<img src=x onerror=\"document.title='owned'\">",
    "<script>document.title='owned'</script>",
    "javascript:document.title='owned'",
    "\"><svg onload=document.title='owned'>",
    "\u202egnihtemos\u0000\ufffd",
]


@pytest.mark.parametrize("as_task", [False, True])
def test_nothing_in_a_message_runs_or_becomes_markup(open_page, emulator, shop, as_task):
    """Names of tasks, arguments, headers, user agents and paths come from anybody."""
    jobs = emulator.create_queue("jobs", consumer=PULL)
    for hostile in HOSTILE:
        shop.push("jobs", celery_task(hostile, [hostile], {hostile: 1}) if as_task else hostile)
        shop.push("jobs", {hostile: hostile})
    requests.get(f"{emulator.base_url}/{HOSTILE[0]}", headers={"User-Agent": HOSTILE[1]}, timeout=5)
    emulator.faults.redirect("list", location=HOSTILE[0])
    page = open_page(f"#/queues/{jobs}")
    expect(messages(page)).to_have_count(2 * len(HOSTILE))

    for row in messages(page).all():
        row.locator(".open").click()
    expect(page.locator("#message-rows .body:not([hidden]) pre").last).to_be_attached()
    page.wait_for_timeout(300)

    assert page.title() == "Cloudflare Queues emulator"
    assert page.locator("main img, main script, main svg:not(.sparkline)").count() == 0
    assert page.locator('a[href^="javascript"]').count() == 0
    expect(messages(page).last.locator(".summary")).to_contain_text("<img src=x")


def test_the_page_loads_nothing_from_elsewhere(browser, emulator):
    context = browser.new_context()
    page = context.new_page()
    hosts = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    page.goto(emulator.page_url)
    page.get_by_text("No queues yet").wait_for()
    context.close()

    assert hosts == {f"127.0.0.1:{emulator.port}"}


def test_a_queue_is_made_and_a_task_published_by_keyboard_alone(open_page, emulator):
    page = open_page()
    page.get_by_text("No queues yet").wait_for()
    keys = page.keyboard
    keys.press("Tab")
    expect(page.get_by_role("link", name="Skip to the queues")).to_be_focused()
    keys.press("Enter")
    keys.press("Tab")
    expect(page.get_by_role("button", name="New queue")).to_be_focused()
    keys.press("Enter")
    keys.type("emails")
    keys.press("Enter")

    expect(page.get_by_role("heading", name="emails")).to_be_visible()
    [consumer] = emulator.consumers("emails")
    assert consumer.type == "http_pull"
    publish = page.get_by_role("button", name="Publish")
    for _ in range(10):  # the page may be drawing the new queue
        page.get_by_role("link", name="emails").focus()
        keys.press("Tab")
        if publish.evaluate("button => button === document.activeElement"):
            break
    expect(publish).to_be_focused()
    keys.press("Enter")
    keys.press("Tab")
    keys.type("shop.tasks.ping")
    keys.press("Enter")

    expect(messages(page).first).to_contain_text("shop.tasks.ping()")
    for _ in range(20):
        keys.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('open')"):
            break
    keys.press("Enter")
    expect(messages(page).first.locator(".body")).to_contain_text("shop.tasks.ping")


def test_what_a_form_gets_wrong_is_said_in_it(open_page, emulator, jobs):
    page = open_page(f"#/queues/{jobs}")
    page.get_by_role("button", name="Publish").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("textbox", name="Task").fill("t")
    dialog.get_by_label("Arguments, as JSON", exact=True).fill("[1,")
    dialog.get_by_role("button", name="Publish").click()
    expect(dialog.get_by_role("alert")).to_contain_text("The arguments:")

    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert emulator.messages("jobs") == []


@pytest.mark.parametrize(
    ("kind", "body", "stored"), [("json", '{"a": [1]}', {"a": [1]}), ("text", "hé", "hé")]
)
def test_json_and_text_are_published_from_the_page(open_page, emulator, kind, body, stored):
    jobs = emulator.create_queue("jobs", consumer=PULL)
    page = open_page(f"#/queues/{jobs}")
    page.get_by_role("button", name="Publish").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("What").select_option(kind)
    dialog.get_by_label("Body").fill(body)
    dialog.get_by_label("Delay in seconds").fill("60")
    dialog.get_by_role("button", name="Publish").click()

    expect(messages(page)).to_have_count(1)
    [message] = emulator.messages("jobs")
    assert (message.value, message.content_type, message.state) == (stored, kind, "delayed")


def test_leased_messages_are_retried_and_dead_ones_returned(open_page, emulator, shop):
    emulator.create_queue(
        "jobs", consumer={**PULL, "dead_letter_queue": "dead", "settings": {"max_retries": 0}}
    )
    shop.push("jobs", "dies")
    [lease] = shop.pull("jobs", 1)
    shop.call("jobs", "/ack", {"retries": [{"lease_id": lease}]})
    shop.push("jobs", "leased")
    shop.pull("jobs", 1)
    page = open_page(f"#/queues/{emulator.queue_id('jobs')}")
    expect(row_of(page, "jobs").locator("td.dead")).to_have_text("1")

    page.get_by_role("button", name="Retry now (message").click()
    expect(messages(page).first.locator(".state")).to_have_text("ready")
    row_of(page, "dead").click()
    expect(messages(page).first).to_contain_text("died in jobs")
    page.get_by_role("button", name="Return to jobs (message").click()

    expect(page.get_by_text("No messages")).to_be_visible()
    assert [message.state for message in emulator.messages("jobs")] == ["ready", "ready"]


def test_a_queue_is_paused_purged_and_deleted(open_page, emulator, jobs, shop):
    shop.push("jobs", "x")
    page = open_page(f"#/queues/{jobs}")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    assert shop.call("jobs", "/pull", {})["errors"][0]["message"] == "queue_delivery_paused"
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()

    page.get_by_role("button", name="Purge").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert len(emulator.messages("jobs")) == 1
    page.get_by_role("button", name="Purge").click()
    page.get_by_role("dialog").get_by_role("button", name="Purge").click()
    expect(page.get_by_text("No messages")).to_be_visible()
    assert emulator.messages("jobs") == []

    page.get_by_role("button", name="Delete queue").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete queue").click()
    expect(page.get_by_text("No queues yet")).to_be_visible()
    assert emulator.queue_names() == []


def test_many_messages_come_in_pages_and_by_state(open_page, jobs, shop):
    for n in range(120):
        shop.push("jobs", f"message {n}", delay_seconds=600 if n < 3 else 0)
    page = open_page(f"#/queues/{jobs}")
    expect(messages(page)).to_have_count(50)
    expect(messages(page).first).to_contain_text("message 119")

    page.get_by_role("button", name="Next page").click()
    expect(messages(page).first).to_contain_text("message 69")
    page.get_by_role("button", name="Next page").click()
    expect(messages(page)).to_have_count(20)
    page.get_by_role("button", name="Previous page").click()
    expect(messages(page).first).to_contain_text("message 69")
    page.get_by_role("button", name="Delayed 3").click()
    expect(messages(page)).to_have_count(3)


def test_requests_appear_as_they_come(open_page, emulator, jobs, shop):
    page = open_page()
    shop.push("jobs", "x")
    emulator.faults.error("push", status=503, code=15000)
    shop.push("jobs", "y")
    threading.Thread(target=requests.get, args=(emulator.base_url,), daemon=True).start()

    rows = page.locator("#request-rows > li")
    expect(rows).to_have_count(3)
    expect(rows.nth(2)).to_contain_text("200")
    expect(rows.nth(2)).to_contain_text("POST push")
    expect(rows.nth(2)).to_contain_text("jobs")
    expect(rows.nth(1)).to_contain_text("code 15000")
    expect(rows.nth(1)).to_contain_text("fault: error")
    page.get_by_label("Failures only").check()
    expect(rows).to_have_count(2)
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_text("None yet. Requests")).to_be_visible()


def test_the_allowance_shows_what_is_left(open_page, browser):
    with Emulator(rate_limit=10) as limited:
        shop = Shop(limited)
        limited.create_queue("jobs", consumer=PULL)
        page = open_page(of=limited)
        for _ in range(4):
            shop.push("jobs", "x")
        expect(page.locator("#allowance-text")).to_contain_text("6 of 10")
        for _ in range(7):
            shop.push("jobs", "x")
        expect(page.locator("#allowance-text")).to_contain_text("0 of 10, blocked for 5 min")
        page.get_by_role("button", name="Reset the count").click()
        expect(page.locator("#allowance-text")).to_contain_text("10 of 10")
        shop.close()
        page.close()


def test_faults_and_the_clock_are_at_hand(open_page, emulator, jobs, shop):
    page = open_page()
    page.get_by_label("What goes wrong").select_option("lost_response")
    page.get_by_label("times").fill("3")
    page.get_by_role("button", name="Set fault").click()
    expect(page.locator("#fault-rows")).to_contain_text("lost response on push")
    [fault] = emulator.faults.active
    assert (fault.kind, fault.routes, fault.left) == ("lost_response", ("push",), 3)
    page.get_by_role("button", name="Remove the fault").click()
    expect(page.locator("#fault-rows > li")).to_have_count(0)

    shop.push("jobs", "x", delay_seconds=3600)
    before = emulator.clock.now()
    page.get_by_role("button", name="+1 h (advance the clock)").click()
    expect(row_of(page, "jobs").locator("td.ready")).to_have_text("1")
    assert emulator.clock.now() - before >= 3600


def test_a_lost_emulator_is_reported_and_found_again(browser, emulator):
    context = browser.new_context()
    page = context.new_page()
    page.goto(emulator.page_url)
    expect(page.locator("#live")).to_have_text("Live")
    with emulator.outage():
        expect(page.get_by_role("alert")).to_contain_text("does not answer")
        expect(page.locator("#live")).to_have_text("Not connected")
    expect(page.locator("#live")).to_have_text("Live")
    context.close()


def test_an_emulator_that_hangs_is_reported_and_found_again(open_page, emulator):
    page = open_page()
    expect(page.locator("#live")).to_have_text("Live")
    with emulator._service.database.lock:  # whatever needs it waits, and the server's loop with it
        expect(page.get_by_role("alert")).to_contain_text("does not answer")
        expect(page.locator("#live")).to_have_text("Not connected")
    expect(page.locator("#live")).to_have_text("Live")


def test_on_a_network_the_page_asks_for_the_token(open_page):
    with Emulator("0.0.0.0", token="mine") as guarded:
        guarded.create_queue("jobs")
        guarded.host = "127.0.0.1"
        page = open_page(of=guarded)
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Token").fill("wrong")
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).to_contain_text("token")
        expect(page.get_by_role("link", name="jobs")).to_have_count(0)
        dialog.get_by_label("Token").fill("mine")
        page.keyboard.press("Enter")
        expect(page.get_by_role("link", name="jobs")).to_be_visible()
        page.close()


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (320, "dark"),
        (1440, "light"),
        *(long(width, "light") for width in (320, 390, 800, 1100)),
        *(long(width, "dark") for width in (390, 800, 1100, 1440)),
    ],
)
def test_it_fits_each_screen_and_can_be_read_in_both_schemes(
    open_page, emulator, shop, width, scheme
):
    """Nothing hangs over the edge, and text has a contrast of 4.5 to what is behind it."""
    shop.fill()
    page = open_page(
        f"#/queues/{emulator.queue_id('emails')}",
        viewport={"width": width, "height": 800},
        color_scheme=scheme,
    )
    expect(messages(page)).to_have_count(14)
    messages(page).first.locator(".open").click()
    expect(messages(page).first.locator("dl")).to_be_visible()
    page.locator("#request-rows .request").first.click()
    expect(page.locator("#request-rows h3").first).to_be_visible()

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        "[...document.querySelectorAll('main button, main .summary, main td')]"
        ".filter((e) => e.offsetParent && e.getBoundingClientRect().right > innerWidth)"
        ".map((e) => e.outerHTML)"
    )
    assert outside == []
    overlapping = page.evaluate(
        "[...document.querySelectorAll('.line')].filter((e) => e.scrollWidth > e.clientWidth + 1)"
        ".map((e) => e.innerText)"
    )
    assert overlapping == []
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate(CONTRASTS) == []


CONTRASTS = """() => {
  const luminance = ([r, g, b]) => {
    const part = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = numbers(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const words = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!words || !element.checkVisibility({visibilityProperty: true})) continue;
    if (element.matches("option, noscript, .skip, .unseen")) continue;
    const [a, b] = [numbers(getComputedStyle(element).color), ground(element)].map(luminance);
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) poor.push(`${contrast.toFixed(1)} ${element.outerHTML.slice(0, 120)}`);
  }
  return poor;
}"""


OVERLAPS = """() => {
  const words = [];
  for (const element of document.querySelectorAll("header *, main *")) {
    if (element.closest(".unseen, option, .toasts") || !element.checkVisibility()) continue;
    for (const node of element.childNodes) {
      if (node.nodeType !== 3 || !node.data.trim()) continue;
      const range = document.createRange();
      range.selectNodeContents(node);
      for (const r of range.getClientRects()) {
        // What its box cuts off, or scrolls, is not there.
        let [left, top, right, bottom] = [r.left, r.top, r.right, r.bottom];
        for (let e = element; e; e = e.parentElement) {
          if (getComputedStyle(e).overflow === "visible") continue;
          const box = e.getBoundingClientRect();
          [left, top] = [Math.max(left, box.left), Math.max(top, box.top)];
          [right, bottom] = [Math.min(right, box.right), Math.min(bottom, box.bottom)];
        }
        if (right - left > 2 && bottom - top > 2) words.push({ node, left, top, right, bottom });
      }
    }
  }
  const poor = [];
  words.forEach((a, n) => words.slice(n + 1).forEach((b) => {
    if (a.node === b.node) return;
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (across > 2 && down > 4) poor.push(`${a.node.data} | ${b.node.data}`);
  }));
  return poor;
}"""


def test_who_is_connected_to_the_hub_is_shown(open_page, emulator):
    """While anybody is, and live."""
    needs("websockets")
    page = open_page()
    expect(page.locator("#no-queues")).to_be_visible()
    expect(page.get_by_role("heading", name="Hub")).to_be_hidden()

    with Connection(emulator.control_url) as connection:
        Queue("one@host.pidbox", Exchange("pidbox", "fanout"))(connection.channel()).declare()
        row = page.locator("#hub-rows > li")
        expect(row).to_contain_text(f"{os.getpid()}@{socket.gethostname()} in emulator")
        expect(row).to_contain_text("one@host.pidbox, since ")

    expect(row).to_have_count(0)
    expect(page.get_by_role("heading", name="Hub")).to_be_hidden()
