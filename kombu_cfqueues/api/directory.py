"""Queue name <-> queue id.

The API's routes want ids; applications know names.  What was learned once is kept as long as the
process lives, because every look-up costs one of the scarce requests.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from .. import limits
from ..envelope import Address
from ..errors import (
    ConfigurationError,
    ConnectionFailed,
    PermanentError,
    PullNotEnabled,
    QueueNameConflict,
    QueueNotFound,
    TransientError,
    copy_of,
)
from ..options import Options
from ..rate_limit import NoPermit
from ..runtime.fork import renew_in_child
from ..shared_facts import KnownQueue, SharedFacts, Unneeded
from .client import Client, Queue

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: A refusal that took longer to come than the first holds, unasked, for the second.
SLOW_REFUSAL_SECONDS = 0.1
REFUSAL_HOLDS_SECONDS = 1.5

#: A question that is overdue by this much is taken for lost, and asked again.
LATE_SECONDS = 1.0

#: Hex digits that close a shortened name: one chance in 4 billion that two names meet.
HASH_DIGITS = 8

#: Code of "the queue has a consumer already".
CONSUMER_EXISTS = 11004

#: A consumer that allows fewer deliveries gets a warning: each worker that ends or is killed with
#: the message in its hands uses one up.
FEW_RETRIES = 10


class PullConsumer(NamedTuple):
    """What is known of a queue's pull consumer.

    Attributes:
        max_retries: Deliveries after which Cloudflare deletes a message, or moves it to the
            dead-letter queue.
        dead_letter_queue: Name, at Cloudflare, of that queue; ``""`` if there is none.
    """

    max_retries: int
    dead_letter_queue: str


def cloudflare_name(name: str) -> str:
    """The name at Cloudflare of Kombu's queue *name*, prefix included.

    What Cloudflare does not allow becomes a dash, case is kept, and a name over 63 characters is
    cut and closed with 8 hex digits of its hash, so that two long names rarely meet.

    >>> cloudflare_name("emails.high_priority")
    'emails-high-priority'

    Raises:
        ConfigurationError: Nothing that Cloudflare allows is left of it.
    """
    translated = re.sub(r"[^A-Za-z0-9-]", "-", name).strip("-")
    if not translated:
        raise ConfigurationError(
            f"queue name {name!r} has no letter or digit that Cloudflare Queues allows in a name"
        )
    if len(translated) <= limits.QUEUE_NAME_CHARACTERS:
        return translated
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:HASH_DIGITS]
    return f"{translated[: limits.QUEUE_NAME_CHARACTERS - HASH_DIGITS - 1]}-{digest}"


class Directory:
    """The queues of one account, for all connections and threads of a process.

    Each method makes as many requests as it needs and raises what one of them raised: trying
    again is the caller's business.  Deadlines are in seconds of `time.monotonic`.

    Args:
        client: Where to ask.
        facts: What other processes of the machine know; None: they tell nothing.
    """

    def __init__(self, client: Client, facts: SharedFacts | None = None) -> None:
        self._client = client
        self._facts = facts
        self._queues: dict[str, Queue] = {}  # by name at Cloudflare
        self._meanings: dict[str, str] = {}  # name at Cloudflare -> the Kombu name that uses it
        self._pull_consumers: dict[str, PullConsumer] = {}  # by queue id
        self._refused: set[str] = set()  # ids of queues that turned out to have no pull consumer
        self._connected = False
        self._refusal: TransientError | None = None
        self._refused_until = 0.0
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Keep what was learned, and wait for no thread of the parent."""
        self._lock = threading.Lock()  # guards all fields; never held over a request
        # What a thread is asking for: a name, and whether to create it.
        self._asking: dict[tuple[str, bool], _Asking] = {}

    def probe(self, options: Options, *, deadline: float) -> None:
        """Make sure that the server answers and takes the token: one request a process.

        Its answer is the first page of the account's queues.

        Raises:
            CFQueuesError: What the request raised.  It is not tried again: Kombu does that, and
                goes on to the next URL of a fail-over list.
        """
        for name, queue_id in options.queues.items():
            self._client.remember_name(queue_id, name)
        self._once(
            ("", False),  # no name at Cloudflare is empty
            "connecting",
            deadline,
            known=lambda: self._connected or None,
            ask=lambda: self._probe(deadline),
        )

    def _probe(self, deadline: float) -> bool:
        if self._refusal is not None and time.monotonic() < self._refused_until:
            raise copy.copy(self._refusal)
        asked = time.monotonic()
        try:
            is_known = None if self._facts is None else self._facts.token_works
            page = self._client.list_queues(deadline=deadline, is_known=is_known)
        except Unneeded:
            self._connected = True  # as another process has: that is all that it would learn
            return True
        except TransientError as error:
            if isinstance(error, NoPermit):
                # Not the server's word: other processes use up the allowance, so it works.
                logger.debug(
                    "connecting without a question, for which there was no permit: %s", error
                )
                return True
            if time.monotonic() - asked > SLOW_REFUSAL_SECONDS:
                # Kombu connects again at once, three times and more, and one publish would wait
                # for as many timeouts in a row.
                self._refusal = error
                self._refused_until = time.monotonic() + REFUSAL_HOLDS_SECONDS
            raise
        self._learn(page.queues)
        self._connected = True
        if self._facts is not None:
            self._facts.note_token(works=True)
        return True

    def doubt(self) -> None:
        """A connection has failed: the next probe is to ask again."""
        self._connected = False

    def queue(self, name: str, options: Options, *, deadline: float) -> Queue:
        """Kombu's queue *name* as it is at Cloudflare; created if it is missing.

        Blocks for a look-up if the name is new to this process; threads that ask for the same
        name at once share one.

        Args:
            name: Kombu's name.
            options: ``queues``, ``queue_name_prefix`` and ``create_missing_queues`` are used.
            deadline: When to give up.

        Raises:
            QueueNotFound: It is missing and not to be created.
            QueueNameConflict: Another name of this process is translated to the same one.
            ConfigurationError: No name at Cloudflare can stand for it.
            CFQueuesError: What a request raised.
        """
        if name in options.queues:
            return Queue(options.queues[name], name, None)
        title = self._title(name, options)
        queue = self._queues.get(title)
        if queue is None:
            queue = self._ask(title, deadline, create=options.create_missing_queues)
        if queue is None:
            raise QueueNotFound(
                f"queue {name!r} does not exist (its name at Cloudflare is {title!r}), and "
                "create_missing_queues is off: create it, or give its id in the option 'queues'"
            )
        return queue

    def queue_id(self, name: str, options: Options, *, deadline: float) -> str:
        """The id of `queue`, which see."""
        return self.queue(name, options, deadline=deadline).id

    def find(self, name: str, options: Options, *, deadline: float) -> Queue | None:
        """The queue that Kombu calls *name*, or None if there is none.  Creates nothing."""
        if name in options.queues:
            return Queue(options.queues[name], name, None)
        wanted = options.queue_name_prefix + name
        title = cloudflare_name(wanted)
        found = self._queues.get(title) or self._ask(title, deadline, create=False)
        if found is not None:  # a name that stands for nothing is free for another
            self._claim(title, wanted)
        return found

    def forget(self, name: str, queue_id: str, options: Options) -> bool:
        """The server does not know *queue_id* any more: look *name* up again when next asked.

        Returns:
            Whether a look-up can help; not if the option ``queues`` says the id.
        """
        if name in options.queues:
            return False
        self.forget_address(self.address(name, options), queue_id)
        return True

    def titled(self, title: str, *, deadline: float) -> Queue:
        """The queue that is called *title* at Cloudflare; created if it is missing.

        Raises:
            CFQueuesError: What a request raised.
        """
        queue = self._queues.get(title) or self._ask(title, deadline, create=True)
        if queue is None:  # pragma: no cover  it was to be created
            raise QueueNotFound(f"there is no queue {title!r} at Cloudflare")
        return queue

    def address(self, name: str, options: Options) -> Address:
        """Where Kombu's queue *name* is, for whichever process of the machine posts to it.

        Costs no request.

        Raises:
            QueueNameConflict: Another name of this process is translated to the same one.
            ConfigurationError: No name at Cloudflare can stand for it.
        """
        if name in options.queues:
            return Address.of_id(options.queues[name])
        title = self._title(name, options)
        known = self._queues.get(title)
        return Address(title, options.create_missing_queues, known.id if known else None)

    def retention_seconds(self, address: Address) -> int | None:
        """How long a queue keeps messages, as far as this process happens to know."""
        known = self._queues.get(address.name)
        return known.retention_seconds if known else None

    def resolve(self, address: Address, *, deadline: float) -> str:
        """The id of the queue at *address*, looked up if need be.

        Raises:
            QueueNotFound: It is missing and not to be created.
            CFQueuesError: What a request raised.
        """
        known = self._queues.get(address.name)
        if known is not None:
            return known.id
        if address.cloudflare_id is not None:
            return address.cloudflare_id
        found = self._ask(address.name, deadline, create=address.creates)
        if found is None:
            raise QueueNotFound(
                f"queue {address.name!r} does not exist at Cloudflare, and the process that "
                "published to it has create_missing_queues off: create it"
            )
        return found.id

    def forget_address(self, address: Address, queue_id: str) -> None:
        """The server does not know *queue_id* any more: look the queue up again when next asked."""
        with self._lock:
            known = self._queues.get(address.name)
            # Another thread may have looked it up in the meantime.
            if known is not None and known.id == queue_id:
                del self._queues[address.name]
        if self._facts is not None:
            self._facts.forget_queue(address.name)

    def enable_pull(self, queue: Queue, options: Options, *, deadline: float) -> PullConsumer:
        """Make sure that the queue can be pulled over HTTP; up to two requests a process.

        Raises:
            PullNotEnabled: A Worker consumes the queue, and a queue has one kind of consumer.
            CFQueuesError: What a request raised.
        """
        known = self._pull_consumers.get(queue.id)
        if known is not None:
            return known
        found = None
        if queue.id not in self._refused:
            # What the look-up of the queue has brought costs no request, and an application with
            # fifty queues would spend a quarter of a minute's allowance on asking for each.
            found = _pull_consumer_of(queue.consumers)
        if found is None:
            consumers = self._client.list_consumers(queue.id, deadline=deadline)
            found = _pull_consumer(queue, consumers)
        if found is None:
            found = self._create_pull_consumer(queue, options, deadline)
        elif found.max_retries < min(FEW_RETRIES, options.consumer_max_retries):
            logger.warning(
                "the pull consumer of queue %r allows %d deliveries of a message (its max_retries);"
                " every worker that ends with the message uses one up, so set it to %d",
                queue.name,
                found.max_retries,
                limits.MAX_RETRIES,
            )
        with self._lock:
            self._pull_consumers[queue.id] = found
        return found

    def forget_pull(self, queue_id: str) -> None:
        """The queue could not be pulled: look at its consumers again when next asked."""
        with self._lock:
            self._pull_consumers.pop(queue_id, None)
            self._refused.add(queue_id)

    def _create_pull_consumer(
        self, queue: Queue, options: Options, deadline: float
    ) -> PullConsumer:
        dead = options.dead_letter_queue
        title = self._title(dead, options) if dead else None
        try:
            self._client.create_pull_consumer(
                queue.id,
                max_retries=options.consumer_max_retries,
                visibility_timeout_ms=int(options.visibility_timeout * 1000),
                dead_letter_queue=title,
                deadline=deadline,
            )
        except PermanentError as error:
            # Somebody was faster, perhaps this machine's next worker.
            found = error.code == CONSUMER_EXISTS and _pull_consumer(
                queue, self._client.list_consumers(queue.id, deadline=deadline)
            )
            if not found:
                raise
            return found
        logger.info("enabled HTTP pull for queue %r at Cloudflare", queue.name)
        return PullConsumer(options.consumer_max_retries, title or "")

    def _title(self, name: str, options: Options) -> str:
        """The name at Cloudflare, refused if it stands for another name already."""
        wanted = options.queue_name_prefix + name
        title = cloudflare_name(wanted)
        self._claim(title, wanted)
        return title

    def _claim(self, title: str, wanted: str) -> None:
        """Let *wanted*, prefix included, be the only name that stands for *title*."""
        with self._lock:
            meaning = self._meanings.setdefault(title, wanted)
        if meaning != wanted:
            raise QueueNameConflict(
                f"the queues {meaning!r} and {wanted!r} would both be {title!r} at Cloudflare, "
                "and their messages would mix: rename one, or give its id in the option 'queues'"
            )

    def _ask(self, title: str, deadline: float, *, create: bool) -> Queue | None:
        def ask() -> Queue | None:
            found = self._look_up(title, deadline)
            if found is None and create:
                found = self._create(title, deadline)
            if found is not None and self._facts is not None:
                self._facts.note_queue(title, KnownQueue(found.id, found.retention_seconds))
            return found

        return self._once(
            (title, create),
            f"looking up queue {title!r}",
            deadline,
            known=lambda: self._queues.get(title),
            ask=ask,
        )

    def _once(
        self,
        key: tuple[str, bool],
        doing: str,
        deadline: float,
        *,
        known: Callable[[], T | None],
        ask: Callable[[], T],
    ) -> T:
        """What is *known*, else what one thread will *ask* for all that want to know.

        They share its answer and its permanent failure, which they would only hear again.  Any
        other failure is its own: perhaps no more than its short deadline.
        """
        while True:
            with self._lock:
                found = known()
                if found is not None:
                    return found
                other = self._asking.get(key)
                # A thread that was interrupted at the wrong moment never answers.
                if other is not None and other.until < time.monotonic():
                    other = None
                if other is None:
                    mine = self._asking[key] = _Asking(deadline)
            if other is None:
                return self._answer(key, mine, ask)
            if not other.wait(deadline - time.monotonic()):
                raise ConnectionFailed(f"{doing} took too long; try again")
            if other.refusal is not None:
                raise copy_of(other.refusal)
            if other.answers:
                return cast("T", other.answers[0])

    def _answer(self, key: tuple[str, bool], asking: _Asking, ask: Callable[[], T]) -> T:
        try:
            answer = ask()
        except PermanentError as error:
            asking.refusal = error
            raise
        else:
            asking.answers.append(answer)
            return answer
        finally:
            with self._lock:
                if self._asking.get(key) is asking:
                    del self._asking[key]
            asking.end()

    def _look_up(self, title: str, deadline: float, *, any_case: bool = False) -> Queue | None:
        """Page through the queues until one has that name: the filter may be ignored."""
        seen: set[str] = set()
        for page_number in itertools.count(1):
            try:
                page = self._client.list_queues(
                    page=page_number,
                    name=title,
                    deadline=deadline,
                    is_known=None if self._facts is None else lambda: self._is_known(title),
                )
            except Unneeded:
                return self._queues.get(title)
            self._learn(page.queues)
            for queue in page.queues:
                if queue.name == title or (any_case and queue.name.lower() == title.lower()):
                    return queue
            new = {queue.id for queue in page.queues} - seen
            # A server that ignores `page` would repeat the first one for ever.
            if not page.has_more or not new:
                break
            seen |= new
        return None

    def _is_known(self, title: str) -> bool:
        """Whether another process of the machine has looked *title* up; then learn of it."""
        known = None if self._facts is None else self._facts.queue(title)
        if known is None:
            return False
        with self._lock:
            self._queues.setdefault(title, Queue(known.id, title, known.retention_seconds))
        self._client.remember_name(known.id, title)
        return True

    def _create(self, title: str, deadline: float) -> Queue:
        try:
            queue = self._client.create_queue(title, deadline=deadline)
            logger.info("created queue %r at Cloudflare", title)
        except QueueNameConflict:
            # Somebody was faster; or upper and lower case are one to the server.
            found = self._look_up(title, deadline, any_case=True)
            if found is None:
                raise
            if title in self._meanings:  # not where another process has named it
                self._claim(found.name, self._meanings[title])
            queue = found._replace(name=title)
        self._learn([queue])
        return queue

    def _learn(self, queues: Iterable[Queue]) -> None:
        with self._lock:
            self._queues.update((queue.name, queue) for queue in queues)


