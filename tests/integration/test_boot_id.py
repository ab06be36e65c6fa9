"""Learning the id of this boot starts a process on macOS: not while the spool's file is in use."""

from __future__ import annotations

import pytest
from support.processes import Script, needs

#: Linux with macOS's way to learn the id of the boot, and a command that takes some time.
CODE = """
    import threading
    from kombu_cfqueues.spool import schema

    real = schema.subprocess.run
    schema.platform.system = lambda: "Darwin"
    schema.Path = type("Path", (), {"__init__": lambda self, *_: None, "read_text": None})

    def read_text(self):
        raise OSError

    schema.Path.read_text = read_text
    in_use = []

    def run(command, **kwargs):
        from kombu_cfqueues.runtime import fork
        from kombu_cfqueues.spool.database import Database
        files = [thing for thing in fork._pausables if isinstance(thing, Database)]
        in_use.extend(file for file in files if file._lock.locked())
        return real(["/bin/sh", "-c", "sleep 0.2; echo boot"], **kwargs)

    schema.subprocess.run = run

    def publish(number):
        with connect() as connection:
            connection.Producer().publish(number, routing_key="jobs")

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print(json.dumps(len(in_use)), flush=True)
"""


@pytest.mark.parametrize("green", ["", "gevent"])
def test_the_id_of_the_boot_is_learned_outside_of_transactions(emulator, tmp_path, green):
    if green:
        needs(green)
    emulator.create_queue("jobs")
    options = {"publish_mode": "spool", "spool_dir": str(tmp_path / "spool")}
    with Script(CODE, emulator.broker_url, options, green=green) as script:
        assert script.wait(60) == [0]
    assert len(emulator.messages("jobs")) == 4
