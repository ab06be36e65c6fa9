"""URL, options and environment: what is taken from where, and what is refused."""

import logging
from dataclasses import fields

import pytest
from kombu import Connection

from kombu_cfqueues import limits
from kombu_cfqueues.errors import ConfigurationError
from kombu_cfqueues.options import Options, Secret, is_loopback, shown_place
from kombu_cfqueues.options.checks import CHECKED

ACCOUNT = "0123456789abcdef" * 2
TOKEN = "s3cret-token"


def read(*, environ=None, **given):
    given = {"user": ACCOUNT, "password": TOKEN} | given
    return Options.read(environ=environ or {}, **given)


def refusal(**given):
    with pytest.raises(ConfigurationError) as refused:
        read(**given)
    assert TOKEN not in str(refused.value)
    return str(refused.value)


def test_a_url_with_account_and_token_is_all_that_is_needed():
    options = read()

    assert options.account_id == ACCOUNT
    assert options.api_token == TOKEN
    assert options.base_url == "https://api.cloudflare.com/client/v4"
    assert options.host == "api.cloudflare.com"


def test_the_url_wins_over_options_and_these_over_the_environment():
    """Each source completes the ones before it."""
    environ = {"CLOUDFLARE_ACCOUNT_ID": "e" * 32, "CLOUDFLARE_API_TOKEN": "of-environment"}
    option = {"account_id": "0" * 32, "api_token": "of-options"}

    only_environment = Options.read(environ=environ)
    with_options = Options.read(transport_options=option, environ=environ)
    with_url = read(transport_options=option, environ=environ)

    assert (only_environment.account_id, only_environment.api_token) == (
        "e" * 32,
        "of-environment",
    )
    assert (with_options.account_id, with_options.api_token) == ("0" * 32, "of-options")
    assert (with_url.account_id, with_url.api_token) == (ACCOUNT, TOKEN)


def test_options_that_are_none_are_taken_as_not_given():
    options = read(transport_options={"publish_timeout": None, "queues": None, "base_url": None})

    assert options.publish_timeout == 30
    assert options.queues == {}


@pytest.mark.parametrize(
    ("missing", "option", "variable"),
    [
        ("user", "account_id", "CLOUDFLARE_ACCOUNT_ID"),
        ("password", "api_token", "CLOUDFLARE_API_TOKEN"),
    ],
)
@pytest.mark.parametrize("nothing", [None, ""])
def test_a_missing_account_or_token_is_named_with_all_places_to_give_it(
    missing, option, variable, nothing
):
    text = refusal(**{missing: nothing})

    assert f"transport_options[{option!r}]" in text
    assert variable in text
    assert "cfqueues://ACCOUNT_ID:API_TOKEN@/" in text


@pytest.mark.parametrize("account", ["acme", ACCOUNT[:-1], ACCOUNT + "0", "z" * 32, f"{ACCOUNT}+"])
def test_an_account_id_that_cloudflare_cannot_have_given_is_refused(account):
    text = refusal(user=account)

    assert "32 hex digits" in text


def test_a_token_in_the_place_of_the_account_is_not_repeated():
    """cfqueues://TOKEN@/ is a likely mistake, and its error ends in a log."""
    text = refusal(user=TOKEN, password=ACCOUNT)

    assert "account_id" in text


@pytest.mark.parametrize("account", [5, ["a"]])
def test_an_account_that_is_no_text_is_refused(account):
    assert "account_id must be a string" in refusal(
        user=None, transport_options={"account_id": account}
    )


@pytest.mark.parametrize("token", [5, ["t"]])
def test_a_token_that_is_neither_text_nor_callable_is_refused(token):
    assert "api_token must be a string, or a function" in refusal(
        password=None, transport_options={"api_token": token}
    )


def test_a_callable_token_is_kept_for_the_requests_to_call():
    def token():
        return TOKEN

    options = read(password=None, transport_options={"api_token": token})

    assert options.api_token is token


