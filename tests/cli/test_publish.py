"""``cfqueues publish``: what arrives, what is refused, and how a run goes on."""

import contextlib
import json
import os
import random
import signal
import string
import subprocess
from collections import Counter

import pytest
from celery import Celery
from support.processes import eventually
from support.scripted import Api, Hang, ScriptedServer


def contents(emulator, queue="jobs"):
    return [message.content for message in emulator.messages(queue)]


def lines(count, path):
    path.write_text("".join(f'{{"n": {n}}}\n' for n in range(1, count + 1)))
    return path


def numbers(emulator, queue="jobs"):
    return Counter(content["n"] for content in contents(emulator, queue))


def noise(size):
    """Letters and digits that cannot be compressed to much less."""
    return "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=size))


@pytest.fixture(autouse=True)
def jobs(emulator):
    emulator.create_queue("jobs")


# What arrives


def test_arguments_are_messages(cfqueues, emulator):
    done = cfqueues("publish", "jobs", '{"a": 1}', "[2]", '"ü"', "[null]")

    assert done.out == "Published 4 messages to 'jobs'.\n"
    assert contents(emulator) == [{"a": 1}, [2], "ü", [None]]


def test_text_is_published_as_it_stands(cfqueues, emulator):
    cfqueues("publish", "jobs", "--text", "hello {", "--header", "who=ada", "--delay", "60")

    [message] = emulator.messages("jobs")
    assert message.content == "hello {"
    assert message.headers["who"] == "ada"
    assert message.delay_seconds == 60


def test_lines_come_from_a_pipe_or_a_file(cfqueues, emulator, tmp_path):
    cfqueues("publish", "jobs", stdin='{"n": 1}\n\n{"n": 2}')
    cfqueues("publish", "jobs", "--file", "-", stdin='{"n": 3}\r\n')
    cfqueues("publish", "jobs", "--file", lines(250, tmp_path / "lines"), "--lines", "4-")

    assert numbers(emulator) == Counter(range(1, 251))
    assert len(emulator.requests.of("batch")) == 1 + 3  # of 2 lines, and of 247


def test_a_task_is_what_celery_would_have_sent(cfqueues, emulator):
    """A worker runs it: the headers and the body's form are those of Celery's own message."""
    cfqueues("publish", "jobs", "--task", "shop.add", "[1, 2]", '{"x": 3}')
    app = Celery("shop", broker=emulator.broker_url, set_as_current=False)
    app.conf.broker_transport = "kombu_cfqueues:Transport"
    app.conf.task_default_queue = "jobs"
    with app:
        app.send_task("shop.add", (1, 2))

    ours, named, celerys = emulator.messages("jobs")
    assert ours.task == named.task == "shop.add"
    assert ours.content == celerys.content
    assert named.content[:2] == [[], {"x": 3}]
    assert ours.headers.keys() <= celerys.headers.keys()
    assert type(ours.headers["id"]) is type(celerys.headers["id"])


def test_the_applications_options_hold(cfqueues, emulator):
    """The same name, prefix and format as the application's own publish."""
    emulator.create_queue("shop-jobs")
    cfqueues(
        "publish", "jobs", '{"a": 1}', "-o", "queue_name_prefix=shop-", "-o", "body_format=plain"
    )

    [message] = emulator.messages("shop-jobs")
    assert json.loads(message.body) == {"a": 1}


