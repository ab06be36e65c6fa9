"""Bad input through Kombu and Celery: a clear error of the right family, and nothing is lost."""

import time
from datetime import datetime, timedelta, timezone

import pytest
from celery import Celery
from kombu import Connection, Exchange, Queue
from kombu.exceptions import ChannelError, OperationalError
from support.scripted import (
    Api,
    Die,
    Drip,
    Drop,
    Failure,
    Hang,
    Html,
    Json,
    Reset,
    Say,
    ScriptedServer,
)

import kombu_cfqueues
from kombu_cfqueues import errors

#: Celery's ``task_publish_retry_policy`` as it is unless set.
POLICY = {"max_retries": 3, "interval_start": 0, "interval_max": 1, "interval_step": 0.2}

TRANSIENT = kombu_cfqueues.Transport.connection_errors
PERMANENT = kombu_cfqueues.Transport.channel_errors


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """No account but what a test gives."""
    monkeypatch.delenv("CLOUDFLARE_ACCOUNT_ID", raising=False)
    monkeypatch.delenv("CLOUDFLARE_API_TOKEN", raising=False)


@pytest.fixture
def api():
    return Api(["jobs"])


@pytest.fixture
def server(api):
    with ScriptedServer(otherwise=api) as server:
        yield server


def connect(server, **options):
    return Connection(server.broker_url, transport_options={"publish_timeout": 2, **options})


def publish(connection, body="x", queue="jobs", **kwargs):
    return connection.Producer().publish(body, routing_key=queue, **kwargs)


def refusal(connection, kind, *args, **kwargs):
    """What publishing raises; it has to be of the right family of Kombu's errors."""
    with connection, pytest.raises(kind) as refused:
        publish(connection, *args, **kwargs)
    permanent = isinstance(refused.value, errors.PermanentError)
    assert isinstance(refused.value, PERMANENT) == permanent
    assert isinstance(refused.value, TRANSIENT) != permanent
    return refused.value


# Who is asking


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (Failure(400, 6003, "Invalid request headers"), errors.AuthenticationFailed),
        (Failure(403, 10000, "Authentication error"), errors.AuthenticationFailed),
        (Failure(401), errors.AuthenticationFailed),
        (Failure(403, 10106, "Unauthorized"), errors.PermissionDenied),
        (Failure(403), errors.PermissionDenied),
    ],
)
@pytest.mark.parametrize("retry", [False, True])
def test_a_token_that_is_refused_says_so_at_once(step, kind, retry):
    """No retry can help, and the first line of the log has to."""
    with ScriptedServer(otherwise=lambda _: step) as server:
        error = refusal(connect(server), kind, retry=retry, retry_policy=POLICY)

    assert server.token not in str(error)
    assert "token" in str(error)
    assert len(server.requests) == 1


def test_a_token_that_may_read_but_not_publish_names_the_permission(api):
    def weak(request):
        return Failure(403, 10106) if request.path.endswith("/messages") else api(request)

    with ScriptedServer(otherwise=weak) as server:
        error = refusal(connect(server), errors.PermissionDenied)

    assert "Queues Edit" in str(error)
    assert "'jobs'" in str(error)


@pytest.mark.parametrize("token", ["two%20words", "%C3%BCmlaut", "line%0Abreak"])
def test_a_malformed_token_costs_no_request(server, token):
    url = server.broker_url.replace(server.token, token)

    error = refusal(Connection(url), errors.AuthenticationFailed)

    assert "malformed" in str(error)
    assert not server.requests


def test_a_token_with_a_word_before_it_costs_no_request(server):
    url = server.broker_url.replace(server.token, f"Bearer%20{server.token}")

    error = refusal(Connection(url), errors.ConfigurationError)

    assert "begins with 'Bearer'" in str(error)
    assert server.token not in str(error)
    assert not server.requests


@pytest.mark.parametrize(
    ("url", "option", "variable"),
    [
        ("cfqueues://", "account_id", "CLOUDFLARE_ACCOUNT_ID"),
        ("cfqueues://127.0.0.1/", "account_id", "CLOUDFLARE_ACCOUNT_ID"),
        ("cfqueues://account@127.0.0.1/", "api_token", "CLOUDFLARE_API_TOKEN"),
    ],
)
def test_a_missing_account_or_token_is_named(url, option, variable):
    error = refusal(Connection(url), errors.ConfigurationError)

    assert option in str(error)
    assert variable in str(error)