def test_a_path_in_the_url_is_refused_because_nothing_would_come_of_it():
    text = refusal(virtual_host="production")

    assert "virtual host" in text
    assert "queue_name_prefix" in text


# Where the requests go


@pytest.mark.parametrize(
    ("host", "port", "base_url"),
    [
        (None, None, "https://api.cloudflare.com/client/v4"),
        ("127.0.0.1", 8787, "http://127.0.0.1:8787/client/v4"),
        ("127.9.9.9", None, "http://127.9.9.9/client/v4"),
        ("localhost", 8787, "http://localhost:8787/client/v4"),
        ("::1", 8787, "http://[::1]:8787/client/v4"),
        ("0.0.0.0", 8787, "http://0.0.0.0:8787/client/v4"),
        ("::", 8787, "http://[::]:8787/client/v4"),
        ("gateway.example.com", None, "https://gateway.example.com/client/v4"),
        ("gateway.example.com", 8443, "https://gateway.example.com:8443/client/v4"),
        ("10.0.0.1", None, "https://10.0.0.1/client/v4"),
    ],
)
def test_only_this_machine_is_spoken_to_in_the_clear(host, port, base_url):
    assert read(host=host, port=port).base_url == base_url


@pytest.mark.parametrize(
    "host", ["localhost.example.com", "127.0.0.1.example.com", "128.0.0.1", "::2", ""]
)
def test_hosts_that_only_look_like_this_machine_are_not(host):
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("host", "scheme"),
    [
        ("emulator", "http"),
        ("10.0.0.1", "http"),
        ("192.168.1.7", "http"),
        ("172.17.0.1", "http"),
        ("fd00::1", "http"),
        ("gateway.example.com", "https"),
        ("emulator.example", "https"),
        ("8.8.8.8", "https"),
    ],
)
def test_allowed_plain_http_is_for_names_and_addresses_of_a_private_network(host, scheme):
    """Another container, by the name that Docker Compose gives it."""
    option = {"allow_insecure_http": True}
    read_url = read(host=host, port=8787, transport_options=option).base_url
    assert read_url.startswith(f"{scheme}://")
    assert read(host=host, port=8787).base_url.startswith("https://")
    https = option | {"base_url": f"https://{f'[{host}]' if ':' in host else host}:8787"}
    assert read(host=host, port=8787, transport_options=https).base_url.startswith("https://")


@pytest.mark.parametrize("host", ["10.0.0.1", "emulator", "localhost.example.com"])
def test_plain_http_to_another_host_needs_to_be_allowed(host):
    """Whoever listens on the way would have the token."""
    text = refusal(transport_options={"base_url": f"http://{host}:8787"})

    assert "allow_insecure_http" in text
    assert host in text


def test_plain_http_that_is_allowed_is_logged_once_for_each_host(caplog):
    """However many connections a process makes."""
    hosts = ["in-the-clear", "in-the-clear", "in-the-clear-2"]  # of no other test

    for host in hosts:
        given = {"base_url": f"http://{host}:8787", "allow_insecure_http": True}
        assert read(transport_options=given).base_url == f"http://{host}:8787/client/v4"

    assert [(record.levelname, record.args) for record in caplog.records] == [
        ("WARNING", ("in-the-clear",)),
        ("WARNING", ("in-the-clear-2",)),
    ]
    assert "unencrypted to in-the-clear (" in caplog.text


@pytest.mark.parametrize(
    ("given", "base_url"),
    [
        ("https://gateway.example.com", "https://gateway.example.com/client/v4"),
        ("https://gateway.example.com/", "https://gateway.example.com/client/v4"),
        ("https://gateway.example.com/queues/v1/", "https://gateway.example.com/queues/v1"),
        ("http://127.0.0.1:8787", "http://127.0.0.1:8787/client/v4"),
        ("HTTPS://gateway.example.com", "https://gateway.example.com/client/v4"),
    ],
)
def test_base_url_may_leave_out_the_path(given, base_url):
    assert read(transport_options={"base_url": given}).base_url == base_url


