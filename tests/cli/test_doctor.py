"""``cfqueues doctor``: each mistake is one line that says what to do."""

import contextlib
import json
import re
import signal
import sys
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from support.processes import eventually
from support.scripted import (
    CA_BUNDLE,
    Api,
    Drip,
    Drop,
    Failure,
    Hang,
    Html,
    Json,
    Reset,
    Say,
    ScriptedServer,
    Success,
)

from kombu_cfqueues.emulator import Emulator


def verdicts(done):
    return {check["name"]: check["verdict"] for check in done.json["checks"]}


def problem(done):
    """The one line that says what is wrong."""
    (line,) = [line for line in done.out.splitlines() if line.startswith("PROBLEM")]
    assert done.code == 1
    assert done.out.splitlines()[-1].startswith("1 problem")
    assert "Traceback" not in done.out + done.err
    return line


# All is well


def test_a_healthy_account_is_told_so(cfqueues, emulator):
    emulator.create_queue("jobs", consumer={"type": "http_pull", "settings": {"max_retries": 100}})

    done = cfqueues("doctor", "jobs")

    assert done.out.splitlines()[-1] == "No problems found."
    assert "consumer: pull, 100 retries; holds about 0 messages" in done.out
    assert emulator.token not in done.out
    assert len(emulator.requests) <= 6


def test_json_has_every_check(cfqueues, emulator):
    emulator.create_queue("jobs")

    done = cfqueues("doctor", "jobs", "--json")

    assert done.json["ok"] is True
    assert set(verdicts(done).values()) == {"ok"}
    assert {
        "API",
        "token",
        "permission",
        "clock",
        "proxy",
        "TLS",
        "allowance",
        "queue jobs",
    } <= set(verdicts(done))


def test_doctor_changes_nothing(cfqueues, emulator):
    emulator.create_queue("jobs", consumer={"type": "http_pull"})
    cfqueues("publish", "jobs", "1")

    cfqueues("doctor", "jobs", "other", code=0)

    [message] = emulator.messages("jobs")
    assert message.attempts == 0
    assert emulator.queue_names() == ["jobs"]


# Who is asking


@pytest.mark.parametrize(
    "step",
    [
        Failure(400, 6003, "Invalid request headers"),
        Failure(403, 10000, "Authentication error"),
        Failure(401),
        Failure(403, 10106, "Unauthorized"),
        Failure(403),
    ],
)
def test_a_token_that_is_refused(run, step):
    with ScriptedServer(otherwise=lambda _: step) as server:
        done = run(server.broker_url, "doctor")

    assert re.search(r"^PROBLEM\s+token: .*(Queues Edit|check api_token)", problem(done))
    assert server.token not in done.out


def test_a_token_that_may_read_and_not_publish(run):
    with Emulator(tokens={"viewer": "read"}) as emulator:
        emulator.create_queue("jobs")
        url = emulator.broker_url.replace(emulator.token, "viewer")
        done = run(url, "doctor", "jobs")

    assert "permission: " in problem(done)
    assert "Queues Edit" in problem(done)


@pytest.mark.parametrize("token", ["Bearer%20x", "two%20words", "%C3%BCmlaut", "line%0Abreak"])
def test_a_malformed_token(run, token):
    with ScriptedServer() as server:
        done = run(server.broker_url.replace(server.token, token), "doctor")

    assert "api_token" in problem(done)
    assert not server.requests


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("cfqueues://", "CLOUDFLARE_ACCOUNT_ID"),
        ("cfqueues://127.0.0.1/", "CLOUDFLARE_ACCOUNT_ID"),
        ("cfqueues://account@127.0.0.1/", "CLOUDFLARE_API_TOKEN"),
        ("cfqueues://account:t@/", "32 hex digits"),
        ("cfqueues://a:t@127.0.0.1/vhost", "queue_name_prefix"),
        ("cfqueues://a:t@127.0.0.1:x/", "cannot be read"),
        ("redis://127.0.0.1/", "cfqueues://"),
        ("127.0.0.1", "cfqueues://"),
    ],
)
def test_a_broker_url_that_lacks_something(run, url, words):
    assert words in problem(run(url, "doctor"))


