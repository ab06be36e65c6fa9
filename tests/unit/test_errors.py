"""Errors: what they carry, that they travel, and where Kombu sees them."""

import copy
import inspect
import pickle
import socket

import pytest
from kombu.exceptions import OperationalError

import kombu_cfqueues
from kombu_cfqueues import errors

ALL = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, errors.CFQueuesError)
]
GIVEN = {
    "status": 429,
    "code": 971,
    "ray_id": "8f3-VIE",
    "retry_after": 1.5,
    "delivered": "unknown",
}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_travel_between_processes_with_all_they_carry(kind, protocol):
    """Celery pickles a task's error, and one that does not come back hides what happened."""
    error = kind("what happened", **GIVEN)

    travelled = pickle.loads(pickle.dumps(error, protocol))

    assert type(travelled) is kind
    assert str(travelled) == "what happened"
    assert vars(travelled) == GIVEN


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_errors_can_be_copied(kind, duplicate):
    copied = duplicate(kind("what happened", **GIVEN))

    assert type(copied) is kind
    assert str(copied) == "what happened"
    assert vars(copied) == GIVEN


@pytest.mark.parametrize("kind", ALL)
def test_errors_say_no_more_than_is_known(kind):
    error = kind("what happened")

    assert vars(error) == {
        "status": None,
        "code": None,
        "ray_id": None,
        "retry_after": None,
        "delivered": "no",
    }


@pytest.mark.parametrize("kind", ALL)
def test_every_error_has_its_place_in_the_picture_of_the_tree(kind):
    """People choose what to catch from it."""
    picture = errors.__doc__.split("::")[1]

    line = next(line for line in picture.splitlines() if line.split()[:1] == [kind.__name__])
    depth = (len(line) - len(line.lstrip())) // 2 - 2
    assert depth == kind.__mro__.index(errors.CFQueuesError)


def concrete():
    families = {errors.CFQueuesError, errors.TransientError, errors.PermanentError}
    return [kind for kind in ALL if kind not in families]


@pytest.mark.parametrize("kind", concrete())
def test_kombu_sees_each_error_in_exactly_one_of_its_families(kind):
    transport = kombu_cfqueues.Transport
    connection = issubclass(kind, transport.connection_errors)
    channel = issubclass(kind, transport.channel_errors)

    assert connection != channel
    assert channel == issubclass(kind, errors.PermanentError)
    recoverable = issubclass(kind, transport.recoverable_connection_errors)
    assert recoverable == issubclass(kind, errors.TransientError)
    assert not issubclass(kind, transport.recoverable_channel_errors)


def test_a_publish_timeout_is_caught_as_kombus_own_and_not_repeated():
    """``except OperationalError`` is what Celery's users write."""
    transport = kombu_cfqueues.Transport

    assert issubclass(errors.PublishTimeout, OperationalError)
    assert issubclass(errors.PublishTimeout, transport.connection_errors)
    assert not issubclass(errors.PublishTimeout, transport.recoverable_connection_errors)


def test_an_empty_queue_is_no_error_of_the_connection():
    """`drain_events` raises this when nothing came; taking it for a failure would reconnect."""
    assert not issubclass(socket.timeout, errors.CFQueuesError)
    assert not issubclass(socket.timeout, kombu_cfqueues.Transport.recoverable_connection_errors)


@pytest.mark.parametrize("status", [200, 403, 429, 500])
@pytest.mark.parametrize(
    ("code", "scope"),
    [
        (10250, errors.Scope.QUEUE),
        (10251, errors.Scope.QUEUE),
        (10252, errors.Scope.QUEUE),
        (10253, errors.Scope.PUBLISHING),
        (971, errors.Scope.EVERYTHING),
        (6100, errors.Scope.EVERYTHING),
        (10429, errors.Scope.EVERYTHING),
    ],
)
def test_the_code_says_what_the_api_has_stopped_whatever_the_status(code, status, scope):
    assert errors.RateLimited("", status=status, code=code).stops is scope


@pytest.mark.parametrize("code", [12345, 10000, 0, None])
def test_a_429_stops_everything_unless_its_code_says_less(code):
    assert errors.RateLimited("", status=429, code=code).stops is errors.Scope.EVERYTHING


@pytest.mark.parametrize(("status", "code"), [(503, 15000), (403, 10000), (500, None)])
def test_any_other_answer_stops_nothing(status, code):
    assert errors.CFQueuesError("", status=status, code=code).stops is None


def test_our_own_limit_is_not_taken_for_an_answer():
    """It would stop everything for another five minutes."""
    assert errors.RateLimited("the allowance is used up", retry_after=1.0).stops is None
