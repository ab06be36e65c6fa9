"""``cfqueues pull``: out of a queue, into a file, and lost nowhere."""

from __future__ import annotations

import base64
import json
import os
import signal

import pytest
from support.processes import eventually


@pytest.fixture
def filled(cfqueues, emulator):
    cfqueues("queues", "create", "mails", "--pull")
    cfqueues("publish", "mails", *(f'{{"n": {n}}}' for n in range(250)))
    return emulator


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_acknowledged_is_in_the_file_and_no_longer_in_the_queue(cfqueues, filled, tmp_path):
    file = tmp_path / "out.jsonl"
    done = cfqueues("pull", "mails", "--ack", "--to", file)
    assert done.out == f"Wrote 250 messages to {file}, and acknowledged them.\n"
    assert sorted(line["content"]["n"] for line in lines(file)) == list(range(250))
    assert filled.messages("mails") == []
    assert file.stat().st_mode & 0o077 == 0  # messages may be private


def test_what_is_kept_is_in_both(cfqueues, filled, tmp_path):
    done = cfqueues("pull", "mails", "--keep", "--to", tmp_path / "out", "-n", 120, "--json")
    assert done.json["written"] == 120
    assert len(lines(tmp_path / "out")) == 120
    states = [message.state for message in filled.messages("mails")]
    assert states == ["ready"] * 250


def test_a_file_is_appended_to(cfqueues, filled, tmp_path):
    for _ in range(2):
        cfqueues("pull", "mails", "--ack", "--to", tmp_path / "out", "-n", 100)
    assert len({line["id"] for line in lines(tmp_path / "out")}) == 200


def test_binary_bodies_are_kept_as_they_are(cfqueues, emulator, tmp_path):
    from kombu import Connection

    cfqueues("queues", "create", "mails", "--pull")
    with Connection(emulator.broker_url) as connection:
        connection.Producer(serializer="pickle").publish({"a": b"\xff"}, routing_key="mails")
    cfqueues("pull", "mails", "--ack", "--to", tmp_path / "out")
    [line] = lines(tmp_path / "out")
    body = json.loads(line["raw"]["body"])
    assert b"\xff" in base64.b64decode(body["body"])
    assert line["raw"]["metadata"]


def test_nothing_is_acknowledged_before_it_is_on_the_disk(cfqueues, filled, tmp_path, monkeypatch):
    order = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (order.append("disk"), real(file)))
    filled.requests.clear()
    cfqueues("pull", "mails", "--ack", "--to", tmp_path / "out", "-n", 100)
    assert order == ["disk"]

    def full(_file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    filled.requests.clear()
    done = cfqueues("pull", "mails", "--ack", "--to", tmp_path / "out", code=1)
    assert "the file cannot be written: No space left on device" in done.err
    [settled] = filled.requests.of("ack")
    assert json.loads(settled.body)["acks"] == []
    assert len(filled.messages("mails")) == 150


def test_an_acknowledgement_that_fails_loses_nothing(cfqueues, filled, tmp_path):
    filled.faults.error("ack", status=400, code=10026, times=None)
    done = cfqueues("pull", "mails", "--ack", "--to", tmp_path / "out", code=1)
    assert "settling 100 messages of queue 'mails' failed" in done.err
    assert len(lines(tmp_path / "out")) == 100
    assert len(filled.messages("mails")) == 250


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--to", "out"], 2, "--ack or --keep"),
        (["--ack"], 2, "--to"),
        (["--ack", "--to", "no/such/folder"], 1, "cannot be written: No such file"),
        (["--ack", "--to", "C:\\out"], 2, "a path of Windows"),
    ],
)
def test_a_mistake_takes_nothing(cfqueues, filled, tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    assert said in cfqueues("pull", "mails", *arguments, code=code).err
    assert not filled.requests.of("pull")


def test_a_queue_without_a_pull_consumer_gets_none(cfqueues, emulator, tmp_path):
    emulator.create_queue("mails")
    done = cfqueues("pull", "mails", "--ack", "--to", tmp_path / "out", code=1)
    assert "has no pull consumer" in done.err
    assert emulator.consumers("mails") == []


def test_ctrl_c_ends_it_with_what_is_written(start, filled, tmp_path):
    filled.faults.latency("pull", seconds=0.3, times=None)
    file = tmp_path / "out"
    process = start(filled.broker_url, "pull", "mails", "--ack", "--to", file)
    assert eventually(lambda: file.exists() and file.stat().st_size)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (0, 1)  # it may have been done
    assert len(lines(file)) + len(filled.messages("mails")) == 250