def test_an_account_that_is_not_the_tokens_is_named():
    with ScriptedServer(Failure(404, 7003, "Could not route to /accounts/x")) as server:
        error = refusal(connect(server), errors.ConfigurationError)

    assert "account_id" in str(error)


@pytest.mark.parametrize("host", ["10.0.0.1", "emulator"])
def test_plain_http_to_another_machine_is_refused_before_any_request(host):
    options = {"base_url": f"http://{host}:8787", "account_id": "a", "api_token": "t"}

    error = refusal(Connection("cfqueues://", transport_options=options), errors.ConfigurationError)

    assert "allow_insecure_http" in str(error)


# Which queue


def test_a_passive_declare_of_a_missing_queue_is_kombus_404(server):
    with connect(server) as connection, pytest.raises(ChannelError) as missing:
        Queue("missing", channel=connection).queue_declare(passive=True)

    assert missing.value.reply_code == "404"
    assert isinstance(missing.value, PERMANENT)
    assert not server.targets("POST")


def test_a_passive_declare_of_an_existing_queue_is_fine(server):
    with connect(server) as connection:
        declared = Queue("jobs", channel=connection.default_channel).queue_declare(passive=True)

    assert declared.queue == "jobs"


def test_a_missing_queue_is_not_created_where_that_is_off(server):
    error = refusal(
        connect(server, create_missing_queues=False), errors.QueueNotFound, queue="missing"
    )

    assert "'missing'" in str(error)
    assert "create_missing_queues" in str(error)
    assert not server.targets("POST")


@pytest.mark.parametrize("queue", ["...", "ü", "@", 5, b"jobs"])
def test_a_queue_name_that_cloudflare_cannot_have_is_refused(server, queue):
    error = refusal(connect(server), errors.ConfigurationError, queue=queue)

    assert repr(queue) in str(error)
    assert not server.targets("POST")


def test_two_queue_names_that_are_one_at_cloudflare_are_refused(server, api):
    with connect(server) as connection:
        publish(connection, queue="emails.new")
        error = refusal(connection, errors.QueueNameConflict, queue="emails_new")

    assert "'emails.new'" in str(error)
    assert "'emails_new'" in str(error)
    assert len(api.messages["emails-new"]) == 1


def test_a_queue_that_was_deleted_and_made_again_gets_the_message(server, api):
    """One look more, and nobody has to restart anything."""
    with connect(server) as connection:
        publish(connection, "before")
        api.add("jobs")
        api.messages["jobs"].clear()
        publish(connection, "after")

    assert len(api.messages["jobs"]) == 1


def test_a_queue_that_was_deleted_is_made_again(server, api):
    with connect(server) as connection:
        publish(connection, "before")
        del api.ids["jobs"]
        api.messages["jobs"].clear()
        publish(connection, "after")

    assert len(api.messages["jobs"]) == 1


def test_a_queue_that_was_deleted_is_looked_for_once_only(api):
    """A server that lists what it does not take must not be asked for ever."""
    with ScriptedServer(otherwise=api) as server, connect(server) as connection:
        publish(connection)
        asked = len(server.requests)

        def denies(request):
            gone = request.path.endswith("/messages")
            return Failure(404, 10104) if gone else api(request)

        server.otherwise = denies
        refusal(connection, errors.QueueNotFound)

        assert len(server.requests) - asked == 3  # publish, look up, publish


def test_a_given_id_that_does_not_exist_is_told_as_such(server):
    error = refusal(connect(server, queues={"jobs": "f" * 32}), errors.QueueNotFound)

    assert "'jobs'" in str(error)
    assert len(server.targets("POST")) == 1


@pytest.mark.parametrize("given", [{}, {"mandatory": True}])
def test_a_message_without_a_queue_is_refused(server, given):
    refused = pytest.raises(errors.InvalidMessage, match="neither an exchange nor a routing key")
    with connect(server) as connection, refused:
        publish(connection, queue="", **given)

    assert not server.targets("POST")


