"""Translates Kombu's queue names to names that Cloudflare allows."""

from __future__ import annotations

import functools
import hashlib
import re
from typing import Final

from .. import limits
from ..errors import ConfigurationError, QueueNameConflict
from ..options import Options
from ..runtime.recent import Recent

HASH_DIGITS: Final = 8
"""Hex digits of the hash in a shortened name; two names share them once in 4 billion."""


def is_queue_id(name: str) -> bool:
    """Whether *name* has the form of a queue id."""
    return limits.ID.fullmatch(name) is not None


def id_as_name(name: str) -> ConfigurationError:
    """Return the error for a queue that does not exist and whose name is an id."""
    return ConfigurationError(
        f"queue {name!r} does not exist, and its name has the form of a queue id, so it is not "
        "created: use the queue's name, or name a queue and give its id in the option 'queues'"
    )


@functools.lru_cache(maxsize=1024)  # called for each publish
def to_cloudflare_name(name: str) -> str:
    """Return the name at Cloudflare of Kombu's queue *name*, whose prefix is included.

    A dash replaces each character that Cloudflare does not allow.  Upper and lower case stay.  A
    name with characters outside ASCII ends in 8 hex digits of its hash, because ``tâche`` and
    ``tùche`` would both become ``t-che``.  So does a name over 63 characters, which is cut.

    >>> to_cloudflare_name("emails.high_priority")
    'emails-high-priority'

    Raises:
        ConfigurationError: *name* has no character that Cloudflare allows.
    """
    translated = re.sub(r"[^A-Za-z0-9-]", "-", name).strip("-")
    if not translated:
        raise ConfigurationError(
            f"queue name {name!r} has no letter or digit that Cloudflare Queues allows in a name"
        )
    if name.isascii() and len(translated) <= limits.QUEUE_NAME_CHARACTERS:
        return translated
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:HASH_DIGITS]
    return f"{translated[: limits.QUEUE_NAME_CHARACTERS - HASH_DIGITS - 1]}-{digest}"


def prefixed(name: str, options: Options) -> str:
    """Return Kombu's queue *name* with the option ``queue_name_prefix``.

    Raises:
        ConfigurationError: The name has no character that Cloudflare allows, so only the prefix
            would be left, which may be the name of another queue.
    """
    if name.isascii() and not re.search("[A-Za-z0-9]", name):
        raise ConfigurationError(
            f"queue name {name!r} has no letter or digit that Cloudflare Queues allows in a name"
        )
    return options.queue_name_prefix + name


class QueueNames:
    """The names at Cloudflare that a process uses, each for only one of Kombu's names."""

    def __init__(self) -> None:
        self._users: Recent[str, str] = Recent()  # name at Cloudflare -> Kombu's name

    def reserve(self, name: str, options: Options) -> str:
        """Return the name at Cloudflare of Kombu's queue *name*, and reserve it.

        Raises:
            QueueNameConflict: It is reserved for another name.
            ConfigurationError: *name* has no character that Cloudflare allows.
        """
        kombu_name = prefixed(name, options)
        cloudflare_name = to_cloudflare_name(kombu_name)
        self._reserve(cloudflare_name, kombu_name)
        return cloudflare_name

    def reserve_alias(self, alias: str, cloudflare_name: str) -> None:
        """Reserve *alias* too, a name that Cloudflare considers the same as *cloudflare_name*.

        Raises:
            QueueNameConflict: It is reserved for another name.
        """
        kombu_name = self._users.get(cloudflare_name)
        if kombu_name is not None:  # not if another process has reserved the name
            self._reserve(alias, kombu_name)

    def _reserve(self, cloudflare_name: str, kombu_name: str) -> None:
        user = self._users.get_or_make(cloudflare_name, lambda: kombu_name)
        if user != kombu_name:
            raise QueueNameConflict(
                f"the queues {user!r} and {kombu_name!r} would both have the name "
                f"{cloudflare_name!r} at Cloudflare, and their messages would mix: rename one of "
                "them, or give its id in the option 'queues'"
            )
