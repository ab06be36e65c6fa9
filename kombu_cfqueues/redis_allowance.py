"""The request allowance of an API token, which all machines share through a Redis server.

A script on the server gives out the permits, first come, first served (GCRA): each request asks
once, and the answer says when it may leave.  The server's clock decides, so the clocks of the
machines do not matter.  The server also records the stops of the API, so a 429 that one machine
gets stops the others.
"""

from __future__ import annotations

import hashlib
import logging
import time
from typing import Any, Final, NamedTuple, NoReturn
from urllib.parse import unquote, urlsplit

from . import limits
from .errors import CFQueuesError, ConfigurationError, Scope
from .metrics import metrics
from .options import Secret
from .rate_limit import INITIAL_TOKENS, Limit
from .runtime.extras import install_command
from .runtime.fork import renew_in_child
from .runtime.imports import importing
from .runtime.locks import new_lock

logger = logging.getLogger(__name__)

REDIS_TIMEOUT_SECONDS: Final = 1.0
"""Timeout of each step of a call to Redis: the name, the connection, the answer.

Redis answers in milliseconds, and a machine that gets no answer continues alone, so a longer wait
gains nothing."""

LONGEST_WAIT_SECONDS: Final = float(limits.WINDOW_SECONDS)
"""A permit that would be free later than this is not reserved, so that machines that ask and then
die cannot use up the allowance for longer than one window."""

STATE_SECONDS: Final = 86_400
"""How long Redis keeps the state of an unused token.  A token without a state begins with a few
permits, as in a new bucket."""

_NOW: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local names = {
    'busy_until', 'stopped_until', 'publishing_stopped_until', 'slow_until', 'slow_step'}
local state = redis.call('HMGET', KEYS[1], unpack(names))
local is_new = not state[1]
-- The token was replaced.  What the old one spent counts, and so do its stops, because
-- Cloudflare's limit applies to the user.
if is_new then state = redis.call('HMGET', KEYS[2], unpack(names)) end
for i = 1, #names do state[i] = tonumber(state[i] or '0') end
local step, burst, initial = 1 / tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local seconds = tonumber(ARGV[4])
local function new_at(moment) return moment + math.max(0, burst - initial) * step end
local function save()
    local ttl = math.ceil(math.max(seconds, state[1] - now, state[2] - now, state[3] - now) + 60)
    for _, key in ipairs(KEYS) do
        for i, name in ipairs(names) do
            redis.call('HSET', key, name, string.format('%.6f', state[i]))
        end
        redis.call('EXPIRE', key, ttl)
    end
end
"""

ASK: Final = (
    _NOW
    + """
local longest, anew, publishing = tonumber(ARGV[5]), ARGV[6] == '1', ARGV[7] == '1'
local left, reset = tonumber(ARGV[8]), tonumber(ARGV[9])
state[1] = math.max(state[1], now)
if is_new or anew then state[1] = math.max(state[1], new_at(now)) end
local wait = math.max(0, state[1] - (burst - 1) * step - now)
local free = math.max(0, math.floor(burst - (state[1] - now) / step + 0.000001))
if reset > 0 then  -- an answer of the API has said how many requests are left until its reset
    state[4] = 0
    if left < free + reset / step then
        -- Spread them over the time until the reset.
        state[1] = math.max(state[1], now + burst * step)
        state[4], state[5] = now + reset, reset / math.max(left, 0.5)
        wait = math.max(0, state[1] - (burst - 1) * step - now)
    end
end
local stopped = math.max(0, state[2] - now)
local publishing_stopped = math.max(0, state[3] - now)
local stops = stopped > 0 or (publishing and publishing_stopped > 0)
local granted = 0
if not stops and wait <= longest then
    granted = 1
    state[1] = state[1] + (now < state[4] and math.max(step, state[5]) or step)
end
-- Also without a permit: the machine tells only once what the API reported, and that it was alone.
if granted == 1 or anew or reset > 0 then save() end
return {granted, free, tostring(wait), tostring(stopped), tostring(publishing_stopped)}
"""
)
"""Reserves a permit.

``busy_until`` is when all permits that were given out are earned back.  If that time has passed,
the bucket is full: *burst* permits are free.
"""

STOP: Final = (
    _NOW
    + """
local until_then = now + tonumber(ARGV[5])
if ARGV[6] == '1' then
    state[3] = math.max(state[3], until_then)
