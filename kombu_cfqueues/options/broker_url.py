"""The broker URL in its parts, and what is wrong with it.

If Kombu parsed the URL, it would raise a `ValueError` that shows part of a token with a raw ``/``,
and it would not pass on the scheme.  The scheme matters because Celery's setting
``broker_transport`` makes ``memory://`` arrive here too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from .. import limits
from .host import is_host, may_be_secret, netloc

SCHEME: Final = "cfqueues"
"""The scheme of our broker URLs."""

FORM: Final = "cfqueues://ACCOUNT_ID:API_TOKEN@/"
"""What a broker URL looks like."""

_AROUND: Final = "\"' \t\r\n"

_WRAPPED: Final = (
    "the broker URL has quotes, a space or a line break around it, which are not part of it: "
    "remove them (env files keep quotes)"
)
_ENCODE: Final = (
    "the broker URL cannot be read, perhaps because the API token contains one of the characters "
    "/ ? # [ ] @ : which separate the parts of a URL: percent-encode the token "
    f"(urllib.parse.quote(token, safe='')), and write the URL as {FORM}"
)
_QUERY: Final = (
    "the broker URL has a query or a fragment (? or #), and it cannot hold options: write it as "
    f"{FORM} and use transport_options (Celery: broker_transport_options); if the character is in "
    "the API token, percent-encode the token"
)
_NO_HOST: Final = (
    "the host of the broker URL does not look like a host name (it is not shown, because it may be "
    f"the account id or the API token): write the URL as {FORM} or, with another server, as "
    "cfqueues://ACCOUNT_ID:API_TOKEN@HOST/"
)


@dataclass(frozen=True, repr=False)
class BrokerUrl:
    """The parts of a broker URL.

    Attributes:
        host: None and ``""`` mean Cloudflare's API.
        port: None means the default of the scheme.
        user: The account id.
        password: The API token, or a callable that returns it.
        virtual_host: The path.
        fault: What is wrong with the URL, and what to do about it; ``""`` if it can be used.  It
            shows no part of the URL except the scheme.
        text: The URL as it was given if it has a fault; it may contain the token.
    """

    host: str | None = None
    port: int | None = None
    user: str | None = None
    password: str | Callable[[], str] | None = None
    virtual_host: str = ""
    fault: str = ""
    text: str = ""

    @classmethod
    def of(
        cls,
        host: str | None,
        port: int | None = None,
        user: str | None = None,
        password: str | Callable[[], str] | None = None,
        virtual_host: str | None = None,
    ) -> BrokerUrl:
        """Return the URL of a Kombu connection, from the arguments that the connection was given.

        Args:
            host: The URL; or only its host, if Kombu has taken it apart.
            port: Used, like the others below, if *host* is not a URL.
            user: The account id.
            password: The API token.
            virtual_host: The path.
        """
        if host and "://" in host:
            return cls.parse(host)
        return _checked(cls(host or None, port, user, password, virtual_host or ""), host or "")

    @classmethod
    def parse(cls, url: str) -> BrokerUrl:
        """Return the parts of *url*."""
        scheme, separator, rest = url.partition("://")
        if not separator:
            return cls(fault=f"the broker URL has no scheme: write it as {FORM}", text=url)
        if url.strip(_AROUND) != url or scheme.lower() != SCHEME:
            is_wrapped = is_ours(url.strip(_AROUND))
            return cls(fault=_WRAPPED if is_wrapped else _not_ours(scheme), text=url)
        try:
            parts = urlsplit(f"http://{rest}")
            port = parts.port
        except ValueError:
            return cls(fault=_ENCODE, text=url)
        if parts.query or parts.fragment or rest[-1:] in ("?", "#"):
            fault = _ENCODE if "@" in parts.query + parts.fragment + parts.path else _QUERY
            return cls(fault=fault, text=url)
        given = cls(
            unquote(parts.hostname or "") or None,
            port,
            unquote(parts.username or "") or None,
            unquote(parts.password or "") or None,
            unquote(parts.path),
        )
        if "@" in (parts.username or ""):
            return cls(fault=_ENCODE, text=url)
        return _checked(given, url)

    def shown(self, *, default_host: str, with_password: bool, mask: str) -> str:
        """Return the URL for display.

        Args:
            default_host: Shown if the URL has no host.
            with_password: Show the token too.
            mask: Shown instead of the token, and of any part that may be the token by mistake.
        """
        if self.fault:
            scheme = self.text.partition("://")[0] if "://" in self.text else SCHEME
            return self.text if with_password else f"{scheme}://{mask}"
        user = quote(self.user or "", safe="")
        if user and not (with_password or limits.ID.fullmatch(user)):
            user = mask
        login = user
        if self.password:
            token = self.password() if callable(self.password) else self.password
            login += f":{quote(token, safe='') if with_password else mask}"
        place = netloc(self.host, self.port) if self.host else default_host
        if not with_password and may_be_secret(place):
            place = mask
        return f"{SCHEME}://{login}{'@' if login else ''}{place}/"


def is_ours(url: object) -> bool:
    """Whether *url* has our scheme."""
    return isinstance(url, str) and url.partition("://")[0].lower() == SCHEME


def _not_ours(scheme: str) -> str:
    return (
        f"the broker URL begins with {scheme}://, which is not a URL of kombu_cfqueues, and no "
        f"request was made: write the URL as {FORM}; or, if the URL is right, unset "
        "broker_transport (Celery) or transport= (Kombu), which selects kombu_cfqueues for all URLs"
    )


def _checked(given: BrokerUrl, text: str) -> BrokerUrl:
    """Return *given*, or only its fault if it has one."""
    host = given.host or ""
    if host and ("@" in given.virtual_host or limits.ID.fullmatch(host)):
        return BrokerUrl(fault=_ENCODE, text=text)
    if host and not _is_host(host):
        return BrokerUrl(fault=_NO_HOST, text=text)
    return given


def _is_host(host: str) -> bool:
    api_host = urlsplit(limits.API_BASE_URL).hostname or ""
    # If it ends like this, the @ after the token is missing.
    return is_host(host) and not (host.endswith(api_host) and host != api_host)
