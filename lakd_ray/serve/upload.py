"""Takes a recording out of an HTTP request without ever holding more than the limit.

The declared length is checked before anything is read, and what arrives is counted, because a length may be missing.
"""

from collections.abc import AsyncGenerator

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

MEGABYTE = 1_000_000
ENVELOPE_BYTES = 64 * 1024  # what boundaries, part headers and small fields may add to the file in a multipart body


class RequestError(Exception):
    """The request cannot be answered: an HTTP status and what to tell the client."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status
        self.message = message


async def read(request: Request, limit: int) -> bytes:
    """The recording in a request: its raw body, or the field `file` of a multipart form.

    Args:
        request: the request, its body not yet touched.
        limit: largest recording in bytes.

    Raises:
        RequestError: 413 too large, 415 not audio by its Content-Type, 422 a form without a file, 400 broken off.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    form = kind == "multipart/form-data"
    if not form and not kind.startswith("audio/") and kind != "application/octet-stream":
        raise RequestError(
            415,
            f"Content-Type is {kind[:40] or 'missing'}, expected audio/* or application/octet-stream with the "
            "recording as the body, or multipart/form-data with a field `file`",
        )
    allowed = limit + ENVELOPE_BYTES if form else limit
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > allowed:
        raise _too_large(limit)
    try:
        content = await (_file_field(request, allowed, limit) if form else _body(request, limit))
    except ClientDisconnect:
        raise RequestError(400, "the upload broke off") from None
    if len(content) > limit:
        raise _too_large(limit)
    return content


async def _body(request: Request, limit: int) -> bytes:
    return b"".join([chunk async for chunk in _counted(request, limit, limit)])


async def _file_field(request: Request, allowed: int, limit: int) -> bytes:
    stream = _counted(request, allowed, limit)
    parser = MultiPartParser(request.headers, stream, max_files=1, max_fields=8, max_part_size=ENVELOPE_BYTES)
    parser.spool_max_size = allowed + 1  # recordings stay in memory: the count above bounds it, and no disk sees them
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(422, f"cannot read the multipart form: {error.message}") from None
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise RequestError(422, "the multipart form has no file in its field `file`")
        return await file.read()
    finally:
        await form.close()


async def _counted(request: Request, allowed: int, limit: int) -> AsyncGenerator[bytes, None]:
    """The body's chunks, refused as soon as they are too many."""
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > allowed:
            raise _too_large(limit)
        yield chunk


def _too_large(limit: int) -> RequestError:
    return RequestError(413, f"the recording is larger than the limit of {limit / MEGABYTE:g} MB")
