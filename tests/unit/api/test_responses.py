"""What an HTTP answer means: statuses, codes, and bodies that are not the API's."""

import json
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requests.structures import CaseInsensitiveDict

from kombu_cfqueues import errors
from kombu_cfqueues.api.responses import CODES, Response, payload_of

ELSEWHERE = {}  # a route on which no status means anything special


def answer(status, payload=None, *, body=None, **headers):
    if body is None:
        body = json.dumps(payload).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, CaseInsensitiveDict(named), body)


def refused(status, code=None, text="refused", **headers):
    error = {"message": text} if code is None else {"code": code, "message": text}
    return answer(status, {"success": False, "errors": [error]}, **headers)


def read(given, statuses=ELSEWHERE):
    return payload_of(given, "publishing to queue 'jobs'", statuses, "")


def error_of(given, statuses=ELSEWHERE):
    with pytest.raises(errors.CFQueuesError) as raised:
        read(given, statuses)
    return raised.value


@pytest.mark.parametrize("payload", [{"success": True}, {"success": True, "result": None}])
def test_success_needs_no_result(payload):
    """The documented example of publishing has none."""
    assert read(answer(200, payload)).get("result") is None


def test_messages_of_a_success_are_no_errors():
    payload = {"success": True, "messages": [{"code": 10000}], "errors": [], "result": 1}

    assert read(answer(201, payload))["result"] == 1


@pytest.mark.parametrize("success", [False, None, "true", 1])
def test_status_200_is_no_success_unless_the_envelope_says_so(success):
    """Cloudflare may answer an error with status 200; nothing is lost to that."""
    error = error_of(answer(200, {"success": success}))

    assert type(error) is errors.ServerError
    assert error.status == 200
    assert error.delivered == "unknown"


def test_success_with_the_status_of_an_error_is_an_error():
    assert type(error_of(answer(500, {"success": True}))) is errors.ServerError


def test_a_code_under_status_200_says_what_it_is():
    error = error_of(refused(200, 10104))

    assert type(error) is errors.QueueNotFound
    assert error.code == 10104


@pytest.mark.parametrize(
    "body",
    [b"", b"<html></html>", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"1" * 5000],
    ids=["empty", "html", "broken", "list", "null", "not utf-8", "nested", "number"],
)
@pytest.mark.parametrize("status", [200, 500, 502])
def test_a_body_that_is_not_the_apis_is_the_servers_failure(status, body):
    error = error_of(answer(status, body=body))

    assert type(error) is errors.ServerError
    assert error.delivered == "unknown"


def test_an_empty_body_and_a_page_are_told_apart():
    empty = error_of(answer(200, body=b""))
    page = error_of(answer(502, body=b"<html>", Content_Type="text/html; charset=UTF-8"))

    assert "empty body" in str(empty)
    assert "6 bytes (text/html) that are not the API's JSON" in str(page)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, errors.ConfigurationError),
        (400, errors.InvalidMessage),
        (401, errors.AuthenticationFailed),
        (403, errors.PermissionDenied),
        (404, errors.QueueNotFound),
        (405, errors.ConfigurationError),
        (408, errors.ServerError),
        (409, errors.QueueNameConflict),
        (413, errors.MessageTooLarge),
        (418, errors.InvalidMessage),
        (429, errors.RateLimited),
        (500, errors.ServerError),
        (503, errors.ServerError),
        (599, errors.ServerError),
    ],
)
@pytest.mark.parametrize("body", [b"<html>", b'{"success": false, "errors": []}'])
def test_without_a_code_the_status_decides(status, kind, body):
    error = error_of(answer(status, body=body))

    assert type(error) is kind
    assert error.status == status
    assert error.code is None


@pytest.mark.parametrize("code", CODES)
def test_every_documented_code_has_a_meaning_whatever_the_status(code):
    error = error_of(refused(400, code, "what the server says"))

    assert type(error) is CODES[code][0]
    assert error.code == code
    assert f"code {code}" in str(error)
    assert "what the server says" in str(error)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (10250, errors.RateLimited),
        (10251, errors.QueueFull),
        (10252, errors.QueueDisabled),
        (10253, errors.PlanLimitReached),
        (971, errors.RateLimited),
    ],
)
def test_the_kinds_of_429_are_told_apart(code, kind):
    """A full queue, a paused one and a spent plan need different people."""
    assert type(error_of(refused(429, code))) is kind


@pytest.mark.parametrize(
    ("status", "code"), [(401, None), (403, None), (403, 10106), (403, 10405), (403, 10000)]
)
def test_a_token_that_lacks_a_permission_is_told_which(status, code):
    assert "Queues Edit" in str(error_of(refused(status, code)))


def test_a_403_of_a_proxy_is_not_blamed_on_the_token_alone():
    assert "proxy" in str(error_of(answer(403, body=b"<html>")))


def test_a_challenge_of_the_edge_is_told_as_such():
    error = error_of(answer(403, body=b"<html>", CF_Mitigated="challenge"))

    assert type(error) is errors.ServerError
    assert "challenged" in str(error)


def test_an_error_carries_what_support_asks_for():
    error = error_of(refused(429, 971, CF_RAY="8f3-VIE", Retry_After="17"))

    assert (error.status, error.code, error.ray_id, error.retry_after) == (429, 971, "8f3-VIE", 17)
    assert error.delivered == "no"


def test_the_text_says_what_was_tried_and_ends_as_a_sentence():
    text = str(error_of(refused(404, 10104, "no such queue.")))

    assert text.startswith(
        "publishing to queue 'jobs' failed (HTTP 404, code 10104): no such queue."
    )
    assert ".." not in text