@pytest.mark.parametrize(
    "base_url",
    [
        "gateway.example.com",
        "ftp://gateway.example.com",
        "https://",
        "https:///client/v4",
        "https://host:port",
        "https://host:99999",
        "https://host:0",
        "https://[::1",
        "https://host/?page=1",
        "https://host/#top",
        "",
        5,
        b"https://host",
    ],
)
def test_a_base_url_that_is_none_is_refused(base_url):
    assert "base_url" in refusal(transport_options={"base_url": base_url})


@pytest.mark.parametrize(
    "base_url",
    [
        f"https://{ACCOUNT}:{TOKEN}@host",
        f"https://{TOKEN}@host",
        f"https://{ACCOUNT}:{TOKEN}@host:port",
        f"https://{ACCOUNT}:{TOKEN}@[host",
        f"cfqueues://{ACCOUNT}:{TOKEN}@/",
        f"{ACCOUNT}:{TOKEN}@host",
        f"//{ACCOUNT}:{TOKEN}@host",
        f"https://host/?token={TOKEN}",
    ],
)
def test_a_secret_in_base_url_is_refused_and_not_repeated(base_url):
    assert "base_url" in refusal(transport_options={"base_url": base_url})


def test_a_base_url_for_the_host_of_the_url_adds_scheme_and_path():
    options = read(
        host="emulator",
        port=8787,
        transport_options={"base_url": "http://emulator:8787/v4", "allow_insecure_http": True},
    )

    assert options.base_url == "http://emulator:8787/v4"


def test_another_host_in_the_url_wins_over_base_url():
    """One dictionary of options serves all URLs of a fail-over list."""
    options = read(host="127.0.0.1", port=1, transport_options={"base_url": "https://other/v4"})

    assert options.base_url == "http://127.0.0.1:1/client/v4"


@pytest.mark.parametrize(
    "base_url",
    [
        "http://127.0.0.1:8787/client/v4",
        "http://localhost:8787/client/v4",
        "http://[::1]:8787/client/v4",
        "https://gateway.example.com:8443/queues",
        "https://Gateway.Example.com:8443/queues",
    ],
)
@pytest.mark.parametrize("url", [None, f"cfqueues://{ACCOUNT}:{TOKEN}@/"])
def test_a_connection_without_a_host_goes_to_base_url_with_its_port(base_url, url):
    connection = Connection(
        url,
        transport="kombu_cfqueues:Transport",
        transport_options={"base_url": base_url, "account_id": ACCOUNT, "api_token": TOKEN},
    )

    assert connection.transport.session.options.base_url == base_url


# Each option


def test_every_option_is_checked():
    """One without a check would be taken for a slip, and have no effect."""
    apart = {"account_id", "api_token", "base_url"}
    assert {field.name for field in fields(Options)} == CHECKED | apart


@pytest.mark.parametrize("given", [True, 1, "true", "True", "yes", "on", "1"])
def test_flags_may_come_as_text(given):
    assert read(transport_options={"allow_insecure_http": given}).allow_insecure_http is True


@pytest.mark.parametrize("given", [False, 0, "false", "no", "OFF", "0"])
def test_flags_may_be_switched_off_by_text(given):
    """Not by bool(), for which "false" is true."""
    assert read(transport_options={"create_missing_queues": given}).create_missing_queues is False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("create_missing_queues", "maybe"),
        ("create_missing_queues", 2),
        ("native_delay", []),
        ("queues", ["emails"]),
        ("queues", {"emails": 5}),
        ("queues", {"emails": ""}),
        ("queues", {"emails": "../../accounts"}),
        ("queue_name_prefix", 5),
        ("body_format", "xml"),
        ("body_format", ["kombu"]),
        ("content_type", "bytes"),
        ("publish_mode", "fire-and-forget"),
        ("publish_timeout", 0),
        ("publish_timeout", -1),
        ("publish_timeout", "soon"),
        ("publish_timeout", float("nan")),
        ("publish_timeout", float("inf")),
        ("publish_timeout", 10**400),
        ("publish_timeout", 1e300),
        ("publish_timeout", True),
        ("connect_timeout", 0),
        ("connect_timeout", 1e12),
        ("read_timeout", [1]),
        ("read_timeout", 1e12),
        ("polling_interval", -1),
        ("max_polling_interval", 1e12),
        ("doorbell", True),
        ("request_rate", 0),
        ("request_rate", "fast"),
        ("request_burst", 0),
        ("request_burst", 1.5),
        ("max_in_flight", 0),
        ("visibility_timeout", 43_201),
        ("visibility_timeout", 0),
        ("pull_batch_size", 0),
        ("pull_batch_size", 101),
        ("consumer_max_retries", 101),
        ("consumer_max_retries", -1),
        ("dead_letter_queue", 5),
        ("spool_dir", 5),
        ("spool_max_bytes", 0),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_the_options_name(name, value):
    assert name in refusal(transport_options={name: value})


