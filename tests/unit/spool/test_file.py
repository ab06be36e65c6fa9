"""The spool's file and folder when the machine is not as it should be."""

import errno
import logging
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import traceback
from pathlib import Path

import pytest
from support.processes import eventually
from support.spools import Hours, Peer, texts

from kombu_cfqueues import errors
from kombu_cfqueues.runtime.clock import Clock
from kombu_cfqueues.spool import message_table, place
from kombu_cfqueues.spool.database import Database
from kombu_cfqueues.spool.file import File
from kombu_cfqueues.spool.liveness import KernelLock, LivenessLocks
from kombu_cfqueues.spool.schema import FILE_VERSION

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can play another user")

MOUNTS = bool(shutil.which("unshare")) and not subprocess.call(["unshare", "--mount", "true"])
"""Whether this user may mount something for a process of its own."""


def database(path, *, version=1, tables=""):
    return Database(path, 0o600, version, lambda c, new: new and c.execute(tables or "SELECT 1"))


# -- where it is


def test_the_folder_is_the_users_state_folder(tmp_path):
    found = place.find(None, {"XDG_STATE_HOME": str(tmp_path / "state")})
    assert found.folder == tmp_path / "state" / "kombu-cfqueues"
    assert stat.S_IMODE(found.folder.stat().st_mode) == 0o700
    assert not found.shared


