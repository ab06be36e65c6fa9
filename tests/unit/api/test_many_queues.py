"""Many queues, and many processes of a machine that ask for them: how few requests it takes."""

from __future__ import annotations

import random
import threading
import time

import pytest
from support.scripted import Api, Drop, Failure, Hang, Request, ScriptedServer

from kombu_cfqueues import errors
from kombu_cfqueues.api.client import Client
from kombu_cfqueues.api.directory import Directory
from kombu_cfqueues.options import Options, Secret
from kombu_cfqueues.rate_limit import Budget, Limit
from kombu_cfqueues.spool import Spool


def soon(seconds=20.0):
    return time.monotonic() + seconds


class Machine:
    """An API, and the processes of a machine as far as they can tell each other anything."""

    def __init__(self, folder, api, *script):
        self.api = api
        self.server = ScriptedServer(*script, otherwise=api).__enter__()
        self.folder = folder
        self.made = []

    def process(self, *, alone=False):
        client = Client(
            self.server.base_url, self.server.account, Secret(self.server.token),
            connect_timeout=5, read_timeout=10, permits=Budget(None),
        )  # fmt: skip
        spool = Spool.open(
            self.server.base_url, self.server.account, Limit(1000.0, 1000),
            lambda: self.server.token, spool_dir=str(self.folder),
        )  # fmt: skip
        self.made.append((client, spool))
        return Process(Directory(client, None if alone else spool.facts), self.server)

    @property
    def requests(self):
        return self.server.requests

    def close(self):
        self.server.released.set()
        for client, spool in self.made:
            client.close()
            spool.close()
        self.server.__exit__()


class Process:
    def __init__(self, directory, server):
        self.directory = directory
        self.options = Options(account_id=server.account, api_token=Secret(server.token))

    def connect(self, **given):
        self.directory.probe(self.options, deadline=soon(**given))

    def id(self, name, **given):
        return self.directory.queue(name, self.options, deadline=soon(**given)).id

    def find(self, name, **given):
        return self.directory.find(name, self.options, deadline=soon(), **given)


@pytest.fixture
def machine(tmp_path):
    made = []

    def make(api, *script):
        made.append(Machine(tmp_path / "spool", api, *script))
        return made[-1]

    yield make
    for each in made:
        each.close()


def names(count):
    return [f"queue-{number}" for number in range(count)]


# One process, many queues


@pytest.mark.parametrize("filters", [True, False])
@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize(
    ("count", "shuffled", "most"), [(120, True, 9), (120, False, 6), (1000, False, 50)]
)
def test_queues_that_exist_are_read_from_the_list(machine, count, shuffled, most, filters, shares):
    """A page answers for twenty of them; some are asked for by name, before the list is over."""
    here = machine(Api(names(count), filters=filters))
    process = here.process(alone=not shares)
    process.connect()
    wanted = names(count)
    if shuffled:
        random.Random(5).shuffle(wanted)
    for name in wanted:
        assert process.id(name) == here.api.ids[name]
    # Where the filter is ignored, a request for a name may read several pages again.
    assert len(here.requests) <= (most if filters or not shuffled else 2 * most)


def test_a_thousand_queues_in_any_order_take_few_requests_beside_the_pages(machine):
    here = machine(Api(names(1000)))
    process = here.process()
    wanted = names(1000)
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    random.Random(seed).shuffle(wanted)
    for name in wanted:
        process.id(name)
    # Each look-up for which pages were read in vain lets the next read one page more.
    assert len(here.requests) <= 50 + 10


def test_one_queue_of_thousands_takes_one_page_too_many(machine):
    here = machine(Api(names(5000)))
    process = here.process()
    process.connect()
    assert process.id("queue-4999") == here.api.ids["queue-4999"]
    assert len(here.requests) == 3


def test_the_order_of_requests_is_pages_then_the_name_then_its_creation(machine):
    here = machine(Api(names(45)))
    process = here.process()
    process.connect()
    process.id("new")
    targets = [(r.method, r.query.get("page"), r.query.get("name")) for r in here.requests]
    assert targets == [
        ("GET", ["1"], None),
        ("GET", ["2"], None),
        ("GET", ["1"], ["new"]),
        ("POST", None, None),
    ]


def test_a_queue_that_is_on_no_page_of_a_list_just_read_is_created_at_once(machine):
    here = machine(Api(names(5)))
    here.process().id("new")
    assert [request.method for request in here.requests] == ["GET", "POST"]


# What one process has learned


def test_what_one_process_has_learned_the_next_does_not_ask(machine):
    here = machine(Api(["jobs"]))
    first = here.process()
    first.connect()
    first.id("jobs")
    first.id("new")
    asked = len(here.requests)

    second = here.process()
    second.connect()

    assert second.id("jobs") == here.api.ids["jobs"]
    assert second.id("new") == here.api.ids["new"]
    assert len(here.requests) == asked


def test_pages_that_another_process_has_read_are_not_read_again(machine):
    here = machine(Api(names(100)))
    first, second = here.process(), here.process()
    for name in names(60):
        first.id(name)
    for name in names(100):
        second.id(name)
    assert len(here.requests) == 5


