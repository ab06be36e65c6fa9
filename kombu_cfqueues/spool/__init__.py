"""The spool: all processes of a machine publish together.

Cloudflare allows about 4 requests per second per token, and many deployments run many
single-threaded processes.  The spool lets them share the allowance and the requests: the process
that gets the next permit also posts the messages of the others.

The rest of the package imports only from here, and mostly uses `Spool`.  The modules behind it::

    room              the waiting room: messages enter, are claimed and settled, outcomes come back
    paced_room        the same where each process paces its requests itself
    claims            which messages the next request carries
    outcomes          what the outcome of a claim changes in the file
    sweep             cleaning up after processes that died
    permit_scheduler  the order in which permits are given out
    bucket            the allowance in the file
    shared_budget     permits for requests that carry no message
    message_table     messages that are spooled
    election          which process empties the spool
    facts             what processes tell each other
    listing           what is in the file, for display
    listeners         which processes listen for messages of a queue
    file              the file as one process has it open
    database          SQLite for many processes and threads
    schema            the tables
    liveness          which processes are alive: kernel locks
    place             where the file may be

Waiting for outcomes, choosing the thread that posts, retrying and halving batches happen in
`publish`, above the protocol that both waiting rooms share.
"""

from .bucket import LearnedShare
from .listeners import Listener, Listeners
from .listing import Allowed, QueueState, Refused
from .message_table import Place, Spooled
from .shared_budget import SharedBudget
from .spool import Spool

__all__ = [
    "Allowed",
    "LearnedShare",
    "Listener",
    "Listeners",
    "Place",
    "QueueState",
    "Refused",
    "SharedBudget",
    "Spool",
    "Spooled",
]
