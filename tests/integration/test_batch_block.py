"""``with kombu_cfqueues.batch(app):`` existing task code shares requests."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections import Counter

import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import Ignore, Reject
from kombu import Connection, Producer
from support.forms import first_of
from support.processes import Script, needs

import kombu_cfqueues
from kombu_cfqueues.errors import (
    BatchPublishError,
    ConfigurationError,
    MessageTooLarge,
    PermanentError,
)

from .workers import Worker, until


@pytest.fixture
def make_app(emulator):
    """Make an application that is configured with a broker URL and nothing else."""
    apps = []

    def make_app(url=emulator.broker_url, **settings):
        app = Celery("shop", broker=url, set_as_current=False)
        app.conf.update(settings)

        @app.task(name="shop.add", shared=False)
        def add(a, b):
            return a + b

        apps.append(app)
        return app

    yield make_app
    for app in apps:
        app.close()


@pytest.fixture
def app(make_app):
    return make_app()


@pytest.fixture
def add(app):
    return app.tasks["shop.add"]


def posts(emulator):
    return emulator.requests.of("push", "batch")


def arrived(emulator, queue="celery"):
    """The first argument of each task in the queue, and how often."""
    envelopes = [json.loads(message.value) for message in emulator.messages(queue)]
    return Counter(json.loads(envelope["body"])[0][0] for envelope in envelopes)


def once(numbers):
    return Counter(numbers)


# -- every call that publishes ------------------------------------------------------------------


def test_three_hundred_delays_leave_in_three_requests(app, add, emulator):
    with kombu_cfqueues.batch(app):
        results = [add.delay(n, n) for n in range(300)]
        assert not posts(emulator)
    assert len(posts(emulator)) == 3
    assert arrived(emulator) == once(range(300))
    ids = {json.loads(message.value)["headers"]["id"] for message in emulator.messages("celery")}
    assert ids == {result.id for result in results}


@pytest.mark.parametrize(
    "publish",
    [
        lambda app, add: [add.apply_async((n, 1)) for n in range(300)],
        lambda app, add: [app.send_task("shop.add", [n, 1]) for n in range(300)],
        lambda app, add: group(add.s(n, 1) for n in range(300)).apply_async(),
        lambda app, add: [add.s(n, 1).delay() for n in range(300)],
        lambda app, add: [chain(add.s(n, 1), add.s(2)).apply_async() for n in range(300)],
    ],
    ids=["apply_async", "send_task", "group", "signature", "chain"],
)
def test_celery_needs_no_other_call(app, add, emulator, publish):
    with kombu_cfqueues.batch(app):
        publish(app, add)
    assert len(posts(emulator)) <= 5  # the rest of a chain makes its messages larger
    assert arrived(emulator) == once(range(300))


def test_map_starmap_and_chunks(app, add, emulator):
    with kombu_cfqueues.batch(app):
        add.map([1, 2]).delay()
        add.starmap([(1, 2), (3, 4)]).delay()
        add.chunks([(n, n) for n in range(200)], 2).apply_async()
    assert len(posts(emulator)) <= 3
    assert len(emulator.messages("celery")) == 102


def test_a_chord_of_three_hundred_leaves_in_few_requests_and_its_body_runs(emulator, tmp_path):
    with Worker(emulator, tmp_path, pool="threads", concurrency=4) as worker:
        app = Celery("tests", broker=emulator.broker_url, set_as_current=False)
        app.conf.result_backend = f"file://{tmp_path / 'results'}"
        emulator.requests.clear()
        header = [app.signature("tasks.note", [n]) for n in range(300)]
        with kombu_cfqueues.batch(app):
            chord(header, app=app)(app.signature("tasks.add"))
        assert len(posts(emulator)) <= 5
        until(lambda: worker.values("add"), 60, "the body of the chord runs")
        assert worker.values("add") == [sum(range(300))]
        app.close()


def test_tasks_that_send_tasks_in_a_block_and_retry_or_replace_themselves(emulator, tmp_path):
    """`self.retry()` and `self.replace()` leave by an exception, which discards nothing."""
    with Worker(emulator, tmp_path, pool="solo") as worker:
        app = Celery("tests", broker=emulator.broker_url, set_as_current=False)
        app.send_task("tasks.send_many", [250])
        app.send_task("tasks.retry_in_block", ["again"])
        app.send_task("tasks.replace_in_block", ["instead"])
        until(lambda: len(worker.runs("note")) == 252, 60, "all tasks ran")
        assert sorted(worker.values("note"), key=str) == sorted(
            [*range(250), "again", "instead"], key=str
        )
        assert len(worker.runs("retry_in_block")) == 2
        app.close()
    assert len(posts(emulator)) <= 12


def test_a_pool_of_one_connection_is_enough(make_app, emulator):
    app = make_app(broker_pool_limit=1)
    with kombu_cfqueues.batch(app), app.producer_pool.acquire(block=True) as producer:
        app.tasks["shop.add"].apply_async((0, 0), producer=producer)
    with kombu_cfqueues.batch(app):
        group(app.tasks["shop.add"].s(n, n) for n in range(1, 300)).apply_async()
    assert arrived(emulator) == once(range(300))


def test_a_connection_of_kombu(emulator):
    with Connection(emulator.broker_url) as connection:
        with kombu_cfqueues.batch(connection):
            for n in range(150):
                connection.Producer().publish([[n]], routing_key="one", serializer="json")
            connection.SimpleQueue("two").put([[7]], serializer="json")
            # A connection that is closed before the block ends.
            with Connection(emulator.broker_url) as other:
                other.Producer().publish([[8]], routing_key="two", serializer="json")
            assert not posts(emulator)
        assert len(posts(emulator)) == 3
        assert arrived(emulator, "one") == once(range(150))
        assert arrived(emulator, "two") == once([7, 8])


def test_many_short_lived_connections_share_requests(app, add, emulator):
    with kombu_cfqueues.batch(app):
        for n in range(50):
            with app.connection_for_write() as connection:
                add.apply_async((n, n), connection=connection)
    assert len(posts(emulator)) == 1
    assert arrived(emulator) == once(range(50))


def test_messages_leave_in_full_requests_while_the_block_goes_on(app, add, emulator):
    with kombu_cfqueues.batch(app, max_size=150) as batch:
        for n in range(260):
            add.delay(n, n)
        assert {len(json.loads(r.body)["messages"]) for r in posts(emulator)} <= {100}
        batch.flush()
        assert arrived(emulator) == once(range(260))
        add.delay(260, 0)
    assert arrived(emulator) == once(range(261))


def test_spool_mode_commits_once(make_app, emulator, tmp_path):
    options = {"publish_mode": "spool", "spool_dir": str(tmp_path)}
    app = make_app(broker_transport_options=options)
    emulator.create_queue("celery")
    with kombu_cfqueues.batch(app):
        for n in range(300):
            app.tasks["shop.add"].delay(n, n)
        assert not emulator.requests.of("push", "batch", "queues")
    until(lambda: arrived(emulator) == once(range(300)), 60, "the spool is empty")
    assert len(posts(emulator)) <= 5


# -- who shares, and who does not ---------------------------------------------------------------


def test_nested_blocks_and_applications_on_one_account_share(make_app, emulator):
    one, two = make_app(), make_app()
    with kombu_cfqueues.batch(one):
        one.tasks["shop.add"].delay(1, 1)
        with kombu_cfqueues.batch(two):
            two.tasks["shop.add"].delay(2, 1)
        two.tasks["shop.add"].delay(3, 1)
        assert not posts(emulator)
    assert len(posts(emulator)) == 1
    assert arrived(emulator) == once([1, 2, 3])


def test_applications_with_other_options_are_not_mixed_up(make_app, emulator):
    """Each message goes where it would go without the block."""
    plain = make_app()
    prefixed = make_app(broker_transport_options={"queue_name_prefix": "shop-"})
    with kombu_cfqueues.batch(plain):
        plain.tasks["shop.add"].delay(1, 1)
        prefixed.tasks["shop.add"].delay(2, 1)
    assert arrived(emulator, "celery") == once([1])
    assert arrived(emulator, "shop-celery") == once([2])


def test_other_threads_are_not_touched(app, add, emulator):
    with kombu_cfqueues.batch(app):
        add.delay(1, 1)
        thread = threading.Thread(target=lambda: add.delay(2, 1))
        thread.start()
        thread.join()
        assert arrived(emulator) == once([2])
    assert arrived(emulator) == once([1, 2])


def test_other_brokers_are_not_touched(make_app, emulator):
    with kombu_cfqueues.emulator.Emulator() as other:
        here, there = make_app(), make_app(other.broker_url)
        with kombu_cfqueues.batch(here):
            there.tasks["shop.add"].delay(1, 1)
            assert arrived(other) == once([1])
            with kombu_cfqueues.batch(there):
                here.tasks["shop.add"].delay(2, 1)
                there.tasks["shop.add"].delay(3, 1)
            assert arrived(other) == once([1, 3])
            assert not posts(emulator)
        assert arrived(emulator) == once([2])


def test_with_another_kind_of_broker_nothing_changes(make_app):
    """As in the tests of a project, or on a developer's machine."""
    app = make_app("memory://")
    with kombu_cfqueues.batch(app) as batch:
        app.tasks["shop.add"].delay(1, 1)
        with app.connection_for_read() as connection:
            message = connection.SimpleQueue("celery").get_nowait()
            assert message.payload[0] == [1, 1]
        batch.flush()