# What is refused


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "words"),
    [
        (["hello"], None, 1, "use --text"),
        (["NaN"], None, 1, "NaN is not JSON"),
        (["--task", "add", "3"], None, 1, "must be a JSON array"),
        (["--task", "add", "--text", "3"], None, 2, "leave out --text"),
        (["--text", noise(128_000)], None, 1, "127,900"),
        (["--delay", "90000", "1"], None, 1, "86,400"),
        (["--delay", "-1", "1"], None, 2, "--delay"),
        (["--header", "x", "1"], None, 2, "NAME=VALUE"),
        (["--lines", "5-2"], "1\n", 2, "1-9,41201-"),
        (["--file", "/nowhere"], None, 2, "/nowhere"),
        (["--file", "/dev/null", "1"], None, 2, "not both"),
        ([], b"\xff\n", 1, "UTF-8"),
        ([], noise(3_000_000), 1, "127,900"),
        (["-o", "queue_prefix=x", "1"], None, 2, "did you mean 'queue_name_prefix'"),
        (["-o", "publish_timeout", "1"], None, 2, "--option must be NAME=VALUE"),
        (["-o", "api_token=secret", "1"], None, 2, "CLOUDFLARE_API_TOKEN"),
        (["-o", "budget_url=redis://:secret@host", "1"], None, 2, "CFQUEUES_BUDGET_URL"),
        (["-o", "content_type=xml", "1"], None, 1, "content_type must be one of"),
    ],
)
def test_a_mistake_is_told_in_a_line(cfqueues, emulator, arguments, stdin, code, words):
    text = ["--text"] if stdin and len(stdin) > 1_000_000 else []
    done = cfqueues("publish", "jobs", *text, *arguments, stdin=stdin, code=code)

    assert words in done.err
    assert "secret" not in done.err
    assert emulator.messages("jobs") == []


def test_a_queue_that_does_not_exist_is_not_made_by_a_slip(cfqueues, emulator):
    done = cfqueues("publish", "jbos", "1", code=1)

    assert "cfqueues queues create jbos" in done.err
    assert emulator.queue_names() == ["jobs"]


def test_a_delay_past_the_queues_retention_is_refused(cfqueues, emulator):
    emulator.create_queue("short", message_retention_period=60)

    assert "60 s" in cfqueues("publish", "short", "--delay", "120", "1", code=1).err


def test_a_bad_line_ends_the_run_and_the_rest_can_follow(cfqueues, emulator):
    source = '{"n": 1}\n{"n": 2}\noops\n{"n": 4}\n'

    done = cfqueues("publish", "jobs", stdin=source, code=1)
    assert "line 3 cannot be published" in done.err
    assert "last accepted line is 2" in done.out
    assert "--lines 3-" in done.out

    done = cfqueues("publish", "jobs", "--lines", "3-", "--skip-invalid", stdin=source, code=1)
    assert "Skipped 1 line" in done.out
    assert numbers(emulator) == Counter([1, 2, 4])


def test_json_says_what_became_of_it(cfqueues):
    done = cfqueues("publish", "jobs", "--json", stdin="1\n2\noops\n", code=1)

    assert done.json["accepted"] == done.json["last_accepted_line"] == 2
    assert done.json["left"] == "3-"
    assert done.json["complete"] is False
    assert "line 3" in done.json["failure"]


def test_what_is_refused_among_accepted_ones_is_all_that_is_left(cfqueues, emulator, tmp_path):
    """The server may refuse what we took for good; the others must not be sent again."""
    emulator.knobs = type(emulator.knobs)(metadata_bytes=50_000)
    source = tmp_path / "lines"
    texts = [json.dumps({"n": n, "pad": "x" * (100_000 if n == 3 else 1)}) for n in range(1, 6)]
    source.write_text("\n".join(texts))
    state = tmp_path / "state"

    done = cfqueues("publish", "jobs", "--file", source, "--state", state, code=1)
    assert "line 3 was not accepted" in done.err
    assert json.loads(state.read_text())["left"] == "3,6-"

    emulator.knobs = type(emulator.knobs)()
    assert "1 message" in cfqueues("publish", "jobs", "--file", source, "--state", state).out
    assert numbers(emulator) == Counter(range(1, 6))


# Going on