def test_a_home_that_cannot_be_written_leaves_the_runtime_folder(tmp_path):
    """A service with a read-only home has a folder in /run."""
    (tmp_path / "state").write_text("in the way")
    environ = {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_RUNTIME_DIR": str(tmp_path)}
    assert place.find(None, environ).folder == tmp_path / "kombu-cfqueues"


def test_a_home_that_is_mounted_read_only_leaves_the_runtime_folder(tmp_path):
    """What permissions say is not all: ``ProtectHome=read-only`` holds for root, too."""
    home, run = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    run.mkdir()
    code = f"""
        from kombu_cfqueues import errors
        from kombu_cfqueues.spool import place
        print(place.find(None, {{"XDG_RUNTIME_DIR": {str(run)!r}}}).folder)
        try:
            place.find({str(home / "spool")!r})
        except errors.SpoolUnavailable as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    if MOUNTS:
        mount = 'mount -t tmpfs -o ro none "$HOME" && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", mount, "sh", *command]
    else:
        home.rmdir()
        home.symlink_to("/proc/self")  # which nobody can write to, either
    done = subprocess.run(
        command,
        env=os.environ | {"HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found, refused = done.stdout.splitlines()
    assert found == str(run / "kombu-cfqueues")
    assert f"{home / 'spool'} cannot be used" in refused
    assert "Read-only file system" in refused or not MOUNTS


def test_the_last_resort_is_a_folder_of_ones_own_in_the_temporary_one(tmp_path, monkeypatch):
    monkeypatch.setattr(place.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "no").write_text("in the way")
    found = place.find(None, {"XDG_STATE_HOME": str(tmp_path / "no")})
    assert found.folder == tmp_path / f"kombu-cfqueues-{os.geteuid()}"


def test_a_folder_that_was_asked_for_is_never_replaced(tmp_path):
    """Another folder would be another allowance, and the sum of both a block."""
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.SpoolUnavailable, match="file"):
        place.find(str(tmp_path / "file" / "spool"))


def test_a_folder_that_was_asked_for_is_made_with_those_above_it(tmp_path):
    found = place.find(str(tmp_path / "a" / "b"))
    assert found.folder == tmp_path / "a" / "b"
    assert stat.S_IMODE(found.folder.stat().st_mode) == 0o700
    assert not found.shared


def test_where_no_folder_will_do_each_says_why_not(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(place.tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    environ = dict.fromkeys(["XDG_STATE_HOME", "XDG_RUNTIME_DIR"], str(tmp_path / "file"))
    with pytest.raises(errors.SpoolUnavailable) as refused:
        place.find(None, environ)
    assert str(refused.value).count("Not a directory") + str(refused.value).count("exists") == 3
    assert "spool_dir" in str(refused.value)


def test_a_state_folder_that_is_relative_does_not_count(tmp_path, monkeypatch):
    """So says the specification of these variables."""
    monkeypatch.setenv("HOME", str(tmp_path))
    found = place.find(None, {"XDG_STATE_HOME": "state"})
    assert found.folder == tmp_path / ".local" / "state" / "kombu-cfqueues"


def test_a_folder_that_others_can_read_is_closed_to_them(tmp_path):
    folder = tmp_path / "kombu-cfqueues"
    folder.mkdir(mode=0o755)
    place.find(None, {"XDG_STATE_HOME": str(tmp_path)})
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_each_account_at_each_place_has_a_file_of_its_own(tmp_path, clock):
    """Or the messages of one would be posted to the other."""

    def path(base_url, account):
        file = File(base_url, account, None, lambda: "t", spool_dir=str(tmp_path), clock=clock)
        file.close()
        return file.path

    paths = {path(url, account) for url in ("http://a/v4", "http://b/v4") for account in "12"}
    assert len(paths) == 4
    assert path("http://a/v4", "1") in paths


def test_a_folder_that_everybody_can_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(errors.SpoolUnavailable, match="o-w"):
        place.find(str(tmp_path))


def test_a_link_in_the_place_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "kombu-cfqueues").symlink_to(tmp_path / "elsewhere")
    environ = {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_RUNTIME_DIR": str(tmp_path)}
    assert place.find(None, environ).folder == tmp_path / "kombu-cfqueues"


@ROOT
def test_a_folder_of_another_user_is_not_used(tmp_path):
    """Who owns it could read the messages, or change them."""
    theirs = tmp_path / "kombu-cfqueues"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    environ = {"XDG_STATE_HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    assert place.find(None, environ).folder == tmp_path / "run" / "kombu-cfqueues"


def test_a_network_file_system_is_used_only_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(place, "_file_system", lambda folder: "nfs4")
    monkeypatch.setattr(place.tempfile, "gettempdir", lambda: str(tmp_path))
    with pytest.raises(errors.SpoolUnavailable, match=r"network file system \(nfs4\)"):
        place.find(None, {"XDG_STATE_HOME": str(tmp_path / "state")})
    assert place.find(str(tmp_path / "asked")).folder == tmp_path / "asked"


def test_files_are_for_their_user_alone(tmp_path, clock):
    peer = Peer(tmp_path / "spool", clock)
    peer.spool()
    for path in (tmp_path / "spool").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    peer.file.close()


@ROOT
def test_users_of_a_group_share_a_folder_of_it(clock):
    """Containers and services with one token need one folder, and their files are the group's."""
    # Not pytest's folder, which any run of pytest makes its user's alone.
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder)
        os.chown(shared, 0, 54321)
        shared.chmod(0o2770)
        for user in (12345, 12346):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    os.setgroups([])
                    os.setgid(54321)
                    os.setuid(user)
                    Peer(shared, clock).spool(str(user))
                    status = 0
                finally:
                    if status:
                        traceback.print_exc()
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0
        ours = Peer(shared, clock)
        assert texts(ours.claim()) == ["12345", "12346"]
        ours.file.close()


# -- what is in the folder


@pytest.mark.parametrize(
    "content", [b"this is no database at all" * 100, b"SQLite format 3\0" + b"\1" * 4096]
)
def test_a_broken_file_is_put_aside_and_never_deleted(tmp_path, clock, caplog, content):
    peer = Peer(tmp_path, clock)
    path = peer.file.path
    path.write_bytes(content)
    with caplog.at_level(logging.ERROR):
        peer.spool("new")
    (record,) = caplog.records
    (aside,) = tmp_path.glob("*.unusable-*")
    assert str(aside) in record.getMessage()
    assert "not a database" in record.getMessage()
    assert aside.read_bytes() == content
    assert texts(peer.claim()) == ["new"]
    peer.file.close()