else
    state[2] = math.max(state[2], until_then)
    -- What was saved before the block is gone, or the fleet would come back with a full burst.
    state[1] = math.max(state[1], new_at(until_then))
end
save()
"""
)
"""Records that the API has stopped the token."""


_DIGESTS: Final = {
    script: hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    for script in (ASK, STOP)
}
"""The digests by which Redis finds the scripts that it has run before."""


class BudgetUnavailable(CFQueuesError):
    """Redis did not answer, or refused."""


class Answer(NamedTuple):
    """The answer of Redis to a machine that asks for a permit.

    Attributes:
        granted: Whether a permit is reserved.
        free: Number of permits that were free.
        wait: Seconds until the permit may be used; if none is reserved, until one is free.
        stopped: Seconds until the API accepts calls of the token.
        publishing_stopped: Seconds until it accepts publishing requests.
    """

    granted: bool
    free: int
    wait: float
    stopped: float
    publishing_stopped: float


class RedisAllowance:
    """One allowance for all machines and processes that name the same Redis server.

    Each process opens its own connection, at its first call.  No call blocks for longer than a few
    times `REDIS_TIMEOUT_SECONDS`.  Do not call it with a lock held or in a transaction.

    Args:
        url: The option ``budget_url``.
        base_url: The API's URL; together with *account_id* and the token it selects the allowance.
        account_id: The account.
        limit: The rate and the burst of the whole fleet.

    Raises:
        ConfigurationError: The package redis is missing, or it refuses the URL.
    """

    def __init__(self, url: Secret, base_url: str, account_id: str, limit: Limit) -> None:
        self.limit = limit
        self.shown = shown(url)
        """The URL without user name and password."""
        self._url = url
        digest = hashlib.sha256(f"{base_url}\n{account_id}".encode()).hexdigest()
        self._key = f"cfqueues:budget:{{{digest[:16]}}}:"  # in braces: one slot of a cluster
        self._inherited: list[Any] = []
        self._client: Any = None
        self._redis = _load_redis()
        _make_client(self._redis, url)  # only to check the URL
        metrics.shared_budget(self.shown, answers=None)
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Open a new connection in the child, and leave the parent's connection open and unused."""
        if self._client is not None:
            # Keep it: collecting it would close the socket, for which gevent needs the parent's
            # loop.
            self._inherited.append(self._client)
        self._client = None
        self._report: tuple[int, float] | None = None
        # Guards _report and _answers; held only during an assignment.
        self._lock = new_lock()
        self._answers: bool | None = None  # None until Redis was asked

    def ask(self, token: str, *, publishing: bool, anew: bool = False) -> Answer:
        """Reserve a permit, in one round trip.

        Args:
            token: The token's hash.
            publishing: Whether the request publishes, so that a stop of publishing stops it.
            anew: Whether this machine could not use Redis before.  Then Redis does not know what
                was spent meanwhile, so the burst begins with a few permits.

        Raises:
            BudgetUnavailable: Redis did not answer in time, or refused.
        """
        report = self._report
        left, reset = _left_now(report)
        answer = self._ask(token, LONGEST_WAIT_SECONDS, int(anew), int(publishing), left, reset)
        with self._lock:
            if self._report is report:  # not one that arrived meanwhile
                self._report = None
        return answer

    def look(self, token: str) -> Answer:
        """Return what `ask` would, but change nothing.

        Raises:
            BudgetUnavailable: Redis did not answer in time, or refused.
        """
        return self._ask(token, -1.0, 0, 0, *_left_now(None))

    def stop(self, token: str, scope: Scope, seconds: float) -> None:
        """Record that the API has stopped *scope*, for every machine.

        Raises:
            BudgetUnavailable: Redis did not answer in time, or refused.
        """
        self._run(STOP, token, seconds, int(scope is Scope.PUBLISHING))

    def heed(self, left: int, reset_seconds: float) -> None:
        """Tell Redis how many requests the API has left until its reset.

        The next `ask` sends it; if that fails, so does the one after.
        """
        with self._lock:
            self._report = left, time.monotonic() + reset_seconds

    def log(self, trouble: str | None, *, asked: bool = False) -> None:
        """Log once that Redis does not answer, and once that it does again.

        Args:
            trouble: Why this machine does not use Redis now; None if it does.
            asked: Whether this process has just asked Redis.
        """
        answers = trouble is None
        with self._lock:
            before = self._answers
            if before is answers or (before is None and answers and not asked):
                return
            self._answers = answers
        metrics.shared_budget(self.shown, answers=answers)
        if not answers:
            logger.warning(
                "the request allowance cannot be shared with other machines (budget_url): %s. This "
                "machine goes on alone with a part of the allowance, so publishing is slower and "
                "may time out",
                trouble,
            )
        elif before is not None:
            logger.info("the request allowance is shared through %s again", self.shown)

    def _ask(self, token: str, *arguments: float) -> Answer:
        answer = self._run(ASK, token, *arguments)
        try:
            granted, free, wait, stopped, publishing_stopped = answer
            return Answer(
                granted == 1, int(free), float(wait), float(stopped), float(publishing_stopped)
            )
        except (TypeError, ValueError):
            self._fail("the server's answer is not that of the script")

    def _run(self, script: str, token: str, *arguments: float) -> Any:
        redis = self._redis
        client = self._client
        if client is None:
            client = self._client = _make_client(redis, self._url)
        keys = (self._key + token, self._key + "last")
        settings = (self.limit.rate, self.limit.burst, INITIAL_TOKENS, STATE_SECONDS)
        values = (*keys, *settings, *arguments)
        answer, failure = None, ""
        try:
            try:
                answer = client.evalsha(_DIGESTS[script], len(keys), *values)
            except redis.exceptions.NoScriptError:  # a new server, or one that was restarted
                answer = client.eval(script, len(keys), *values)
        except (redis.RedisError, OSError, ValueError) as error:
            failure = f"{type(error).__name__}: {error}"
        if failure:  # not in the except clause, because frames of the client hold the password
            self._fail(failure)
        return answer

    def _fail(self, why: str) -> NoReturn:
        password = unquote(urlsplit(self._url).password or "")
        text = why.replace(self._url, self.shown)
        raise BudgetUnavailable(
            f"{self.shown} failed ({text.replace(password, '**') if password else text})"
        )


