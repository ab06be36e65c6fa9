"""Which account a command uses, and where its options may stand."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from unittest import mock

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from kombu_cfqueues.cli._commands import commands


def invoke(*arguments, **environment):
    done = CliRunner().invoke(commands, [str(one) for one in arguments], env=environment)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_celerys_variable_is_used_and_named(emulator):
    emulator.create_queue("jobs")
    done = invoke("queues", "list", CELERY_BROKER_URL=emulator.broker_url)
    assert "jobs" in done.stdout
    assert done.stderr == "Using the broker URL of CELERY_BROKER_URL.\n"


@pytest.mark.parametrize(
    "others",
    [{"CELERY_BROKER_URL": "redis://localhost"}, {"CELERY_BROKER_URL": "cfqueues://a:b@[::1]:1/"}],
)
def test_our_own_variable_wins(emulator, others):
    done = invoke("queues", "list", CFQUEUES_BROKER_URL=emulator.broker_url, **others)
    assert (done.exit_code, done.stderr) == (0, "")


def test_celerys_variable_for_another_broker_is_left_alone():
    done = invoke("queues", "list", CELERY_BROKER_URL="redis://localhost")
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: no account_id: give it")
    assert "CFQUEUES_BROKER_URL" in done.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [("CFQUEUES_BROKER_URL", "redis://x"), ("CFQUEUES_BROKER_URL", '"cfqueues://a:b@/"')],
)
def test_a_wrong_url_names_its_variable(variable, value):
    done = invoke("queues", "list", **{variable: value})
    assert done.exit_code == 1
    assert f"(see {variable})" in done.stderr


@pytest.mark.parametrize(
    ("account", "token", "said"),
    [
        ("s3cret-token", "0123456789abcdef" * 2, "CLOUDFLARE_API_TOKEN) are swapped"),
        ("0123456789abcdef" * 2, "...", "api_token (CLOUDFLARE_API_TOKEN) is a placeholder"),
        ("0123456789abcdef" * 2, "'s3cret-token'", "api_token (CLOUDFLARE_API_TOKEN) has quotes"),
        ("0123456789abcdef" * 2, "Bearer s3cret-token", "begins with 'Bearer'"),
    ],
)
def test_slips_are_named_by_doctor(account, token, said):
    done = invoke("doctor", CLOUDFLARE_ACCOUNT_ID=account, CLOUDFLARE_API_TOKEN=token)
    assert said in done.stdout
    assert "s3cret" not in done.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["--broker", "URL", "queues", "list"],
        ["queues", "--broker", "URL", "list"],
        ["queues", "list", "--broker", "URL"],
        ["--broker", "cfqueues://x:y@[::1]:1/", "queues", "list", "--broker", "URL"],
        ["-o", "queue_name_prefix=shop-", "--broker", "URL", "queues", "metrics", "jobs"],
        ["--broker", "URL", "peek", "jobs", "-o", "queue_name_prefix=shop-"],
    ],
)
def test_options_may_stand_before_and_after_a_command(emulator, arguments):
    """Those that stand later win."""
    emulator.create_queue("shop-jobs")
    done = invoke(*(emulator.broker_url if one == "URL" else one for one in arguments))
    assert done.exit_code == 0, done.output
    assert "jobs" in done.output


def every_command(command=commands, *path):
    """Each command that can be called, and its name in parts."""
    context = click.Context(command)
    if not isinstance(command, click.Group):
        yield path, command
        return
    if path:
        yield path, command
    for name in command.list_commands(context):
        yield from every_command(command.get_command(context, name), *path, name)


COMMANDS = dict(every_command())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_has_examples_that_can_be_called(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lines.jsonl").touch()
    shown = invoke(*path, "-h")
    assert shown.exit_code == 0
    assert shown.stdout == invoke(*path, "--help").stdout
    examples = shown.stdout.split("Examples:\n")[1].strip().splitlines()
    for example in examples:
        program, *arguments = shlex.split(example.strip())
        assert program == "cfqueues"
        assert arguments[: len(path)] == list(path)
        _parse(commands, arguments)


def _parse(command, arguments, parent=None):
    """Parse a call without running it; fails where the command would with a usage error."""
    with command.make_context(command.name, list(arguments), parent=parent) as context:
        rest = [*context._protected_args, *context.args]
        if isinstance(command, click.Group) and rest:
            _, found, left = command.resolve_command(context, rest)
            _parse(found, left, context)


def complete(emulator, *words):
    with mock.patch.dict(os.environ, CFQUEUES_BROKER_URL=emulator.broker_url):
        shell = ShellComplete(commands, {}, "cfqueues", "_CFQUEUES_COMPLETE")
        return [one.value for one in shell.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.parametrize(
    "words",
    [
        ("peek", "ma"),
        ("queues", "show", "events", "ma"),
        ("redrive", "dead", "--to", "ma"),
        ("queues", "update", "events", "--dead-letter-queue", "ma"),
    ],
)
def test_the_shell_completes_names_of_queues(emulator, words):
    for name in ("events", "mails", "mails-dead"):
        emulator.create_queue(name)
    assert complete(emulator, *words) == ["mails", "mails-dead"]


def test_names_are_completed_without_their_prefix(emulator):
    emulator.create_queue("shop-mails")
    emulator.create_queue("mails")
    assert complete(emulator, "-o", "queue_name_prefix=shop-", "peek", "m") == ["mails"]


def test_where_nothing_answers_nothing_is_completed(emulator, capfd):
    with emulator.outage():
        assert complete(emulator, "peek", "ma") == []
    assert complete(emulator, "--broker", "redis://", "peek", "ma") == []
    assert capfd.readouterr() == ("", "")
