"""What ``docs/emulator.md`` says is there, is there, and the other way round."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from kombu_cfqueues.emulator import Emulator, Faults, Knobs
from kombu_cfqueues.emulator.routes import NAMES

PAGE = (Path(__file__).parents[2] / "docs" / "emulator.md").read_text()


def test_every_knob_stands_in_the_table_with_its_default():
    table = PAGE.split("## Knobs")[1]
    rows = dict(re.findall(r"^\| `([a-z0-9_]+)`.*? \| `?([^|`]+)`? \|", table, re.MULTILINE))
    rows["rate_block_seconds"] = rows["rate_window_seconds"]
    rows["max_backlog_bytes"] = "25000000000"  # 25 GB there

    assert rows == {knob.name: repr(knob.default).replace("'", '"') for knob in fields(Knobs)}


@pytest.mark.parametrize("route", NAMES)
def test_every_route_is_named(route):
    assert f"`{route}`" in PAGE.split("## Faults")[1].split("## The request limit")[0]


def test_every_fault_has_an_example():
    shown = set(re.findall(r"emulator\.faults\.([a-z_]+)\(", PAGE))
    others = {"remove", "apply", "check_message", "active"}

    assert shown == {name for name in vars(Faults) if not name.startswith("_")} - others


def test_every_endpoint_of_its_own_stands_in_the_table():
    table = PAGE.split("## From other languages")[1].split("## How much")[0]
    shown = set()
    for methods, path in re.findall(r"^\| `([^|]*?)(/_emulator/[^`]*)` \|", table, re.MULTILINE):
        shown |= {(method, path) for method in re.findall("[A-Z]+", methods)}
    emulator = Emulator()
    served = {
        (method, "/_emulator" + route.path.replace(":int", ""))
        for route in emulator._console.routes()
        for method in route.methods - {"HEAD"}
    }
    emulator.stop()

    assert shown == served | {("GET", "/_emulator/openapi.json")}