@pytest.mark.parametrize("kind", ["direct", "topic"])
@pytest.mark.parametrize("unroutable", ["raise", "drop"])
def test_a_message_that_nothing_is_bound_for_is_refused(server, kind, unroutable):
    exchange = Exchange(f"unbound-{kind}", kind)
    mandatory = unroutable == "drop"
    with (
        connect(server, unroutable=unroutable) as connection,
        pytest.raises(errors.InvalidMessage) as refused,
    ):
        publish(
            connection, queue="nobody", exchange=exchange, declare=[exchange], mandatory=mandatory
        )

    assert f"unbound-{kind}" in str(refused.value)
    assert "'nobody'" in str(refused.value)
    assert not server.targets("POST", "/messages")


# Which message


@pytest.mark.parametrize("options", [{}, {"content_type": "json"}, {"body_format": "plain"}])
def test_a_message_over_128_kb_is_refused_with_its_size_before_it_is_sent(server, options):
    connection = connect(server, compress_large=False, **options)
    error = refusal(connection, errors.MessageTooLarge, "x" * 128_000)

    assert "128," in str(error)
    assert "127,900" in str(error)
    assert not server.targets("POST")


def test_a_message_that_the_server_finds_too_large_says_so(api):
    def strict(request):
        return Failure(413, 10204, "too large") if request.method == "POST" else api(request)

    with ScriptedServer(otherwise=strict) as server:
        refusal(connect(server), errors.MessageTooLarge)

    assert len(server.targets("POST")) == 1


@pytest.mark.parametrize("delay", [-1, 86_401, 10**9, float("nan"), "soon"])
def test_a_delay_that_cannot_be_is_refused(server, delay):
    error = refusal(connect(server), errors.InvalidMessage, delay_seconds=delay)

    assert repr(delay) in str(error)
    assert not server.targets("POST")


def test_a_delay_past_the_queues_retention_is_refused():
    """The queue would delete the message unread."""
    with ScriptedServer(otherwise=Api(["jobs"], retention=3600)) as server:
        error = refusal(connect(server), errors.InvalidMessage, delay_seconds=7200)

    assert "3,600 s" in str(error)
    assert not server.targets("POST")


@pytest.mark.parametrize(
    ("options", "body", "headers"),
    [
        ({}, "x", {"x": float("nan")}),
        ({}, "x", {"x": [float("inf")]}),
        ({}, "x", {"x": "\ud800"}),
        ({"content_type": "json"}, "x", {"x": float("nan")}),
        ({"content_type": "json"}, "x", {"x": "\ud800"}),
        ({"body_format": "plain", "content_type": "json"}, {"x": float("nan")}, {}),
        ({"body_format": "plain"}, b"\xff\x00", {}),
    ],
)
def test_what_json_cannot_carry_is_refused(server, options, body, headers):
    refusal(connect(server, **options), errors.InvalidMessage, body, headers=headers)

    assert not server.targets("POST")


def test_an_escaped_surrogate_of_the_applications_json_is_sent_as_it_is(server, api):
    with connect(server) as connection:
        publish(connection, {"half": "\ud83c"})

    assert r"\\ud83c" in api.messages["jobs"][0]["body"]


# Celery


def app_of(server, **options):
    app = Celery("app", broker=server.broker_url, set_as_current=False)
    app.conf.broker_transport_options = {"publish_timeout": 2, **options}
    app.conf.task_default_queue = "jobs"

    @app.task(name="add", shared=False)
    def add(x, y):
        return x + y

    return app, app.tasks["add"]


@pytest.mark.parametrize("seconds", [90, 86_400, 100_000, 3 * 86_400])
def test_an_eta_beyond_24_hours_waits_24_hours_first(server, api, seconds):
    app, add = app_of(server)
    with app:
        add.apply_async((1, 2), countdown=seconds)

    assert api.messages["jobs"][0]["delay_seconds"] == min(seconds, 86_400)


def test_an_eta_past_the_queues_retention_is_refused_by_celery_too(server):
    app, add = app_of(server)
    with app, pytest.raises(errors.InvalidMessage):
        add.apply_async((1, 2), eta=datetime.now(timezone.utc) + timedelta(days=5))

    assert not server.targets("POST")


def test_an_error_of_celerys_delay_is_ours_after_one_try(api):
    """A permanent error is raised at once, as what it is."""

    def weak(request):
        return Failure(403, 10106) if request.method == "POST" else api(request)

    with ScriptedServer(otherwise=weak) as server:
        app, add = app_of(server)
        with app, pytest.raises(errors.PermissionDenied):
            add.delay(1, 2)

    assert len(server.targets("POST")) == 1


