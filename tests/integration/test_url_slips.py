"""A slip in the broker's URL: the error says how to mend it, and nothing shows the token.

Most slips are one character: no scheme, one slash, an account id without a colon, and a token
whose ``/``, ``?`` or ``#`` was not percent-encoded, so that Python takes the rest for something
else.  Kombu takes the URL apart before this package is asked.
"""

from __future__ import annotations

import traceback

import pytest
from celery import Celery
from kombu import Connection

from kombu_cfqueues.errors import ConfigurationError

ACCOUNT = "0123456789abcdef0123456789abcdef"
SECRET = "s3cretPartOfTheToken"  # in each token, and in none of what is shown
TOKENS = {"new": f"cfut_{SECRET}0123456789_abcdefgh-ij", "old": f"{SECRET}0123456789abcdefghij"}


def shown(connection) -> str:
    """All that an application may print or log of a connection."""
    return " ".join([repr(connection), str(connection), connection.as_uri()])


def failure_of(connection) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011  of which class, each test says
        connection.ensure_connection(max_retries=1)
    return raised.value


def told(error: BaseException) -> str:
    """An error as a log shows it."""
    return "".join(traceback.format_exception(error))


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch):
    for name in ("CLOUDFLARE_ACCOUNT_ID", "CLOUDFLARE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)


#: A slip, and what the URL then looks like.
SLIPS = {
    "account and colon lost": "cfqueues://{token}@/",
    "account, colon and at sign lost": "cfqueues://{token}/",
    "account, and at sign with a host, lost": "cfqueues://{token}api.cloudflare.com/",
    "account and token swapped": "cfqueues://{token}:{account}@/",
    "at sign and colon swapped": "cfqueues://{account}@{token}:/",
    "at sign twice": "cfqueues://{account}@{token}@/",
    "one slash": "cfqueues:/{account}:{token}@/",
    "no slash": "cfqueues:{account}:{token}@",
    "three slashes": "cfqueues:///{account}:{token}@/",
    "no scheme": "{account}:{token}@",
    "only the token": "{token}",
    "a slash begins the token": "cfqueues://{account}:/{token}@/",
    "a question mark begins the token": "cfqueues://{account}:?{token}@/",
    "a hash begins the token": "cfqueues://{account}:#{token}@/",
    "a slash after digits": "cfqueues://{account}:54321/{token}@/",
}


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
@pytest.mark.parametrize("url", SLIPS.values(), ids=SLIPS)
def test_a_slip_shows_nothing_of_the_token(url, token):
    """What is no host name or account id is masked, and what is wrong is said of its place."""
    connection = Connection(
        url.format(token=token, account=ACCOUNT), transport="kombu_cfqueues:Transport"
    )

    text = shown(connection)
    error = failure_of(connection)

    assert SECRET.lower() not in text.lower()
    assert "54321" not in text
    assert SECRET.lower() not in told(error).lower()
    assert isinstance(error, ConfigurationError), type(error)


@pytest.mark.parametrize("begin", ["/", "?", "#", "54321/", "54321?", "54321#"])
def test_a_token_that_is_not_encoded_gets_the_advice_to_encode_it(begin):
    """Where the colon is followed by no port, or by digits, Kombu lets us speak."""
    connection = Connection(
        f"cfqueues://{ACCOUNT}:{begin}{SECRET}@/", transport="kombu_cfqueues:Transport"
    )

    error = failure_of(connection)

    assert isinstance(error, ConfigurationError)
    assert "percent-encode the token" in str(error)
    assert SECRET.lower() not in told(error).lower()
    assert "54321" not in told(error)


@pytest.mark.parametrize("sign", "/?#")
def test_a_slip_in_a_further_url_of_a_list_is_told_at_once(emulator, sign):
    """Kombu parses it when it fails over, and its error shows the token."""
    urls = [emulator.broker_url, f"cfqueues://{ACCOUNT}:a{sign}{SECRET}@/"]
    connection = Connection(urls, transport="kombu_cfqueues:Transport")

    error = failure_of(connection)

    assert isinstance(error, ConfigurationError)
    assert "percent-encode the token" in str(error)
    assert SECRET.lower() not in told(error).lower()


def test_a_query_is_refused():
    """Kombu would take it for arguments of its own."""
    connection = Connection(
        f"cfqueues://{ACCOUNT}:{SECRET}@/?publish_timeout=5", transport="kombu_cfqueues:Transport"
    )
    error = failure_of(connection)
    assert isinstance(error, ConfigurationError)
    assert "transport_options" in str(error)


def test_a_slip_does_not_send_the_environments_token_to_another_host(monkeypatch):
    """The account id has become the host: no request may leave to it."""
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", ACCOUNT)
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "of-the-environment")
    asked = []
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *_, **__: asked.append(host) or [])
    connection = Connection(
        f"cfqueues://{ACCOUNT}:#{SECRET}@/", transport="kombu_cfqueues:Transport"
    )

    error = failure_of(connection)

    assert not asked
    assert isinstance(error, ConfigurationError)


BASE_URLS = [
    "{token}",
    "{token}/client/v4",
    "https:/{token}",
    "https:///{token}",
    "ftp://{token}/",
    "https://{token}",
    "https://{token}/",
    "https://{token}:443/",
    "http://{token}/",
]


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
@pytest.mark.parametrize("base_url", BASE_URLS)
def test_a_token_in_base_url_is_neither_shown_nor_looked_up(base_url, token, monkeypatch):
    """A look-up would show it to every name server on the way."""
    asked = []
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *_, **__: asked.append(host) or [])
    options = {
        "account_id": ACCOUNT,
        "api_token": "other",
        "base_url": base_url.format(token=token),
        "allow_insecure_http": True,
    }
    connection = Connection("cfqueues://", transport_options=options)

    text = f"{shown(connection)} {connection.info()}"
    error = failure_of(connection)

    assert SECRET.lower() not in text.lower()
    assert isinstance(error, ConfigurationError), type(error)
    assert "base_url" in str(error)
    assert SECRET.lower() not in told(error).lower()
    assert not asked


