"""The spool: the machine as one publisher.

The allowance is 4 requests per second for a whole token, and the usual deployment is many
single-threaded processes.  Here they share the allowance, and the requests: the process that gets
the next permit carries what the others wait to publish.

`Spool` is the front door.  Behind it::

    room              the waiting room: messages enter, are claimed and settled, outcomes come back
    claims            which messages the next request carries
    permit_scheduler  whose turn the next permit is
    bucket            the allowance in the file
    shared_budget     permits for requests that carry no message, as the client wants them
    message_table     messages that are spooled
    election          which process empties the spool
    listing           what is in the file, for people
    file              the file as one process has it open
    database          SQLite, used politely
    schema            what is in the file
    liveness          who is alive: kernel locks
    place             where the file may be

There is no caller, leader, wake-up, retry or splitting here: all that is in `publish`, once.
"""

from .listing import Allowed, QueueState, Refused
from .message_table import Place, Spooled
from .shared_budget import SharedBudget
from .spool import Spool

__all__ = [
    "Allowed",
    "Place",
    "QueueState",
    "Refused",
    "SharedBudget",
    "Spool",
    "Spooled",
]
