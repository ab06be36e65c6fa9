"""README and documentation say what is so: their examples run, their tables match the code."""

from __future__ import annotations

import ast
import inspect
import os
import re
import runpy
import subprocess
import sys
import textwrap
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from support.installed import as_installed

from kombu_cfqueues import errors
from kombu_cfqueues.options import ACCOUNT_OPTIONS, Options

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kombu_cfqueues"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("examples/**/*.md"),
        *ROOT.glob("worker/*/README.md"),
    ]
)

#: The levels of the log that ask somebody to act.
LOUD = ("warning", "error", "exception")

#: Their default depends on other things, which the page says in words.
DEFAULT_IN_WORDS = {"account_id", "api_token", "base_url", "max_in_flight", "request_rate"}


def code_blocks(mark: str) -> list:
    """The code blocks below a comment ``<!-- mark -->``, each with the place where it stands."""
    return [
        pytest.param(
            block[1],
            id=f"{page.name}:{page.read_text()[: block.start()].count(chr(10)) + 1}",
            marks=[] if page.name == "README.md" else [pytest.mark.long],
        )
        for page in PAGES
        for block in re.finditer(
            rf"<!-- {mark} -->\n```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE
        )
    ]


@pytest.mark.parametrize("code", code_blocks("runnable"))
def test_example_runs_as_it_stands(code, emulator, tmp_path):
    """What a reader copies works, with nothing but the URL's host changed."""
    host = f"127.0.0.1:{emulator.port}"
    code = code.replace('"cfqueues://"', f'"cfqueues://{host}/"')
    account = {
        "CLOUDFLARE_ACCOUNT_ID": emulator.account_id,
        "CLOUDFLARE_API_TOKEN": emulator.token,
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | account | {"PYTHONPATH": as_installed(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Emulator()" in code or emulator.requests.of("push", "batch"), "nothing was published"


def python_blocks() -> list:
    """Every block of Python code, each with the place where it stands."""
    return [
        pytest.param(
            textwrap.dedent(block[1]),
            id=f"{page.relative_to(ROOT)}:{page.read_text()[: block.start()].count(chr(10)) + 1}",
        )
        for page in PAGES
        for block in re.finditer(
            r"^ *```python\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.MULTILINE
        )
    ]


@pytest.mark.parametrize("code", python_blocks())
def test_python_of_a_page_can_be_compiled(code):
    """Also a part of a program that cannot run alone has no slip of the pen."""
    compile(code, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def copied_blocks() -> list:
    """The code blocks below a comment ``<!-- from FILE -->``, each with the file."""
    return [
        pytest.param(*block.groups(), id=f"{page.name}-{block[1]}")
        for page in PAGES
        for block in re.finditer(
            r"<!-- from (\S+) -->\n```\w+\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE
        )
    ]


@pytest.mark.parametrize(("file", "code"), copied_blocks())
def test_code_of_an_example_project_is_as_it_is_there(file, code):
    """The example is run by its tests; so what the page shows of it is."""
    assert code in (ROOT / file).read_text()


def test_every_option_is_documented_with_its_default():
    """A new option cannot be forgotten, and no default on the page is out of date."""
    page = (ROOT / "docs/options.md").read_text()
    rows = re.findall(r"^\| `(\w+)`(\xa0¹)? \| (.*?) \| .+ \|$", page, re.MULTILINE)
    assert sorted(name for name, _, _ in rows) == sorted(field.name for field in fields(Options))
    assert {name for name, mark, _ in rows if mark} == set(ACCOUNT_OPTIONS)
    documented = {name: default for name, _, default in rows if name not in DEFAULT_IN_WORDS}
    for field in fields(Options):
        if field.name in documented:
            factory = field.default_factory
            default = field.default if factory is MISSING else factory()
            assert ast.literal_eval(documented[field.name].strip("`")) == default, field.name


def test_every_option_has_an_anchor_in_the_built_page():
    """An answer to a question can link to the one option that it is about."""
    source = [(ROOT / "docs/options.md").read_text()]
    runpy.run_path(str(ROOT / "docs/conf.py"))["anchor_options"](None, "options", source)
    assert {field.name for field in fields(Options)} <= set(re.findall(r'<a id="(\w+)"', source[0]))


def test_every_error_is_documented():
    """Whoever meets an error finds on the page what to do."""
    page = (ROOT / "docs/errors.md").read_text()
    names = {
        name
        for name, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, errors.CFQueuesError)
    }
    families = {"CFQueuesError", "TransientError", "PermanentError"}
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| .+ \|$", page, re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"\w+", row)}
    assert names - families <= documented


def lines_of_the_log() -> list[tuple[str, str]]:
    """Each warning and error that the library logs as it is written: its place and its text."""
    return sorted(
        (f"{file.stem}:{call.lineno}", call.args[0].value)
        for file in PACKAGE.rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) in {f"logger.{name}" for name in LOUD}
        and isinstance(call.args[0], ast.Constant)
        and call.args[0].value != "%s"
    )


def test_every_warning_of_the_log_can_be_looked_up():
    """The page quotes enough of it to be found, beside its cause and what to do."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    lines = lines_of_the_log()
    assert lines
    missing = []
    for place, line in lines:
        pieces = re.split(r"%[\d.]*[a-z]", line)
        starts = [piece.strip(" :")[:24] for piece in pieces if len(piece) > 12]
        if not any(start in page for start in starts):
            missing.append((place, line))
    assert not missing


def anchors(page: Path) -> set[str]:
    """What the headings of a page are linked by, at GitHub and in the built documentation."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    named = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    if page.name == "options.md":  # where conf.py gives each row of a table one
        named |= set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))
    return named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """To a file that is there and, after a #, to a heading of it."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_that_are_named_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"^(?:\s*|.*`)make ([a-z]+)", page.read_text(), re.MULTILINE))
    assert named <= set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_are_named_exist(page):
    named = set(re.findall(r"(?:^|[`$=] ?)cfqueues ([a-z]+)", page.read_text(), re.MULTILINE))
    assert named <= {file.stem for file in (PACKAGE / "cli").glob("[a-z]*.py")} | {"COMMAND"}


def test_the_demo_prints_what_the_quick_start_shows():
    """``make demo`` keeps its promise, and the page shows the real thing."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples/demo.py"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    page = (ROOT / "docs/quickstart.md").read_text()
    (shown,) = re.findall(r"^```text\n(  PUBLISHED BY.*?)^```", page, re.DOTALL | re.MULTILINE)
    printed = done.stdout[done.stdout.index("  PUBLISHED BY") :]

    def without_times(text: str) -> str:
        return re.sub(r"\d\.\d s", "N s", text)

    assert without_times(printed) == without_times(shown)