def test_a_state_file_goes_on_where_a_run_ended(cfqueues, emulator, tmp_path):
    """Also when the source has grown: a log can be followed."""
    source, state = lines(150, tmp_path / "lines"), tmp_path / "state"
    cfqueues("publish", "jobs", "--file", source, "--state", state)
    assert (
        "Published 0 messages"
        in cfqueues("publish", "jobs", "--file", source, "--state", state).out
    )
    lines(160, source)
    cfqueues("publish", "jobs", "--file", source, "--state", state)

    assert numbers(emulator) == Counter(range(1, 161))


def test_another_source_with_the_same_state_file_is_noticed(cfqueues, emulator, tmp_path):
    source, state = lines(3, tmp_path / "lines"), tmp_path / "state"
    cfqueues("publish", "jobs", "--file", source, "--state", state)
    source.write_text("7\n8\n9\n10\n")

    done = cfqueues("publish", "jobs", "--file", source, "--state", state, code=1)

    assert "another source" in done.err
    assert len(emulator.messages("jobs")) == 3


def test_a_file_that_is_no_state_file_is_left_alone(cfqueues, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")

    done = cfqueues("publish", "jobs", "1", "--state", precious, code=1)

    assert "name another file" in done.err
    assert precious.read_text() == "mine"


def test_ctrl_c_loses_and_doubles_nothing(start, emulator, tmp_path):
    """The bounded form of a million lines: stopped half-way, resumed, each line there once."""
    source, state = lines(4_000, tmp_path / "lines"), tmp_path / "state"
    arguments = ["publish", "jobs", "--file", source, "--state", state, "--json"]
    emulator.latency = 0.4  # so that it is half-way for seconds
    first = start(emulator.broker_url, *arguments)
    assert eventually(lambda: len(emulator.requests.of("batch")) >= 5, 30)
    first.send_signal(signal.SIGINT)
    emulator.latency = 0
    out, err = first.communicate(timeout=60)

    told = json.loads(out)
    assert first.returncode == 1, err
    assert 0 < told["accepted"] < 4_000
    assert told["left"] == f"{told['last_accepted_line'] + 1}-"
    assert numbers(emulator) == Counter(range(1, told["last_accepted_line"] + 1))

    second = start(emulator.broker_url, *arguments)
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert json.loads(out)["complete"] is True
    assert numbers(emulator) == Counter(range(1, 4_001))


def test_a_second_ctrl_c_waits_for_nothing_and_says_what_is_uncertain(start, tmp_path):
    api = Api(["jobs"])
    source = lines(1_000, tmp_path / "lines")

    def hang(request):
        return Hang() if request.path.endswith("/batch") else api(request)

    with ScriptedServer(otherwise=hang) as server:
        process = start(
            server.broker_url,
            *("publish", "jobs", "--file", source, "--lines", "801-", "--json"),
        )
        assert server.wait_for(lambda: len(server.targets("POST", "/batch")) == 2, 30)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        # Two signals are one to a process that has not run in between, as on a busy machine.
        for _ in range(5):
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(4)
                break
        out, err = process.communicate(timeout=20)

    told = json.loads(out)
    assert process.returncode == 1
    assert told["left"] == "801-"
    assert told["uncertain"] == list(range(801, 1_001))
    assert err == ""


def test_a_pipe_that_pauses_is_not_waited_for(start, emulator):
    """What ``tail -f`` feeds arrives while it waits, and Ctrl-C ends the wait."""
    process = start(emulator.broker_url, "publish", "jobs", stdin=-1)
    process.stdin.write('{"n": 1}\n{"n": 2}\n{"n":')
    process.stdin.flush()
    assert eventually(lambda: len(emulator.messages("jobs")) == 2, 30)
    process.stdin.write(" 3}\n")
    process.stdin.flush()
    assert eventually(lambda: len(emulator.messages("jobs")) == 3, 30)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)

    assert process.returncode == 1
    assert "--lines 4-" in out
    assert err == ""
    assert numbers(emulator) == Counter([1, 2, 3])


