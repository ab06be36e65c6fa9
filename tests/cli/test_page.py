"""The page about the command line shows what the commands print."""

import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROJECT = """
from celery import Celery

app = Celery("tasks", broker={url!r}, backend="redis://localhost")
"""


def shown():
    """Each command of the page, and what it is said to print."""
    page = (ROOT / "docs/command-line.md").read_text()
    for block in re.findall(r"^```console\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        for part in re.split(r"^\$ cfqueues ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield command, output


def without_chance(text):
    """*text* without ids, numbers of time and size, and the blanks that their widths make."""
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}", "ID", text)
    text = re.sub(r"ray \w+-", "ray ", text)
    text = re.sub(r"127\.0\.0\.1:\d+", "HOST", text)
    text = re.sub(r"\d[\d,.]* (ms|s|kB|B|MB|d)\b", "N", text)
    text = re.sub(r" in N, [\d,.]+/s", "", text)  # where the machine is slow
    text = re.sub(r'"(timestamp_ms|oldest_message_timestamp_ms)": \d+', "T", text)
    text = re.sub(r'"eyJ\w+="?|"eyJ\w+"', "BASE64", text)
    text = re.sub(r"(ada|grace)@", "who@", text)
    return re.sub(r"[ \t]+", " ", text)


def test_each_command_of_the_page_prints_what_it_shows(run, emulator, tmp_path, monkeypatch):
    """In the page's order, from an empty account."""
    monkeypatch.chdir(tmp_path)
    Path("lines.jsonl").write_text('{"user": 1}\n' * 1000)
    Path("tasks.py").write_text(PROJECT.format(url=emulator.broker_url))
    monkeypatch.setattr(sys, "path", [*sys.path])  # where Celery adds the folder
    monkeypatch.delitem(sys.modules, "tasks", raising=False)
    for command, output in shown():
        if "--settle" in command:
            continue  # has tests of its own, and takes long
        here = command.replace("127.0.0.1:8787", f"127.0.0.1:{emulator.port}")
        done = run(emulator.broker_url, *shlex.split(here))
        printed = without_chance(done.err + done.out)
        for part in without_chance(output).split("…\n"):
            for line in part.splitlines():
                assert line.strip() in [one.strip() for one in printed.splitlines()], (
                    command,
                    line,
                    printed,
                )
