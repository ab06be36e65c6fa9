"""Queue name <-> queue id: how few requests it takes, and what a server may do to it."""

import threading
import time

import pytest
from support.scripted import Api, Drop, Failure, Hang, Html, Request, ScriptedServer, Success

from kombu_cfqueues import errors
from kombu_cfqueues.api import directory as module
from kombu_cfqueues.api.client import Client
from kombu_cfqueues.api.directory import Directory
from kombu_cfqueues.api.models import Queue
from kombu_cfqueues.envelope import Address
from kombu_cfqueues.options import Options, Secret
from kombu_cfqueues.rate_limit import Budget

THREADS = 64


def soon(seconds=5.0):
    return time.monotonic() + seconds


class Setting:
    """A directory, its server, and options for it."""

    def __init__(self, server, **given):
        self.server = server
        self.budget = Budget(None)
        self.client = Client(
            server.base_url,
            server.account,
            Secret(server.token),
            connect_timeout=5,
            read_timeout=10,
            permits=self.budget,
        )
        self.directory = Directory(self.client, None)
        self.options = Options(account_id=server.account, api_token=Secret(server.token), **given)

    def id(self, name, *, deadline=None, **given):
        options = Options(account_id="a", api_token=Secret("t"), **given) if given else self.options
        return self.directory.queue(name, options, deadline=deadline or soon()).id

    def find(self, name):
        return self.directory.find(name, self.options, deadline=soon())

    def probe(self):
        self.directory.probe(self.options, deadline=soon())


@pytest.fixture
def serve():
    """Make a setting over an API, or a script; all are closed at the end."""
    open_settings = []

    def make(api=None, *script, **given):
        server = ScriptedServer(*script, otherwise=api or Api())
        setting = Setting(server.__enter__(), **given)
        open_settings.append(setting)
        return setting

    yield make
    for setting in open_settings:
        setting.client.close()
        setting.server.__exit__()


def run_all(targets):
    """Run all at once; returns what each returned or raised, in no order."""
    outcomes = []
    together = threading.Barrier(len(targets))

    def run(target):
        together.wait(60)
        try:
            outcomes.append(target())
        except errors.CFQueuesError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == len(targets)
    return outcomes


# Names


@pytest.mark.parametrize("name", ["", "-", "...", "ü", "@/@", "🎉", "\ud800"])
def test_a_name_of_which_nothing_is_left_is_refused(name, serve):
    """Better than a queue whose name is made up."""
    setting = serve()

    with pytest.raises(errors.ConfigurationError) as refused:
        setting.id(name)

    assert repr(name) in str(refused.value)
    assert not setting.server.requests


@pytest.mark.parametrize(
    ("first", "second"),
    [("a.b", "a-b"), ("a_b", "a.b"), ("_a", "a"), ("a_", "a-"), ("x" * 62 + "_", "x" * 62 + ".")],
)
def test_names_that_meet_on_one_queue_are_refused(first, second, serve):
    """Their messages would mix, and no consumer could tell."""
    setting = serve()
    setting.id(first)
    asked = len(setting.server.requests)

    with pytest.raises(errors.QueueNameConflict) as refused:
        setting.id(second)

    assert repr(first) in str(refused.value)
    assert repr(second) in str(refused.value)
    assert len(setting.server.requests) == asked
    assert setting.id(first)


def test_names_that_meet_only_by_upper_and_lower_case_are_refused_where_case_is_nothing(serve):
    setting = serve(Api(folds=True))
    setting.id("Jobs")

    with pytest.raises(errors.QueueNameConflict):
        setting.id("jobs")


def test_names_that_meet_only_by_case_are_refused_in_the_other_order_too(serve):
    """The second one is in the list by now, under its own name."""
    setting = serve(Api(["jobs"], folds=True))
    setting.id("Jobs")

    with pytest.raises(errors.QueueNameConflict):
        setting.id("jobs")


def test_a_name_that_was_looked_for_in_vain_is_free_for_another(serve):
    """A passive declare asks whether a queue exists, and uses no name up."""
    api = Api()
    setting = serve(api)

    assert setting.find("a.b") is None

    assert setting.id("a-b") == api.ids["a-b"]
    with pytest.raises(errors.QueueNameConflict):
        setting.find("a.b")


