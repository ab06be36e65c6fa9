"""Routes that need no token: the page at ``/``, its files, and the API's description."""

from __future__ import annotations

from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import openapi

_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

_HEADERS: Final = {
    # Load nothing from other hosts and run nothing inline, so that a message stays text.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # the next version of the emulator may have another page
}


def routes() -> list[Route]:
    """Return the routes of the page, ``/`` and its files under ``/_page/``, and the description."""
    # These files contain no data; the endpoints that deliver the data require the token.
    return [
        Route("/", _index),
        Route("/_page/{name}", _file),
        Route("/_emulator/openapi.json", _description),
    ]


async def _index(_request: Request) -> Response:
    return _serve("index.html")


async def _description(_request: Request) -> Response:
    return JSONResponse(openapi.describe())


async def _file(request: Request) -> Response:
    return _serve(request.path_params["name"])


def _serve(name: str) -> Response:
    folder = resources.files(__package__) / "static"
    # Compare with the existing files: never use a name from a request as a path.
    for file in folder.iterdir():
        kind = _TYPES.get(name.rpartition(".")[2])
        if file.name == name and kind is not None:
            headers = {**_HEADERS, "content-type": kind}
            return Response(file.read_bytes(), headers=headers)
    return Response("Not found", 404, headers=_HEADERS, media_type="text/plain")
