"""A callable ``api_token`` in spool mode: every permit counts to the allowance of its token."""

from __future__ import annotations

import sqlite3

from support.processes import Script

from kombu_cfqueues.emulator import TOKEN

CODE = f"""
    import threading

    def token():
        time.sleep(0.5)  # a secret store
        return {TOKEN!r}

    def publish(number):
        with connect(api_token=token) as connection:
            connection.Producer().publish(number, routing_key="jobs")

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


def test_no_allowance_is_opened_for_an_empty_token(emulator, tmp_path):
    """Threads ask for the token while its first call runs."""
    emulator.create_queue("jobs")
    options = {"publish_mode": "spool", "request_rate": 100.0, "spool_dir": str(tmp_path / "spool")}
    url = emulator.broker_url.replace(f":{TOKEN}@", "@")
    with Script(CODE, url, options) as script:
        script.wait(60)
    (file,) = (tmp_path / "spool").glob("*.db")
    with sqlite3.connect(file) as connection:
        (buckets,) = connection.execute("SELECT count(*) FROM bucket").fetchone()
    connection.close()
    assert buckets == 1
