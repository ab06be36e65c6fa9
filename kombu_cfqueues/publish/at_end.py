"""Refuses a publish while the interpreter is being torn down, for instance in a finalizer.

No module can be imported then and no thread started.  The HTTP libraries may need either at any
moment, perhaps after the request has left.  Exit handlers (`atexit`) and threads that outlive the
main thread run earlier, and may publish.
"""

from __future__ import annotations

import sys

from ..errors import PermanentError


def refuse_at_end() -> None:
    """Raise an error if the interpreter is being torn down.

    Raises:
        PermanentError: The interpreter is being torn down.  Nothing was sent.
    """
    if sys.is_finalizing():
        raise PermanentError(
            "the message was not sent, because the Python interpreter is ending: publish earlier, "
            "for instance in a function that is registered with atexit instead of in a finalizer"
        )
