"""Tokens, permissions, the account in the path, and the request limit."""

from __future__ import annotations

import pytest
from emulator.client import Api, errors_of

from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.emulator.knobs import positions


def with_headers(api, **headers):
    """Publish with just these credentials."""
    del api.session.headers["Authorization"]
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return api.post("/{jobs}/messages", {"body": {}}, headers=sent)


def test_a_token_that_nobody_knows_is_refused(api):
    answer = with_headers(api, Authorization="Bearer wrong")

    assert errors_of(answer) == (403, [10000])
    assert api.emulator.messages("jobs") == []


@pytest.mark.parametrize("position", ["401/10000", "403/9109", "401/9109"])
def test_how_an_unknown_token_is_refused_is_a_knob(make, position):
    status, code = map(int, position.split("/"))

    assert errors_of(with_headers(make(bad_token=position), Authorization="Bearer wrong")) == (
        status,
        [code],
    )


@pytest.mark.parametrize(
    "header", ["emulator-token", "Bearer", "Bearer ", "Basic eA==", "Bearer a b"]
)
def test_a_malformed_header_is_told_from_a_wrong_token(api, header):
    answer = with_headers(api, Authorization=header)

    assert errors_of(answer) == (400, [6003])
    assert answer.json()["errors"][0]["error_chain"] == [
        {"code": 6111, "message": "Invalid format for Authorization header"}
    ]


def test_a_request_without_credentials_is_refused(api):
    assert errors_of(with_headers(api)) == (400, [9106])


def test_the_older_pair_of_headers_is_accepted(api):
    token = api.emulator.token
    assert with_headers(api, X_Auth_Email="a@example.com", X_Auth_Key=token).status_code == 200
    api.session.headers["Authorization"] = ""
    assert errors_of(with_headers(api, X_Auth_Key=token)) == (400, [6003])


def test_a_token_that_may_only_read_publishes_nothing(make):
    api = make(tokens={"viewer": "read", "second": "edit"})
    assert api.push("x").status_code == 200
    second, viewer = Api(api.emulator, "second"), Api(api.emulator, "viewer")

    assert second.push("x").status_code == 200
    assert errors_of(viewer.push("x")) == (403, [10106])
    assert errors_of(viewer.post("/{jobs}/messages/pull")) == (403, [10106])
    assert errors_of(viewer.post("", {"queue_name": "new"})) == (403, [10000])
    assert errors_of(viewer.call("DELETE", "/{jobs}")) == (403, [10000])
    assert viewer.get("").status_code == 200
    assert viewer.metrics()["backlog_count"] == 2


def test_another_account_is_not_found(api):
    api.queues_url = f"{api.emulator.base_url}/accounts/{'f' * 32}/queues"

    assert errors_of(api.get("")) == (404, [7003, 7000])


def test_only_the_api_is_served(api):
    root = api.emulator.base_url.removesuffix("/client/v4")
    assert api.session.get(f"{root}/client/v5/accounts").status_code == 404
    assert errors_of(api.session.get(f"{api.emulator.base_url}/user/tokens/verify")) == (
        404,
        [7003, 7000],
    )


def test_the_request_limit_blocks_every_call_that_counts(make):
    """Pull and ack are documented as exempt."""
    api = make(rate_limit=3)
    for left in (2, 1, 0):
        answer = api.push("x")
        assert answer.headers["Ratelimit"].startswith(f'"default";r={left};t=')
        assert answer.headers["Ratelimit-Policy"] == '"default";q=3;w=300'

    blocked = api.push("x")
    assert errors_of(blocked) == (429, [971])
    assert blocked.headers["Retry-After"] == "300"
    assert errors_of(api.get("")) == (429, [971])
    [message, *_] = api.pull()
    assert api.ack(message["lease_id"])["ackCount"] == 1

    api.emulator.clock.advance(299)
    assert 1 <= int(api.push("x").headers["Retry-After"]) <= 2
    api.emulator.clock.advance(1)
    assert api.push("x").status_code == 200


@pytest.mark.parametrize("position", positions("rate_limit_answer"))
def test_how_the_request_limit_is_told_is_a_knob(make, position):
    api = make(rate_limit=0, rate_limit_answer=position)

    blocked = api.push("x")

    status, code = map(int, position.split("/"))
    assert errors_of(blocked) == (status, [code])
    assert blocked.headers["Retry-After"] == "300"
    assert blocked.json()["success"] is False


def test_the_request_limit_is_one_tokens_and_opens_again_with_the_window(make):
    api = make(rate_limit=1, rate_window_seconds=10, tokens={"second": "edit"})
    assert api.push("x").status_code == 200
    assert Api(api.emulator, "second").push("x").status_code == 200
    api.emulator.clock.advance(10)
    assert api.push("x").status_code == 200
    assert api.push("x").status_code == 429

    api.emulator.reset_rate_limit()

    assert api.push("x").status_code == 200


@pytest.mark.parametrize(
    ("routes", "push", "listing", "pull"),
    [("admin", 200, 429, 200), ("all", 429, 429, 429), ("all_but_pull", 429, 429, 200)],
)
def test_which_routes_the_request_limit_counts_is_a_knob(make, routes, push, listing, pull):
    api = make(rate_limit=0, rate_limited_routes=routes)

    assert api.push("x").status_code == push
    assert api.get("").status_code == listing
    assert api.post("/{jobs}/messages/pull").status_code == pull


def test_refusals_carry_what_is_left_too(make):
    answer = make(rate_limit=5).call("POST", "/{jobs}/messages", data="not json")

    assert answer.status_code == 400
    assert answer.headers["Ratelimit"].startswith('"default";r=4;')


def test_beyond_loopback_it_wants_a_token_of_ones_own():
    with pytest.raises(ValueError, match="choose a token"):
        Emulator("0.0.0.0")
    with Emulator("0.0.0.0", token="mine") as emulator:
        assert emulator.port


@pytest.mark.parametrize(
    "settings",
    [
        {"account_id": "a/b"},
        {"token": "a b"},
        {"token": ""},
        {"tokens": {"t": "admin"}},
        {"json_pull_encoding": "utf-7"},
        {"list_page_size": "20"},
        {"rate_limit": True},
        {"first_attempt": 2},
        {"strict_json_body": 1},
        {"rate_limit": -1},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ValueError, match=r".+"):
        Emulator(**settings)


def test_a_knob_that_is_not_there_is_refused():
    with pytest.raises(TypeError):
        Emulator(jsn_pull_encoding="plain")
