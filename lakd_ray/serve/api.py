"""The HTTP API, without Ray: what is asked, what is answered, and what is refused.

    POST /v1/emotion     a recording in, an emotion out
    GET  /v1/model       what is being served
    GET  /-/healthz      alive; behind Ray Serve its proxy answers this itself, with the same word

Every refusal is JSON {"error": ...}. Bad input is the client's fault (4xx), never a 500.
"""

from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from lakd_ray.audio import SAMPLE_RATE, Wave, decode
from lakd_ray.config import Serve
from lakd_ray.errors import DataError
from lakd_ray.serve import upload
from lakd_ray.serve.answers import Answer, ModelCard, Prediction, Problem
from lakd_ray.serve.upload import MEGABYTE, RequestError

MIN_SECONDS = 0.1  # less than a few frames of any encoder

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"schema": {"type": "object", "required": ["file"], "properties": {"file": _BINARY["schema"]}}}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The recording (WAV, FLAC, OGG or MP3), as it is or in the field `file` of a form.",
        "content": {"audio/*": _BINARY, "application/octet-stream": _BINARY, "multipart/form-data": _FORM},
    }
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    413: {"model": Problem, "description": "The recording is too large or too long"},
    415: {"model": Problem, "description": "The Content-Type is not audio"},
    422: {"model": Problem, "description": "The recording cannot be decoded, or the language is not the model's"},
    429: {"description": "Too many requests are waiting; try again after Retry-After seconds"},
    503: {"model": Problem, "description": "The model is not there at the moment; try again"},
}


class Model(Protocol):
    """The model as the API sees it, wherever it runs. Raises RequestError 503 while it cannot be reached."""

    async def card(self) -> ModelCard:
        """What it is."""

    async def predict(self, wave_T: Wave, language: str | None) -> Prediction:
        """What it says of a recording in a language; None if that is not known."""


def create_app(model: Model, limits: Serve) -> FastAPI:
    """The API in front of a model, with the limits of the `serve` section."""
    app = FastAPI(title="lakd-ray", description="Emotion of a spoken utterance", redoc_url=None)
    _explain_errors(app)
    limit_bytes = int(limits.max_upload_mb * MEGABYTE)

    @app.post("/v1/emotion", responses=_REFUSALS, openapi_extra=_BODY)
    async def emotion(
        request: Request,
        language: Annotated[str | None, Query(description="Language of the recording, one of the model's")] = None,
    ) -> Answer:
        """Which emotion is heard in a recording."""
        card = await model.card()
        if language is not None and language not in card.languages:
            known = ", ".join(card.languages)
            raise RequestError(422, f"unknown language {language[:20]!r}: this model has {known}; or leave it out")
        content = await upload.read(request, limit_bytes)
        wave_T = await run_in_threadpool(_decode, content, limits.max_seconds)
        said = await model.predict(wave_T, language)
        probabilities = dict(zip(card.emotions, said.probabilities, strict=True))
        return Answer(
            emotion=max(probabilities, key=probabilities.__getitem__),
            probabilities=probabilities,
            language=language or said.language,
            language_probability=None if language else said.language_probability,
            duration_s=len(wave_T) / SAMPLE_RATE,
            model=card.model,
            version=card.version,
        )

    @app.get("/v1/model", responses={503: _REFUSALS[503]})
    async def served() -> ModelCard:
        """What is being served."""
        return await model.card()

    @app.get("/-/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        """Whether the endpoint is alive."""
        return "success"

    return app


def _decode(content: bytes, max_seconds: float) -> Wave:
    """Decode, but no more than shows that a recording is too long: a small file can hold hours of silence."""
    try:
        wave_T = decode(content, where="the recording", max_seconds=max_seconds + 1)
    except DataError as error:
        raise RequestError(422, str(error)) from None
    seconds = len(wave_T) / SAMPLE_RATE
    if seconds > max_seconds + 0.01:  # resampling may add a sample
        raise RequestError(413, f"the recording is longer than the limit of {max_seconds:g} s")
    if seconds < MIN_SECONDS:
        raise RequestError(422, f"the recording lasts {seconds:.3f} s, expected at least {MIN_SECONDS} s")
    return wave_T


def _explain_errors(app: FastAPI) -> None:
    """Make every error JSON with one key."""

    def problem(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": message}, status, headers)

    @app.exception_handler(RequestError)
    def refused(_: Request, error: RequestError) -> JSONResponse:
        return problem(error.status, error.message, {"Retry-After": "1"} if error.status == 503 else None)

    @app.exception_handler(HTTPException)
    def http(_: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, error.detail, dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
        return problem(422, "; ".join(found))

    @app.exception_handler(Exception)
    def broken(_: Request, error: Exception) -> JSONResponse:
        return problem(500, f"internal error ({type(error).__name__}); the server's log has more")
