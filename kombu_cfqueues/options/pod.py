"""Pods of Kubernetes: a pod's disk ends with it, and so does what it has learned of its token."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from .options import Options
from .sources import DEFAULT_REQUEST_RATE

POD_VARIABLE: Final = "KUBERNETES_SERVICE_HOST"
"""Kubernetes sets it in each pod."""

POD_ADVICE: Final = (
    "this process runs in a pod, and pods that use one API token do not know of each other: more "
    "than one of them get the token blocked, and each new one again, because what a pod has "
    "learned of its share ends with its disk. Name one Redis for all of them (budget_url), give "
    "each its part of the rate (request_rate), give it a disk that stays (spool_dir), or publish "
    "through the gateway"
)


def lacks_shared_rate(options: Options, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this is a pod of which nothing keeps or divides the request rate."""
    return (
        POD_VARIABLE in environ
        and options.request_rate == DEFAULT_REQUEST_RATE
        and options.spool_dir is None
        and not options.budget_url
    )