def test_numbers_may_come_as_text():
    options = read(transport_options={"publish_timeout": "2.5", "pull_batch_size": "10"})

    assert options.publish_timeout == 2.5
    assert options.pull_batch_size == 10


def test_polling_intervals_that_contradict_each_other_are_refused():
    text = refusal(transport_options={"polling_interval": 5, "max_polling_interval": 2})

    assert "max_polling_interval" in text


@pytest.mark.parametrize(("shortest", "longest"), [(None, 10), (2, 10), (20, 20)])
def test_the_longest_pause_follows_the_shortest(shortest, longest):
    """One option is enough to poll rarely, and a process that only publishes may share it."""
    options = read(transport_options={"polling_interval": shortest})

    assert options.max_polling_interval == longest


def test_a_doorbell_that_does_not_exist_is_refused():
    refused = refusal(transport_options={"doorbell": "somewhere"})
    assert "must be one of host, everywhere, off" in refused


def test_a_doorbell_for_other_machines_needs_a_control_broker():
    assert "control_url" in refusal(transport_options={"doorbell": "everywhere"})
    options = read(transport_options={"doorbell": "everywhere", "control_url": "redis://h"})
    assert options.doorbell == "everywhere"


def test_a_control_url_is_a_secret_string_or_a_function():
    options = read(transport_options={"control_url": "redis://:hidden@h/1"})
    assert "hidden" not in repr(options)
    assert "hidden" not in refusal(transport_options={"control_url": "h:hidden"})
    assert callable(read(transport_options={"control_url": lambda: "redis://h"}).control_url)
    from_variable = read(environ={"CFQUEUES_CONTROL_URL": "redis://v"})
    assert from_variable.control_url == "redis://v"


def test_cloudflares_request_limit_holds_for_cloudflare_only():
    cloudflare, emulator = read(), read(host="127.0.0.1")
    unlimited = read(transport_options={"request_rate": None})

    assert (cloudflare.request_rate, cloudflare.max_in_flight) == (3.7, 1)
    assert (emulator.request_rate, emulator.max_in_flight) == (None, 4)
    assert (unlimited.request_rate, unlimited.max_in_flight) == (None, 4)
    most = cloudflare.request_rate * limits.WINDOW_SECONDS + cloudflare.request_burst
    assert most < limits.REQUESTS_PER_WINDOW


def test_an_option_of_kombus_own_is_not_taken_for_a_slip(caplog):
    """Kombu writes its retry policy into the same dictionary."""
    read(transport_options={"max_retries": 3, "interval_start": 0, "errback": None})

    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "value"),
    [("budget_scope", "process"), ("budget_url", "redis://h/0"), ("request_burst", 5)],
)
def test_an_option_that_needs_a_rate_says_once_that_it_has_no_effect_without(caplog, name, value):
    """Machines that are believed to share one allowance through Redis would not."""
    host = "unlimited.example.com"
    read(host=host, transport_options={name: value, "request_rate": 3.0})
    read(transport_options={name: value})  # Cloudflare's host has a rate by default
    assert not caplog.records

    for _ in range(2):
        read(host=host, transport_options={name: value})
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{name!r} has no effect, because requests to {host} are not limited" in caplog.text


