"""AWS Lambda and Cloud Run: a sandbox that is frozen between requests cannot deliver a spool."""

from __future__ import annotations

import os
from typing import Final

_PLATFORMS: Final = {"AWS_LAMBDA_FUNCTION_NAME": "AWS Lambda", "K_SERVICE": "Cloud Run"}
"""The variable that each platform sets in its sandboxes, and the platform's name."""


def frozen_spool_advice() -> str | None:
    """Return what to use instead of the spool; None where the process is not frozen."""
    for variable, platform in _PLATFORMS.items():
        if os.environ.get(variable):
            return (
                f"publish_mode is 'spool', and {platform} ({variable} is set) may freeze this "
                "process after each response and delete it with its disk: spooled messages wait "
                "while it is frozen, and are lost when it is deleted. Use publish_mode='confirm', "
                "which returns when Cloudflare has the message"
            )
    return None
