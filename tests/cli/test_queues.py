"""``cfqueues queues`` and ``top``, and what holds for every command."""

import json
import os
import re
import signal
import subprocess
import sys

import click
import pytest
from click.shell_completion import ShellComplete
from support.processes import ROOT

from kombu_cfqueues.cli._commands import commands
from kombu_cfqueues.cli.top import _pause
from kombu_cfqueues.options import Options
from kombu_cfqueues.runtime.extras import install_command


def test_a_queue_from_its_making_to_its_end(cfqueues, emulator):
    made = cfqueues("queues", "create", "jobs", "--keep", "3600", "--delay", "5")
    assert "Created queue 'jobs'" in made.out
    assert "There is already a queue 'jobs'" in cfqueues("queues", "create", "jobs").out
    [listed] = cfqueues("queues", "list", "--json").json
    assert (listed["queue"], listed["retention_seconds"], listed["paused"]) == ("jobs", 3600, False)

    cfqueues("queues", "pause", "jobs")
    assert "paused" in cfqueues("queues", "list").out
    cfqueues("queues", "resume", "jobs")
    assert "paused" not in cfqueues("queues", "list").out

    cfqueues("publish", "jobs", "1", "2")
    assert cfqueues("queues", "metrics", "jobs", "--json").json[0]["messages"] == 2
    cfqueues("queues", "purge", "jobs", "--yes")
    assert emulator.messages("jobs") == []

    cfqueues("queues", "delete", "jobs", "--yes")
    assert emulator.queue_names() == []
    assert "No queues yet" in cfqueues("queues", "list").out


def test_a_queue_that_workers_pull(cfqueues, emulator):
    cfqueues("queues", "create", "jobs", "--pull", "--dead-letter-queue", "dead")

    [consumer] = emulator.consumers("jobs")
    assert (consumer.dead_letter_queue, consumer.max_retries) == ("dead", 100)
    assert "pull, 100 retries, dead letters to dead" in cfqueues("queues", "list").out


@pytest.mark.parametrize("verb", ["delete", "purge"])
def test_nothing_is_deleted_without_a_yes(cfqueues, emulator, verb):
    cfqueues("queues", "create", "jobs")
    cfqueues("publish", "jobs", "1")

    done = cfqueues("queues", verb, "jobs", stdin="y\n", code=2)

    assert "--yes" in done.err
    assert len(emulator.messages("jobs")) == 1


def test_all_names_are_known_before_anything_is_deleted(cfqueues, emulator):
    cfqueues("queues", "create", "jobs")

    cfqueues("queues", "delete", "jobs", "jbos", "--yes", code=1)

    assert emulator.queue_names() == ["jobs"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["metrics", "jbos"],
        ["pause", "jbos"],
        ["resume", "jbos"],
        ["purge", "jbos", "--yes"],
        ["delete", "jbos", "--yes"],
    ],
)
def test_a_queue_that_is_not_there_is_told(cfqueues, arguments):
    done = cfqueues("queues", *arguments, code=1)

    assert done.err.startswith("Error: queue 'jbos' does not exist")
    assert done.err.count("\n") == 1


def test_every_queue_of_several_pages_is_listed(cfqueues, emulator):
    names = [f"q{n:02}" for n in range(45)]
    for name in names:
        emulator.create_queue(name)

    assert [one["queue"] for one in cfqueues("queues", "list", "--json").json] == names
    assert len(cfqueues("queues", "list").out.splitlines()) == 46


# top


def test_top_shows_all_once_where_there_is_no_terminal(cfqueues, emulator):
    emulator.create_queue("jobs", consumer={"type": "worker", "script_name": "mailer"})
    emulator.create_queue("idle")
    cfqueues("publish", "jobs", "1")

    shown = cfqueues("top").out

    assert [line.split()[:2] for line in shown.splitlines()[1:]] == [["idle", "0"], ["jobs", "1"]]
    assert "Worker mailer" in shown


def test_top_says_how_fast_a_queue_grows(cfqueues, emulator):
    emulator.create_queue("jobs")

    first, second = cfqueues("top", "jobs", "--json", "-n", "2", "--interval", "0.2").lines

    assert first["queues"][0]["messages_per_second"] is None
    assert second["queues"][0]["messages_per_second"] == 0


def test_top_leaves_the_allowance_to_publishers():
    """Fifty queues every 5 seconds would be ten requests a second, of 3.7."""
    options = Options(account_id="a", api_token="t", request_rate=3.7)

    assert _pause(options, 5.0, requests=51) == pytest.approx(51 / (3.7 / 4))
    assert _pause(options, 5.0, requests=2) == 5.0


# The command itself


def test_every_command_has_help_and_json():
    """Scripts can rely on --json; a relay says nothing, and what is exported is for programs."""
    context = click.Context(commands)
    for name in commands.list_commands(context):
        command = commands.get_command(context, name)
        subs = command.commands.values() if isinstance(command, click.Group) else [command]
        for sub in subs:
            assert sub.help, sub.name
            options = {option for parameter in sub.params for option in parameter.opts}
            is_silent = name in ("relay", "exporter") or sub.name == "export"
            assert "--json" in options or is_silent, sub.name


def cfqueues_process(prelude="", arguments=("queues", "list"), **environment):
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"{prelude}\nfrom kombu_cfqueues.cli import main; main()",
            *arguments,
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_shell_can_complete_commands_and_options():
    shell = ShellComplete(commands, {}, "cfqueues", "_CFQUEUES_COMPLETE")

    def complete(*words):
        return [one.value for one in shell.get_completions(list(words[:-1]), words[-1])]

    assert complete("pe") == ["peek"]
    assert complete("queues", "pu") == ["purge"]
    assert complete("redrive", "--dr") == ["--dry-run"]
    done = cfqueues_process(
        _CFQUEUES_COMPLETE="bash_complete", COMP_WORDS="cfqueues doc", COMP_CWORD="1"
    )
    assert done.stdout == "plain,doctor\n"


def test_without_rich_the_command_says_what_to_install():
    done = cfqueues_process("import sys; sys.modules['rich'] = None")

    assert done.returncode == 1
    assert done.stderr == f"Error: cfqueues queues needs rich: {install_command('cli', 'rich')}\n"


def test_an_emulator_tells_a_program_where_it_is(start, run):
    process = start("cfqueues://", "emulator", "--port", "0", "--json")
    place = json.loads(process.stdout.readline())
    assert run(place["broker_url"], "queues", "list", "--json", code=0).json == []
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")


@pytest.mark.parametrize(("package", "extra"), [("rich", "cli"), ("uvicorn", "emulator")])
def test_help_lists_the_other_commands_where_an_extra_is_not_installed(package, extra):
    done = cfqueues_process(f"import sys; sys.modules['{package}'] = None", ["--help"])

    assert done.returncode == 0, done.stderr
    assert "relay" in done.stdout
    assert f"Not installed: {install_command(extra, package)}" in re.sub(r"\n +", " ", done.stdout)
