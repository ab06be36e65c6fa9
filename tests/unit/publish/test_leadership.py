"""Which caller of a process leads."""

import threading

import pytest

from kombu_cfqueues.envelope import Address
from kombu_cfqueues.publish.callers import Caller
from kombu_cfqueues.publish.leadership import LEADER_LEASE_SECONDS, Leadership
from kombu_cfqueues.waiting_room import Kind

POST_SECONDS = 10.0


class Sender:
    post_seconds = POST_SECONDS


class Times:
    def resumes_at(self, caller):
        return 0.0


class InFlight:
    """Says that nothing may be posted to some queues."""

    def __init__(self):
        self.full = []

    def full_queues(self, kind, now):
        return self.full


@pytest.fixture
def in_flight():
    return InFlight()


@pytest.fixture
def leadership(in_flight):
    return Leadership(Sender(), Times(), in_flight)


@pytest.fixture
def join(leadership):
    def join(queue="jobs", *, deadline=60.0):
        caller = Caller(
            Address(queue), Kind.SINGLE, now=0.0, deadline=deadline, asleep=threading.Lock()
        )
        caller.unsettled[object()] = None
        leadership.callers[caller] = None
        return caller

    return join


def test_the_first_with_time_for_a_request_leads(leadership, join):
    join(deadline=POST_SECONDS - 1)
    second, _ = join(deadline=POST_SECONDS), join()
    leadership.appoint(0.0)
    assert leadership.leader is second


def test_of_two_the_one_whose_queue_takes_no_more_does_not_lead(leadership, in_flight, join):
    in_flight.full = ["full"]
    join("full")
    second = join()
    leadership.appoint(0.0)
    assert leadership.leader is second


def test_of_two_the_one_that_is_late_does_not_lead(leadership, join):
    join().is_late = True
    second = join()
    leadership.appoint(0.0)
    assert leadership.leader is second


def test_of_two_the_one_whose_thread_has_ended_does_not_lead(leadership, join):
    first, second = join(deadline=1.0), join()
    leadership.appoint(1.1 + LEADER_LEASE_SECONDS)
    assert leadership.leader is second
    assert first not in leadership.callers


def test_one_alone_leads_though_it_cannot_post_now(leadership, in_flight, join):
    in_flight.full = ["full"]
    alone = join("full")
    leadership.appoint(0.0)
    assert leadership.leader is alone
