"""What the user wants: URL, ``transport_options`` and environment as one frozen, checked value."""

from .address import HostPort
from .base_url import shown_place
from .broker_url import BrokerUrl, is_ours
from .foreign import log_queue_arguments
from .host import is_loopback
from .options import ACCOUNT_OPTIONS, Options
from .pod import POD_ADVICE, POD_VARIABLE, lacks_shared_rate
from .secret import ControlUrl, Secret, Token, is_missing, shown_option
from .serverless import frozen_spool_advice
from .sources import DEFAULT_REQUEST_BURST, DEFAULT_REQUEST_RATE, has_control_url
from .variables import (
    BROKER_VARIABLE,
    BUDGET_VARIABLE,
    CONTROL_VARIABLE,
    TOKEN_VARIABLE,
    place_of,
)

__all__ = [
    "ACCOUNT_OPTIONS",
    "BROKER_VARIABLE",
    "BUDGET_VARIABLE",
    "CONTROL_VARIABLE",
    "DEFAULT_REQUEST_BURST",
    "DEFAULT_REQUEST_RATE",
    "POD_ADVICE",
    "POD_VARIABLE",
    "TOKEN_VARIABLE",
    "BrokerUrl",
    "ControlUrl",
    "HostPort",
    "Options",
    "Secret",
    "Token",
    "frozen_spool_advice",
    "has_control_url",
    "is_loopback",
    "is_missing",
    "is_ours",
    "lacks_shared_rate",
    "log_queue_arguments",
    "place_of",
    "shown_option",
    "shown_place",
]
