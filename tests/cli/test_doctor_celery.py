"""``cfqueues doctor -A``: each setting of Celery that is wrong here is one line, and right none."""

from __future__ import annotations

import itertools
import sys

import pytest

from kombu_cfqueues.runtime.extras import install_command

TOKEN = "s3cretOfTheBackend"

#: Settings of which nothing has to be said.
RIGHT = {
    "broker_pool_limit": 40,
    "broker_transport_options": {"visibility_timeout": 1800},
    "result_backend": f"redis://:{TOKEN}@localhost/0",
    "task_acks_late": True,
    "task_time_limit": 600,
    "worker_enable_remote_control": False,
    "worker_prefetch_multiplier": 1,
}

#: Python in the settings of a project, by the text that stands for it.
PYTHON = {
    "<queues that collide>": "[Queue('mails.fast'), Queue('mails-fast')]",
    "<a bound queue>": "[Queue('celery'), Queue('videos', Exchange('media', 'topic'), '#')]",
    "<a pattern>": "re.compile('shop.*')",
}

PROJECT = """
import re
from celery import Celery
from kombu import Exchange, Queue

print("what a project prints while it is imported")
app = Celery("shop", set_as_current=False)
app.conf.update({settings})

@app.task(name="shop.resize", shared=False)
def resize(): ...
"""

_numbers = itertools.count()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write a project; return its name.  What a test loads of it is gone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "DJANGO_SETTINGS_MODULE"):
        monkeypatch.delenv(name, raising=False)
    written = []

    def write(source):
        written.append(f"project{next(_numbers)}")
        (tmp_path / f"{written[-1]}.py").write_text(source)
        return written[-1]

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture
def told(project, run, emulator):
    """Run ``doctor -A`` on a project with these settings; return what is wrong, line by line."""

    def told(settings, *arguments, code=""):
        settings = {"broker_url": emulator.broker_url, **RIGHT, **settings}
        source = PROJECT.replace("{settings}", repr(settings)) + code
        for name, value in PYTHON.items():
            source = source.replace(repr(name), value)
        done = run("cfqueues://", "doctor", "-A", project(source), *arguments)
        assert "Traceback" not in done.out + done.err
        assert "cannot be loaded" not in done.err, done.err
        assert TOKEN not in done.out + done.err
        assert emulator.token not in done.out + done.err
        return [line for line in done.out.splitlines()[:-1] if not line.startswith("ok ")]

    return told


def test_where_all_is_right_nothing_is_said(told):
    assert told({}) == []