def test_a_queue_that_another_process_has_named_is_found_where_case_is_nothing(serve):
    """The spool tells its name at Cloudflare, and not which of Kombu's names that was."""
    api = Api(["Jobs"], folds=True)
    setting = serve(api)

    found = setting.directory.resolve(Address("jobs", creates=True), deadline=soon())

    assert found == api.ids["Jobs"]


def test_a_prefix_keeps_applications_apart(serve):
    api = Api()
    setting = serve(api)

    first, second = (setting.id("jobs", queue_name_prefix=prefix) for prefix in ("a-", "b-"))

    assert first != second
    assert set(api.ids) == {"a-jobs", "b-jobs"}


# Looking up


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("filters", [True, False])
@pytest.mark.parametrize("wanted", [0, 19, 20, 44])
def test_a_queue_is_found_on_whatever_page_it_is(serve, counts, filters, wanted):
    """The filter by name may be ignored, and the counters may be missing."""
    api = Api([f"queue-{i}" for i in range(45)], counts=counts, filters=filters)
    setting = serve(api)

    assert setting.id(f"queue-{wanted}") == api.ids[f"queue-{wanted}"]
    assert not setting.server.targets("POST")


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("pages", [True, False])
@pytest.mark.parametrize("count", [0, 1, 20, 45])
def test_looking_for_a_queue_that_is_not_there_ends(serve, counts, pages, count):
    """Even where the server shows its first page for ever."""
    names = [f"queue-{i}" for i in range(count)]
    setting = serve(Api(names, counts=counts, pages=pages, filters=False))

    assert setting.find("missing") is None
    assert len(setting.server.requests) <= 5


def test_an_exact_name_is_not_taken_for_one_that_begins_alike(serve):
    """A server's filter may be one by prefix."""
    api = Api(["jobs-old", "old-jobs", "jobs"], filters=False)

    assert serve(api).id("jobs") == api.ids["jobs"]


def test_a_missing_queue_is_created(serve):
    api = Api(["other"])
    setting = serve(api)

    assert setting.id("emails.new") == api.ids["emails-new"]


def test_a_missing_queue_is_not_created_against_the_users_will(serve):
    setting = serve(create_missing_queues=False)

    with pytest.raises(errors.QueueNotFound) as missing:
        setting.id("emails.new")

    assert "'emails.new'" in str(missing.value)
    assert "'emails-new'" in str(missing.value)
    assert "create_missing_queues" in str(missing.value)
    assert not setting.server.targets("POST")


def test_finding_creates_nothing(serve):
    setting = serve()

    assert setting.find("jobs") is None
    assert not setting.server.targets("POST")


def test_a_queue_that_somebody_else_creates_at_the_same_time_is_taken(serve):
    """Two machines that start together both find it missing."""
    api = Api()

    def raced(request: Request):
        if request.method == "POST" and "jobs" not in api.ids:
            api.add("jobs")
        return api(request)

    assert serve(raced).id("jobs") == api.ids["jobs"]


def test_a_name_that_is_taken_and_cannot_be_found_is_an_error(serve):
    """Not an endless round of both."""

    def contradicts_itself(request: Request):
        return Success([]) if request.method == "GET" else Failure(409, 11009, "name taken")

    setting = serve(contradicts_itself)

    with pytest.raises(errors.QueueNameConflict):
        setting.id("jobs")
    assert len(setting.server.requests) == 3


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (Failure(403, 10000), errors.AuthenticationFailed),
        (Failure(404, 7003), errors.ConfigurationError),
        (Html(502), errors.ServerError),
        (Drop(), errors.ConnectionFailed),
    ],
)
def test_a_look_up_that_failed_is_repeated_when_next_asked(serve, step, kind):
    api = Api(["jobs"])
    setting = serve(api, step)

    with pytest.raises(kind):
        setting.id("jobs")

    assert setting.id("jobs") == api.ids["jobs"]


# How few requests


def test_a_thousand_queues_take_one_look_up_each_at_most(serve):
    names = [f"queue-{i}" for i in range(1000)]
    setting = serve(Api(names))

    for _ in range(2):
        for name in names:
            setting.id(name)

    assert len(setting.server.requests) <= 1000
    assert not setting.server.targets("POST")


def test_what_a_page_shows_is_not_looked_up(serve):
    """Where the filter is ignored, each page answers for 20 names."""
    names = [f"queue-{i}" for i in range(1000)]
    setting = serve(Api(names, filters=False))

    for name in names:
        setting.id(name)

    assert len(setting.server.requests) < 1500


