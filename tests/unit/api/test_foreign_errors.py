"""What requests, urllib3, http.client, ssl and sockets raise becomes one of our errors."""

import http.client
import inspect
import socket
import ssl

import pytest
import requests
import urllib3

from kombu_cfqueues import errors
from kombu_cfqueues.api.foreign_errors import FOREIGN, translate

HOST = "queues.invalid:443"


def classes_of(module):
    return {
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Exception)
        and not issubclass(value, Warning)
        and not value.__name__.startswith("_")
    }


CLASSES = sorted(
    set().union(
        *map(classes_of, (requests.exceptions, urllib3.exceptions, http.client, socket, ssl)),
        {ConnectionResetError, BrokenPipeError, UnicodeError},
    ),
    key=lambda kind: (kind.__module__, kind.__name__),
)

CONFIGURATION = "is not a valid URL"
CERTIFICATE = "could not be verified"
PROXY = "the proxy for"
UNREACHABLE = "cannot be reached: check the host"
SLOW = "did not answer in time"

# What a class means before the request was sent; the others mean that the host cannot be reached.
UNSENT = {
    "requests.exceptions.InvalidProxyURL": CONFIGURATION,
    "requests.exceptions.InvalidSchema": CONFIGURATION,
    "requests.exceptions.InvalidURL": CONFIGURATION,
    "requests.exceptions.MissingSchema": CONFIGURATION,
    "ssl.SSLCertVerificationError": CERTIFICATE,
    "urllib3.exceptions.LocationParseError": CONFIGURATION,
    "urllib3.exceptions.LocationValueError": CONFIGURATION,
    "urllib3.exceptions.ProxyError": PROXY,
    "urllib3.exceptions.ProxySchemeUnknown": CONFIGURATION,
    "urllib3.exceptions.URLSchemeUnknown": CONFIGURATION,
    "builtins.UnicodeError": CONFIGURATION,
}

# Classes that say no more than that something broke.
BROKEN = {
    "builtins": "BrokenPipeError ConnectionResetError OSError TimeoutError",
    "email.errors": "MessageDefect",
    "http.client": """
        BadStatusLine CannotSendHeader CannotSendRequest HTTPException ImproperConnectionState
        IncompleteRead InvalidURL LineTooLong NotConnected RemoteDisconnected ResponseNotReady
        UnimplementedFileMode UnknownProtocol UnknownTransferEncoding""",
    "json.decoder": "JSONDecodeError",
    "requests.exceptions": """
        ChunkedEncodingError ConnectTimeout ConnectionError ContentDecodingError HTTPError
        InvalidHeader InvalidJSONError JSONDecodeError ProxyError ReadTimeout RequestException
        RetryError SSLError StreamConsumedError Timeout TooManyRedirects URLRequired
        UnrewindableBodyError""",
    "simplejson.errors": "JSONDecodeError",
    "socket": "gaierror herror",
    "ssl": """
        SSLEOFError SSLError SSLSyscallError SSLWantReadError SSLWantWriteError
        SSLZeroReturnError""",
    "urllib3.exceptions": """
        BodyNotHttplibCompatible ClosedPoolError ConnectTimeoutError DecodeError EmptyPoolError
        FullPoolError HTTPError HeaderParsingError HostChangedError IncompleteRead
        InvalidChunkLength InvalidHeader MaxRetryError NameResolutionError NewConnectionError
        PoolError ProtocolError ProxySchemeUnsupported ReadTimeoutError RequestError ResponseError
        ResponseNotChunked SSLError TimeoutError TimeoutStateError UnrewindableBodyError""",
}


def name_of(kind):
    return f"{kind.__module__}.{kind.__name__}"


def made(kind):
    """An instance, whatever its constructor wants."""
    error = kind.__new__(kind)
    error.args = ("what happened",)
    # The texts of some classes need these.
    partial = b"" if kind is http.client.IncompleteRead else 0
    error.__dict__.update(partial=partial, expected=1, length=b"zz", response=None)
    return error


def translated(error, *, sent=False, handled=None, token="t0ken"):
    return translate(
        error, sent=sent, handled=handled, action="publishing to queue 'jobs'", host=HOST,
        token=token,
    )  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES, ids=name_of)
def test_every_class_of_the_libraries_is_caught_and_its_meaning_was_decided(kind):
    """An upgrade adds classes: a class that nobody has looked at fails here."""
    error = translated(made(kind))

    assert issubclass(kind, FOREIGN)
    assert str(error).startswith("publishing to queue 'jobs' failed: ")
    assert error.delivered == "no"
    meaning = UNSENT.get(name_of(kind))
    if meaning is None:
        assert kind.__name__ in BROKEN[kind.__module__].split()
    wanted = errors.ConfigurationError if meaning == CONFIGURATION else errors.ConnectionFailed
    assert type(error) is wanted
    assert (meaning or UNREACHABLE) in str(error)


@pytest.mark.parametrize("kind", CLASSES, ids=name_of)
def test_once_the_request_was_sent_no_class_says_that_it_did_not_arrive(kind):
    """Nor that the configuration is wrong, or the proxy: urllib3 blames it for a lost response."""
    error = translated(made(kind), sent=True)

    assert type(error) is errors.ConnectionFailed
    assert error.delivered == "unknown"
    is_slow = issubclass(kind, (requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError))
    broke = f"the connection to {HOST} broke before the response arrived"
    assert (SLOW if is_slow else broke) in str(error)


def test_the_most_specific_cause_decides():
    """requests wraps what urllib3 raises, and urllib3 what the system raises."""
    system = ConnectionRefusedError(111, "Connection refused")
    proxy = urllib3.exceptions.ProxyError("cannot connect", made(ssl.SSLCertVerificationError))
    proxy.__cause__ = system

    error = translated(requests.ConnectionError(made(requests.ReadTimeout), proxy))

    assert CERTIFICATE in str(error)
    assert "(Connection refused)" in str(error)


@pytest.mark.parametrize(
    ("foreign", "text"),
    [
        (
            OSError("Could not find a suitable TLS CA certificate bundle, invalid path: /x"),
            "CURL_CA_BUNDLE does not name a file",
        ),
        (
            requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support."),
            "needs the package PySocks",
        ),
    ],
)
def test_what_only_a_text_says_is_the_configurations_fault(foreign, text):
    error = translated(foreign)

    assert type(error) is errors.ConfigurationError
    assert error.delivered == "no"
    assert text in str(error)


def test_the_token_is_masked_in_what_the_system_says():
    error = translated(OSError("tunnel failed: t0ken"))

    assert "t0ken" not in str(error)
    assert "(tunnel failed: **)" in str(error)


def test_tracebacks_of_the_libraries_are_removed_but_not_the_applications():
    """Their frames have the Authorization header in local variables."""
    try:
        raise LookupError("of the application")
    except LookupError as handled:
        try:
            raise requests.ConnectionError("broken")
        except requests.ConnectionError as foreign:
            translated(foreign, handled=handled)
            assert foreign.__traceback__ is None
            assert handled.__traceback__ is not None
