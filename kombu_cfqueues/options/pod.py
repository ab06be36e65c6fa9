"""Pods of Kubernetes: a pod loses its disk when it ends, and with it the share it has learned."""

from __future__ import annotations

import os
from typing import Final

from .options import Options
from .sources import DEFAULT_REQUEST_RATE

POD_VARIABLE: Final = "KUBERNETES_SERVICE_HOST"
"""Environment variable that Kubernetes sets in each pod."""

POD_ADVICE: Final = (
    "this process runs in a pod, and pods that use one API token do not know of each other: "
    "several pods get the token blocked, and each new pod does so again, because a pod loses its "
    "disk when it ends, and with it the share that it has learned. Name one Redis for all of them "
    "(budget_url), give each its part of the rate (request_rate), give it a disk that stays "
    "(spool_dir), or publish through the gateway"
)


def lacks_shared_rate(options: Options) -> bool:
    """Whether this process runs in a pod, and no option divides the request rate among pods."""
    return (
        POD_VARIABLE in os.environ
        and options.request_rate == DEFAULT_REQUEST_RATE
        and options.spool_dir is None
        and not options.budget_url
    )
