"""The client's own tests in each position of each knob: ``make positions``, for it takes long.

Arguments are names of knobs; without any, it is all of them.  Ends with status 1 if a test failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from test_each_position import POSITIONS, TESTS, knobs_for

ROOT: Final = Path(__file__).parents[2]

JOBS: Final = "6"  # tests mostly wait

NOTHING_TO_RUN: Final = 5  # pytest's exit status where all tests are spared

#: Where a test asks for what its position does not give: the knob, the position, and the tests.
SPARED: Final = {
    # These count what is delivered, or what is left in the queue; the duplicate says that it comes
    # for the first time.
    ("duplicate_rate", 1): [
        "test_a_consumer_without_acks_is_acked_on_receipt",
        "test_a_dead_letter_that_cannot_be_published_yet_is_lost_in_no_queue",
        "test_a_dead_letter_that_is_refused_stays_where_it_was",
        "test_a_failed_ack_frees_its_prefetch_slot",
        "test_a_message_says_that_it_comes_again",
        "test_a_message_that_is_due_much_later_goes_back_for_the_rest",
        "test_a_queue_that_is_full_is_pulled_twice_at_once",
        "test_a_rejected_message_goes_to_the_dead_letter_queue",
        "test_a_rejected_message_without_a_dead_letter_queue_is_dropped_with_one_warning",
        "test_a_requeued_message_comes_at_once_to_a_consumer_that_found_its_queue_empty",
        "test_a_requeued_message_is_there_for_the_very_next_get",
        "test_a_script_that_ends_unclosed_has_acknowledged_all_the_same",
        "test_acknowledging_several_at_once",
        "test_acks_leave_together",
        "test_acks_reach_the_server_after_their_connection_has_failed",
        "test_an_expired_message_is_dropped",
        "test_an_outage_is_logged_once_and_consuming_resumes_by_itself",
        "test_close_gives_back_what_was_not_delivered_or_not_settled",
        "test_close_waits_until_what_a_last_pull_brought_is_on_its_way_back",
        "test_fifty_queues_do_not_hold_each_other_up",
        "test_purge_counts_and_empties",
        "test_recover_gives_back_what_is_unsettled",
        "test_two_consumers_of_one_queue_get_its_messages_in_turn",
        "test_what_a_pull_brings_after_the_cancel_is_given_back",
        "test_what_is_published_is_delivered_once",
    ],
    # No pull brings all that it asked for.
    ("short_batches", True): ["test_a_queue_that_is_full_is_pulled_twice_at_once"],
    # Its second delivery has the number of another's first.
    ("first_attempt", 0): ["test_a_message_says_that_it_comes_again"],
    # What is pulled before the purge's end is delivered.
    ("purge_delay", 1): ["test_purge_counts_and_empties"],
}


def main() -> int:
    chosen = sys.argv[1:]
    positions = [position.values for position in POSITIONS]
    unknown = set(chosen) - {knob for knob, _ in positions}
    if unknown:
        print(f"there is no knob {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    positions = [one for one in positions if not chosen or one[0] in chosen]
    failed = [f"{knob}={value}" for knob, value in positions if not passes(knob, value)]
    print(f"{len(positions) - len(failed)} of {len(positions)} positions pass", flush=True)
    if failed:
        print("not these:", ", ".join(failed))
    return min(len(failed), 1)


def passes(knob: str, value: object) -> bool:
    """Run the tests in that position, and tell how they ended."""
    spared = " and ".join(f"not {name}" for name in SPARED.get((knob, value), ()))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", spared),
            *("-n", JOBS, "--color", "no"),
            *(f"tests/integration/{name}.py" for name in TESTS),
        ],
        cwd=ROOT,
        env=os.environ | {"CFQUEUES_KNOBS": json.dumps(knobs_for(knob, value)), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    print(f"{knob}={value}: {lines[-1] if lines else done.stderr}", flush=True)
    if done.returncode in (0, NOTHING_TO_RUN):
        return True
    print(*(line for line in lines if line.startswith(("FAILED", "ERROR"))), sep="\n", flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main())