@pytest.mark.skipif(not hasattr(Producer, "batch"), reason="it came with Kombu 5.7")
def test_a_batch_of_a_producer_inside_ends_on_its_own(app, add, emulator):
    with kombu_cfqueues.batch(app):
        add.delay(1, 1)
        with app.producer_pool.acquire(block=True) as producer, producer.batch():
            add.apply_async((2, 1), producer=producer)
            add.delay(3, 1)
        assert arrived(emulator) == once([2])
    assert arrived(emulator) == once([1, 2, 3])


def test_a_generator_that_opens_a_block_in_a_context_of_its_own_catches_nothing_else(
    app, add, emulator
):
    """As a web framework runs a dependency: other requests use its thread before it ends."""
    from contextvars import copy_context

    def dependency():
        with kombu_cfqueues.batch(app):
            add.delay(1, 1)
            yield

    generator = dependency()
    copy_context().run(next, generator)
    add.delay(2, 1)
    assert arrived(emulator) == once([2])
    copy_context().run(list, generator)
    assert arrived(emulator) == once([1, 2])


@pytest.mark.parametrize("green", first_of(["gevent", "eventlet"]))
def test_other_greenlets_are_not_touched(emulator, green):
    needs(green)
    code = f"""
        import {green}
        connection = connect()

        def publish(number):
            connection.Producer().publish(number, routing_key="jobs", serializer="json")

        def block(number):
            with kombu_cfqueues.batch(connection):
                publish(number)
                child = {green}.spawn(publish, number + 10)
                {green}.sleep(0.2)
                publish(number + 1)
                (child.join if hasattr(child, "join") else child.wait)()
                print(json.dumps("in block"), flush=True)
                sys.stdin.readline()

        both = [{green}.spawn(block, 100), {green}.spawn(publish, 1)]
        for one in both:
            (one.join if hasattr(one, "join") else one.wait)()
        print(json.dumps("done"), flush=True)
    """
    emulator.create_queue("jobs")
    with Script(code, emulator.broker_url, {}, green=green) as script:
        assert script.line() == "in block"
        assert {json.loads(json.loads(m.value)["body"]) for m in emulator.messages("jobs")} == {
            1,
            110,
        }
        script.go()
        assert script.line() == "done"
    assert len(emulator.messages("jobs")) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_that_is_forked_in_the_block_sends_nothing_of_it(emulator):
    code = """
        connection = connect()
        def publish(number):
            connection.Producer().publish(number, routing_key="jobs", serializer="json")
        with kombu_cfqueues.batch(connection):
            publish(1)
            child = os.fork()
            publish(2 if child else 3)
        if child:
            os.waitpid(child, 0)
            print(json.dumps("done"), flush=True)
    """
    with Script(code, emulator.broker_url, {}) as script:
        assert script.line() == "done"
    values = [json.loads(json.loads(m.value)["body"]) for m in emulator.messages("jobs")]
    assert sorted(values) == [1, 2, 3]


