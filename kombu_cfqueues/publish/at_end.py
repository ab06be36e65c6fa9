"""A publish while the interpreter is torn down, in a finalizer (``__del__``) for instance.

Nothing can be imported any more and no thread can be started, which the libraries below need at
unforeseen moments: the request may have left when that fails.  Exit handlers (`atexit`) and threads
that outlive the main thread run before that, and may publish.
"""

from __future__ import annotations

import sys

from ..errors import PermanentError


def refuse_at_end() -> None:
    """Raise an error if the interpreter is being torn down.

    Raises:
        PermanentError: It is.  Nothing has been sent.
    """
    if sys.is_finalizing():
        raise PermanentError(
            "the message was not sent, because the Python interpreter is ending: publish earlier, "
            "for instance in a function that is registered with atexit, and not in a finalizer"
        )
