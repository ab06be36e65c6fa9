"""Messages over ``/_emulator/``: found, sorted, exported, imported, and as code that runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import requests
from celery import Celery
from support.forms import first_of
from support.installed import as_installed

from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.emulator.contents import celery_task

BIG = 12345678901234567890


@pytest.fixture
def call(api):
    """Call an endpoint below the queue ``jobs``; return its answer."""

    def send(method, path, **more):
        url = f"{api.emulator.page_url}_emulator/queues/{api.emulator.queue_id('jobs')}{path}"
        return requests.request(method, url, timeout=10, **more)

    return send


@pytest.fixture
def page(call):
    """Return the summaries of a page of messages, and where the next one begins."""

    def get(query=""):
        answer = call("GET", f"/messages?{query}").json()
        return [message["what"]["summary"] for message in answer["messages"]], answer["next"]

    return get


def test_messages_are_sorted_and_their_pages_are_whole(api, page):
    for n, size in enumerate([30, 10, 20, 10, 30]):
        api.push(f"{n}" * size, delay_seconds=60 - n)
    first = ["0", "1", "2", "3", "4"]

    def walk(query):
        seen, after = [], ""
        while after is not None:
            summaries, after = page(f"{query}&limit=2&after={after}")
            seen += [summary[0] for summary in summaries]
        return seen

    assert walk("sort=newest") == walk("") == first[::-1]
    assert walk("sort=oldest") == first
    assert walk("sort=due") == first[::-1]
    assert walk("sort=largest") == ["4", "0", "2", "3", "1"]
    assert walk("sort=attempts") == first[::-1]
    assert walk("sort=due&state=ready") == []


@pytest.mark.parametrize("wrong", ["sort=x", "after=x", "after=1", "after=1-2-3", "after=a-b"])
def test_a_query_that_makes_no_sense_is_refused(call, wrong):
    assert call("GET", f"/messages?{wrong}").status_code == 400


def test_a_text_is_found_in_what_a_message_contains(api, page, emulator_messages):
    api.push({"city": "Zürich"})
    api.push("nothing here")
    api.push(celery_task("shop.pay", [BIG], {"who": "Ünal"}))

    assert page("text=zürich")[0] == ['{"city":"Zürich"}']
    assert page("text=ÜNAL")[0] == page(f"text={BIG}")[0]
    assert page("text=shop.pay")[0] == [f'shop.pay({BIG}, who="Ünal")']
    [number] = [m.id for m in emulator_messages() if "nothing" in m.body]
    assert page(f"text={number}")[0] == ["nothing here"]
    assert page("text=absent") == ([], None)


@pytest.fixture
def emulator_messages(api):
    return lambda: api.emulator.messages("jobs")


def test_a_long_search_stops_and_goes_on(api, page, monkeypatch):
    """A search of a million messages must not keep the API waiting."""
    from kombu_cfqueues.emulator import console_messages

    monkeypatch.setattr(console_messages, "_SEARCH_SECONDS", 0)
    for n in range(5):
        api.push(f"message {n}")

    summaries, after, rounds = [], "", 0
    while after is not None:
        found, after = page(f"text=message+0&after={after}")
        summaries += found
        rounds += 1

    assert summaries == ["message 0"]
    assert rounds > 4


def test_numbers_are_shown_as_they_are(api, call, emulator_messages):
    api.push({"n": BIG})
    api.push(celery_task("t", [BIG, "ü"], {"big": BIG}))

    plain, task = (
        call("GET", f"/messages/{message.number}").json()["texts"]
        for message in emulator_messages()
    )

    assert plain["content"] == f'{{\n  "n": {BIG}\n}}'
    assert task["args"] == f'[{BIG}, "ü"]'
    assert task["kwargs"] == f'{{"big": {BIG}}}'


def test_what_is_exported_is_imported_as_it_was(api, call, emulator_messages):
    bodies = [{"n": BIG, "t": "ü\u202e"}, "text\nwith lines", celery_task("t", [1])]
    for body in bodies:
        api.push(body)
    api.push("later", delay_seconds=60)
    api.pull(batch_size=1)
    before = [(m.body, m.content_type) for m in emulator_messages()]

    exported = call("GET", "/export")

    assert exported.headers["content-type"] == "application/x-ndjson"
    assert 'filename="jobs.jsonl"' in exported.headers["content-disposition"]
    lines = [json.loads(line) for line in exported.content.splitlines()]
    assert [line["body"] for line in lines] == [*bodies, "later"]
    assert len(emulator_messages()) == 4
    call("POST", "/purge", json={})
    imported = call(
        "POST", "/import", data=exported.content, headers={"Content-Type": "application/x-ndjson"}
    )
    assert imported.json() == {"published": 4}
    assert [(m.body, m.content_type) for m in emulator_messages()] == before
    assert [m.state for m in emulator_messages()] == ["ready", "ready", "ready", "delayed"]


def test_an_export_is_what_a_batch_takes(api, call):
    """The lines are messages of Cloudflare's own API."""
    api.push({"n": 1})
    api.push("text")
    lines = call("GET", "/export").content.decode().splitlines()

    sent = api.post("/{jobs}/messages/batch", data=f'{{"messages": [{",".join(lines)}]}}')

    assert sent.status_code == 200
    assert api.metrics()["backlog_count"] == 4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "line 2: it is not valid JSON"),
        ('{"body": NaN}', "line 2: it is not valid JSON"),
        ("[1]", 'line 2: a message is an object with a "body"'),
        ('{"no": 1}', "line 2: a message is an object"),
        ('{"body": 1, "content_type": "text"}', "line 2: the body of a text message"),
        ('{"body": 1, "content_type": "v8"}', "line 2: content_type"),
        ('{"body": 1, "delay_seconds": -1}', "line 2: delay_seconds"),
        ('{"body": 1, "delay_seconds": true}', "line 2: delay_seconds"),
        (json.dumps({"body": "x" * 130_000}), "line 2: the message has"),
    ],
)
def test_an_import_names_the_line_and_publishes_nothing(call, emulator_messages, line, said):
    data = f'{{"body": "fine"}}\n{line}\n'.encode()
    answer = call("POST", "/import", data=data, headers={"Content-Type": "application/x-ndjson"})

    assert answer.status_code == 400
    assert said in answer.json()["error"]
    assert emulator_messages() == []


