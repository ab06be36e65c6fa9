"""``cfqueues spool``, and folders of the spool that are not what they seem."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from click.testing import CliRunner
from kombu import Connection
from support.processes import eventually

from kombu_cfqueues.cli._commands import commands
from kombu_cfqueues.errors import ConfigurationError
from kombu_cfqueues.options import Options


@pytest.mark.parametrize("command", [["retry"], ["drop"], []])
def test_help_needs_no_settings(command):
    done = CliRunner().invoke(commands, ["spool", *command, "--help"])
    assert done.exit_code == 0
    assert "Examples:" in done.stdout


@pytest.fixture
def refused(cfqueues, emulator, tmp_path):
    """A spool with two refused messages; runs commands on it."""
    folder = tmp_path / "spool"
    emulator.faults.refuse_messages(lambda body: "wrong" in body)
    options = {"publish_mode": "spool", "spool_dir": str(folder)}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        for number in range(2):
            connection.Producer().publish({"wrong": number}, routing_key="jobs")

        def spool(*arguments, **given):
            return cfqueues("spool", *arguments, "--spool-dir", folder, **given)

        assert eventually(lambda: len(spool("--json").json["refused"]) == 2)
        yield spool


@pytest.mark.parametrize("verb", ["retry", "drop"])
def test_an_unknown_id_fails_and_nothing_is_changed(refused, verb):
    before = refused("--json").json["refused"]
    known = before[0]["id"]
    done = refused(verb, str(known), "4711", code=1)
    assert "no refused message has the id 4711, and nothing was changed" in done.err
    assert [one["id"] for one in refused("--json").json["refused"]] == [one["id"] for one in before]


def test_known_ids_are_dropped(refused):
    first, second = (one["id"] for one in refused("--json").json["refused"])
    assert refused("drop", str(first), str(first)).out == "Deleted 1 message.\n"
    assert [one["id"] for one in refused("--json").json["refused"]] == [second]
    assert refused("drop", "--all", "--json").json == {"dropped": 1}


SPOOLS = """
import os, sys
from kombu import Connection
import kombu_cfqueues
options = {"publish_mode": "spool", "spool_dir": sys.argv[2]}
with Connection(sys.argv[1], transport_options=options) as connection:
    connection.Producer().publish({}, routing_key="jobs")
    connection.Producer().publish({}, routing_key="jobs")
    os._exit(0)
"""


def test_doctor_tells_what_waits_in_the_folder_that_it_is_given(cfqueues, emulator, tmp_path):
    """Of an application that spools, to an API without a request limit."""
    folder = tmp_path / "spool"
    with emulator.outage():
        subprocess.run([sys.executable, "-c", SPOOLS, emulator.broker_url, folder], check=True)
    done = cfqueues("doctor", "--spool-dir", folder)
    assert "2 messages waiting, the oldest for " in done.out
    absent = cfqueues("doctor", "--spool-dir", tmp_path / "absent")
    assert "warning  spool: " in absent.out
    assert "does not exist" in absent.out
    assert not (tmp_path / "absent").exists()


def read(folder):
    return Options.read(
        host="127.0.0.1",
        user="a",
        password="t",
        transport_options={"spool_dir": folder},
        environ={},
    ).spool_dir


def test_a_relative_folder_is_made_absolute_and_said(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert read("some/spool") == str(tmp_path / "some/spool")
    assert read("some/spool") == str(tmp_path / "some/spool")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f"spool_dir 'some/spool' is relative, so {tmp_path}/some/spool is used" in caplog.text


def test_an_absolute_folder_and_a_home_are_not_remarked_upon(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(str(tmp_path)) == str(tmp_path)
    assert read("~/spool") == str(tmp_path / "spool")
    assert not caplog.records


@pytest.mark.parametrize("folder", ["C:\\spool", "c:/spool", "spool\\here"])
def test_a_folder_of_windows_is_refused_elsewhere(folder, cfqueues):
    with pytest.raises(ConfigurationError, match="a path of Windows"):
        read(folder)
    assert "a path of Windows" in cfqueues("spool", "--spool-dir", folder, code=1).err
