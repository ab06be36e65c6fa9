"""What is promised of versions is tested, and a release is one command that refuses to err."""

from __future__ import annotations

import configparser
import email
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]

SETUP = configparser.ConfigParser(interpolation=None)
SETUP.read(ROOT / "setup.cfg")

YAML_FILES = sorted([*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml"])


@pytest.mark.parametrize("file", YAML_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_configuration_of_services_can_be_read(file):
    assert yaml.safe_load(file.read_text())


def test_the_pythons_that_are_promised_are_those_that_are_tested():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    promised = re.findall(r"Python :: (3\.\d+)", SETUP["metadata"]["classifiers"])
    assert tested == promised
    page = (ROOT / "docs/compatibility.md").read_text()
    assert f"| Python | {promised[0]} to {promised[-1]}, " in page


def test_the_oldest_versions_that_are_promised_are_tested():
    required = SETUP["options"]["install_requires"] + SETUP["options.extras_require"]["celery"]
    promised = dict(re.findall(r"^(\w+)>=([\d.]+)", required, re.MULTILINE))
    oldest = (ROOT / ".ci/oldest.txt").read_text()
    tested = dict(re.findall(r"^(\w+)==([\d.]+)\.\*$", oldest, re.MULTILINE))
    assert tested.items() >= promised.items()


def metadata(tmp_path, **environment):
    """The metadata of the package as it is built from a copy of the repository."""
    pytest.importorskip("setuptools", minversion="77.0.3")
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "kombu_cfqueues", tmp_path / "kombu_cfqueues")
    mine = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info"],
        cwd=tmp_path,
        env=mine | environment,
        check=True,
        capture_output=True,
    )
    return email.message_from_string((tmp_path / "kombu_cfqueues.egg-info/PKG-INFO").read_text())


GITHUB = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "shop/kombu_cfqueues"}
VERSION = re.search(
    r'^__version__ = "(.*)"$', (ROOT / "kombu_cfqueues/__init__.py").read_text(), re.MULTILINE
)[1]


def test_on_an_index_every_link_of_the_readme_leads_somewhere(tmp_path):
    """An index shows the README alone, so a relative link would lead nowhere."""
    built = metadata(tmp_path, **GITHUB)
    targets = re.findall(r"\]\(([^)]+)\)", built.get_payload())
    assert len(targets) > 20
    base = "https://github.com/shop/kombu_cfqueues"
    for target in targets:
        path = re.fullmatch(rf"{base}/(raw|blob)/v{VERSION}/([^#]+)(#.*)?", target)
        assert target.startswith("https://") if path is None else (ROOT / path[2]).exists(), target
        if path is not None:
            assert (path[1] == "raw") == path[2].endswith((".svg", ".png"))
    links = dict(link.split(", ") for link in built.get_all("Project-URL"))
    assert links["Source"] == base
    assert {"Documentation", "Changelog", "Issues"} <= links.keys()


def test_built_elsewhere_the_readme_has_no_link_that_leads_nowhere(tmp_path):
    built = metadata(tmp_path)
    assert not re.findall(r"\]\((?!https?://|#)[^)]+\)", built.get_payload())
    assert built.get_all("Project-URL") is None


def test_the_package_says_its_license_and_publishes_no_tools_of_its_own(tmp_path):
    built = metadata(tmp_path)
    assert built["License-Expression"] == "BSD-3-Clause"
    extras = {"celery", "cli", "emulator", "hub", "otel", "redis"}
    assert extras <= set(built.get_all("Provides-Extra"))
    assert not {"dev", "bench"} & set(built.get_all("Provides-Extra"))


def test_actions_are_pinned_by_commit():
    """A tag can be moved to other code, and the release may publish."""
    for file in ROOT.glob(".github/workflows/*.yml"):
        for used in re.findall(r"uses: (\S+)", file.read_text()):
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", used), used


def test_an_index_is_named_only_where_the_package_is_on_it():
    """No page tells to install a name that nobody, or anybody, may have put on an index."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")]
    for page in pages:
        assert not re.findall(r"pip install [^\n`]*kombu-cfqueues", page.read_text()), page


CHANGES = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- A thing.\n\n## [1.0.0] - 2026-01-01\n"


class Repository:
    """A repository that can be released, with checks that pass or fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "kombu_cfqueues").mkdir()
        (folder / ".ci").mkdir()
        self.write("kombu_cfqueues/__init__.py", '__all__ = []\n\n__version__ = "1.0.0"\n')
        self.write("CHANGELOG.md", CHANGES)
        self.write(".ci/run", "true\n")
        shutil.copy(ROOT / ".ci/release.py", folder / ".ci")
        self.git("init", "-q", "-b", "main")
        self.commit()

    def write(self, path: str, text: str) -> None:
        (self.folder / path).write_text(text)

    def git(self, *arguments: str) -> str:
        who = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.com"}
        who |= {name.replace("AUTHOR", "COMMITTER"): value for name, value in who.items()}
        return subprocess.run(
            ["git", *arguments],
            cwd=self.folder,
            env=os.environ | who,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "-q", "-m", "work")

    def release(self, version: str) -> subprocess.CompletedProcess[str]:
        for name in ("name", "email"):
            self.git("config", f"user.{name}", "a@example.com")
        return subprocess.run(
            [sys.executable, ".ci/release.py", version],
            cwd=self.folder,
            check=False,
            capture_output=True,
            text=True,
        )


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path)


def test_a_release_writes_the_version_down_and_tags_it(repository):
    done = repository.release("1.1.0")

    assert done.returncode == 0, done.stderr
    assert repository.git("describe") == "v1.1.0"
    assert repository.git("status", "--porcelain") == ""
    assert (
        '__version__ = "1.1.0"\n'
        in repository.git("show", "HEAD:kombu_cfqueues/__init__.py") + "\n"
    )
    news = repository.git("show", "HEAD:CHANGELOG.md")
    assert re.search(r"## \[Unreleased\]\n\n## \[1\.1\.0\] - \d{4}-\d\d-\d\d\n\n### Added", news)
    assert repository.release("1.1.1").returncode == 1  # nothing is new since


@pytest.mark.parametrize(
    ("version", "spoil", "why"),
    [
        ("", lambda it: None, "which VERSION"),
        ("1.1", lambda it: None, "is no version"),
        ("1.1.0", lambda it: it.git("switch", "-q", "-c", "side"), "not the branch main"),
        ("1.1.0", lambda it: it.write("file", "x"), "not committed"),
        ("1.1.0", lambda it: it.git("tag", "v1.1.0"), "a tag v1.1.0 already"),
        ("1.1.0", lambda it: (it.write(".ci/run", "false\n"), it.commit()), ".ci/run failed"),
    ],
)
def test_a_release_that_would_be_wrong_is_refused(repository, version, spoil, why):
    spoil(repository)
    head, tags = repository.git("rev-parse", "HEAD"), repository.git("tag")

    done = repository.release(version)

    assert done.returncode == 1
    assert why in done.stderr
    assert (repository.git("rev-parse", "HEAD"), repository.git("tag")) == (head, tags)
