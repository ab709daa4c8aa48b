"""Documentation of the HTTP API in its OpenAPI schema: request bodies, error responses, and tags."""

from typing import Any

from lakd_ray.serve.messages import ErrorResponse

DESCRIPTION = """Predict the emotion of speech.

Every error has the body `{"error": "..."}`, which states what was found, what was expected and what to change.
Responses 429 and 503 have a `Retry-After` header; requests are idempotent and can be sent again.
"""
PREDICTION, MODEL, OPERATIONS = "prediction", "model", "operations"
TAGS = [
    {"name": PREDICTION, "description": "Predict the emotion of recordings."},
    {"name": MODEL, "description": "Metadata of the served model."},
    {"name": OPERATIONS, "description": "Metrics and health of the endpoint."},
]

_BINARY: dict[str, Any] = {"type": "string", "format": "binary"}


def _form(file: dict[str, Any]) -> dict[str, Any]:
    """Return the media type of a form with the field `file`."""
    return {"schema": {"type": "object", "required": ["file"], "properties": {"file": file}}}


PREDICT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The recording (WAV, FLAC, OGG or MP3; other formats if the server has ffmpeg), as the body or "
        "in the field `file` of a form.",
        "content": {
            "audio/*": {"schema": _BINARY},
            "video/*": {"schema": _BINARY},
            "application/octet-stream": {"schema": _BINARY},
            "multipart/form-data": _form(_BINARY),
        },
    }
}
PREDICT_BATCH_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The recordings in fields `file` of a form.",
        "content": {"multipart/form-data": _form({"type": "array", "items": _BINARY, "minItems": 1})},
    }
}
TEXT_RESPONSE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route, for its `responses`."""
    return {status: {"description": _ERRORS[status], "model": ErrorResponse} for status in statuses}


_ERRORS = {
    400: "The upload was interrupted, or the Host header is invalid.",
    401: "The API key is missing or invalid.",
    403: "The request was sent by a page of a different site, or by a different machine while there are no API keys.",
    408: "The upload and its prediction took longer than `serve.deadline_s`.",
    413: "The recording is larger or longer than the limits of the endpoint.",
    415: "The Content-Type is not audio or a form.",
    422: "The recording cannot be decoded, or a parameter is invalid.",
    421: "The Host header is not a name of the endpoint.",
    429: "Too many requests are waiting, or too much audio of this client is in progress; send the request again after "
    "`Retry-After` seconds.",
    500: "Internal error; the log of the server has the details.",
    503: "The endpoint is busy, or the model is unavailable; send the request again after `Retry-After` seconds.",
}
PREDICT_ERRORS = error_responses(400, 401, 403, 408, 413, 415, 421, 422, 429, 500, 503)
