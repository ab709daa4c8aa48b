"""Serve the web page at `/`, which sends recordings to the API and shows the results.

Its files are in `static/` and use only the API of the same endpoint, which the Content-Security-Policy header enforces.
They need no key, even where the API requires one: the page then prompts for it.
"""

import hashlib
from importlib.resources import files

from fastapi import APIRouter, Request, Response

_CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src blob:; "
    "connect-src 'self'; "  # includes ws: and wss: of the same host
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",  # stored, but revalidated each time, so that an update replaces all files at once
    "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_web_router() -> APIRouter:
    """Return the page's routes, `/` and `/page/...`, for `app.include_router`; the OpenAPI schema omits them."""
    router = APIRouter(include_in_schema=False)
    for file in files("lakd_ray.serve").joinpath("static").iterdir():
        if file.name.rpartition(".")[2] in _CONTENT_TYPES:
            _add_file_route(router, file.name, file.read_bytes())
    return router


def _add_file_route(router: APIRouter, name: str, content: bytes) -> None:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": etag, "Content-Type": _CONTENT_TYPES[name.rpartition(".")[2]]}

    async def get_file(request: Request) -> Response:
        cached = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if etag in cached:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    router.add_api_route("/" if name == "index.html" else f"/page/{name}", get_file, methods=["GET", "HEAD"])