def test_an_account_that_is_not_the_tokens(run):
    with ScriptedServer(Failure(404, 7003, "Could not route to /accounts/x")) as server:
        done = run(server.broker_url, "doctor")

    assert "account: " in problem(done)
    assert "account_id" in problem(done)


@pytest.mark.parametrize("host", ["10.0.0.1", "emulator"])
def test_plain_http_to_another_machine(run, host):
    done = run("cfqueues://a:t@/", "doctor", "--base-url", f"http://{host}:8787")

    assert "allow_insecure_http" in problem(done)


# Which queue


def test_a_missing_queue_is_a_problem_only_where_it_is_not_made(run):
    with ScriptedServer(otherwise=Api(["jobs"])) as server:
        made = run(server.broker_url, "doctor", "missing", "--json", code=0)
        never = run(server.broker_url, "doctor", "missing", "-o", "create_missing_queues=no")

    assert verdicts(made)["queue missing"] == "warning"
    assert "cfqueues queues create missing" in problem(never)


@pytest.mark.parametrize("queue", ["...", "ü", "@"])
def test_a_queue_name_that_cloudflare_cannot_have(cfqueues, queue):
    assert "no letter or digit" in problem(cfqueues("doctor", queue, code=1))


@pytest.mark.parametrize("exists", [True, False])
def test_two_queue_names_that_are_one_at_cloudflare(cfqueues, emulator, exists):
    if exists:
        emulator.create_queue("emails-new")
    done = cfqueues("doctor", "emails.new", "emails_new", code=1)

    assert "rename one" in problem(done)


def test_a_given_id_that_does_not_exist(cfqueues):
    queues = json.dumps({"jobs": "f" * 32})

    line = problem(cfqueues("doctor", "jobs", "-o", f"queues={queues}", code=1))
    assert "'jobs'" in line
    assert "the option 'queues'" in line


@pytest.mark.parametrize(
    ("queue", "command"),
    [
        (
            {"consumer": {"type": "http_pull", "settings": {"max_retries": 3}}},
            "queues update jobs --max-retries 100",
        ),
        ({"delivery_paused": True}, "queues resume jobs"),
    ],
)
def test_what_will_hurt_later_is_a_warning_with_the_command_that_helps(
    cfqueues, emulator, queue, command
):
    emulator.create_queue("jobs", **queue)

    done = cfqueues("doctor", "jobs")

    (line,) = [line for line in done.out.splitlines() if line.startswith("warning")]
    assert f"'cfqueues {command}'" in line
    assert done.out.endswith("1 warning.\n")
    cfqueues(*command.split())
    assert "warning" not in cfqueues("doctor", "jobs").out


def test_a_workers_queue_names_the_worker(cfqueues, emulator):
    emulator.create_queue("jobs", consumer={"type": "worker", "script_name": "mailer"})

    assert "consumer: Worker mailer" in cfqueues("doctor", "jobs").out


def test_what_a_killed_settle_left_is_named(cfqueues, emulator):
    emulator.create_queue("cfqueues-settle-0a1b2c3d")

    assert "cfqueues queues delete cfqueues-settle-0a1b2c3d" in cfqueues("doctor").out


# The way there