def test_a_form_of_another_site_imports_nothing(call, emulator_messages):
    answer = call("POST", "/import", data=b'{"body":1}', headers={"Content-Type": "text/plain"})

    assert answer.status_code == 415
    assert emulator_messages() == []


def of_celery(emulator):
    app = Celery(broker=emulator.broker_url)
    app.conf.task_default_queue = "jobs"
    app.send_task("shop.pay", (BIG, "ü'\"\\"), {"when": None}, countdown=5)
    app.close()


MESSAGES = {
    "celery": of_celery,
    "object": lambda api: api.push({"n": BIG, "t": 'it\'s "ü"', "x": [True, None, 1.5]}),
    "number": lambda api: api.post("/{jobs}/messages/batch", {"messages": [{"body": 5}]}),
    "text": lambda api: api.push('it\'s "text" \\ with\nlines and ü $HOME `ls`'),
}


@pytest.mark.parametrize("kind", first_of(MESSAGES))
@pytest.mark.parametrize("form", ["curl", "sdk", "kombu"])
def test_copied_code_publishes_the_same_again(api, call, emulator_messages, form, kind, tmp_path):
    """As a person pastes it: into a shell, into Python."""
    MESSAGES[kind](api.emulator if kind == "celery" else api)
    [message] = emulator_messages()
    code = call("GET", f"/messages/{message.number}").json()["code"][form]

    command = ["sh", "-euc", code] if form == "curl" else [sys.executable, "-c", code]
    env = {**os.environ, "PYTHONPATH": as_installed(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    first, again = emulator_messages()
    if form == "kombu" and kind == "celery":  # an envelope of its own, with the same inside
        assert (again.task, again.content) == (first.task, first.content)
        assert again.headers == first.headers
    else:
        assert (again.value, again.content_type) == (first.value, first.content_type)


def test_a_body_that_is_too_long_for_an_argument_is_copied_too(api, call, emulator_messages):
    api.push("x" * 120_000)
    [message] = emulator_messages()
    code = call("GET", f"/messages/{message.number}").json()["code"]["curl"]

    subprocess.run(["sh", "-eu"], input=code.encode(), capture_output=True, timeout=60, check=True)

    assert [len(m.body) for m in emulator_messages()] == [120_000, 120_000]


def test_the_first_steps_work_as_they_stand(tmp_path):
    """What the page of an empty emulator says is pasted into a shell, and into Python."""
    env = {**os.environ, "PYTHONPATH": as_installed(tmp_path)}
    with Emulator() as emulator:
        state = requests.get(f"{emulator.page_url}_emulator/state", timeout=5).json()
        steps = state["first_steps"]
        for command in (["sh", "-euc", steps["curl"]], [sys.executable, "-c", steps["python"]]):
            subprocess.run(command, env=env, capture_output=True, timeout=60, check=True)
        [message] = emulator.messages("jobs")
        assert (message.task, message.content[0]) == ("hello", ["world"])
        assert steps["broker_url"] == emulator.broker_url


def test_a_token_of_ones_own_stands_in_no_code(tmp_path):
    """Code names the variable that holds it."""
    env = {**os.environ, "CFQUEUES_EMULATOR_TOKEN": "secret-token"}
    env["PYTHONPATH"] = as_installed(tmp_path)
    with Emulator(token="secret-token") as emulator:
        jobs = emulator.create_queue("jobs", consumer={"type": "http_pull"})
        url = f"{emulator.page_url}_emulator"
        requests.post(
            f"{url}/queues/{jobs}/messages", json={"kind": "text", "body": "x"}, timeout=5
        )
        [message] = emulator.messages("jobs")
        whole = requests.get(f"{url}/queues/{jobs}/messages/{message.number}", timeout=5).json()
        state = requests.get(f"{url}/state", timeout=5).json()
        assert "secret-token" not in json.dumps([whole, state])

        for code in (whole["code"]["curl"], state["first_steps"]["curl"]):
            done = subprocess.run(
                ["sh", "-euc", code.replace('"jobs"', '"more"')],
                env=env,
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            )
            assert '"success":true' in done.stdout
        for code in (whole["code"]["sdk"], whole["code"]["kombu"], state["first_steps"]["python"]):
            subprocess.run(
                [sys.executable, "-c", code],
                env=env,
                capture_output=True,
                timeout=60,
                check=True,
            )
        assert len(emulator.messages("jobs")) == 5
