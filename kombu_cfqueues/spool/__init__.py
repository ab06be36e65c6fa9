"""The spool: all processes of a machine publish together.

Cloudflare allows about 4 requests per second per token, and many deployments run many
single-threaded processes.  The spool lets them share the allowance and the requests: the process
that gets the next permit also posts the messages of the others.

The rest of the package imports only from here, and mostly uses `Spool`.

Waiting for outcomes, choosing the thread that posts, retrying and halving batches happen in
`publish`, above the protocol that both waiting rooms share.
"""

from .bucket import LearnedShare
from .listeners import Listener, Listeners
from .listing import Allowed, Listing, QueueState, Refused
from .message_table import Place, Spooled
from .shared_budget import SharedBudget
from .spool import Spool

__all__ = [
    "Allowed",
    "LearnedShare",
    "Listener",
    "Listeners",
    "Listing",
    "Place",
    "QueueState",
    "Refused",
    "SharedBudget",
    "Spool",
    "Spooled",
]