def test_queues_with_given_ids_take_no_look_up(serve):
    setting = serve(queues={"jobs": "f" * 32, "a.b": "e" * 32, "a-b": "d" * 32})

    assert [setting.id(name) for name in ("jobs", "a.b", "a-b")] == ["f" * 32, "e" * 32, "d" * 32]
    assert setting.find("jobs").id == "f" * 32
    assert not setting.server.requests


@pytest.mark.parametrize("exists", [True, False])
def test_threads_that_ask_for_one_name_share_a_look_up(serve, exists):
    api = Api(["jobs"] if exists else [])

    def slow(request: Request):
        # Time for the others to come, if they do.
        setting.server.wait_for(lambda: len(setting.server.requests) > 2, 0.1)
        return api(request)

    setting = serve(slow)

    ids = run_all([lambda: setting.id("jobs")] * THREADS)

    assert set(ids) == {api.ids["jobs"]}
    assert len(setting.server.targets("GET")) == 1
    assert len(setting.server.targets("POST")) == (0 if exists else 1)


@pytest.mark.parametrize(
    ("step", "kind"),
    [(None, errors.QueueNotFound), (Failure(403, 10000), errors.AuthenticationFailed)],
)
def test_threads_that_ask_for_one_name_share_a_refusal(serve, step, kind):
    """Each would only hear it again, and requests are scarce."""
    here, all_here = [], threading.Event()

    class Queues(dict):
        def __contains__(self, name):
            here.append(name)
            if len(here) == THREADS:
                all_here.set()
            return False

    def slow(request: Request):
        all_here.wait(30)
        time.sleep(0.2)  # from there to where they wait is a few lines
        return step or api(request)

    api = Api()
    setting = serve(slow)

    given = {"queues": Queues(), "create_missing_queues": False}
    outcomes = run_all([lambda: setting.id("jobs", deadline=soon(60), **given)] * THREADS)

    assert {type(outcome) for outcome in outcomes} == {kind}
    assert len({id(outcome) for outcome in outcomes}) == THREADS, "each has its own traceback"
    assert len(setting.server.requests) < THREADS / 4


def test_threads_that_ask_for_several_names_do_not_wait_for_each_other(serve):
    """One slow look-up must not stop all publishing of a process."""
    api = Api(["slow", "fast"])
    release = threading.Event()

    def uneven(request: Request):
        if request.query.get("name") == ["slow"]:
            release.wait(5)
        return api(request)

    setting = serve(uneven)
    slow = threading.Thread(target=setting.id, args=("slow",))
    slow.start()
    assert setting.server.wait_for(lambda: len(setting.server.requests) == 1)

    assert setting.id("fast") == api.ids["fast"]

    release.set()
    slow.join(5)


def test_after_a_look_up_that_failed_another_thread_asks_in_its_own_name(serve):
    """Who waits must not be told of a failure that is not its own, nor for ever."""
    api = Api(["jobs"])
    setting = serve(api, Drop())

    outcomes = run_all([lambda: setting.id("jobs")] * 8)

    failed = [outcome for outcome in outcomes if isinstance(outcome, errors.CFQueuesError)]
    assert len(failed) == 1
    assert outcomes.count(api.ids["jobs"]) == 7
    assert len(setting.server.requests) == 2


def test_who_waits_for_anothers_look_up_gives_up_at_its_own_deadline(serve):
    setting = serve(None, Hang())
    first = threading.Thread(target=lambda: run_all([lambda: setting.id("jobs")]))
    first.start()
    assert setting.server.wait_for(lambda: len(setting.server.requests) == 1)

    began = time.monotonic()
    with pytest.raises(errors.ConnectionFailed) as late:
        setting.id("jobs", deadline=soon(0.1))

    assert time.monotonic() - began < 4
    assert late.value.delivered == "no"
    setting.server.released.set()
    first.join(5)


def test_a_bug_in_one_look_up_does_not_leave_the_others_waiting(serve):
    """Whatever ends the thread that asks, the next one takes over."""
    api = Api(["jobs"])
    setting = serve(api)

    class KilledError(BaseException):
        pass

    def killed(deadline, **_):
        raise KilledError

    setting.budget.acquire = killed
    with pytest.raises(KilledError):
        setting.id("jobs")
    del setting.budget.acquire

    assert setting.id("jobs", deadline=soon(1)) == api.ids["jobs"]