def test_a_server_that_is_down_is_what_celerys_users_catch(server):
    app, add = app_of(server, publish_timeout=0.5)
    server.stop_listening()
    began = time.monotonic()

    with app, pytest.raises(OperationalError):
        add.delay(1, 2)

    assert time.monotonic() - began < 10


# The way there: nothing is lost, and nobody waits longer than publish_timeout


TROUBLE = {
    "dropped": Drop(),
    "reset": Reset(),
    "page": Html(502),
    "empty": Say(200),
    "broken json": Say(200, b'{"success": tr'),
    "no success": Json(200, {"success": False, "errors": []}),
    "busy": Failure(429, 10250),
    "down": Failure(503, Retry_After="0"),
    "timeout": Failure(408),
    "failed": Failure(500, 15000),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_trouble_that_passes_loses_no_message(api, trouble):
    step = TROUBLE[trouble]
    with ScriptedServer(otherwise=api) as server, connect(server) as connection:
        publish(connection, "first")
        server.script += [step]
        publish(connection, "second")

    assert len(api.messages["jobs"]) == 2


@pytest.mark.parametrize("trouble", TROUBLE)
def test_trouble_that_stays_is_a_publish_timeout_that_says_what_it_was(api, trouble):
    step = TROUBLE[trouble]
    with ScriptedServer(otherwise=api) as server:
        connection = connect(server, publish_timeout=1)
        connection.connect()
        publish(connection, "first", timeout=30)
        server.otherwise = lambda _: step
        server.script += [step] * 1000
        began = time.monotonic()
        error = refusal(connection, errors.PublishTimeout, retry=True, retry_policy=POLICY)
        took = time.monotonic() - began

    assert took < 10
    assert isinstance(error, OperationalError)
    assert isinstance(error.__cause__, errors.TransientError)
    assert str(error.__cause__) in str(error)
    assert error.delivered == ("no" if trouble in ("busy", "down") else "unknown")


def test_a_spent_allowance_is_not_waited_for_longer_than_anybody_would(api):
    """429 with Retry-After: 300 blocks every call of the token for 5 minutes."""
    with ScriptedServer(otherwise=api) as server:
        connection = connect(server)
        connection.connect()
        publish(connection)
        blocked = Failure(429, 971, Retry_After="300")
        server.otherwise = lambda _: blocked
        asked = len(server.requests)

        error = refusal(connection, errors.PublishTimeout, retry=True, retry_policy=POLICY)

    assert isinstance(error.__cause__, errors.RateLimited)
    assert error.retry_after == 300
    assert len(server.requests) - asked == 1


def test_who_must_not_duplicate_is_told_of_doubt_after_one_try(api):
    with (
        ScriptedServer(otherwise=api) as server,
        connect(server, retry_uncertain=False) as connection,
    ):
        publish(connection)
        server.script += [Drop()]
        error = refusal(connection, errors.PublishTimeout, retry=True, retry_policy=POLICY)

    assert error.delivered == "unknown"
    assert len(server.targets("POST", "/messages")) == 2


def test_a_lost_answer_to_a_look_up_leaves_no_message_in_doubt(api):
    with (
        ScriptedServer(otherwise=api) as server,
        connect(server, publish_timeout=1) as connection,
    ):
        connection.connect()
        server.otherwise = lambda _: Drop()
        error = refusal(connection, errors.PublishTimeout, queue="other")

    assert error.delivered == "no"
    assert "did not arrive" in str(error)


@pytest.mark.parametrize(
    ("publish_timeout", "given"),
    [
        (60, {"timeout": 0.1}),
        (60, {"timeout": 0}),
        (60, {"timeout": -1}),
        (60, {"confirm_timeout": 0.1}),
        (60, {"timeout": 0.1, "confirm_timeout": 60}),
        (0.2, {"timeout": 60}),
        (0.2, {"confirm_timeout": 60}),
        (0.2, {"timeout": float("nan")}),
    ],
)
def test_kombus_timeouts_shorten_the_wait_and_never_lengthen_it(api, publish_timeout, given):
    with ScriptedServer(otherwise=api) as server:
        connection = connect(server, publish_timeout=publish_timeout, read_timeout=60)
        publish(connection)
        server.otherwise = lambda _: Hang()
        began = time.monotonic()
        error = refusal(connection, errors.PublishTimeout, **given)

    assert time.monotonic() - began < 20
    assert "60 s" not in str(error)


DEAD = {
    "refused": None,
    "hanging": Hang(),
    "dropping": Drop(),
    "resetting": Reset(),
    "dripping": Drip(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000),
    "page": Html(502),
}


@pytest.mark.parametrize(
    ("dead", "connected", "publish_timeout"),
    [
        *((dead, connected, 0.3) for dead in DEAD for connected in (False, True)),
        ("hanging", False, 2),
        ("hanging", True, 2),
    ],
)
def test_publishing_to_a_dead_server_ends_in_time(api, dead, connected, publish_timeout):
    """With Celery's retry policy, by which Kombu would repeat it three times."""
    step = DEAD[dead]
    with ScriptedServer(otherwise=api) as server:
        connection = connect(server, publish_timeout=publish_timeout)
        if connected:
            publish(connection)
        if step is None:
            server.stop_listening()
        else:
            server.otherwise = lambda _: step
            server.script += [step] * 1000
        began = time.monotonic()
        with pytest.raises(OperationalError) as failed:
            publish(connection, retry=True, retry_policy=POLICY)
        took = time.monotonic() - began
        connection.release()

    assert took < publish_timeout + 4, "four times 2 s are 8"
    assert isinstance(failed.value.__cause__, errors.TransientError)


@pytest.mark.parametrize("dead", DEAD)
def test_a_fail_over_list_arrives_at_the_second_url(api, dead):
    step = DEAD[dead]
    with ScriptedServer(*[step] * 50, otherwise=lambda _: step) as first:
        if step is None:
            first.stop_listening()
        with ScriptedServer(otherwise=api) as second:
            options = {"publish_timeout": 1.5, "read_timeout": 0.3}
            with Connection(
                f"{first.broker_url};{second.broker_url}", transport_options=options
            ) as connection:
                publish(connection, retry=True, retry_policy=POLICY)

    assert len(api.messages["jobs"]) == 1


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("lost", [True, False])
def test_a_server_that_dies_after_connecting_is_left_for_the_second_url(api, known, lost):
    """Also if the first thing that its client hears of it is a lost answer."""
    with ScriptedServer(otherwise=Api(["jobs"])) as first, ScriptedServer(otherwise=api) as second:
        options = {"publish_timeout": 30}
        with Connection(
            f"{first.broker_url};{second.broker_url}", transport_options=options
        ) as connection:
            connection.connect()
            if known:
                publish(connection)
            if lost:
                first.otherwise = lambda _: Die()
            else:
                first.stop_listening()
            began = time.monotonic()
            publish(connection, retry=True, retry_policy=POLICY)

    assert len(api.messages["jobs"]) == 1
    assert time.monotonic() - began < 10


def test_a_message_in_doubt_is_not_given_to_the_second_url_after_its_time(api):
    """The caller has waited for publish_timeout, and would wait for another one."""
    with ScriptedServer(otherwise=Api(["jobs"])) as first, ScriptedServer(otherwise=api) as second:
        connection = Connection(
            f"{first.broker_url};{second.broker_url}", transport_options={"publish_timeout": 0.3}
        )
        publish(connection)
        first.otherwise = lambda _: Hang()
        began = time.monotonic()

        error = refusal(connection, errors.PublishTimeout, retry=True, retry_policy=POLICY)

        assert time.monotonic() - began < 10
    assert error.delivered == "unknown"
    assert not second.requests


def test_connecting_to_a_dead_server_fails(server):
    server.stop_listening()
    connection = connect(server, max_retries=1, interval_start=0, interval_step=0)

    with pytest.raises(TRANSIENT):
        connection.connect()
    with pytest.raises(OperationalError):
        assert connection.default_channel
    assert not connection.connected


def test_a_connection_survives_a_server_that_comes_back(api):
    with ScriptedServer(Html(503), Drop(), otherwise=api) as server:
        connection = connect(server)
        connection.ensure_connection(max_retries=50, interval_start=0.2, interval_step=0)
        publish(connection)
        connection.release()

    assert len(api.messages["jobs"]) == 1