# -- asyncio ------------------------------------------------------------------------------------


def test_another_asyncio_task_is_told_what_it_does(app, add, emulator):
    """Its message would be sent or discarded with those of the block."""

    async def in_block(started, go_on):
        with kombu_cfqueues.batch(app):
            add.delay(1, 1)
            child = asyncio.create_task(publish(2))
            started.set()
            await go_on.wait()
            with pytest.raises(PermanentError, match="other asyncio task"):
                await child
            await asyncio.to_thread(add.delay, 3, 1)
            add.delay(4, 1)

    async def publish(number):
        add.delay(number, 1)

    async def main():
        started, go_on = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(in_block(started, go_on))
        await started.wait()
        with pytest.raises(PermanentError, match="another asyncio task"):
            add.delay(5, 1)
        with pytest.raises(PermanentError, match="other asyncio task"), kombu_cfqueues.batch(app):
            pass
        go_on.set()
        await task
        await publish(6)

    asyncio.run(main())
    assert arrived(emulator) == once([1, 3, 4, 6])


def test_a_task_that_outlives_the_block_publishes_as_ever(app, add, emulator):
    async def publish(ended):
        await ended.wait()
        add.delay(2, 1)

    async def main():
        ended = asyncio.Event()
        with kombu_cfqueues.batch(app):
            add.delay(1, 1)
            task = asyncio.create_task(publish(ended))
        ended.set()
        await task

    asyncio.run(main())
    assert arrived(emulator) == once([1, 2])