def test_a_long_or_broken_text_of_the_server_stays_one_short_line():
    text = str(error_of(refused(400, 10207, "a\nb\r\n" + "x" * 10_000)))

    assert "a b x" in text
    assert len(text) < 500


@pytest.mark.parametrize("status", [500, 502, 504])
def test_after_a_5xx_the_message_may_have_arrived(status):
    assert error_of(answer(status, body=b"")).delivered == "unknown"


def test_after_a_503_it_has_not():
    """503 says that nothing was done, so even who must not duplicate may try again."""
    assert error_of(answer(503, body=b"")).delivered == "no"


def test_a_route_may_have_meanings_of_its_own():
    statuses = {405: (errors.PullNotEnabled, "Enable it.")}

    assert type(error_of(answer(405, body=b""), statuses)) is errors.PullNotEnabled
    assert type(error_of(refused(405, 0), statuses)) is errors.PullNotEnabled
    assert type(error_of(refused(405, 10000), statuses)) is errors.AuthenticationFailed


@pytest.mark.parametrize(
    ("code", "kind", "advice"),
    [
        (9103, errors.AuthenticationFailed, "check api_token"),
        (9106, errors.AuthenticationFailed, "Authorization header"),
        (11005, errors.PermanentError, "producer binding"),
        (11006, errors.PermanentError, "no such consumer"),
        (11017, errors.PermanentError, "R2 bucket"),
    ],
)
def test_rarer_refusals_say_what_to_do(code, kind, advice):
    error = error_of(refused(404 if code == 11006 else 400, code))

    assert type(error) is kind
    assert advice in str(error)


@pytest.mark.parametrize("status", [200, 401, 403, 404, 500, 503])
@pytest.mark.parametrize("code", [971, 6100, 10429])
def test_a_limit_is_known_by_its_code_under_any_status(status, code):
    error = error_of(refused(status, code))

    assert type(error) is errors.RateLimited
    assert error.delivered == "no"


@pytest.mark.parametrize("code", [*sorted(CODES.keys() - errors.LIMIT_CODES.keys()), 0, None])
def test_a_429_is_a_limit_whatever_its_code(code):
    """With another class, requests would go on, or a worker would end."""
    assert type(error_of(refused(429, code))) is errors.RateLimited
    assert type(error_of(refused(429, code, cf_mitigated="challenge"))) is errors.RateLimited


def test_a_limit_need_not_be_the_first_of_several_errors():
    entries = [None, {"code": 10000, "message": "no"}, {"code": 971, "message": "too many"}]
    error = error_of(answer(403, {"success": False, "errors": entries}))

    assert (type(error), error.code) == (errors.RateLimited, 971)
    assert "too many" in str(error)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("300", 300),
        ("1.5", 1.5),
        ("301", 300),
        ("86400", 300),
        ("-5", 0),
        ("soon", None),
        ("", None),
        ("nan", None),
        ("inf", None),
        ("1e300", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Mon, 01 Jan 2001 00:00:00 +99999999999999999", None),
        ("Mon, 01 Jan 99999 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_read_or_ignored(value, seconds):
    assert error_of(refused(429, Retry_After=value)).retry_after == seconds


def test_retry_after_may_be_a_date():
    soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=60), usegmt=True)

    assert 55 < error_of(refused(429, Retry_After=soon)).retry_after <= 60


@pytest.mark.parametrize(
    ("date", "due", "seconds"),
    [
        ("Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:30 GMT", 30),
        ("Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:27:00 GMT", 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", "Thu, 22 Oct 2015 07:28:00 GMT", 300),
        # Both without a time zone, and in two of the forms that RFC 9110 allows.
        ("Wed Oct 21 07:28:00 2015", "Wed, 21 Oct 2015 07:28:30 GMT", 30),
        ("Wed, 21 Oct 2015 07:28:00 GMT", "Wed Oct 21 07:28:30 2015", 30),
        ("Wednesday, 21-Oct-15 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:30 GMT", 30),
        ("yesterday", "Wed, 21 Oct 2015 07:28:30 GMT", 0),
    ],
)
def test_a_date_is_compared_with_the_date_of_the_response(monkeypatch, date, due, seconds):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert error_of(refused(429, Retry_After=due, Date=date)).retry_after == seconds
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_pause_that_is_cut_short_is_named():
    error = error_of(refused(503, 15000, Retry_After="86400"))

    assert "asked for a pause of 86,400 s; the library waits at most 300 s" in str(error)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner)
)
envelopes = st.fixed_dictionaries(
    {},
    optional={
        "success": st.booleans() | anything,
        "errors": anything
        | st.lists(
            st.fixed_dictionaries({"code": st.sampled_from([*CODES, 0]) | anything})
            | st.fixed_dictionaries({"code": anything, "message": anything}),
            max_size=2,
        ),
        "result": anything,
    },
)


@given(
    status=st.integers(100, 599),
    body=st.binary(max_size=50) | (envelopes | anything).map(lambda v: json.dumps(v).encode()),
    retry_after=st.text(max_size=30),
)
def test_no_answer_raises_anything_but_ours(status, body, retry_after):
    """What is not mapped ends a Celery worker."""
    given = Response(status, CaseInsensitiveDict({"Retry-After": retry_after}), body)
    try:
        outcome = read(given)["success"]
    except (errors.TransientError, errors.PermanentError) as error:
        outcome = error.status == status

    assert outcome is True
