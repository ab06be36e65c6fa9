"""Where account id and token come from, and what is said of slips."""

from __future__ import annotations

import pytest
from kombu import Connection

from kombu_cfqueues.errors import ConfigurationError
from kombu_cfqueues.options import BrokerUrl, Options

ACCOUNT = "0123456789abcdef" * 2
TOKEN = "s3cret-token_of-40-characters-as-they-are"
URL = f"cfqueues://{ACCOUNT}:{TOKEN}@127.0.0.1:8787/"


def read(url, environ=None, **options):
    parts = BrokerUrl.parse(url)
    assert not parts.fault
    return Options.read(
        host=parts.host,
        port=parts.port,
        user=parts.user,
        password=parts.password,
        virtual_host=parts.virtual_host,
        transport_options=options,
        environ=environ or {},
    )


def found(options):
    return options.account_id, options.api_token, options.base_url.removesuffix("/client/v4")


OTHER = "f" * 32


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        ("cfqueues://", {}, (ACCOUNT, TOKEN, "http://127.0.0.1:8787")),
        (f"cfqueues://{OTHER}@/", {}, (OTHER, TOKEN, "http://127.0.0.1:8787")),
        ("cfqueues://localhost:1/", {}, (ACCOUNT, TOKEN, "http://localhost:1")),
        (f"cfqueues://{OTHER}:other@[::1]:1/", {}, (OTHER, "other", "http://[::1]:1")),
        ("cfqueues://", {"account_id": OTHER}, (OTHER, TOKEN, "http://127.0.0.1:8787")),
        ("cfqueues://", {"base_url": "http://[::1]:1"}, (ACCOUNT, TOKEN, "http://[::1]:1")),
    ],
)
def test_the_url_of_the_environment_supplies_what_the_url_lacks(url, options, expected):
    environ = {
        "CFQUEUES_BROKER_URL": URL,
        "CLOUDFLARE_ACCOUNT_ID": "e" * 32,
        "CLOUDFLARE_API_TOKEN": "of-cloudflare",
    }
    assert found(read(url, environ, **options)) == expected


@pytest.mark.parametrize(
    ("url", "options"),
    [(f"cfqueues://{OTHER}:other@/", {}), ("cfqueues://", {"api_token": "other"})],
)
def test_a_token_does_not_go_to_the_host_of_another_one(url, options):
    """The token of production, in the application, and an emulator in the environment."""
    options = read(url, {"CFQUEUES_BROKER_URL": URL}, **options)
    assert options.api_token == "other"
    assert options.host == "api.cloudflare.com"


def test_cloudflares_variables_supply_what_that_url_lacks():
    environ = {
        "CFQUEUES_BROKER_URL": f"cfqueues://{OTHER}@/;cfqueues://second@/",
        "CLOUDFLARE_ACCOUNT_ID": ACCOUNT,
        "CLOUDFLARE_API_TOKEN": TOKEN,
    }
    assert found(read("cfqueues://", environ)) == (OTHER, TOKEN, "https://api.cloudflare.com")


@pytest.mark.parametrize("value", ["redis://", "cfqueues://a b:c/d/e", f"{URL}vhost", f"'{URL}'"])
def test_a_wrong_url_in_the_environment_is_told_only_where_it_is_needed(value):
    environ = {"CFQUEUES_BROKER_URL": value}
    assert read(f"cfqueues://{OTHER}:other@/", environ).account_id == OTHER
    with pytest.raises(ConfigurationError, match="CFQUEUES_BROKER_URL") as refused:
        read("cfqueues://", environ)
    assert TOKEN not in str(refused.value)


def test_the_url_for_display_is_where_it_goes(monkeypatch):
    monkeypatch.setenv("CFQUEUES_BROKER_URL", URL)
    with Connection("cfqueues://", transport="kombu_cfqueues:Transport") as connection:
        assert connection.as_uri() == "cfqueues://127.0.0.1:8787/"
    url = f"cfqueues://{OTHER}:other@/"
    with Connection(url, transport="kombu_cfqueues:Transport") as connection:
        assert connection.as_uri() == f"cfqueues://{OTHER}:**@api.cloudflare.com/"


SLIPS = [
    (TOKEN, ACCOUNT, "are swapped"),
    (ACCOUNT, OTHER, "api_token ({token}) is an account id"),
    (ACCOUNT, "...", "api_token ({token}) is a placeholder"),
    (ACCOUNT, "your-token", "api_token ({token}) is a placeholder"),
    (ACCOUNT, "API_TOKEN", "api_token ({token}) is a placeholder"),
    (ACCOUNT, "<token>", "api_token ({token}) is a placeholder"),
    (ACCOUNT, "$CLOUDFLARE_API_TOKEN", "api_token ({token}) is a placeholder"),
    (ACCOUNT, "xxxxxxxx", "api_token ({token}) is a placeholder"),
    ("ACCOUNT_ID", TOKEN, "account_id ({account}) is a placeholder"),
    ("<your-account-id>", TOKEN, "account_id ({account}) is a placeholder"),
    (f'"{ACCOUNT}"', TOKEN, "account_id ({account}) has quotes around it"),
    (ACCOUNT, f"'{TOKEN}'", "api_token ({token}) has quotes around it"),
    (ACCOUNT, f"{TOKEN}\n", "api_token ({token}) has a space or a line break"),
    (f" {ACCOUNT}", TOKEN, "account_id ({account}) has a space or a line break"),
    (ACCOUNT, f"Bearer {TOKEN}", "api_token ({token}) begins with 'Bearer'"),
    (ACCOUNT, f'"Bearer {TOKEN}"', "api_token ({token}) has quotes around it"),
]


@pytest.mark.parametrize("way", ["variables", "options", "url"])
@pytest.mark.parametrize(("account", "token", "said"), SLIPS)
def test_a_slip_is_named_as_what_it_is_and_where(account, token, said, way):
    environ, options, user, password = {}, {}, None, None
    if way == "variables":
        environ = {"CLOUDFLARE_ACCOUNT_ID": account, "CLOUDFLARE_API_TOKEN": token}
        sources = {"account": "CLOUDFLARE_ACCOUNT_ID", "token": "CLOUDFLARE_API_TOKEN"}
    elif way == "options":
        options = {"account_id": account, "api_token": token}
        sources = {
            "account": "transport_options['account_id']",
            "token": "transport_options['api_token']",
        }
    else:
        user, password = account, token
        sources = {
            "account": "the user name of the broker URL",
            "token": "the password of the broker URL",
        }
    with pytest.raises(ConfigurationError) as refused:
        Options.read(user=user, password=password, transport_options=options, environ=environ)
    text = str(refused.value)
    assert said.format(**sources) in text
    assert TOKEN not in text


@pytest.mark.parametrize("token", ["dummy", "secret", "0" * 32, "emulator-token"])
def test_another_server_may_have_tokens_of_any_form(token):
    assert Options.read(host="127.0.0.1", user="local", password=token, environ={}).host


@pytest.mark.parametrize("around", ["'", '"', " ", "\n"])
def test_quotes_and_spaces_around_a_url_are_named(around):
    with pytest.raises(ConfigurationError, match="around it"):
        read("cfqueues://", {"CFQUEUES_BROKER_URL": f"{around}{URL}{around}"})