class _Asking:
    """What one thread asks for, and what the others that wait for it may know of it."""

    def __init__(self, until: float) -> None:
        self.until = until + LATE_SECONDS  # by then it is over, whatever became of the thread
        self.answers: list[Any] = []  # one, if it had one; it may be None
        self.refusal: PermanentError | None = None
        # Locked until it is over.  Not an Event, whose inner lock would stay locked if a signal
        # handler raised in the wrong moment.
        self._asks = threading.Lock()
        self._asks.acquire()

    def end(self) -> None:
        """Wake those who wait for the answer."""
        if self._asks.locked():
            self._asks.release()

    def wait(self, seconds: float) -> bool:
        """Return whether it is over, within *seconds*."""
        over = self._asks.acquire(timeout=min(max(0.0, seconds), threading.TIMEOUT_MAX))
        if over:
            self._asks.release()
        return over


def _pull_consumer(queue: Queue, consumers: Sequence[Mapping[str, Any]]) -> PullConsumer | None:
    """The queue's pull consumer, if it has one.

    Raises:
        PullNotEnabled: A Worker consumes the queue.
    """
    found = _pull_consumer_of(consumers)
    if found is None and any(consumer.get("type") == "worker" for consumer in consumers):
        raise PullNotEnabled(
            f"queue {queue.name!r} is consumed by a Worker, and a queue has one kind of consumer: "
            "remove the Worker's consumer (dashboard, or 'wrangler queues consumer remove') to "
            "pull from it, or use another queue"
        )
    return found


def _pull_consumer_of(consumers: Sequence[Mapping[str, Any]]) -> PullConsumer | None:
    for consumer in consumers:
        if consumer.get("type") == "http_pull":
            settings, dead = consumer.get("settings"), consumer.get("dead_letter_queue")
            retries = settings.get("max_retries") if isinstance(settings, Mapping) else None
            return PullConsumer(
                retries if isinstance(retries, int) else limits.MAX_RETRIES_DEFAULT,
                dead if isinstance(dead, str) else "",
            )
    return None
