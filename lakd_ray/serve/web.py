"""The page at `/`: recordings are dropped, chosen or made in a browser, and their answers drawn.

Its files lie in `page_files` and speak to the API of the same endpoint alone; the policy sent with them has the browser
hold to that. They are open to all, also where the API asks for keys: the page then asks for one itself.
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
    "connect-src 'self'; "  # of the page's own host also ws: and wss:
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",  # kept, but asked for each time: an update is seen at once, and all of it
    "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_web_router() -> APIRouter:
    """The routes of the page, `/` and `/page/...`, for `app.include_router`; they are not part of the API's schema."""
    router = APIRouter(include_in_schema=False)
    for file in files("lakd_ray.serve").joinpath("page_files").iterdir():
        if file.name.rpartition(".")[2] in _CONTENT_TYPES:
            _add_file_route(router, file.name, file.read_bytes())
    return router


def _add_file_route(router: APIRouter, name: str, content: bytes) -> None:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag, "Content-Type": _CONTENT_TYPES[name.rpartition(".")[2]]}

    async def page(request: Request) -> Response:
        known = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
        if tag in known:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    router.add_api_route("/" if name == "index.html" else f"/page/{name}", page, methods=["GET", "HEAD"])