@pytest.mark.parametrize("place", ["{token}.example.com", "queues.{token}:8443"])
def test_a_host_with_a_part_as_long_as_a_token_is_not_shown(place):
    """In the broker URL and in ``base_url``; it may be a right one, so it is not refused."""
    host = place.format(token=TOKENS["new"])
    of_url = Connection(f"cfqueues://{ACCOUNT}:x@{host}/", transport="kombu_cfqueues:Transport")
    assert shown(of_url).count(f"cfqueues://{ACCOUNT}:**@**/") == 3
    assert SECRET.lower() not in str(of_url.info()).lower()

    options = {"account_id": ACCOUNT, "api_token": "x", "base_url": f"https://{host}/"}
    of_option = Connection("cfqueues://", transport_options=options)
    assert shown(of_option).count("cfqueues://**/") == 3
    assert SECRET.lower() not in str(of_option.info()).lower()

    plain = {**options, "base_url": f"http://{host}/"}
    error = failure_of(Connection("cfqueues://", transport_options=plain))
    assert isinstance(error, ConfigurationError)
    assert SECRET.lower() not in told(error).lower()


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
def test_a_token_in_the_option_account_id_is_not_shown(token):
    options = {"account_id": token, "api_token": ACCOUNT}
    connection = Connection("cfqueues://", transport_options=options)
    text = f"{shown(connection)} {connection.info()}"
    error = failure_of(connection)
    assert SECRET.lower() not in text.lower()
    assert isinstance(error, ConfigurationError)
    assert SECRET.lower() not in told(error).lower()


def test_celery_shows_no_token_either():
    app = Celery("shop", broker=f"cfqueues://{TOKENS['new']}@/", set_as_current=False)
    app.conf.broker_transport = "kombu_cfqueues:Transport"
    with app, app.connection_for_write() as connection:
        assert SECRET.lower() not in shown(connection).lower()


@pytest.mark.parametrize("host", ["127.0.0.1:8787", "[::1]:8787", "emulator:8787", "a.example"])
def test_what_is_right_is_shown(host):
    """It is so today; masking must leave it."""
    connection = Connection(
        f"cfqueues://{ACCOUNT}:{SECRET}@{host}/", transport="kombu_cfqueues:Transport"
    )
    assert connection.as_uri() == f"cfqueues://{ACCOUNT}:**@{host}/"
    options = {"account_id": ACCOUNT, "api_token": SECRET, "base_url": f"https://{host}"}
    assert Connection("cfqueues://", transport_options=options).as_uri() == f"cfqueues://{host}/"


# -- whose URL it is


@pytest.mark.parametrize(
    "url",
    [
        "memory://",
        "redis://localhost:6379/0",
        "sqs://",
        "amqp://guest:guest@localhost//",
        "filesystem://",
        "memory://localhost/",
    ],
)
def test_a_url_of_another_broker_is_not_taken_for_ours(url, emulator, monkeypatch):
    """A test suite sets ``memory://`` and publishes to the account of its environment."""
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", emulator.account_id)
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", emulator.token)
    app = Celery("shop", broker=url, set_as_current=False)
    app.conf.broker_transport = "kombu_cfqueues:Transport"
    app.conf.broker_transport_options = {"base_url": emulator.base_url}

    with app, pytest.raises(ConfigurationError, match="broker_transport") as raised:
        app.send_task("add", queue="jobs", retry=False)

    assert url.partition(":")[0] in str(raised.value)
    assert not emulator.requests


def test_a_url_of_another_broker_in_a_list_is_not_taken_for_ours(emulator):
    app = Celery("shop", set_as_current=False)
    app.conf.update(
        broker_url=["memory://", emulator.broker_url],
        broker_transport="kombu_cfqueues:Transport",
    )
    with app, pytest.raises(ConfigurationError, match="broker_transport"):
        app.send_task("add", queue="jobs", retry=False)


def test_the_write_url_of_an_application_is_not_taken_for_ours(emulator, monkeypatch):
    """``broker_write_url``, and Celery's environment variables for it, go the same way."""
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", emulator.account_id)
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", emulator.token)
    app = Celery("shop", broker=emulator.broker_url, set_as_current=False)
    app.conf.update(
        broker_write_url="memory://",
        broker_transport="kombu_cfqueues:Transport",
        broker_transport_options={"base_url": emulator.base_url},
    )
    with app, pytest.raises(ConfigurationError, match="broker_transport"):
        app.send_task("add", queue="jobs", retry=False)
    assert not emulator.requests


@pytest.mark.parametrize("url", ["{}", "cfqueues://", ""])
def test_our_own_urls_and_none_at_all_stay_ours(url, emulator, monkeypatch):
    """They are so today: no URL means the environment's account."""
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", emulator.account_id)
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", emulator.token)
    options = {"base_url": emulator.base_url}
    with Connection(
        url.format(emulator.broker_url) or None,
        transport="kombu_cfqueues:Transport",
        transport_options=options,
    ) as connection:
        connection.Producer().publish({}, routing_key="jobs")
    assert len(emulator.messages("jobs")) == 1