def test_a_kill_loses_nothing(start, emulator, tmp_path):
    """What was on its way may come twice; never is a line missing."""
    source, state = lines(3_000, tmp_path / "lines"), tmp_path / "state"
    arguments = ["publish", "jobs", "--file", source, "--state", state]
    emulator.latency = 0.4  # so that it is half-way for seconds
    first = start(emulator.broker_url, *arguments)
    assert eventually(lambda: len(emulator.requests.of("batch")) >= 5, 30)
    first.kill()
    emulator.latency = 0
    first.communicate()
    second = start(emulator.broker_url, *arguments)
    _, err = second.communicate(timeout=60)

    assert second.returncode == 0, err
    found = numbers(emulator)
    assert set(found) == set(range(1, 3_001))
    assert sum(found.values()) - 3_000 <= 600


def test_an_outage_is_waited_out(cfqueues, emulator, tmp_path):
    emulator.order_fault("error batch status=503 times=3")

    done = cfqueues("publish", "jobs", "--file", lines(300, tmp_path / "lines"))

    assert "300 messages" in done.out
    assert numbers(emulator) == Counter(range(1, 301))


def test_patience_ends(cfqueues, emulator, tmp_path):
    emulator.faults.error("batch", "push", status=503, times=None)
    source = lines(2, tmp_path / "lines")

    done = cfqueues(
        *("publish", "jobs", "--file", source, "--patience", "0", "-o", "publish_timeout=1.5"),
        code=1,
    )

    assert "line 1 was not accepted" in done.err
    assert "--lines 1-" in done.out


def test_progress_without_a_terminal_is_plain_lines(start, emulator, tmp_path):
    """A log of a job has no control characters in it."""
    emulator.latency = 0.05
    process = start(emulator.broker_url, "publish", "jobs", "--file", lines(500, tmp_path / "l"))
    out, err = process.communicate(timeout=60)

    assert process.returncode == 0
    assert "\x1b" not in out + err


@pytest.mark.long
def test_memory_stays_flat(start, emulator, tmp_path):
    """A file is read line by line, and a few requests are in memory, whatever its size."""

    def peak(count):
        source = tmp_path / f"{count}"
        with source.open("w") as file:
            file.writelines('{"pad": "%s"}\n' % ("x" * 1000) for _ in range(count))
        process = start(emulator.broker_url, "publish", "jobs", "--file", source)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = status
        assert status == 0
        return used.ru_maxrss  # kB

    assert peak(10_000) - peak(1_000) < 6_000  # of a file of 10 MB


@pytest.mark.parametrize("pipe", [True, False])
def test_a_byte_order_mark_is_not_part_of_the_first_line(cfqueues, emulator, tmp_path, pipe):
    """Windows editors and PowerShell write one."""
    data = b'\xef\xbb\xbf{"n": 1}\r\n{"n": 2}\r\n'
    (tmp_path / "lines.jsonl").write_bytes(data)
    source = {"stdin": data} if pipe else {}
    cfqueues("publish", "jobs", *([] if pipe else ["--file", tmp_path / "lines.jsonl"]), **source)
    assert sorted(message.content["n"] for message in emulator.messages("jobs")) == [1, 2]


@pytest.mark.parametrize("value", [{"to": ["ada"]}, [{"to": "ada"}], [[1], 2]])
def test_an_indented_file_gets_the_hint_of_one_value_per_line(cfqueues, emulator, tmp_path, value):
    (tmp_path / "pretty.json").write_text(json.dumps(value, indent=2))
    done = cfqueues("publish", "jobs", "--file", tmp_path / "pretty.json", code=1)
    assert "line 1 cannot be published" in done.err
    assert "write one value per line, such as with 'jq -c .'" in done.err


def test_any_other_text_gets_the_hint_of_plain_text(cfqueues, emulator):
    for text in ("oops", "{oops}", "{'a': 1}"):
        assert "use --text" in cfqueues("publish", "jobs", text, code=1).err
