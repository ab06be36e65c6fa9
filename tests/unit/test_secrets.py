"""The API token is in nothing that people or log collectors may see."""

import io
import json
import logging
import time
import traceback

import pytest
from kombu import Connection
from support.scripted import Api, Drop, Failure, Html, Raw, Reset, Say, ScriptedServer

from kombu_cfqueues import errors
from kombu_cfqueues.account import Account
from kombu_cfqueues.api.client import Client
from kombu_cfqueues.options import Options, Secret
from kombu_cfqueues.rate_limit import Budget

SECRET = "s3cret-" + "".join("abcdefghij")
ACCOUNT = "0123456789abcdef" * 2


@pytest.fixture
def everything_logged():
    """All that any logger says, tracebacks included."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s %(args)r"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield said
    root.setLevel(level)
    root.removeHandler(handler)


def everything_said(error):
    """Each text of an error, its causes, and all local variables of their frames but ours here."""
    seen, waiting, texts = set(), [error], []
    while waiting:
        link = waiting.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        waiting += [link.__cause__, link.__context__]
        told = traceback.TracebackException.from_exception(link, capture_locals=True)
        texts += [str(link), repr(link), repr(vars(link)), *told.format_exception_only()]
        texts += [str(frame.locals) for frame in told.stack if frame.filename != __file__]
    return "\n".join(texts)


def publish(connection, **kwargs):
    connection.Producer().publish("x", routing_key="jobs", **kwargs)


def test_the_token_is_looked_for_in_the_right_places():
    """The other tests would pass if this found nothing."""

    with pytest.raises(ValueError, match="Expecting value") as raised:
        json.loads(SECRET)

    assert SECRET in everything_said(raised.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"cfqueues://{ACCOUNT}:{SECRET}@/", f"cfqueues://{ACCOUNT}:**@api.cloudflare.com/"),
        (f"cfqueues://{ACCOUNT}:{SECRET}@[::1]:8787/", f"cfqueues://{ACCOUNT}:**@[::1]:8787/"),
        (f"cfqueues://:{SECRET}@gateway.example", "cfqueues://:**@gateway.example/"),
        (f"cfqueues:///{ACCOUNT}:{SECRET}@/", "cfqueues://api.cloudflare.com/"),
        ("cfqueues://", "cfqueues://api.cloudflare.com/"),
    ],
)
def test_a_url_is_shown_without_the_token_and_with_the_host_that_it_goes_to(url, shown):
    """Celery's worker prints it at its start, before it has connected."""
    for text in (Connection(url).as_uri(), str(Connection(url))):
        assert shown in text
        assert SECRET not in text


def test_a_url_with_its_token_leads_to_the_same_place():
    url = f"cfqueues://{ACCOUNT}:{SECRET}%2F%40@[::1]:8787/"

    assert Connection(url).as_uri(include_password=True) == url


def test_a_token_of_the_options_is_not_in_the_url():
    connection = Connection(
        "cfqueues://", transport_options={"account_id": ACCOUNT, "api_token": SECRET}
    )

    assert connection.transport.session.options.api_token == SECRET
    assert SECRET not in connection.as_uri(include_password=True)


def test_a_connection_without_a_url_is_shown_with_the_host_that_it_goes_to():
    given = {"account_id": ACCOUNT, "api_token": SECRET}

    connection = Connection(transport="kombu_cfqueues:Transport", transport_options=given)

    assert connection.as_uri() == "cfqueues://api.cloudflare.com/"
    assert connection.transport.session.options.host == "api.cloudflare.com"


def test_reprs_of_what_holds_the_token_mask_it():
    with Connection(f"cfqueues://{ACCOUNT}:{SECRET}@127.0.0.1:1/") as connection:
        options = connection.transport.session.options
        account = Account.open(options)

    for shown in (options, account, account.client, vars(options), vars(account.client)):
        assert SECRET not in repr(shown)
    account.close()


OPTION_MISTAKES = {
    "virtual host": (f"cfqueues://{ACCOUNT}:{SECRET}@/production", {}),
    "a path that is the token": (f"cfqueues://{ACCOUNT}:x@/{SECRET}", {}),
    "three slashes": (f"cfqueues:///{ACCOUNT}:{SECRET}@/", {}),
    "a space before it": (f" cfqueues://{ACCOUNT}:{SECRET}@/", {}),
    "account": (f"cfqueues://acme:{SECRET}@/", {}),
    "no account": (f"cfqueues://:{SECRET}@/", {}),
    "timeout": (f"cfqueues://{ACCOUNT}:{SECRET}@/", {"publish_timeout": -1}),
    "token option": ("cfqueues://", {"api_token": SECRET}),
    "token option and timeout": ("cfqueues://", {"api_token": SECRET, "read_timeout": "x"}),
    "base_url": ("cfqueues://", {"base_url": f"https://{ACCOUNT}:{SECRET}@host:port"}),
    "password in base_url": ("cfqueues://", {"base_url": f"https://{ACCOUNT}:{SECRET}@host"}),
    "http": (f"cfqueues://{ACCOUNT}:{SECRET}@emulator/", {"base_url": "http://emulator"}),
}


