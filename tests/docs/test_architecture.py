"""docs/architecture.md tells the truth: layers, doors, and the table of timing constants."""

from __future__ import annotations

import ast
import functools
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kombu_cfqueues"
PAGE = (ROOT / "docs/architecture.md").read_text()

#: ``a → b, c → d | e``: each room imports only rooms to its right; those beside a bar do not know
#: each other.
(ARROWS,) = re.findall(r"<!-- layers -->\n```text\n(.*?)```", PAGE, re.DOTALL)
LAYERS = [re.findall(r"\w+", layer) for layer in ARROWS.split("→")]
STRANGERS = [set(re.findall(r"\w+", layer)) for layer in ARROWS.split("→") if "|" in layer]
ROOMS = [room for layer in LAYERS for room in layer]

#: Rooms whose modules nothing outside imports: what they offer, their ``__init__`` has.
DOORS = {"spool"}

#: What stands beside the layers: users import it, or it is a program.
APART = {"cli", "emulator", "testing"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(file: Path) -> str:
    """The dotted name of a module of the package."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(file): file for file in MODULES}


@functools.cache
def imports_of(file: Path) -> set[str]:
    """The modules of the package that a file imports, anywhere in it, for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = file.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            inner = {f"{module}.{alias.name}" for alias in node.names}
            # `from . import limits` names a module; `from .limits import X` the one before it.
            modules = inner & NAMES.keys()
            found |= modules
            if modules != inner:
                found.add(module)
    return found & NAMES.keys()


def room_of(module: str) -> str:
    """The room of a module: the file or folder directly below the package."""
    return module.split(".")[1] if "." in module else ""


def test_the_rooms_on_the_page_are_the_rooms_of_the_package():
    folders = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    files = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__"}
    assert sorted(ROOMS) == sorted((folders | files) - APART)


def test_a_file_imports_only_rooms_below_its_own():
    """Arrows point one way, so each file can be understood from those below it."""
    found = {name: imports_from_above(name, file) for name, file in NAMES.items()}
    assert {name: above for name, above in found.items() if above} == {}


def imports_from_above(name, file):
    room = room_of(name)
    if room in ("", *APART):
        return set()
    below = {room, *ROOMS[ROOMS.index(room) + 1 :]}
    for strangers in STRANGERS:
        if room in strangers:
            below -= strangers - {room}
    return {room_of(module) for module in imports_of(file)} - {""} - below


def test_no_files_import_each_other_in_a_circle():
    """Not for type checkers either."""
    graph = {name: imports_of(file) - {name} for name, file in NAMES.items()}
    graph.pop("kombu_cfqueues")  # it loads its names when they are asked for
    while free := [name for name, imported in graph.items() if not imported & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph


def test_a_room_with_a_door_is_entered_by_its_door():
    """What lies behind a door can be changed without a look at the rest of the library."""
    inside = {
        (name, module)
        for name, file in NAMES.items()
        for module in imports_of(file)
        for door in DOORS - {room_of(name)}
        if module.startswith(f"kombu_cfqueues.{door}.")
    }
    assert inside == set()


def names_in(file: Path) -> set[str]:
    """All identifiers of a file: what it defines, and what it uses."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        for field in ("name", "id", "attr", "arg"):
            name = getattr(node, field, None)
            if isinstance(name, str):
                found.add(name)
    return found


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("spool/*.py")), ids=name_of)
def test_below_the_protocol_of_waiting_rooms_nobody_waits_leads_or_splits(file):
    """Group commit is written once, above the two rooms."""
    above = re.compile(r"caller|lead(er|s)?($|_)|follower|wake|notify|split|halve|judge|verdict")
    methods_of_text = {"split", "splitlines"}
    names = sorted(names_in(file) - methods_of_text)
    assert [name for name in names if above.search(name.lower())] == []


def test_kombu_is_imported_where_the_page_says():
    (said,) = re.findall(r"Kombu is imported by (.*?)\.\n", PAGE, re.DOTALL)
    importers = {
        name.removeprefix("kombu_cfqueues.") or "__init__"
        for name, file in NAMES.items()
        if room_of(name) not in APART and _imports_kombu(file)
    }
    importers = {"__init__" if name == "kombu_cfqueues" else name for name in importers}
    assert importers == set(re.findall(r"`([\w.]+)`", said))


def _imports_kombu(file: Path) -> bool:
    return bool(re.search(r"^\s*(?:from|import) kombu\b", file.read_text(), re.MULTILINE))


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("emulator/*.py")), ids=lambda file: file.name)
def test_the_emulator_imports_nothing_of_the_library(file):
    """A misreading of Cloudflare's documentation cannot cancel itself out in a test."""
    imported = imports_of(file) - {"kombu_cfqueues.runtime.extras"}  # how to install the emulator
    assert {room_of(module) for module in imported} <= {"emulator"}


def test_a_name_of_a_constant_means_one_thing_in_the_whole_package():
    """Who reads or searches for one finds its meaning once.  The emulator is apart."""
    files: dict[str, list[str]] = {}
    for name, file in NAMES.items():
        if room_of(name) != "emulator":
            found = re.findall(r"^([A-Z][A-Z_]+)(?::[^=]*)? = ", file.read_text(), re.MULTILINE)
            for constant in found:
                files.setdefault(constant, []).append(name)
    assert {constant: where for constant, where in files.items() if len(where) > 1} == {}


def timing_constants() -> dict[tuple[str, str], float]:
    """(module, name) -> seconds, of every constant of the library that bounds a time."""
    found = {}
    for name, file in NAMES.items():
        if room_of(name) in {"cli", "emulator"}:
            continue
        for node in ast.parse(file.read_text()).body:
            for target in getattr(node, "targets", [getattr(node, "target", None)]):
                if isinstance(target, ast.Name) and target.id.endswith("_SECONDS"):
                    value = getattr(importlib.import_module(name), target.id)
                    found[name.removeprefix("kombu_cfqueues."), target.id] = value
    return found


def test_every_timing_constant_is_in_the_table_with_its_value():
    """Who changes one sees the others, and why each has its value."""
    rows = re.findall(
        r"^\| `([\w.]+)` \| `(\w+_SECONDS)` \| ([\d.,]+) \| .+ \|$", PAGE, re.MULTILINE
    )
    table = {(module, name): float(value.replace(",", "")) for module, name, value in rows}
    assert len(rows) == len(table)
    assert table == timing_constants()


def test_a_constant_that_bounds_a_time_says_its_unit():
    """A pause, timeout or interval is named for its unit, so that it stands in the table."""
    times = [
        (name, time)
        for name, file in NAMES.items()
        if room_of(name) not in {"cli", "emulator"}
        for time in re.findall(
            r"^([A-Z_]*(?:PAUSE|TIMEOUT|INTERVAL|WAIT|HOLD|LONGEST|LINGER)[A-Z_]*)(?::[^=]*)? = ",
            file.read_text(),
            re.MULTILINE,
        )
    ]
    assert [each for each in times if not each[1].endswith("_SECONDS")] == []