@pytest.mark.parametrize(
    ("setting", "wrong", "right", "words"),
    [
        ("broker_pool_limit", {"broker_pool_limit": 10}, {"broker_pool_limit": None}, "set it to"),
        (
            "broker_pool_limit",
            {"worker_pool": "threads", "worker_concurrency": 64},
            {"worker_pool": "prefork", "worker_concurrency": 64},
            "set it to 64",
        ),
        (
            "broker_pool_limit",
            {"broker_pool_limit": 10},
            {"broker_pool_limit": 10, "broker_transport_options": {"publish_mode": "spool"}},
            "to None for no limit",
        ),
        # A lease that is shorter than a task
        (
            "visibility_timeout",
            {"task_time_limit": 3600},
            {"task_time_limit": 3600, "broker_transport_options": {"visibility_timeout": 3800}},
            "at least 3,726",
        ),
        (
            "visibility_timeout",
            {"task_time_limit": None, "task_soft_time_limit": 1790},
            {"task_time_limit": None, "task_soft_time_limit": 1700},
            "60 s before its eta",
        ),
        (
            "visibility_timeout",
            {"task_time_limit": 43200, "broker_transport_options": {"visibility_timeout": 43200}},
            {"task_time_limit": 41000, "broker_transport_options": {"visibility_timeout": 43200}},
            "split the task",
        ),
        (
            "visibility_timeout",
            {"task_acks_late": False, "task_time_limit": 3600},
            {"task_acks_late": False},
            "behind it",
        ),
        # Late acknowledgement without a lease that somebody has thought of
        (
            "visibility_timeout",
            {"task_time_limit": None, "broker_transport_options": {}},
            {"task_time_limit": None},
            "task_acks_late",
        ),
        (
            "worker_prefetch_multiplier",
            {"worker_prefetch_multiplier": 4},
            {"worker_prefetch_multiplier": 4, "task_time_limit": 60},
            "1,800 s",
        ),
        (
            "worker_prefetch_multiplier",
            {"worker_prefetch_multiplier": 0},
            {"worker_prefetch_multiplier": 1},
            "set it to 1",
        ),
        (
            "task_publish_retry",
            {"task_publish_retry": False},
            {"task_publish_retry": True},
            "set it to True",
        ),
        ("task_protocol", {"task_protocol": 1}, {"task_protocol": 2}, "set it to 2"),
        (
            "broker_transport",
            {"broker_url": "memory://", "broker_transport": "kombu_cfqueues:Transport"},
            {"broker_transport": "kombu_cfqueues:Transport"},
            "remove broker_transport",
        ),
        (
            "broker_transport",
            {"broker_read_url": "memory://", "broker_transport": "kombu_cfqueues:Transport"},
            {"broker_read_url": "memory://"},
            "memory://",
        ),
        (
            "broker_url",
            {"broker_url": f"amqp://guest:{TOKEN}@localhost"},
            {"broker_write_url": "cfqueues://{broker}", "broker_url": "memory://"},
            "cfqueues://ACCOUNT_ID",
        ),
        ("broker_url", {"broker_url": None}, {}, "is not set"),
        ("result_backend", {"result_backend": None}, {"task_ignore_result": True}, "shop.resize"),
        ("result_backend", {"result_backend": "rpc://"}, {"result_backend": "file:///x"}, "Redis"),
        (
            "worker_enable_remote_control",
            {"worker_enable_remote_control": True},
            {"worker_enable_remote_control": False},
            "set it to False",
        ),
        # Exchanges that nobody declares where tasks are published
        (
            "task_routes",
            {"task_routes": {"shop.resize": {"exchange": "media", "routing_key": "video"}}},
            {
                "task_routes": {"shop.resize": {"queue": "videos", "routing_key": "video"}},
                "task_queues": "<a bound queue>",
            },
            "exchange 'media'",
        ),
        (
            "task_routes",
            {"task_routes": {"other.*": {"exchange": "media", "routing_key": "video"}}},
            {"task_routes": {"other.*": {"queue": "videos"}}},
            "name the queue",
        ),
        (
            "task_routes",
            {"task_routes": [[("<a pattern>", {"exchange": "media", "routing_key": "a"})]]},
            {"task_routes": [[("<a pattern>", "videos")]]},
            "sends shop.resize",
        ),
        (
            "beat_schedule",
            {"beat_schedule": {"tick": {"task": "shop.resize", "options": {"exchange": "media"}}}},
            {"beat_schedule": {"tick": {"task": "shop.resize", "options": {"queue": "ticks"}}}},
            "sends tick",
        ),
        # Queue names
        (
            "task_queues",
            {"task_queues": "<queues that collide>"},
            {
                "task_queues": "<queues that collide>",
                "broker_transport_options": {"queues": {"mails-fast": "0" * 32}},
            },
            "mails.fast",
        ),
        (
            "task_routes",
            {"task_routes": {"a": {"queue": "a.b"}, "b": {"queue": "a-b"}}},
            {"task_routes": {"a": {"queue": "a.b"}, "b": {"queue": "a-c"}}},
            "rename one of them",
        ),
        (
            "dead_letter_queue",
            {
                "task_default_queue": "mails.dead",
                "broker_transport_options": {
                    "visibility_timeout": 1800,
                    "dead_letter_queue": "mails-dead",
                },
            },
            {"task_default_queue": "mails.dead"},
            "would both have the name",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_and_a_right_one_none(
    told, emulator, setting, wrong, right, words
):
    url = emulator.broker_url
    right = {
        name: url if value == "cfqueues://{broker}" else value for name, value in right.items()
    }

    (line,) = told(wrong)

    verdict, name, text = line.split(maxsplit=2)
    assert name == f"{setting}:"
    assert verdict in ("warning", "PROBLEM")
    assert words in text
    assert told(right) == []


def test_a_task_may_have_settings_of_its_own(told):
    code = """
@app.task(name="shop.render", shared=False, acks_late=True, time_limit=7200)
def render(): ...
"""
    (line,) = told({}, code=code)
    assert "shop.render may run for 7,200 s" in line


def test_a_route_of_many_tasks_is_one_line(told):
    routes = {"shop.*": {"exchange": "media", "routing_key": "video"}}
    code = """
for number in range(3):
    app.task(resize.run, name=f"shop.{number}", shared=False)
"""
    (line,) = told({"task_routes": routes}, code=code)
    assert "and 3 more to exchange 'media'" in line


def test_the_number_of_threads_can_be_given(told):
    assert told({"broker_pool_limit": 10}, "--threads", 10) == []
    (line,) = told({"broker_pool_limit": 10}, "--threads", 11)
    assert "set it to 11" in line


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("broker_pool_limit", "40"),
        ("task_time_limit", "600"),
        ("worker_prefetch_multiplier", "1"),
        ("broker_transport_options", '{"visibility_timeout": 3600}'),
    ],
)
def test_a_text_from_the_environment_is_one_line(told, setting, value):
    (line,) = told({setting: value})
    assert line.startswith(f"PROBLEM  {setting}: must be a")
    assert "type str" in line


def test_a_lease_that_is_too_long_is_one_line(told):
    """People bring it along from Redis, which needs a lease as long as the furthest eta."""
    (line,) = told({"broker_transport_options": {"visibility_timeout": 604800}})
    assert "visibility_timeout must be a number from 1 to 43200" in line
    assert "an eta needs no lease" in line


def test_the_project_s_account_options_and_queues_are_used(project, run, emulator):
    emulator.create_queue("shop-jobs")
    settings = RIGHT | {
        "broker_url": emulator.broker_url,
        "broker_transport_options": {"queue_name_prefix": "shop-", "visibility_timeout": 900},
    }
    name = project(PROJECT.replace("{settings}", repr(settings)))

    done = run("cfqueues://", "doctor", "-A", f"{name}:app", "jobs", "--json", code=0)

    checks = {check["name"]: check for check in done.json["checks"]}
    assert emulator.account_id in checks["settings"]["text"]
    assert checks["queue jobs"]["verdict"] == "ok"


def test_a_url_on_the_command_line_wins(project, run, emulator):
    source = PROJECT.replace("{settings}", repr(RIGHT | {"broker_url": "cfqueues://"}))
    done = run("cfqueues://", "doctor", "-A", project(source), "--broker", emulator.broker_url)
    assert emulator.account_id in done.out
    assert emulator.token not in done.out


def test_a_mistake_in_the_url_names_celery_s_setting(project, run):
    source = PROJECT.replace("{settings}", repr(RIGHT | {"broker_url": f"cfqueues://a:/{TOKEN}@/"}))
    done = run("cfqueues://", "doctor", "-A", project(source), code=1)
    assert "Celery's broker_url" in done.out
    assert TOKEN not in done.out + done.err


@pytest.mark.parametrize("arguments", [("-A", "shop", "--settle"), ("--threads", "4")])
def test_options_that_do_not_go_together(run, arguments):
    done = run("cfqueues://", "doctor", *arguments, code=2)
    assert "Usage" in done.err


# -- applications that cannot be loaded -----------------------------------------------------------


def test_without_celery_it_says_what_to_install(run, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "celery"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "celery", None)
    done = run("cfqueues://", "doctor", "-A", "shop", code=1)
    assert install_command("celery", "celery") in done.err


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import nowhere", "No module named 'nowhere'"),
        ("import os\nos.environ['SHOP_KEY']", "KeyError: 'SHOP_KEY'"),
        ("def broken(:", "SyntaxError"),
        (f"raise ValueError('{TOKEN}')", "ValueError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("app = 1", "leads to a int"),
        ("x = 1", "AttributeError"),
    ],
)
def test_an_application_that_cannot_be_loaded_is_one_line(project, run, source, words):
    name = project(source)
    done = run("cfqueues://", "doctor", "-A", name, code=1)
    (line,) = done.err.splitlines()
    assert name in line
    assert words in line
    assert TOKEN not in line


def test_a_module_that_does_not_exist(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = run("cfqueues://", "doctor", "-A", "shopp", code=1)
    assert "No module named 'shopp'" in done.err
    assert "in the folder" in done.err