TROUBLE = {
    "dropped": (Drop(), "check the host"),
    "reset": (Reset(), "check the host"),
    "hanging": (Hang(), "check the host"),
    "dripping": (Drip(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000), "check the host"),
    "page": (Html(502), "cloudflarestatus"),
    "empty": (Say(200), "cloudflarestatus"),
    "broken json": (Say(200, b'{"success": tr'), "cloudflarestatus"),
    "no success": (Json(200, {"success": False, "errors": []}), "cloudflarestatus"),
    "busy": (Failure(429, 10250), "try again later"),
    "blocked": (Failure(429, 971, Retry_After="300"), "Try again in 300 s"),
    "down": (Failure(503, Retry_After="0"), "cloudflarestatus"),
    "timeout": (Failure(408), "cloudflarestatus"),
    "failed": (Failure(500, 15000), "cloudflarestatus"),
    "redirected": (Say(302, headers={"Location": "http://127.0.0.1/"}), "base_url"),
    "not it": (Say(405, b"no"), "base_url"),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_trouble_on_the_way_says_where_to_look(run, trouble):
    step, words = TROUBLE[trouble]
    with ScriptedServer(*[step] * 20, otherwise=lambda _: step) as server:
        # Where an answer comes, a slow machine may take its time.
        wait = 0.3 if trouble in ("hanging", "dripping") else 10
        done = run(server.broker_url, "doctor", "jobs", "-o", f"read_timeout={wait}")

    assert words in problem(done)


def test_a_server_that_is_not_there(run):
    with ScriptedServer() as server:
        server.stop_listening()
        done = run(server.broker_url, "doctor")

    assert "cannot be reached: nothing listens on 127.0.0.1:" in problem(done)
    assert "is 'cfqueues emulator' running?" in problem(done)


def test_a_certificate_that_nobody_trusts(run, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    with ScriptedServer(tls=True) as server:
        url = server.broker_url
        done = run(url, "doctor", "--base-url", server.base_url)
        assert "set REQUESTS_CA_BUNDLE" in problem(done)

        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CA_BUNDLE))
        done = run(url, "doctor", "--base-url", server.base_url, code=0)
        assert f"{CA_BUNDLE} (REQUESTS_CA_BUNDLE)" in done.out


@pytest.mark.parametrize("content", [None, "no certificates"])
def test_a_ca_bundle_that_is_none(run, monkeypatch, tmp_path, content):
    bundle = tmp_path / "bundle.pem"
    if content:
        bundle.write_text(content)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    with ScriptedServer(tls=True) as server:
        done = run(server.broker_url, "doctor", "--base-url", server.base_url)

    assert "REQUESTS_CA_BUNDLE names" in problem(done)
    assert not server.requests