@pytest.mark.parametrize("mistake", OPTION_MISTAKES)
def test_no_mistake_in_the_options_shows_the_token(mistake, monkeypatch, everything_logged):
    """Reporters of errors print local variables."""
    monkeypatch.delenv("CLOUDFLARE_ACCOUNT_ID", raising=False)
    url, options = OPTION_MISTAKES[mistake]
    connection = Connection(url, transport_options=options)
    assert SECRET not in repr(connection)

    with pytest.raises(errors.ConfigurationError) as refused:
        connection.connect()

    assert SECRET not in everything_said(refused.value)
    assert SECRET not in everything_logged.getvalue()


def test_no_mistake_in_the_environment_shows_the_token(monkeypatch):
    monkeypatch.delenv("CLOUDFLARE_ACCOUNT_ID", raising=False)
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", SECRET)

    with pytest.raises(errors.ConfigurationError) as refused:
        Connection("cfqueues://").connect()

    assert SECRET not in everything_said(refused.value)


def test_options_read_by_hand_show_no_token_either():
    with pytest.raises(errors.ConfigurationError) as refused:
        Options.read(
            user="acme",
            password=SECRET,
            transport_options={"api_token": SECRET},
            environ={"CLOUDFLARE_API_TOKEN": SECRET},
        )

    assert SECRET not in everything_said(refused.value)


ECHO = f"You sent Bearer {SECRET}, and that is {'x' * 260} {SECRET} {'y' * 300}"

TROUBLE = {
    "wrong token": Failure(403, 10000, ECHO),
    "wrong token, cut": Failure(403, 10000, "x" * 290 + SECRET),
    "weak token": Failure(403, 10106, ECHO),
    "no json": Say(200, ECHO.encode()),
    "page": Say(502, ECHO.encode(), SECRET),
    "odd header": Say(429, b"", headers={"CF-Ray": SECRET, "Retry-After": SECRET}),
    "redirect": Say(302, headers={"Location": f"http://{SECRET}/"}),
    "server error": Html(503),
    "dropped": Drop(),
    "reset": Reset(),
    "broken": Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"),
    "bad chunk": Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
}


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("connected", [False, True])
def test_no_trouble_on_the_way_shows_the_token(trouble, connected, called, everything_logged):
    """Not even a server, or a proxy in its place, that repeats what it was sent."""
    api = Api(["jobs"])
    step = TROUBLE[trouble]

    def troubled(request):
        return step if request.method == "POST" or not connected else api(request)

    with ScriptedServer(otherwise=troubled) as server:
        connection = Connection(
            f"cfqueues://{server.account}@{server.netloc}/",
            transport_options={
                "api_token": (lambda: SECRET) if called else SECRET,
                "publish_timeout": 1,  # most of it is tried again until then
            },
        )
        with pytest.raises(Exception) as failed:  # noqa: PT011  what it says is looked at below
            publish(connection, retry=True, retry_policy={"max_retries": 1, "interval_start": 0})
        connection.release()
        # A step that does not read leaves no request behind.
        assert trouble == "reset" or SECRET in server.requests[-1].headers["authorization"]

    assert SECRET not in everything_said(failed.value)
    assert SECRET not in everything_logged.getvalue()


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("broken", ["{} {}", "{}\n{}", "{}ü{}"])
def test_a_malformed_token_is_not_shown(broken, called):
    token = broken.format(SECRET, SECRET)
    connection = Connection(
        f"cfqueues://{ACCOUNT}@127.0.0.1:1/",
        transport_options={"api_token": (lambda: token) if called else token},
    )

    with pytest.raises(errors.AuthenticationFailed) as refused:
        connection.connect()

    assert SECRET not in everything_said(refused.value)


def test_a_proxy_that_is_down_shows_neither_the_token_nor_its_own_password(monkeypatch):
    for name in ("http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://somebody:pr0xy-pass@127.0.0.1:1")
    client = Client(
        "http://queues.invalid",
        "a",
        Secret(SECRET),
        connect_timeout=5,
        read_timeout=10,
        permits=Budget(None),
    )

    with pytest.raises(errors.ConnectionFailed, match="proxy") as failed:
        client.list_queues(deadline=time.monotonic() + 5)
    client.close()

    assert SECRET not in everything_said(failed.value)
    assert "pr0xy-pass" not in everything_said(failed.value)


def test_publishing_that_works_logs_no_token(everything_logged):
    with ScriptedServer(otherwise=Api()) as server, Connection(server.broker_url) as connection:
        publish(connection)

    said = everything_logged.getvalue()
    assert "POST" in said  # by urllib3
    assert server.token not in said


def test_a_short_token_does_not_garble_our_own_words():
    """An emulator's token may well be one that is a word."""
    with ScriptedServer(Failure(403, 10000, "the token token is wrong")) as server:
        url = f"cfqueues://{server.account}:token@{server.netloc}/"
        with pytest.raises(errors.AuthenticationFailed) as refused:
            Connection(url).connect()

    assert "the ** ** is wrong" in str(refused.value)
    assert "The API token needs the permission" in str(refused.value)