def test_a_file_that_breaks_in_use_is_put_aside(tmp_path, clock, caplog):
    peer = Peer(tmp_path, clock)
    peer.spool("lost", count=200)
    peer.file.close()
    size = peer.file.path.stat().st_size
    with peer.file.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with caplog.at_level(logging.ERROR):
        peer.spool("new")
    assert len(list(tmp_path.glob("*.unusable-*"))) == 1
    assert texts(peer.claim()) == ["new"]
    peer.file.close()


def test_many_who_find_the_file_broken_put_it_aside_once(tmp_path):
    peers = [Peer(tmp_path, Clock()) for _ in range(8)]
    peers[0].file.path.write_bytes(b"x" * 5000)
    threads = [threading.Thread(target=peer.spool) for peer in peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(tmp_path.glob("*.unusable-*"))) == 1
    assert len(peers[0].try_claim().items) == 8
    for peer in peers:
        peer.file.close()


def test_a_file_that_another_process_has_repaired_stays(tmp_path, clock, caplog):
    """Who found it broken as well comes later, and must not put the new one aside."""
    peer = Peer(tmp_path, clock)
    peer.spool("new")
    database = peer.file._database
    once, found = database._once, [sqlite3.DatabaseError("file is not a database")]

    def late(*given):
        if found:
            raise found.pop()
        return once(*given)

    database._once = late
    peer.spool("more")

    assert texts(peer.claim()) == ["new", "more"]
    assert not list(tmp_path.glob("*.unusable-*"))
    assert not caplog.records
    peer.file.close()


def test_a_database_of_another_program_is_put_aside(tmp_path, clock):
    peer = Peer(tmp_path, clock)
    foreign = sqlite3.connect(peer.file.path)
    foreign.execute("CREATE TABLE theirs (x)")
    foreign.close()
    peer.spool()
    (aside,) = tmp_path.glob("*.unusable-*")
    kept = sqlite3.connect(aside)
    assert kept.execute("SELECT count(*) FROM theirs").fetchone() == (0,)
    kept.close()
    peer.file.close()