def test_a_block_around_an_event_loop_collects_what_its_tasks_publish(app, add, emulator):
    async def main():
        add.delay(1, 1)

    with kombu_cfqueues.batch(app):
        asyncio.run(main())
        assert not posts(emulator)
    assert arrived(emulator) == once([1])


# -- exceptions ---------------------------------------------------------------------------------


def test_an_exception_discards_what_has_not_left(app, add, emulator):
    with pytest.raises(KeyError), kombu_cfqueues.batch(app):  # noqa: PT012  the block is what fails
        add.delay(1, 1)
        raise KeyError
    assert not posts(emulator)
    add.delay(2, 1)
    assert arrived(emulator) == once([2])


@pytest.mark.parametrize("error", [Ignore(), Reject("as told")])
def test_what_a_task_leaves_by_discards_nothing(app, add, emulator, error):
    with pytest.raises(type(error)), kombu_cfqueues.batch(app):  # noqa: PT012  the block is what fails
        add.delay(1, 1)
        with kombu_cfqueues.batch(app):
            add.delay(2, 1)
            raise error
    assert arrived(emulator) == once([1, 2])


def test_an_exception_of_a_nested_block_discards_only_what_is_its_own(app, add, emulator):
    with kombu_cfqueues.batch(app):
        add.delay(1, 1)
        with pytest.raises(KeyError), kombu_cfqueues.batch(app):  # noqa: PT012  the block is what fails
            for n in range(2, 150):
                add.delay(n, 1)
            raise KeyError
        for n in range(150, 300):
            add.delay(n, 1)
    assert arrived(emulator) == once([1, *range(150, 300)])


def test_each_message_that_was_not_accepted_is_accounted_for(app, add, emulator):
    emulator.faults.refuse_messages(lambda body: json.loads(json.loads(body)["body"])[0][0] == 7)
    with pytest.raises(BatchPublishError) as refusal, kombu_cfqueues.batch(app):
        group(add.s(n, 1) for n in range(150)).apply_async()
    assert len(refusal.value.accepted) == 149
    (refused,) = refusal.value.refused
    assert json.loads(refused.message["body"])[0] == [7, 1]
    assert refused.queue == "celery"


def test_a_message_that_cannot_be_sent_fails_at_once_and_alone(app, add, emulator):
    noise = os.urandom(200_000).hex()
    with kombu_cfqueues.batch(app):
        add.delay(1, 1)
        with pytest.raises(MessageTooLarge):
            add.delay(2, noise)
        add.delay(3, 1)
    assert arrived(emulator) == once([1, 3])


def test_mistakes_are_told_when_the_block_begins(make_app, app):
    with pytest.raises(TypeError, match="Celery app"), kombu_cfqueues.batch("cfqueues://"):
        pass
    with pytest.raises(ValueError, match="max_size"), kombu_cfqueues.batch(app, max_size=0):
        pass
    wrong = make_app(broker_transport_options={"publish_timeout": "soon"})
    with pytest.raises(ConfigurationError, match="publish_timeout"), kombu_cfqueues.batch(wrong):
        pass
