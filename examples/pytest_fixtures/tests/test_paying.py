"""What a customer's payment leaves in the queue, and what happens when Cloudflare is ill."""

from __future__ import annotations

import pytest
from shop import pay, send_receipt

from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.errors import AuthenticationFailed


def test_paying_sends_a_receipt(cfqueues_emulator: Emulator) -> None:
    pay(1042, locale="de")

    receipt, review = cfqueues_emulator.messages("emails")
    assert receipt.task == "shop.send_receipt"
    assert receipt.content[:2] == [[1042], {"locale": "de"}]
    assert receipt.state == "ready"
    assert (review.task, review.state) == ("shop.ask_for_review", "delayed")


def test_the_question_comes_an_hour_later(cfqueues_emulator: Emulator) -> None:
    pay(1042)

    cfqueues_emulator.clock.advance(3600)  # no waiting

    assert {message.state for message in cfqueues_emulator.messages("emails")} == {"ready"}


def test_one_failure_of_cloudflare_loses_no_receipt(cfqueues_emulator: Emulator) -> None:
    cfqueues_emulator.faults.error("push", status=503, times=1)

    send_receipt.delay(1042)

    assert len(cfqueues_emulator.messages("emails")) == 1
    assert [request.status for request in cfqueues_emulator.requests.of("push")] == [503, 200]


def test_a_revoked_token_is_heard_of(cfqueues_emulator: Emulator) -> None:
    cfqueues_emulator.faults.error(status=403, code=10000, times=None)

    with pytest.raises(AuthenticationFailed):
        send_receipt.delay(1042)

    assert cfqueues_emulator.queue_names() == []


class TestWithCloudflaresLimit:
    """A test that overrides the options has an emulator of that kind."""

    @pytest.fixture
    def cfqueues_emulator_options(self) -> dict[str, int]:
        return {"rate_limit": 1200}

    def test_a_payment_costs_few_requests(self, cfqueues_emulator: Emulator) -> None:
        pay(1042)

        assert len(cfqueues_emulator.requests) < 10