def test_a_file_of_another_version_is_left_alone(tmp_path):
    """A newer one has its own name; one that was renamed is not touched either."""
    newer = database(tmp_path / "x.db", version=FILE_VERSION + 1)
    newer.write(lambda c: c.execute("CREATE TABLE new (x)"))
    newer.close()
    with pytest.raises(errors.SpoolUnavailable, match="another version"):
        database(tmp_path / "x.db").read(lambda c: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.db", "x.repair"]


def test_the_file_of_each_version_has_its_own_name(tmp_path, clock):
    peer = Peer(tmp_path, clock)
    assert peer.file.path.name.endswith(f"-v{FILE_VERSION}.db")


def test_what_an_older_version_has_spooled_is_delivered_by_the_newer(tmp_path, clock, monkeypatch):
    """After an upgrade nobody runs the old version any more, and its messages wait all the same."""
    older, poster = Peer(tmp_path, clock), Peer(tmp_path, clock)
    older.spool("sent, perhaps")
    poster.claim()
    poster.die()
    older.spool("waits", count=2)
    monkeypatch.setattr("kombu_cfqueues.spool.file.FILE_VERSION", FILE_VERSION + 1)
    newer = Peer(tmp_path, clock)

    newer.spool_.messages.take_over()
    assert not newer.spool_.messages.has_backlog(), "who still runs it delivers it"
    older.die()
    newer.spool_.messages.take_over()
    newer.spool_.messages.take_over()

    claim = newer.claim()
    assert texts(claim) == ["sent, perhaps", "waits", "waits"]
    assert [item.uncertain for item in claim.items] == [True, False, False]
    newer.file.close()


def test_only_what_is_to_outlive_a_power_failure_is_written_through(tmp_path):
    """Each such write waits for the disk."""
    base = database(tmp_path / "spool.db")

    def level(connection):
        return connection.execute("PRAGMA synchronous").fetchone()[0]

    normal, full = 1, 2
    levels = [base.write(level, durable=durable) for durable in (False, True, True, False, True)]
    assert levels == [normal, full, full, normal, full]
    base.close()


def test_a_file_that_vanishes_is_made_again(tmp_path, clock):
    peer = Peer(tmp_path / "spool", clock)
    peer.spool("gone")
    for path in (tmp_path / "spool").glob("*.db*"):
        path.unlink()
    peer.spool("new")
    assert texts(peer.claim()) == ["new"]
    peer.file.close()


def test_a_full_disk_is_told_to_the_caller_and_breaks_nothing(tmp_path):
    file = database(tmp_path / "x.db", tables="CREATE TABLE t (x)")
    file.write(lambda c: c.execute("PRAGMA max_page_count = 20"))
    with pytest.raises(errors.SpoolFull, match="full"):
        file.write(lambda c: c.execute("INSERT INTO t VALUES (zeroblob(1000000))"))
    file.write(lambda c: c.execute("INSERT INTO t VALUES (1)"))
    assert file.read(lambda c: c.execute("SELECT count(*) FROM t").fetchone()) == (1,)
    file.close()


def test_a_folder_that_vanishes_is_made_again_for_the_next_message(tmp_path, clock):
    peer = Peer(tmp_path / "spool", clock)
    peer.spool("gone")
    shutil.rmtree(tmp_path / "spool")
    peer.spool("new")
    assert texts(peer.claim()) == ["new"]
    peer.file.close()


def test_the_disk_gets_back_what_a_backlog_has_taken(tmp_path, clock):
    """Else a disk that an outage has filled would be full for good, with nothing on it."""
    peer = Peer(tmp_path, clock)
    rows = peer.spool("x" * 10_000, count=500)
    full = peer.file.path.stat().st_size
    peer.file.write(lambda c: c.execute("DELETE FROM message WHERE id <= ?", (rows[-1][1],)))
    while peer.file.shrink():
        pass
    peer.file.close()
    assert peer.file.path.stat().st_size < full / 3
    assert not peer.file.shrink()
    peer.file.close()


def test_a_spool_never_fills_its_disk(tmp_path, clock, monkeypatch):
    """Delivering has to write as well: a disk that is full to the last byte stays full."""
    peer = Peer(tmp_path, clock)
    peer.spool("kept")
    monkeypatch.setattr(message_table, "RESERVE_BYTES", 1 << 62)
    with pytest.raises(errors.SpoolFull, match="bytes free"):
        peer.spool("refused")
    assert texts(peer.claim()) == ["kept"]
    peer.file.close()


def test_a_file_that_cannot_be_written_is_unavailable(tmp_path):
    (tmp_path / "x.db").mkdir()
    with pytest.raises(errors.SpoolUnavailable):
        database(tmp_path / "x.db").read(lambda c: None)


# -- many at once


def test_a_stuck_writer_is_not_waited_for_for_ever(tmp_path):
    """A process that is stopped while it writes must not take all others with it."""
    clock = Hours()
    file = Database(tmp_path / "x.db", 0o600, 1, lambda c, new: None, clock=clock)
    file.write(lambda c: None)
    stuck = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    stuck.execute("BEGIN IMMEDIATE")
    with pytest.raises(errors.SpoolUnavailable, match="locked"):
        file.write(lambda c: None)
    assert clock.now == pytest.approx(1005, abs=0.1)
    stuck.close()
    file.write(lambda c: None)
    file.close()


def test_a_lock_ends_with_its_process(tmp_path):
    code = f"""
        import os, sys, signal
        from pathlib import Path
        from kombu_cfqueues.spool.liveness import LivenessLocks
        name, lock = LivenessLocks(Path({str(tmp_path)!r}), 0o700, 0o600).register()
        print(name, flush=True)
        signal.pause()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    name = process.stdout.readline().strip()
    posters = LivenessLocks(tmp_path, 0o700, 0o600)
    assert posters.is_alive(name)
    process.kill()
    process.communicate()
    assert not posters.is_alive(name)
    posters.remove_lock_file(name)
    assert not posters.is_alive(name)


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def flock(file, _):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="No locks"):
        KernelLock(tmp_path / "lock", 0o600).acquire()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_who_is_swept_away_while_it_registers_registers_again(tmp_path, monkeypatch):
    """Between making the file and locking it, it looks like that of a dead poster."""
    came, others = LivenessLocks(tmp_path, 0o700, 0o600), LivenessLocks(tmp_path, 0o700, 0o600)
    lock_it, swept = KernelLock.acquire, []

    def acquire_late(lock):
        lock_it(lock)
        if not swept:
            swept.extend(file.name for file in tmp_path.iterdir())
            others.remove_lock_file(swept[0])
        return True

    monkeypatch.setattr(KernelLock, "acquire", acquire_late)
    name, lock = came.register()
    assert name not in swept
    assert others.living() == [name]
    lock.release()
    assert others.dead() == [name]


def test_a_forked_child_does_not_keep_its_parent_alive(tmp_path):
    """A child has the parent's descriptors, and with them its locks, unless it lets go of them."""
    code = f"""
        import os, signal, sys
        from pathlib import Path
        from kombu_cfqueues.spool.file import File
        file = File("http://127.0.0.1:1", "a", None, lambda: "t", spool_dir={str(tmp_path)!r})
        poster = file.me
        child = os.fork()
        if child:
            print(poster, child, flush=True)
        signal.pause()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    name, child = process.stdout.readline().split()
    (folder,) = tmp_path.glob("*.posters")
    posters = LivenessLocks(folder, 0o700, 0o600)
    try:
        assert posters.is_alive(name)
        process.kill()
        process.wait()
        assert eventually(lambda: not posters.is_alive(name))
        os.kill(int(child), 0)  # it lives
    finally:
        os.kill(int(child), signal.SIGKILL)
        process.communicate()


def test_a_lock_is_one_processes_at_a_time(tmp_path):
    first, second = KernelLock(tmp_path / "x", 0o600), KernelLock(tmp_path / "x", 0o600)
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()


def test_who_opens_a_file_does_not_wait_for_those_who_write(tmp_path, monkeypatch):
    """Else a hundred processes that start together would take the processor from each other."""
    path = tmp_path / "spool.db"
    database(path, tables="CREATE TABLE t (x)").write(
        lambda c: c.execute("INSERT INTO t VALUES (1)")
    )
    tries, connect = [], Database._connect
    monkeypatch.setattr(
        Database, "_connect", lambda self, found: tries.append(1) or connect(self, found)
    )
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    prepared = []
    file = Database(path, 0o600, 1, lambda c, new: prepared.append(new), clock=Hours())
    assert file.read(lambda c: c.execute("SELECT x FROM t").fetchall()) == [(1,)]
    assert prepared == []
    with pytest.raises(errors.CFQueuesError, match="in use by other processes"):
        file.write(lambda c: None, until=file._clock.now + 2)
    holder.execute("ROLLBACK")
    file.write(lambda c: None)
    holder.close()
    assert prepared == [False]
    assert tries == [1]


def test_a_file_that_must_be_prepared_is_not_read_before(tmp_path):
    """Such as one whose times are those of the clock before a reboot."""
    path = tmp_path / "spool.db"
    database(path, tables="CREATE TABLE t (x)").write(lambda c: None)
    done = []
    for may_read in (False, True):
        file = Database(
            path, 0o600, 1, lambda c, new: done.append("prepare"), lambda c, may=may_read: may
        )
        for _ in range(2):
            file.read(lambda c: done.append("read"))
    assert done == ["prepare", "read", "read", "read", "read"]


def test_what_is_urgent_gets_its_turn_among_many(tmp_path):
    """The outcome of a request: until it is written, other processes may post the messages."""
    path = tmp_path / "spool.db"
    database(path).write(lambda c: None)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")

    def tries(**given):
        clock, slept = Hours(), []
        clock.sleep = lambda s: slept.append(s) or setattr(clock, "now", clock.now + s)
        file = Database(path, 0o600, 1, lambda c, new: None, clock=clock)
        with pytest.raises(errors.CFQueuesError, match="in use by other processes"):
            file.write(lambda c: None, until=clock.now + 1, **given)
        return len(slept)

    assert tries(urgent=True) > 4 * tries()
    holder.close()
