"""The recipes of docs/results.md, each with a real worker and a real backend."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import urllib.request

import pytest
from support.http import free_port as any_port

from .workers import ROOT, Worker, until

PAGE = (ROOT / "docs/results.md").read_text()

#: What a program that waits for results does: one, a group and a chord.
ASK = """
import json
from celery import chord, group
from shop import add, total
one = add.delay(2, 3).get(timeout=30)
several = group(add.s(n, n) for n in range(3))().get(timeout=30)
summed = chord((add.s(n, n) for n in range(3)), total.s())().get(timeout=30)
print(json.dumps([one, several, summed]))
"""


def recipe(name):
    (code,) = re.findall(
        rf"<!-- result: {name} -->\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE
    )
    return code


def run(code, environ, folder):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environ,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def asked(emulator, folder, code, *, ask=ASK, **environ):
    """What the program gets from a worker whose application is *code*."""
    (folder / "shop.py").write_text(code.replace('"cfqueues://"', repr(emulator.broker_url)))
    path = os.pathsep.join([str(folder), str(ROOT)])
    worker = Worker(
        emulator, folder, pool="threads", app="shop", environ=environ | {"PYTHONPATH": path}
    )
    with worker:
        found = json.loads(run(ask, worker.environ, folder))
        assert worker.stop() == 0
    return found


def test_results_in_redis(emulator, tmp_path, redis_server):
    code = recipe("redis").replace("redis://localhost:6379/0", redis_server.url)
    assert asked(emulator, tmp_path, code) == [5, [0, 2, 4], 6]
    assert emulator.queue_names() == ["celery"]
    assert not looks_for_ends(emulator)


@pytest.mark.long
def test_results_in_a_django_database(emulator, tmp_path):
    (tmp_path / "settings.py").write_text(
        textwrap.dedent(f"""
            INSTALLED_APPS = []
            SECRET_KEY = "only-for-tests"
            USE_TZ = True
            DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
            DATABASES = {{"default": {{
                "ENGINE": "django.db.backends.sqlite3", "NAME": {str(tmp_path / "db.sqlite3")!r},
                # Else SQLite refuses at once what two transactions want to write.
                "OPTIONS": {{"timeout": 30, "transaction_mode": "IMMEDIATE"}},
            }}}}
            CELERY_BROKER_URL = {emulator.broker_url!r}
            """)
        + recipe("django")
    )
    code = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
import django
django.setup()
from celery import Celery

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")


@app.task
def add(x, y):
    return x + y


@app.task
def total(numbers):
    return sum(numbers)
"""
    environ = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    migrate = (
        "import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'settings'; import django;"
        "django.setup(); from django.core.management import call_command;"
        "call_command('migrate', verbosity=0)"
    )
    run(migrate, environ, tmp_path)
    rows = "TaskResult.objects.filter(task_name='shop.add', status='SUCCESS')"
    ask = f"{ASK}from django_celery_results.models import TaskResult\nassert {rows}.count() == 7\n"
    assert asked(emulator, tmp_path, code, ask=ask) == [5, [0, 2, 4], 6]
    assert not looks_for_ends(emulator)


@pytest.fixture
def s3(tmp_path):
    """A server of the S3 protocol, as a process of its own, with the recipe's bucket."""
    port = any_port()
    command = "from moto.server import main; import sys; main(sys.argv[1:])"
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", command, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"

    def makes_bucket():
        try:
            request = urllib.request.Request(f"{url}/results", method="PUT")
            return urllib.request.urlopen(request, timeout=10).status == 200
        except OSError:
            assert server.poll() is None
            return False

    try:
        until(makes_bucket, what="the S3 server answers")
        yield url
    finally:
        server.kill()
        server.wait()


@pytest.mark.long
def test_results_in_r2(emulator, tmp_path, s3):
    """Through the protocol of S3, which is what R2 speaks."""
    code = recipe("s3").replace("https://ACCOUNT_ID.r2.cloudflarestorage.com", s3)
    keys = {"R2_ACCESS_KEY_ID": "key", "R2_SECRET_ACCESS_KEY": "secret"}
    assert asked(emulator, tmp_path, code, **keys) == [5, [0, 2, 4], 6]
    with urllib.request.urlopen(f"{s3}/results?list-type=2", timeout=10) as listing:
        assert "<Key>celery/celery-task-meta-" in listing.read().decode()
    assert looks_for_ends(emulator)


def looks_for_ends(emulator):
    """Whether a task was published that looks whether all parts of a chord are done."""
    sent = emulator.requests.of("push", "batch")
    return any(b"celery.chord_unlock" in request.body for request in sent)
