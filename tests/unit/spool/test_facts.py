"""What processes of a machine tell each other through the spool's file."""

from __future__ import annotations

import pytest

from kombu_cfqueues.shared_facts import KnownQueue
from kombu_cfqueues.spool.database import Database
from kombu_cfqueues.spool.facts import ASKING_SECONDS, FACT_LIFETIME_SECONDS

JOBS = KnownQueue("id-of-jobs", 3600)


@pytest.fixture
def two(peer):
    """The facts as two processes see them."""
    return peer().spool_.facts, peer().spool_.facts


def test_a_page_of_queues_tells_the_ids_and_that_the_token_works(two):
    first, second = two
    assert not second.token_works()

    first.note_page(1, {"jobs": JOBS, "mail": KnownQueue("m", None)}, has_more=True)

    assert second.token_works()
    assert second.queue("jobs") == JOBS
    assert second.queue("mail") == KnownQueue("m", None)
    assert second.queue("other") is None


def test_facts_are_believed_for_some_minutes(two, clock):
    first, second = two
    first.note_page(1, {"jobs": JOBS}, has_more=False)
    first.note_unfinished("new", 0)
    clock.now += FACT_LIFETIME_SECONDS - 1
    assert second.token_works()
    assert second.queue("jobs") == JOBS
    assert second.next_page() is None
    assert second.unfinished("new") == 0

    clock.now += 1

    assert not second.token_works()
    assert second.queue("jobs") is None
    assert second.next_page() == 1
    assert second.unfinished("new") is None


def test_a_fact_that_is_read_does_not_become_younger(two, clock):
    """Otherwise a queue that was renamed would be relied on for as long as processes start."""
    first, second = two
    first.note_queue("jobs", JOBS)
    for _ in range(10):
        clock.now += FACT_LIFETIME_SECONDS / 9
        second.queue("jobs")
    assert first.queue("jobs") is None


def test_the_token_of_another_process_proves_nothing_of_mine(peer):
    first, second = peer(token="one"), peer(token="two")
    first.spool_.facts.note_page(1, {"jobs": JOBS}, has_more=False)

    assert not second.spool_.facts.token_works()
    assert second.spool_.facts.queue("jobs") == JOBS


def test_a_token_that_was_refused_is_forgotten(two):
    first, second = two
    first.note_page(1, {}, has_more=False)

    second.forget_token()

    assert not first.token_works()


def test_a_queue_is_forgotten_only_with_the_id_that_failed(two):
    """Another process may have looked it up anew."""
    first, second = two
    first.note_queue("jobs", JOBS)

    second.forget_queue("jobs", "another id")
    assert first.queue("jobs") == JOBS

    second.forget_queue("jobs", JOBS.id)
    assert first.queue("jobs") is None


def test_pages_are_read_on_where_another_process_stopped(two):
    first, second = two
    assert first.next_page() == 1
    first.note_page(1, {}, has_more=True)
    assert second.next_page() == 2
    second.note_page(2, {}, has_more=True)
    first.note_page(1, {}, has_more=True)  # once more, to see whether the server answers
    assert first.next_page() == 3
    first.note_page(3, {}, has_more=False)
    assert second.next_page() is None


def test_a_page_that_came_alone_says_nothing_of_those_before(two):
    """A process that has run for hours reads on while the facts of the first pages are too old."""
    first, second = two
    first.note_page(7, {"jobs": JOBS}, has_more=False)
    assert second.next_page() == 1
    assert second.queue("jobs") == JOBS


def test_a_look_up_goes_on_in_another_process_until_the_queue_is_known(two):
    first, second = two
    assert second.unfinished("jobs") is None
    first.note_unfinished("jobs", 3)
    assert second.unfinished("jobs") == 3
    first.note_unfinished("jobs", 0)
    assert second.unfinished("jobs") == 0
    second.note_queue("jobs", JOBS)
    assert first.unfinished("jobs") is None


def test_one_process_asks_at_a_time(two):
    first, second = two
    assert first.begin("list 1")
    assert not second.begin("list 1")
    assert second.begin("list 2")
    second.end("list 1")  # not its own
    assert not second.begin("list 1")
    first.end("list 1")
    assert second.begin("list 1")


@pytest.mark.parametrize("leaves", ["dies", "closes"])
def test_the_question_of_a_process_that_is_gone_is_anybodys(peer, leaves):
    first, second = peer(), peer()
    assert first.spool_.facts.begin("list 1")
    if leaves == "dies":
        first.die()
    else:
        first.file.close()
    assert second.spool_.facts.begin("list 1")


def test_the_question_of_a_process_that_was_stopped_is_anybodys_after_a_while(two, clock):
    first, second = two
    assert first.begin("list 1")
    clock.now += ASKING_SECONDS
    assert not second.begin("list 1")
    clock.now += 1
    assert second.begin("list 1")


def test_after_a_reboot_nothing_is_known(peer, clock):
    first = peer(boot="one")
    first.spool_.facts.note_page(1, {"jobs": JOBS}, has_more=False)
    first.spool_.facts.note_unfinished("new", 2)
    first.spool_.facts.begin("queue jobs")
    first.die()
    clock.now += 1

    facts = peer(boot="two").spool_.facts

    assert not facts.token_works()
    assert facts.queue("jobs") is None
    assert facts.next_page() == 1
    assert facts.unfinished("new") is None
    assert facts.begin("queue jobs")


def test_without_a_file_nothing_is_known_and_everyone_asks(peer, tmp_path):
    (tmp_path / "spool").touch()  # where the folder would be
    facts = peer().spool_.facts

    facts.note_page(1, {"jobs": JOBS}, has_more=True)
    facts.note_unfinished("jobs", 1)

    assert not facts.token_works()
    assert facts.queue("jobs") is None
    assert facts.next_page() == 1
    assert facts.unfinished("jobs") is None
    assert facts.begin("list 1")
    facts.end("list 1")


def test_the_application_is_not_asked_for_its_token_in_a_transaction(peer, clock, monkeypatch):
    """Its callable may take long, or fork, and all threads would wait for it."""
    process = peer()
    inside, asked = [], []

    def watched(begin):
        def inner(self, work, **given):
            def noted(connection):
                inside.append(work)
                try:
                    return work(connection)
                finally:
                    inside.pop()

            return begin(self, noted, **given)

        return inner

    for name in ("read", "write"):
        monkeypatch.setattr(Database, name, watched(getattr(Database, name)))
    process.file._token = lambda: asked.append(bool(inside)) or "token"
    facts = process.spool_.facts
    facts.note_page(1, {"jobs": JOBS}, has_more=False)
    assert facts.token_works()
    facts.forget_token()
    process.request_permit(None, clock.now + 900)
    process.enter("x")
    process.settle(process.claim())

    assert asked
    assert not any(asked)
