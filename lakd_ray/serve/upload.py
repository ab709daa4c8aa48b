"""Takes recordings out of an HTTP request without ever holding more than the limit.

The declared length is checked before anything is read, and what arrives is counted, because a length may be missing.
"""

from collections.abc import AsyncGenerator

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

MEGABYTE = 1_000_000
_MULTIPART = "multipart/form-data"
FORM_OVERHEAD_BYTES = (
    64 * 1024
)  # what boundaries, part headers and small fields may add to the file in a multipart body
PART_OVERHEAD_BYTES = 1024  # what the headers of one file of many may add


class RequestError(Exception):
    """The request cannot be answered: an HTTP status and what to tell the client."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status
        self.message = message


async def read_upload(request: Request, max_bytes: int) -> bytes:
    """The recording in a request: its raw body, or the field `file` of a multipart form.

    Args:
        request: the request, its body not yet touched.
        limit: largest recording in bytes.

    Raises:
        RequestError: 413 too large, 415 not audio by its Content-Type, 422 a form without a file, 400 broken off.
    """
    kind = _media_type(request)
    if kind == _MULTIPART:
        (content,) = (file for _, file in await read_uploads(request, max_bytes, 1, max_bytes))
        return content
    if not kind.startswith("audio/") and kind != "application/octet-stream":
        raise RequestError(
            415,
            f"Content-Type is {kind[:40] or 'missing'}, expected audio/* or application/octet-stream with the "
            "recording as the body, or multipart/form-data with a field `file`",
        )
    _check_content_length(request, max_bytes, max_bytes)
    try:
        return b"".join([chunk async for chunk in _read_limited(request, max_bytes, max_bytes)])
    except ClientDisconnect:
        raise _disconnected_error() from None


async def read_uploads(
    request: Request, max_bytes: int, max_files: int, max_total_bytes: int
) -> list[tuple[str, bytes]]:
    """Names and contents of all fields `file` of a multipart form, in their order; at least one.

    Args:
        limit: largest recording in bytes; a larger one comes back empty, unless it is the only one that may come.
        most: how many may come.
        total: largest sum of all in bytes.

    Raises:
        RequestError: 413 too much, 415 no form, 422 a form without a file or with too many, 400 broken off.
    """
    kind = _media_type(request)
    if kind != _MULTIPART:
        raise RequestError(
            415, f"Content-Type is {kind[:40] or 'missing'}, expected multipart/form-data with fields `file`"
        )
    allowed = max_total_bytes + FORM_OVERHEAD_BYTES + max_files * PART_OVERHEAD_BYTES
    _check_content_length(request, allowed, max_total_bytes)
    stream = _read_limited(request, allowed, max_total_bytes)
    parser = MultiPartParser(
        request.headers, stream, max_files=max_files, max_fields=8, max_part_size=FORM_OVERHEAD_BYTES
    )
    parser.spool_max_size = allowed + 1  # recordings stay in memory: the count above bounds it, and no disk sees them
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(422, f"cannot read the multipart form: {error.message}") from None
    except ClientDisconnect:
        raise _disconnected_error() from None
    try:
        files = [one for one in form.getlist("file") if isinstance(one, UploadFile)]
        if not files:
            raise RequestError(422, "the multipart form has no file in its field `file`")
        if max_files == 1 and (files[0].size or 0) > max_bytes:
            raise _too_large_error(max_bytes)
        return [(one.filename or "", await one.read() if (one.size or 0) <= max_bytes else b"") for one in files]
    finally:
        await form.close()


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_content_length(request: Request, max_body_bytes: int, max_bytes: int) -> None:
    """Refuse by the declared length, before anything is read."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_body_bytes:
        raise _too_large_error(max_bytes)


async def _read_limited(request: Request, max_body_bytes: int, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body's chunks, refused as soon as they are too many."""
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_body_bytes:
            raise _too_large_error(max_bytes)
        yield chunk


def _too_large_error(max_bytes: int) -> RequestError:
    return RequestError(413, f"the request is larger than the limit of {max_bytes / MEGABYTE:g} MB")


def _disconnected_error() -> RequestError:
    return RequestError(400, "the upload broke off")