def test_a_proxy_is_named_without_its_password(run, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:s3cret@127.0.0.1:9")
    url = f"cfqueues://{'0' * 32}:t@api.cloudflare.com/"

    done = run(url, "doctor")

    assert "go through http://127.0.0.1:9 (HTTPS_PROXY" in done.out
    assert "the proxy for api.cloudflare.com" in problem(done)
    assert "s3cret" not in done.out


def test_an_option_that_needs_a_package_is_a_problem_that_says_how_to_install_it(
    cfqueues, monkeypatch
):
    """The application may have Redis's client, and the environment of the command not."""
    monkeypatch.setitem(sys.modules, "redis", None)  # an import of it fails
    monkeypatch.setenv("CFQUEUES_BUDGET_URL", "redis://127.0.0.1:9/0")

    line = problem(cfqueues("doctor", "-o", "request_rate=3", code=1))

    assert line.startswith("PROBLEM  settings: budget_url needs the Python package redis: pip ")


@pytest.mark.parametrize(("minutes", "way"), [(10, "behind"), (-10, "ahead of")])
def test_a_clock_that_is_wrong(run, minutes, way):
    there = format_datetime(datetime.now(timezone.utc) + timedelta(minutes=minutes), usegmt=True)
    answer = Say(200, Success([]).body, headers={"Date": there})
    with ScriptedServer(otherwise=lambda _: answer) as server:
        done = run(server.broker_url, "doctor")

    assert re.search(rf"(9 min 5\d s|10 min( \d s)?) {way}", problem(done))
    assert "set the clock" in problem(done)


# The machine


def test_the_allowance_and_who_shares_it(cfqueues, emulator, start, tmp_path):
    spool = tmp_path / "spool"
    options = ["--spool-dir", spool, "--request-rate", "20", "--request-burst", "40"]
    relay = start(emulator.broker_url, "relay", *options)
    assert "Delivering" in relay.stdout.readline()

    done = cfqueues("doctor", *options)

    allowance = re.search(
        r"allowance: (\d+) of 40 requests may be sent at once, then 20 per second", done.out
    )
    assert allowance
    assert int(allowance[1]) <= 40
    assert f"shared with process {relay.pid}" in done.out
    assert "this user only" in done.out
    relay.send_signal(signal.SIGTERM)
    relay.wait(20)
    assert "not shared now" in cfqueues("doctor", *options).out


def test_a_token_that_the_api_has_stopped(run, tmp_path):
    with ScriptedServer(otherwise=lambda _: Failure(429, 971, Retry_After="240")) as server:
        options = ["--spool-dir", tmp_path / "spool", "--request-rate", "20"]
        done = run(server.broker_url, "doctor", *options, "--json", code=1)

    assert verdicts(done)["allowance"] == "problem"
    assert "what else uses the token" in done.out
    assert verdicts(done)["share"] == "warning"
    assert re.search(r"has used 2% of request_rate for \d+ s?", done.out)
    assert "of the 1,200 requests" in done.out
    assert "budget_url" in done.out


def test_a_machine_that_has_learned_nothing_has_no_line_on_its_share(cfqueues, tmp_path):
    done = cfqueues("doctor", "--spool-dir", tmp_path / "spool", "--request-rate", "20", "--json")

    assert "share" not in verdicts(done)


def test_top_shows_the_share_that_the_machine_has_learned(run, tmp_path):
    options = ["--spool-dir", tmp_path / "spool", "--request-rate", "400"]
    api, answers = Api(["jobs"]), [Failure(429, 971, Retry_After="1")]
    with ScriptedServer(otherwise=lambda r: answers.pop() if answers else api(r)) as server:
        run(server.broker_url, "doctor", *options, code=None)
        done = run(server.broker_url, "top", *options, "--json", "-n", "1")

    assert json.loads(done.out)["share"] == 0.025


def test_pods_are_told_what_to_set(run, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with ScriptedServer(otherwise=Api(["jobs"])) as server:
        lone = run(server.broker_url, "doctor", "-o", "request_rate=3.7", "--json")
        divided = run(server.broker_url, "doctor", "-o", "request_rate=0.5", "--json")

    assert verdicts(lone)["pod"] == "warning"
    assert "budget_url" in lone.out
    assert "pod" not in verdicts(divided)


@pytest.mark.parametrize("variable", ["AWS_LAMBDA_FUNCTION_NAME", "K_SERVICE"])
def test_a_spool_in_a_sandbox_that_is_frozen_is_a_warning(run, tmp_path, monkeypatch, variable):
    """Whoever deploys there learns that spooled messages wait, and can be lost."""
    monkeypatch.setenv(variable, "shop")
    with ScriptedServer(otherwise=Api(["jobs"])) as server:
        folder = ["--spool-dir", tmp_path / "spool", "--json"]
        spools = run(server.broker_url, "doctor", "-o", "publish_mode=spool", *folder)
        confirms = run(server.broker_url, "doctor", *folder)

    assert verdicts(spools)["serverless"] == "warning"
    assert variable in spools.out
    assert "publish_mode='confirm'" in spools.out
    assert "serverless" not in verdicts(confirms)


def test_a_spool_that_cannot_be(cfqueues, tmp_path):
    (tmp_path / "file").touch()

    done = cfqueues("doctor", "--spool-dir", tmp_path / "file", "-o", "publish_mode=spool", code=1)

    assert "spool: " in problem(done)


# doctor --settle

#: Knobs of an emulator, and what is then found.  One run takes seconds, so each asks much.
RUNS = [
    (
        {"rate_limit": 1200},
        {
            "json_pull_encoding": "base64",
            "strict_json_body": "true",
            "first_attempt": "1",
            "deliveries": "one_more",
            "late_ack": "accept",
            "unknown_lease": "warn",
            "ack_result": "counts",
            "push_result": "metrics",
            "bad_token": "403/10000",
            "missing_queue_code": "by_route",
            "pull_enable_delay": "at once",
            "paused_pull": "409",
            "list_name_filter": "exact",
            "list_page_size": "20",
            "too_large_status": "413",
            "metadata_bytes": "yes",
            "empty_batch_code": "10206",
            "min_visibility_ms": "yes",
            "peek": "true",
            "extend": "false",
            "fold_names": "false",
            "rate_limited_routes": "all_but_pull",
            "headers": "Ratelimit, Ratelimit-Policy, CF-Ray, Date",
        },
    ),
    (
        {
            "json_pull_encoding": "plain",
            "strict_json_body": False,
            "first_attempt": 0,
            "deliveries": "max_retries",
            "late_ack": "warn",
            "unknown_lease": "reject",
            "ack_result": "no_counts",
            "push_result": "null",
            "bad_token": "401/10000",
            "missing_queue_code": "10104",
            "paused_pull": "429/10252",
            "list_name_filter": "prefix",
            "list_page_size": 5,
            "too_large_status": 400,
            "metadata_bytes": 0,
            "empty_batch_code": "10207",
            "extend": True,
            "fold_names": True,
            "rate_limit": 1200,
            "rate_limited_routes": "admin",
        },
        {
            "metadata_bytes": "no",
            "strict_json_body": "false",
            "first_attempt": "0",
            "list_page_size": "5",
            "too_large_status": "400",
            "extend": "true",
            "fold_names": "true",
        },
    ),
    (
        {
            "json_pull_encoding": "mixed",
            "seed": 1,
            "ack_result": "warnings_list",
            "push_result": "absent",
            "bad_token": "403/9109",
            "missing_queue_code": "11000",
            "list_name_filter": "ignored",
            "empty_batch_code": "10013",
            "rate_limit": 1200,
            "rate_limited_routes": "all",
            "min_visibility_ms": 30_000,
            "pull_enable_delay": 1,
            "short_batches": True,
            "late_visibility": 0.5,
        },
        {
            "min_visibility_ms": "no",
            "late_ack": "unknown",
            "pull_enable_delay": "after 1.0 s",
            "first_attempt": "1",
        },
    ),
    (
        {"ack_result": "warnings_null", "bad_token": "401/9109"},
        {"rate_limited_routes": "unknown", "headers": "CF-Ray, Date"},
    ),
]

_NOT_TOLD = {"rate_limit", "seed", "short_batches", "late_visibility", "metadata_bytes"}


@pytest.mark.long
def test_settle_tells_each_position_of_each_knob(start):
    """Whoever has an account finds out what nobody knows, and can believe it.

    The runs wait for leases to end, so all of them wait at once.
    """
    with contextlib.ExitStack() as stack:
        emulators = [stack.enter_context(Emulator(**knobs)) for knobs, _ in RUNS]
        processes = [
            start(emulator.broker_url, "doctor", "--settle", "--json") for emulator in emulators
        ]
        for (knobs, more), emulator, process in zip(RUNS, emulators, processes, strict=True):
            out, err = process.communicate(timeout=200)
            assert process.returncode == 0, out + err
            found = {fact["name"]: fact["answer"] for fact in json.loads(out)["facts"]}
            told = {name: str(value) for name, value in knobs.items() if name not in _NOT_TOLD}
            expected = {"pull_enable_delay": "at once"} | told | more
            # How long it took is not said beforehand.
            found["pull_enable_delay"] = found["pull_enable_delay"].split()[0]
            expected["pull_enable_delay"] = expected["pull_enable_delay"].split()[0]
            assert {name: found[name] for name in expected} == expected
            assert emulator.queue_names() == []


def test_settle_that_fails_deletes_its_queue(cfqueues, emulator):
    emulator.faults.error("batch", status=403, code=10106, times=None)

    done = cfqueues("doctor", "--settle", code=1)

    assert "10106" in done.err
    assert "json_pull_encoding" not in done.out
    assert "strict_json_body" in done.out
    assert emulator.requests.of("create")
    assert emulator.queue_names() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_settle_that_is_stopped_deletes_its_queue(start, emulator, number):
    process = start(emulator.broker_url, "doctor", "--settle", "--json")
    assert eventually(lambda: len(emulator.requests.of("pull")) > 0, 30)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)

    assert process.returncode == 1
    assert json.loads(out)["failure"] == "stopped by a signal before it was done"
    assert emulator.queue_names() == []


@pytest.mark.parametrize("times", [1, None])
def test_settle_finds_a_queue_whose_creation_was_not_answered(cfqueues, emulator, times):
    """It may be there all the same."""
    emulator.faults.lost_response("create", times=times)
    emulator.faults.error("batch", status=403, code=10106, times=None)

    done = cfqueues("doctor", "--settle", "-o", "publish_timeout=2", code=1)

    assert "Error" in done.err
    assert emulator.queue_names() == []


def test_settle_needs_no_queue_of_yours(cfqueues):
    assert "leave the queue names out" in cfqueues("doctor", "--settle", "jobs", code=2).err
