"""Callers who have different time left share requests, and each gets what its own time allows."""

import random
import signal
import threading
import time

import pytest
from kombu import Connection
from support.forms import first_of
from support.processes import eventually
from support.publishers import Publisher, arrivals, held

from kombu_cfqueues import errors
from kombu_cfqueues.emulator import Emulator

LATENCY = 0.15
"""Seconds that the healthy server of the first tests takes."""

INTERVAL = 0.5
"""Seconds between two permits there."""

ROUNDS = 6
FELLOWS = 9
"""Callers with plenty of time in each round."""


SERVER = {"latency": LATENCY}


class Callers:
    """Threads that publish, each a message with a time-out of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._threads: list[threading.Thread] = []
        self.told: dict[str, str] = {}

    def publish(self, body: str, timeout: float) -> None:
        thread = threading.Thread(target=self._publish, args=(body, timeout))
        self._threads.append(thread)
        thread.start()

    def _publish(self, body: str, timeout: float) -> None:
        producer = self._connection.clone().Producer()
        try:
            producer.publish(body, routing_key="jobs", serializer="json", timeout=timeout)
        except errors.CFQueuesError as error:
            self.told[body] = error.delivered
        else:
            self.told[body] = "returned"

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("scope", ["process", "host"])
def test_a_caller_whose_time_runs_out_does_not_cut_the_request_of_nine_others(
    server, tmp_path, scope
):
    """A healthy server and nobody impatient but one: nothing arrives twice, nothing is unclear.

    The impatient caller is the first who waits, and the permit comes 20 to 100 ms before its
    deadline, where an answer takes 150.
    """
    seed = 14
    chance = random.Random(seed)
    options = {
        "request_rate": 1 / INTERVAL,
        "request_burst": 1,
        "budget_scope": scope,
        "spool_dir": str(tmp_path / "spool"),
        "queues": {"jobs": server.queue_id("jobs")},
    }
    with Connection(server.broker_url, transport_options=options) as connection:
        callers = Callers(connection)
        producer = connection.Producer()
        for number in range(ROUNDS):
            producer.publish(f"first {number}", routing_key="jobs", serializer="json", timeout=15)
            # Its request took the permit a moment before it came to the server.
            next_permit = server.requests.of("push", "batch")[-1].time + INTERVAL
            left = next_permit - time.time()
            callers.publish(f"impatient {number}", max(0.01, left + chance.uniform(0.02, 0.1)))
            time.sleep(0.03)  # so that it is the first
            for fellow in range(FELLOWS):
                callers.publish(f"patient {number}-{fellow}", 15)
            callers.join()
    found, told = arrivals(server), callers.told
    twice = [body for body, count in found.items() if count > 1]
    unclear = [body for body, answer in told.items() if answer == "unknown"]
    sums = (
        f"seed {seed}: of {len(told)} messages {len(twice)} arrived twice, and {len(unclear)} "
        f"ended as unknown, of which {len({*unclear} & {*found})} arrived"
    )
    assert not twice, sums
    assert not unclear, sums
    refused = {body for body, answer in told.items() if answer == "no"}
    assert not [body for body in refused if body.startswith("patient")]
    assert not refused & {*found}


SLOW = 1.3
"""Seconds that a slow, healthy server takes."""

LONG_INTERVAL = 7.0
"""Seconds between two permits there: meanwhile processes are told what to do."""


@pytest.mark.parametrize("mode", first_of(["confirm", "spool"]))
def test_what_another_process_publishes_is_not_cut_by_a_caller_with_less_time(tmp_path, mode):
    """Nine messages that wait for a permit arrive once, whoever takes it.

    Their own process is stopped meanwhile, so that the impatient caller of another one has the
    permit: 1.15 s before its deadline, where an answer takes 1.3.
    """
    with Emulator() as server:
        server.faults.latency("push", "batch", seconds=SLOW)
        options = {
            "request_rate": 1 / LONG_INTERVAL,
            "request_burst": 2,  # to connect, and the first message
            "spool_dir": str(tmp_path / "spool"),
            "queues": {"jobs": server.create_queue("jobs")},
        }
        patient = [f"patient {number}" for number in range(9)]
        with (
            Publisher(server.broker_url, options) as impatient,
            Publisher(server.broker_url, options | {"publish_mode": mode}) as other,
        ):
            impatient.publish("first", timeout=30)
            assert impatient.outcomes(1)["first"].told == "returned"
            next_permit = server.requests[0].time + LONG_INTERVAL
            other.publish(*patient, **({"timeout": 30} if mode == "confirm" else {}))
            key = "confirmed" if mode == "confirm" else "waiting"
            place = server.broker_url, options["spool_dir"]
            assert eventually(lambda: held(*place)[key] == len(patient))
            other.process.send_signal(signal.SIGSTOP)
            impatient.publish("impatient", timeout=next_permit - time.time() + 1.15)
            told = impatient.outcomes(1, 30)
            other.process.send_signal(signal.SIGCONT)
            heard = other.outcomes(len(patient), 20)
            assert eventually(lambda: not any(held(*place).values()), 20)
        found = arrivals(server)
    twice = [body for body, count in found.items() if count > 1]
    assert not twice, f"{len(twice)} of {len(found)} messages arrived twice"
    assert {body: outcome.text for body, outcome in heard.items() if outcome.text} == {}
    assert len(heard) == len(patient)
    assert told["impatient"].told != "no" or "impatient" not in found