# Connecting


def test_connecting_again_after_a_429_does_not_ask_before_its_time(serve):
    """One more request would keep the token blocked."""
    setting = serve(None, Failure(429, 971))

    for _ in range(2):
        with pytest.raises(errors.RateLimited):
            setting.probe()

    assert len(setting.server.requests) == 1


def test_connecting_takes_one_request_however_often(serve):
    setting = serve(Api(["jobs"]))

    for _ in range(3):
        setting.probe()

    assert len(setting.server.requests) == 1
    assert setting.id("jobs")
    assert len(setting.server.requests) == 1


def test_after_a_connection_has_failed_the_next_one_asks_again(serve):
    setting = serve(Api())
    setting.probe()

    setting.directory.require_probe(None)
    setting.probe()

    assert len(setting.server.requests) == 2


@pytest.mark.parametrize(
    ("slow_seconds", "holds_seconds", "requests"), [(0.0, 60.0, 1), (0.0, 0.0, 2), (60.0, 60.0, 2)]
)
def test_a_refusal_that_was_slow_to_come_holds_for_a_moment(
    serve, monkeypatch, slow_seconds, holds_seconds, requests
):
    """Kombu connects again at once, and a publish would wait for as many timeouts in a row."""
    monkeypatch.setattr(module, "SLOW_PROBE_SECONDS", slow_seconds)
    monkeypatch.setattr(module, "PROBE_FAILURE_SECONDS", holds_seconds)
    setting = serve(None, Drop(), Drop())

    for _ in range(2):
        with pytest.raises(errors.ConnectionFailed):
            setting.probe()

    assert len(setting.server.requests) == requests


def test_threads_that_connect_together_share_one_request(serve):
    """A web server with 64 threads starts with one request, not with all of its burst."""
    api = Api()

    def slow(request: Request):
        setting.server.wait_for(lambda: len(setting.server.requests) > 1, 0.1)
        return api(request)

    setting = serve(slow)

    run_all([setting.probe] * THREADS)

    assert len(setting.server.requests) == 1


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (Failure(403, 10000), errors.AuthenticationFailed),
        (Failure(403, 10106), errors.PermissionDenied),
        (Failure(404, 7003), errors.ConfigurationError),
        (Html(503), errors.ServerError),
        (Drop(), errors.ConnectionFailed),
    ],
)
def test_connecting_fails_where_the_server_or_the_token_does(serve, step, kind):
    setting = serve(None, step)

    with pytest.raises(kind):
        setting.probe()
    assert len(setting.server.requests) == 1

    setting.probe()
    assert len(setting.server.requests) == 2


# Forgetting


def test_a_queue_that_has_gone_is_looked_up_again(serve):
    api = Api(["jobs"])
    setting = serve(api)
    old = setting.id("jobs")
    new = api.add("jobs")

    assert setting.directory.forget("jobs", old, setting.options)

    assert setting.id("jobs") == new != old


def test_forgetting_an_id_that_another_thread_has_replaced_costs_nothing(serve):
    """64 threads that hear of a 404 together must not look up 64 times."""
    api = Api(["jobs"])
    setting = serve(api)
    old = setting.id("jobs")
    api.add("jobs")
    setting.directory.forget("jobs", old, setting.options)
    setting.id("jobs")
    asked = len(setting.server.requests)

    setting.directory.forget("jobs", old, setting.options)
    setting.id("jobs")

    assert len(setting.server.requests) == asked


def test_an_id_that_the_options_say_cannot_be_forgotten(serve):
    setting = serve(queues={"jobs": "f" * 32})

    assert not setting.directory.forget("jobs", "f" * 32, setting.options)
    assert setting.id("jobs") == "f" * 32


# Pull consumers


def test_a_worker_that_consumes_the_queue_is_not_replaced(serve):
    def consumed(request: Request):
        if request.path.endswith("/consumers"):
            return Success([{"type": "worker", "script_name": "w"}])
        return Success([])

    setting = serve(consumed)
    queue = setting.find("jobs") or Queue("q", "jobs", None)

    with pytest.raises(errors.PullNotEnabled):
        setting.directory.enable_pull(queue, setting.options, deadline=soon())

    assert not setting.server.targets("POST")