def test_the_id_of_a_queue_that_is_gone_is_forgotten_by_all(machine):
    here = machine(Api(["jobs"]))
    first, second, third = here.process(), here.process(), here.process()
    old = first.id("jobs")
    assert second.id("jobs") == old
    new = here.api.add("jobs")

    second.directory.forget("jobs", old, second.options)
    assert second.id("jobs") == new
    first.directory.forget("jobs", old, first.options)  # late: the new one stays known
    asked = len(here.requests)

    assert third.id("jobs") == first.id("jobs") == new
    assert len(here.requests) == asked


def test_ids_that_the_options_give_are_told_to_nobody(machine):
    here = machine(Api(["jobs"]))
    first, second = here.process(), here.process()
    given = Options(account_id="a", api_token=Secret("t"), queues={"jobs": "f" * 32})
    first.directory.probe(given, deadline=soon())
    assert first.directory.queue("jobs", given, deadline=soon()).id == "f" * 32

    assert second.id("jobs") == here.api.ids["jobs"]


def test_whoever_asks_anew_hears_what_is_true_now(machine):
    """Commands such as ``cfqueues doctor`` do not repeat what the machine believes."""
    here = machine(Api(["jobs"]))
    here.process().id("jobs")
    new = here.api.add("jobs")
    assert here.process().find("jobs", anew=True).id == new
    assert here.process().find("missing", anew=True) is None


def test_a_process_whose_connection_failed_does_not_believe_the_others(machine):
    """It connects to its next URL only if connecting fails."""
    here = machine(Api(), None, Drop())
    here.process().connect()
    doubting, later = here.process(), here.process()
    doubting.connect()
    assert len(here.requests) == 1

    doubting.directory.require_probe(None)
    with pytest.raises(errors.ConnectionFailed):
        doubting.connect()
    later.connect()  # asks, too: what was believed was wrong

    assert len(here.requests) == 3


def test_a_token_that_is_refused_while_it_is_unknown_fails_each_connection(machine):
    here = machine(Api(), Failure(403, 10000), Failure(403, 10000))
    for _ in range(2):
        with pytest.raises(errors.AuthenticationFailed):
            here.process().connect()


# Processes that ask at the same time


def run_all(work):
    threads = [threading.Thread(target=one, daemon=True) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("exists", [True, False])
def test_processes_that_start_together_ask_once(machine, exists):
    api = Api(["jobs"] if exists else [])

    def slow(request: Request):
        time.sleep(0.05)
        return api(request)

    here = machine(slow)
    processes = [here.process() for _ in range(12)]
    ids = []

    def start(process):
        process.connect(seconds=60)
        ids.append(process.id("jobs", seconds=60))

    run_all([lambda process=process: start(process) for process in processes])

    assert ids == [api.ids["jobs"]] * 12
    # The list, and if the queue is missing its name and its creation.
    assert len(here.requests) == (1 if exists else 3)


def test_after_a_process_that_failed_another_one_asks(machine):
    """One at a time, and each with what is left of its own time."""
    here = machine(Api(["jobs"]), Drop())
    processes = [here.process() for _ in range(6)]
    outcomes = []

    def start(process):
        try:
            process.connect()
        except errors.ConnectionFailed:
            outcomes.append("failed")
        else:
            outcomes.append("connected")

    run_all([lambda process=process: start(process) for process in processes])

    assert sorted(outcomes) == ["connected"] * 5 + ["failed"]
    assert len(here.requests) == 2


def test_half_of_the_time_is_left_for_a_request_of_its_own(machine):
    """The process that asks may hang at a server that answers others."""
    here = machine(Api(["jobs"]), Hang())
    first, second = here.process(), here.process()

    def hang():
        with pytest.raises(errors.ConnectionFailed):
            first.connect()

    hanging = threading.Thread(target=hang)
    hanging.start()
    assert here.server.wait_for(lambda: len(here.requests) == 1)

    second.connect(seconds=2.0)

    assert len(here.requests) == 2
    here.server.released.set()
    hanging.join(30)


# Look-ups that end early


class Ended(Exception):
    """Instead of the end of a process that lives for a moment."""


@pytest.mark.parametrize("filters", [True, False])
@pytest.mark.parametrize("count", [0, 5, 45])
def test_processes_with_one_request_each_find_or_create_a_queue_together(machine, count, filters):
    """Where permits are rare, a script ends before the next one: each goes on where it stopped."""
    here = machine(Api(names(count), filters=filters))
    for _ in range(12):
        process = here.process()
        begun = len(here.requests)

        def acquire(*_, begun=begun, **__):
            if len(here.requests) > begun:
                raise Ended

        process.directory._client._permits.acquire = acquire
        try:
            process.id("new")
        except Ended:
            continue
        break
    assert "new" in here.api.ids
    assert sum(request.method == "POST" for request in here.requests) == 1


def test_a_queue_that_appeared_meanwhile_is_not_created_again(machine):
    """Another program created it after one process had found it missing."""
    here = machine(Api())
    process = here.process()
    process.directory._finder._unfinished._facts.note_unfinished("new", 0)
    there = here.api.add("new")

    assert process.id("new") == there


def test_a_passive_look_asks_although_the_queue_was_missing_a_moment_ago(machine):
    here = machine(Api())
    here.process().find("new")
    there = here.api.add("new")

    assert here.process().find("new").id == there
