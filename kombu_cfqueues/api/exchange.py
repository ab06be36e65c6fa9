"""A request and its response over HTTP, whose failures are our errors.

Only this file and those that it imports use requests and urllib3.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TypeAlias

import requests
import urllib3

from ..options import Secret
from .connections import Pool, read_body
from .foreign_errors import FOREIGN, translate
from .responses import Response
from .sending import sending

Sent: TypeAlias = tuple[str, str, Mapping[str, str], "bytes | None"]
"""Method, URL, headers and body of a request."""


class Exchange:
    """Sends requests to one host over its pool of connections.  Threads may share it.

    Args:
        url: Any URL of the host.
        host: Host and port, for the texts of errors.
    """

    def __init__(self, url: str, host: str) -> None:
        self._pool = Pool(url)
        self._host = host

    def send(
        self,
        sent: Sent,
        *,
        seconds: float,
        connect_seconds: float,
        read_seconds: float,
        action: str,
        token: Secret,
    ) -> Response:
        """Make a request and return its response, whatever its status is.

        Args:
            sent: The request.
            seconds: How long it may take.
            connect_seconds: How long connecting may take.
            read_seconds: How long a wait for the response may take.
            action: What the request is for; errors begin with it.
            token: The API token, which is masked in errors.

        Raises:
            CFQueuesError: There was no response.
        """
        # Python links our error to the exception that the application is handling, which is not a
        # cause of it.
        handled = sys.exc_info()[1]
        method, url, headers, body = sent
        timeout = urllib3.Timeout(total=seconds, connect=connect_seconds, read=read_seconds)
        request = requests.Request(method, url, headers=headers, data=body)
        with sending() as progress:
            try:
                response = self._pool.send(request, timeout)
                return Response(response.status_code, response.headers, read_body(response))
            except FOREIGN as error:
                raise translate(
                    error,
                    sent=progress.begun,
                    handled=handled,
                    action=action,
                    host=self._host,
                    token=token,
                ) from error

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()
