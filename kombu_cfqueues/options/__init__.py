"""What the user wants: URL, ``transport_options`` and environment as one frozen, checked value."""

from .address import Address
from .base_url import is_loopback, shown_place
from .broker_url import BrokerUrl, is_ours
from .foreign import log_queue_arguments
from .options import ACCOUNT_OPTIONS, Options
from .pod import POD_ADVICE, POD_VARIABLE, lacks_shared_rate
from .secret import Secret, Token, is_missing
from .sources import (
    BUDGET_VARIABLE,
    DEFAULT_REQUEST_BURST,
    DEFAULT_REQUEST_RATE,
    TOKEN_VARIABLE,
)

__all__ = [
    "ACCOUNT_OPTIONS",
    "BUDGET_VARIABLE",
    "DEFAULT_REQUEST_BURST",
    "DEFAULT_REQUEST_RATE",
    "POD_ADVICE",
    "POD_VARIABLE",
    "TOKEN_VARIABLE",
    "Address",
    "BrokerUrl",
    "Options",
    "Secret",
    "Token",
    "is_loopback",
    "is_missing",
    "is_ours",
    "lacks_shared_rate",
    "log_queue_arguments",
    "shown_place",
]
