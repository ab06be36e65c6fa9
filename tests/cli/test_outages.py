"""``top`` and ``relay`` while the API does not answer, and when it does again."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys

from kombu import Connection
from support.processes import ROOT, eventually

TOP = ("top", "--interval", "0.2")


def end(process):
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=60)


def next_update(process, condition):
    """The next object that satisfies *condition*."""
    while True:
        update = json.loads(process.stdout.readline())
        if condition(update):
            return update


def test_top_goes_on_with_the_last_numbers_and_says_since_when_and_why(start, emulator):
    emulator.create_queue("jobs")
    process = start(emulator.broker_url, *TOP, "--json")
    first = next_update(process, lambda update: True)
    assert (first["error"], first["unreachable_since"]) == (None, None)
    with emulator.outage():
        stale = next_update(process, lambda update: update["error"])
        later = next_update(process, lambda update: update["time"] > stale["time"])
    assert "nothing listens on 127.0.0.1" in stale["error"]
    assert [queue["queue"] for queue in stale["queues"]] == ["jobs"]
    assert stale["queues"][0]["messages_per_second"] is None
    assert stale["read_at"] < stale["unreachable_since"] <= stale["time"]
    assert later["unreachable_since"] == stale["unreachable_since"]
    back = next_update(process, lambda update: not update["error"])
    assert back["read_at"] > later["time"]
    end(process)


def test_top_says_it_in_plain_lines_too(start, emulator):
    emulator.create_queue("jobs")
    process = start(emulator.broker_url, *TOP, "-n", "1000000")
    process.stdout.readline()
    with emulator.outage():
        said = process.stderr.readline()
        assert re.match(r"Reading the queues has failed since [\d:]{8}: .*nothing listens", said)
        assert re.search(r"The numbers are from \d\d:\d\d:\d\d, \d+ s ago\.", said)
    assert process.stderr.readline().startswith("The API answers again, after ")
    _, rest = end(process)
    assert rest == ""


def test_on_a_terminal_old_numbers_look_old(emulator):
    emulator.create_queue("jobs")
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CFQUEUES_BROKER_URL": emulator.broker_url}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "200", "LINES": "40"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-c", "from kombu_cfqueues.cli import main; main()", *TOP],
        stdout=theirs,
        stderr=theirs,
        stdin=theirs,
        env=environment,
    )
    os.close(theirs)
    shown = b""

    def appears(pattern):
        nonlocal shown
        while not (found := re.search(pattern, shown)):
            shown += os.read(ours, 65536)
        shown = shown[found.end() :]

    try:
        appears(rb"1 queue at 127\.0\.0\.1")
        with emulator.outage():
            appears(rb"\x1b\[1;31mReading the queues has failed since")
            appears(rb"\x1b\[2mjobs")  # dimmed
        appears(rb"The API answers again, after")
        appears(rb"\njobs")  # not dimmed
    finally:
        process.terminate()
        process.wait(60)
        os.close(ours)


def test_the_first_look_of_top_fails_as_every_command(run, emulator):
    with emulator.outage():
        done = run(emulator.broker_url, *TOP, "--json", code=1)
    assert "is 'cfqueues emulator' running?" in done.err


SPOOLS = """
import os, sys
from kombu import Connection
import kombu_cfqueues
options = {"publish_mode": "spool", "spool_dir": sys.argv[2]}
with Connection(sys.argv[1], transport_options=options) as connection:
    connection.Producer().publish({}, routing_key="jobs")
    os._exit(0)
"""


def test_the_relay_logs_an_outage_and_its_end_once(start, emulator, tmp_path):
    process = start(emulator.broker_url, "relay", "--spool-dir", tmp_path)
    process.stdout.readline()
    with emulator.outage():
        subprocess.run([sys.executable, "-c", SPOOLS, emulator.broker_url, tmp_path], check=True)
        said = process.stderr.readline()
        assert "WARNING spooled messages have not been delivered since " in said
        assert "nothing listens on" in said
    lines = [process.stderr.readline(), process.stderr.readline()]
    assert any("created queue 'jobs'" in line for line in lines)
    assert any("the API answers again after" in line for line in lines)
    assert eventually(lambda: len(emulator.messages("jobs")) == 1)
    _, rest = end(process)
    assert rest == ""
    assert process.returncode == 0


def test_a_process_that_spools_logs_it_too(emulator, tmp_path, caplog):
    options = {"publish_mode": "spool", "spool_dir": str(tmp_path)}
    with (
        Connection(emulator.broker_url, transport_options=options) as connection,
        caplog.at_level("INFO", "kombu_cfqueues"),
    ):
        with emulator.outage():
            connection.Producer().publish({}, routing_key="jobs")
            assert eventually(lambda: "have not been delivered since" in caplog.text)
        assert eventually(lambda: "the API answers again" in caplog.text)
    assert caplog.text.count("have not been delivered since") == 1
