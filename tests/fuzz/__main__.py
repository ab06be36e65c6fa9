"""Search for input that breaks the reading of messages and answers: ``make fuzz``.

atheris changes the input as long as it finds new ways through the code.  Each target runs in a
process of its own, which ends, and prints the input, at the first error that nobody expects.

``python -m tests.fuzz messages FILE`` runs one such input again.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TARGETS = ("messages", "answers")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", nargs="?", choices=TARGETS, help="(default: one after the other)")
    parser.add_argument("inputs", nargs="*", help="files to run again")
    parser.add_argument("--seconds", type=int, default=600, help="for all (default: 600)")
    given = parser.parse_args()
    if given.inputs:
        fuzz(given.target, given.inputs)
        return
    if given.target:
        with tempfile.TemporaryDirectory() as corpus:
            fuzz(given.target, ["-timeout=20", f"-max_total_time={given.seconds}", corpus])
        return
    for target in TARGETS:
        print(f"--- {target}", flush=True)
        seconds = str(given.seconds // len(TARGETS))
        command = [sys.executable, "-m", "tests.fuzz", target, "--seconds", seconds]
        subprocess.run(command, check=True)


def fuzz(target: str, arguments: list[str]) -> None:
    import atheris

    # Only its branches are watched, so that its new ways are what counts.
    with atheris.instrument_imports(include=["kombu_cfqueues"]):
        module = importlib.import_module(f"tests.fuzz.{target}")
    if Path(arguments[-1]).is_dir():
        for number, seed in enumerate(module.SEEDS):
            Path(arguments[-1], str(number)).write_bytes(seed)
    words = Path(tempfile.gettempdir(), f"fuzz-{target}-{os.getpid()}.dict")
    words.write_text("".join(f'"{escaped(word)}"\n' for word in module.WORDS))
    options = [f"-dict={words}", "-max_len=4096", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, *arguments], module.read)
    atheris.Fuzz()


def escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"')


if __name__ == "__main__":
    main()
