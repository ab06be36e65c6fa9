"""Which folder a process that only publishes looks at: the one that a consumer would choose."""

from __future__ import annotations

import pytest

from kombu_cfqueues.spool import place


@pytest.fixture
def environ(tmp_path):
    state, runtime = tmp_path / "state", tmp_path / "runtime"
    state.mkdir()
    runtime.mkdir()
    return {"XDG_STATE_HOME": str(state), "XDG_RUNTIME_DIR": str(runtime)}


def test_a_look_finds_what_a_consumer_has_chosen_and_makes_nothing(environ, tmp_path):
    assert place.look(None, environ) is None
    assert not list((tmp_path / "state").iterdir())

    chosen = place.find(None, environ)

    assert place.look(None, environ) == chosen


def test_a_look_does_not_take_a_folder_that_a_consumer_would_not_choose(environ, tmp_path):
    """The first folder is not there yet; the next was used while the first could not be."""
    (tmp_path / "runtime" / place.FOLDER).mkdir(mode=0o700)

    assert place.look(None, environ) is None


def test_a_look_passes_by_what_cannot_be_a_folder(environ, tmp_path):
    (tmp_path / "state" / place.FOLDER).write_text("a file")

    chosen = place.find(None, environ)

    assert chosen.folder.parent == tmp_path / "runtime"
    assert place.look(None, environ) == chosen


@pytest.mark.parametrize("mode", [0o700, 0o2770])
def test_a_look_at_a_folder_of_the_users_choice(tmp_path, mode):
    folder = tmp_path / "chosen"
    assert place.look(str(folder)) is None
    folder.mkdir()
    folder.chmod(mode)

    assert place.look(str(folder)) == place.find(str(folder))

    folder.chmod(0o777)
    assert place.look(str(folder)) is None
