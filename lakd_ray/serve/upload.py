"""Read recordings from an HTTP request without holding more than the size limit in memory.

The declared length is checked before the body is read; it may be missing, so received bytes are counted too.
"""

import re
from collections.abc import AsyncGenerator

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from lakd_ray.serve.errors import RequestError
from lakd_ray.serve.parameters import check_names

MEGABYTE = 1_000_000
FORM_OVERHEAD_BYTES = 64 * 1024  # allowance for boundaries, part headers and small fields of a multipart body
PART_OVERHEAD_BYTES = 1024  # allowance for the headers of each further file
FILE_FIELD = "file"
_MULTIPART = "multipart/form-data"
# The content decides whether a body is a recording, so any type that programs give to files is accepted, such as
# video/webm or binary/octet-stream. A browser lets a page of a different site send none of them without permission.
_RECORDING_TYPES = ("audio", "video", "application", "binary")
_TEXT_SUBTYPES = re.compile(r"(.*\+)?(json|xml)|x-www-form-urlencoded|(x-)?javascript|x-ndjson|graphql")


async def read_upload(request: Request, max_bytes: int) -> bytes:
    """Return the recording of a request: its raw body, or the field `file` of a multipart form.

    Args:
        request: the request, with its body unread.
        max_bytes: largest accepted recording, in bytes.

    Raises:
        RequestError: 400 the upload was interrupted, 413 too large, 415 the Content-Type is not that of a
            recording, 422 no file or unknown fields in the form.
    """
    media_type = _media_type(request)
    if media_type == _MULTIPART:
        (content,) = (file for _, file in await read_uploads(request, max_bytes, 1, max_bytes))
        return content
    kind, _, subtype = media_type.partition("/")
    if kind not in _RECORDING_TYPES or not subtype or _TEXT_SUBTYPES.fullmatch(subtype):
        raise RequestError(
            415,
            f"Content-Type is {media_type[:40] or 'missing'}, expected audio/*, video/* or application/octet-stream "
            "with the recording as the body, or multipart/form-data with a field `file`",
        )
    _check_content_length(request, max_bytes, max_bytes)
    try:
        return b"".join([chunk async for chunk in _read_limited(request, max_bytes, max_bytes)])
    except ClientDisconnect:
        raise _interrupted_error() from None


async def read_uploads(
    request: Request, max_bytes: int, max_files: int, max_total_bytes: int
) -> list[tuple[str, bytes]]:
    """Return names and contents of all fields `file` of a multipart form, in order; at least one.

    Args:
        request: the request, with its body unread.
        max_bytes: largest accepted recording, in bytes. The content of a larger one is empty if `max_files` is above 1.
        max_files: largest number of files.
        max_total_bytes: largest sum of all files, in bytes.

    Raises:
        RequestError: 400 the upload was interrupted, 413 too large, 415 not a form, 422 no file, too many, or
            unknown fields.
    """
    media_type = _media_type(request)
    if media_type != _MULTIPART:
        raise RequestError(
            415, f"Content-Type is {media_type[:40] or 'missing'}, expected multipart/form-data with fields `file`"
        )
    max_body_bytes = max_total_bytes + FORM_OVERHEAD_BYTES + max_files * PART_OVERHEAD_BYTES
    _check_content_length(request, max_body_bytes, max_total_bytes)
    stream = _read_limited(request, max_body_bytes, max_total_bytes)
    parser = MultiPartParser(
        request.headers, stream, max_files=max_files, max_fields=8, max_part_size=FORM_OVERHEAD_BYTES
    )
    parser.spool_max_size = max_body_bytes + 1  # recordings stay in memory, never on disk; `stream` bounds their size
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(422, f"cannot read the multipart form: {error.message}") from None
    except ClientDisconnect:
        raise _interrupted_error() from None
    try:
        uploads = _file_fields(form)
        if max_files == 1 and (uploads[0].size or 0) > max_bytes:
            raise _too_large_error(max_bytes)
        files: list[tuple[str, bytes]] = []
        for upload in uploads:
            files.append((upload.filename or "", await upload.read() if (upload.size or 0) <= max_bytes else b""))
            await upload.close()  # frees its memory before the next one is read
        return files
    finally:
        await form.close()


def _file_fields(form: FormData) -> list[UploadFile]:
    """Return the files of a form after checking that it has no other fields.

    Raises:
        RequestError: 422 an unknown field, a field without a file, or no field.
    """
    names = list(dict.fromkeys(name for name, _ in form.multi_items()))
    check_names(names, (FILE_FIELD,), "form field", "; options such as `language` are query parameters: ?language=fi")
    fields = form.getlist(FILE_FIELD)
    uploads = [field for field in fields if isinstance(field, UploadFile)]
    if not uploads or len(uploads) < len(fields):
        found = "has a field `file` with a text" if fields else "has no file"
        raise RequestError(422, f"the multipart form {found}, expected the recording as a file in the field `file`")
    return uploads


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def expected_bytes(request: Request, max_bytes: int) -> int:
    """Return the declared length of a body, or `max_bytes` if it is missing or larger."""
    declared = request.headers.get("content-length", "")
    return min(int(declared[:20]), max_bytes) if declared.isdecimal() else max_bytes


def _check_content_length(request: Request, max_body_bytes: int, max_bytes: int) -> None:
    """Reject a body by its declared length, before it is read."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_body_bytes:
        raise _too_large_error(max_bytes)


async def _read_limited(request: Request, max_body_bytes: int, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of the body; stop as soon as it exceeds the limit."""
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_body_bytes:
            raise _too_large_error(max_bytes)
        yield chunk


def _too_large_error(max_bytes: int) -> RequestError:
    return RequestError(
        413, f"the upload is larger than the limit of {max_bytes / MEGABYTE:g} MB: send less audio, or compress it"
    )


def _interrupted_error() -> RequestError:
    return RequestError(400, "the upload was interrupted before its end: send it again")