def _left_now(report: tuple[int, float] | None) -> tuple[int, float]:
    """Return the requests that are left and the seconds until the reset; zeros without a report."""
    if report is None:
        return 0, 0.0
    return report[0], max(0.0, report[1] - time.monotonic())


def shown(url: str) -> str:
    """Return a Redis URL for display: without user name, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _load_redis() -> Any:
    with importing:
        try:
            import redis  # noqa: PLC0415  needed only with budget_url
        except ImportError:
            pass
        else:
            return redis
    raise ConfigurationError(
        f"budget_url needs the Python package redis: {install_command('redis', 'redis')}"
    )


def _make_client(redis: Any, url: Secret) -> Any:
    """Return a client, which connects at its first call.

    Raises:
        ConfigurationError: The URL has an option that the client does not know.
    """
    try:
        options = redis.connection.parse_url(url)
        base = options.pop("connection_class", redis.Connection)
        options |= {
            "socket_timeout": REDIS_TIMEOUT_SECONDS,
            "socket_connect_timeout": REDIS_TIMEOUT_SECONDS,
            # A call that timed out may have taken a permit, and a retry takes time.
            "retry": redis.retry.Retry(redis.backoff.NoBackoff(), 0),
            "retry_on_error": [],
            "protocol": 2,  # version 3 costs one more round trip, and Redis 5 does not know it
        }
        bounded = type("BoundedConnection", (_BoundedName, base), {})
        bounded(**options)  # checks the options; connects nothing
        pool = redis.ConnectionPool(connection_class=bounded, **options)
        return redis.Redis(connection_pool=pool)
    except (TypeError, ValueError, AttributeError):
        pass
    raise ConfigurationError(
        "budget_url has a part that the package redis does not understand (it is not shown, "
        "because it may hold a password): write it as redis://:PASSWORD@HOST:6379/0, and "
        "percent-encode the password"
    )


class _BoundedName:
    """Looks up the server's name with a timeout, which ``getaddrinfo`` does not have."""

    host: str
    port: int

    def _connect(self) -> Any:
        with importing:
            from .api.name_resolution import names  # noqa: PLC0415  it imports urllib3
        names.addresses(self.host, int(self.port), REDIS_TIMEOUT_SECONDS)
        return super()._connect()  # type: ignore[misc]
