"""Make a release's commit and tag: ``make release VERSION=1.2.3``, which also builds it.

Nothing leaves this machine.  Pushing the tag has .github/workflows/release.yml build and upload it.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from pathlib import Path

VERSION_FILE = Path("kombu_cfqueues/__init__.py")
CHANGELOG = Path("CHANGELOG.md")
UNRELEASED = "## [Unreleased]\n"


def git(*arguments: str) -> str:
    """What a git command prints."""
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def must(holds: object, otherwise: str) -> None:
    """End here, with what is wrong, if something does not hold."""
    if not holds:
        sys.exit(f"No release: {otherwise}")


def main(version: str) -> None:
    """Check, write the version down, run all checks, commit and tag."""
    tag = f"v{version}"
    must(re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version), f"{version!r} is no version; 1.2.3")
    must(git("branch", "--show-current").strip() == "main", "this is not the branch main")
    must(not git("status", "--porcelain").strip(), "there are changes that are not committed")
    must(not git("tag", "--list", tag).strip(), f"there is a tag {tag} already")

    changelog = CHANGELOG.read_text()
    must(UNRELEASED in changelog, f"{CHANGELOG} has no section 'Unreleased'")
    news = changelog.partition(UNRELEASED)[2].partition("\n## ")[0]
    must(news.strip(), f"{CHANGELOG} says of nothing that is new")

    today = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
    heading = f"{UNRELEASED}\n## [{version}] - {today}\n"
    CHANGELOG.write_text(changelog.replace(UNRELEASED, heading, 1))
    code = re.sub(
        r'^__version__ = ".*"$',
        f'__version__ = "{version}"',
        VERSION_FILE.read_text(),
        flags=re.MULTILINE,
    )
    VERSION_FILE.write_text(code)

    checks = subprocess.run(["bash", ".ci/run"], check=False)
    must(checks.returncode == 0, ".ci/run failed; 'git checkout .' takes the version back")
    git("commit", "--all", "--message", f"Release {version}")
    git("tag", "--annotate", tag, "--message", f"kombu_cfqueues {version}")
    print(f"Committed and tagged. To publish it: git push origin main {tag}")


if __name__ == "__main__":
    must(len(sys.argv) == 2 and sys.argv[1], "which VERSION? make release VERSION=1.2.3")
    main(sys.argv[1])