def test_a_budget_url_of_the_environment_says_so_too(caplog):
    environ = {"CFQUEUES_BUDGET_URL": "redis://:hidden@h/0"}
    read(host="environment.example.com", environ=environ)

    assert "'budget_url' has no effect" in caplog.text
    assert "hidden" not in caplog.text


def test_a_likely_slip_is_logged_once(caplog):
    for _ in range(2):
        read(transport_options={"publish_timeut": 5, "wholly_unknown": 1, 5: 5})

    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "'publish_timeut' is unknown" in caplog.text
    assert "'publish_timeout'" in caplog.text


def test_what_kombu_says_of_connecting_is_taken_unless_the_option_is_given():
    assert read(connect_timeout=2).connect_timeout == 2
    assert read(connect_timeout=None).connect_timeout == 5
    assert read(connect_timeout=2, transport_options={"connect_timeout": 3}).connect_timeout == 3


# What is shown of it


def test_the_token_is_masked_wherever_options_are_printed():
    options = read()

    assert TOKEN not in repr(options)
    assert TOKEN not in f"{options}"
    assert TOKEN not in repr([options.api_token])
    assert repr(Secret("x")) == "'**'"


@pytest.mark.parametrize(
    ("url", "given", "place"),
    [
        ((None, None), None, "api.cloudflare.com"),
        (("", None), {}, "api.cloudflare.com"),
        (("127.0.0.1", 8787), {}, "127.0.0.1:8787"),
        (("::1", 8787), {}, "[::1]:8787"),
        (("other.example", None), {"base_url": "https://gateway.example.com"}, "other.example"),
        ((None, None), {"base_url": "https://gateway.example.com/x"}, "gateway.example.com"),
        ((None, None), {"base_url": "https://a:b@[::1]:1/x"}, "[::1]:1"),
        ((None, None), {"base_url": 5}, "api.cloudflare.com"),
        ((None, None), {"base_url": "https://[::1"}, "api.cloudflare.com"),
        ((None, None), {"base_url": "https://host:port"}, "api.cloudflare.com"),
        ((None, None), {"base_url": "no url"}, "api.cloudflare.com"),
    ],
)
def test_the_place_for_display_never_fails(url, given, place):
    """It is asked for before options are checked, where an error would come as something else."""
    assert shown_place(*url, given) == place


def test_a_callable_token_that_cannot_be_hashed_is_refused():
    """Connections with the same token share an account, which is found by its hash."""

    class Unhashable:
        __hash__ = None

        def __call__(self):
            return "token"

    with pytest.raises(ConfigurationError, match="hashable"):
        Options.read(user="a", transport_options={"api_token": Unhashable()}, host="127.0.0.1")


def test_budget_url_comes_from_options_or_the_environment():
    """It may hold a password, so no ``repr`` shows it.  With it, processes share the allowance."""
    given, other = "redis://:hidden@host:6379/0", "rediss://other/1"
    environ = {"CFQUEUES_BUDGET_URL": other}

    assert read().budget_url is None
    assert read(environ=environ).budget_url == other
    options = read(environ=environ, transport_options={"budget_url": given})
    assert options.budget_url == given
    assert "hidden" not in repr(options)
    alone = {"budget_scope": "process"}
    assert not read(transport_options=alone).shares_budget
    assert read(transport_options=alone, environ=environ).shares_budget


@pytest.mark.parametrize(
    "url",
    [
        "memcached://:hidden@host/0",
        "redis:///hidden",
        "redis://:hid/den@host:6379/0",
        "redis://:hidden@host:port/0",
        "host:6379?hidden",
        5,
    ],
)
def test_a_budget_url_that_names_no_redis_server_is_refused_and_not_shown(url):
    for given in (
        {"transport_options": {"budget_url": url}},
        {"environ": {"CFQUEUES_BUDGET_URL": url}},
    ):
        text = refusal(**given)
        assert "budget_url must be the URL of a Redis server" in text
        assert "hid" not in text.replace("hidden because", "")
