"""A spool is not put on a network file system, whatever its mount point is called."""

from __future__ import annotations

from pathlib import Path

import pytest
from kombu import Connection

#: As the kernel writes it: UTF-8 as it is, and octal for space, tab, line feed and backslash.
LINE = "99 1 0:50 / {point} rw,relatime shared:1 - nfs4 server:/export rw\n"


@pytest.mark.parametrize(
    "name", ["home", "Größe", "домой", "家", "two words", "back\\slash", "Größe und mehr"]
)
def test_a_mount_point_with_any_name_is_recognised(emulator, tmp_path, monkeypatch, name):
    """SQLite's shared memory does not reach the other machines, and its locks are anyone's."""
    state = tmp_path / name
    state.mkdir()
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    octal = str(state).replace("\\", "\\134").replace(" ", "\\040")
    original = {method: getattr(Path, method) for method in ("read_text", "read_bytes")}

    def reading(method):
        def read(self, *args, **kwargs):
            found = original[method](self, *args, **kwargs)
            if str(self) != "/proc/self/mountinfo":
                return found
            line = LINE.format(point=octal)
            return found + (line.encode() if method == "read_bytes" else line)

        return read

    for method in original:
        monkeypatch.setattr(Path, method, reading(method))
    with Connection(emulator.broker_url, transport_options={"publish_mode": "spool"}) as connection:
        connection.Producer().publish("x", routing_key="jobs")

    assert not list(state.rglob("*.db*")) + list(state.rglob("*.sqlite*"))
    assert not [found for found in state.rglob("*") if found.is_file()]
    assert [found for found in tmp_path.rglob("kombu-cfqueues/*") if state not in found.parents]
