"""The HTTP API, without Ray: what is asked, what is answered, and what is refused.

    GET  /                    the page
    POST /v1/emotion          a recording in, an emotion out
    POST /v1/emotion:batch    several recordings in a form, an answer or a reason for each
    WS   /v1/stream           sound in while it is recorded, rolling answers out
    GET  /v1/model            what is being served
    GET  /metrics             for Prometheus
    GET  /-/healthz           alive; behind Ray Serve its proxy answers this itself, with the same word

Every refusal is JSON {"error": ...}. Bad input is the client's fault (4xx), never a 500.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Header, Query, Request, Response, Security, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from lakd_ray.audio import Recording
from lakd_ray.config import ServeConfig
from lakd_ray.errors import DataError
from lakd_ray.inference.recordings import PredictOptions, validate_segment_count
from lakd_ray.inference.results import EmotionResult, ModelInfo
from lakd_ray.serve import upload, websocket
from lakd_ray.serve.auth import ApiKeys
from lakd_ray.serve.decoding import RequestDecoder
from lakd_ray.serve.messages import BatchItem, BatchResponse, ErrorResponse
from lakd_ray.serve.model import ModelHandle, predict_recording
from lakd_ray.serve.prometheus import METRICS_CONTENT_TYPE, Metrics, MetricsMiddleware
from lakd_ray.serve.upload import MEGABYTE, RequestError
from lakd_ray.serve.web import create_web_router

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"schema": {"type": "object", "required": ["file"], "properties": {"file": _BINARY["schema"]}}}
_SINGLE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The recording (WAV, FLAC, OGG or MP3; others where the server has ffmpeg), as it is or in the "
        "field `file` of a form.",
        "content": {"audio/*": _BINARY, "application/octet-stream": _BINARY, "multipart/form-data": _FORM},
    }
}
_FILES_SCHEMA = {"type": "array", "items": _BINARY["schema"], "minItems": 1}
_BATCH_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "Recordings in fields `file` of a form.",
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["file"], "properties": {"file": _FILES_SCHEMA}},
            }
        },
    }
}
_RETRYABLE_RESPONSES: dict[int | str, dict[str, Any]] = {
    429: {"description": "Too many requests are waiting; try again after Retry-After seconds"},
    503: {
        "model": ErrorResponse,
        "description": "The model is not there at the moment; try again after Retry-After seconds",
    },
}
_UNAUTHORIZED_RESPONSES: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorResponse, "description": "A key is needed, or it is wrong"}
}
_ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The upload broke off"},
    **_UNAUTHORIZED_RESPONSES,
    408: {"model": ErrorResponse, "description": "The upload or the answer took too long"},
    413: {"model": ErrorResponse, "description": "The recording is too large or too long"},
    415: {"model": ErrorResponse, "description": "The Content-Type is not audio"},
    422: {"model": ErrorResponse, "description": "The recording cannot be decoded, or a parameter is not possible"},
    **_RETRYABLE_RESPONSES,
}


@dataclass(frozen=True)
class ModelRouter:
    """The model that answers, and perhaps a second one that is tried out on a share of the recordings.

    Which of the two answers is a matter of the recording's bytes: the same recording has the same answer each time.
    """

    stable: ModelHandle
    canary: ModelHandle | None = None
    canary_fraction: float = 0.0

    def select(self, content: bytes, requested: str | None = None) -> ModelHandle:
        """The model for a recording.

        Raises:
            RequestError: 422 the canary is wanted, and there is none.
        """
        if requested == "canary" and self.canary is None:
            raise RequestError(422, "X-Model is canary, but none is being tried: leave the header out")
        drawn = int.from_bytes(hashlib.sha256(content).digest()[:4]) / 2**32
        if self.canary is not None and (requested == "canary" or (requested is None and drawn < self.canary_fraction)):
            return self.canary
        return self.stable


class RequestOptions:
    """What may be asked beside the recording; a dependency of the routes that answer recordings."""

    def __init__(
        self,
        language: Annotated[
            str | None,
            Query(
                pattern="^[a-z]{2,3}$",
                description="Language of the recording, such as `en`; if left out, what the model hears",
            ),
        ] = None,
        window_s: Annotated[
            float | None, Query(ge=0.25, le=60, description="Length of a timeline's segments; no timeline if left out")
        ] = None,
        hop_s: Annotated[
            float | None, Query(ge=0.05, le=60, description="From one segment to the next; window_s if left out")
        ] = None,
        top_k: Annotated[int | None, Query(ge=1, le=100, description="Only so many of the most probable")] = None,
        model: Annotated[
            Literal["stable", "canary"] | None, Header(alias="X-Model", description="Which of two models")
        ] = None,
    ):
        if hop_s is not None and window_s is None:
            raise RequestError(422, "hop_s without window_s: give window_s, the length of the timeline's segments")
        self.options = PredictOptions(language=language, window_s=window_s, hop_s=hop_s, top_k=top_k)
        self.model = model

    def validate_segment_count(self, recording: Recording) -> None:
        """Reject a timeline of too many segments.

        Raises:
            RequestError: 422.
        """
        try:
            validate_segment_count(len(recording.wave_T), self.options)
        except DataError as error:
            raise RequestError(422, str(error)) from None


def create_app(router: ModelRouter, config: ServeConfig, decoder: RequestDecoder) -> FastAPI:
    """The API in front of its models, with the limits of the `serve` section; it closes the decoders when it ends.

    Raises:
        ConfigError: the file of keys is not one.
    """
    keys, meters = ApiKeys(config.api_keys_file), Metrics()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await decoder.warmup()
        yield
        decoder.close()

    app = FastAPIOffline(
        title="lakd-ray", description="Emotion of a spoken utterance", redoc_url=None, lifespan=lifespan
    )
    app.add_middleware(MetricsMiddleware, metrics=meters)
    _add_error_handlers(app)
    limit_bytes = int(config.max_upload_mb * MEGABYTE)
    scheme = HTTPBearer(auto_error=False, description="One of the endpoint's keys, where it asks for one")

    def require_api_key(request: Request, _: Annotated[Any, Security(scheme)]) -> None:
        if not keys.authorizes(request.headers.get("authorization")):
            raise RequestError(401, "a key is needed: send the header `Authorization: Bearer KEY`")

    async def one(content: bytes, options: RequestOptions) -> EmotionResult:
        model = router.select(content, options.model)
        recording = await decoder.decode(content, config.max_seconds)
        options.validate_segment_count(recording)
        answer = await predict_recording(model, recording, options.options)
        meters.record_prediction(answer)
        return answer

    app.include_router(create_web_router())

    @app.post(
        "/v1/emotion", responses=_ERROR_RESPONSES, openapi_extra=_SINGLE_BODY, dependencies=[Depends(require_api_key)]
    )
    async def emotion(request: Request, options: Annotated[RequestOptions, Depends()]) -> EmotionResult:
        """Which emotion is heard in a recording."""
        async with _enforce_deadline(config.deadline_s):
            return await one(await upload.read_upload(request, limit_bytes), options)

    @app.post(
        "/v1/emotion:batch",
        responses=_ERROR_RESPONSES,
        openapi_extra=_BATCH_BODY,
        dependencies=[Depends(require_api_key)],
    )
    async def emotions(request: Request, options: Annotated[RequestOptions, Depends()]) -> BatchResponse:
        """Which emotion is heard in each of several recordings; one that is refused does not spoil the others."""

        async def item(name: str, content: bytes) -> BatchItem:
            try:
                if not content:
                    raise RequestError(422, f"the file is empty, or larger than {config.max_upload_mb:g} MB")
                return BatchItem(name=name, status=200, result=await one(content, options))
            except RequestError as error:
                return BatchItem(name=name, status=error.status, error=error.message)

        async with _enforce_deadline(config.deadline_s):
            files = await upload.read_uploads(request, limit_bytes, config.max_files, 4 * limit_bytes)
            return BatchResponse(items=tuple(await asyncio.gather(*[item(name, content) for name, content in files])))

    @app.websocket("/v1/stream")
    async def stream_emotion(socket: WebSocket) -> None:
        await websocket.handle_stream(socket, router.stable, config, keys, decoder, meters)

    @app.get(
        "/v1/model",
        responses={**_UNAUTHORIZED_RESPONSES, 503: _RETRYABLE_RESPONSES[503]},
        dependencies=[Depends(require_api_key)],
    )
    async def served() -> ModelInfo:
        """What is being served."""
        return await router.stable.info()

    @app.get(
        "/metrics",
        responses=_UNAUTHORIZED_RESPONSES,
        dependencies=[Depends(require_api_key)],
        response_class=PlainTextResponse,
    )
    async def metrics() -> Response:
        """What Prometheus reads."""
        return Response(meters.render(), media_type=METRICS_CONTENT_TYPE)

    @app.get("/-/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        """Whether the endpoint is alive."""
        return "success"

    return app


@asynccontextmanager
async def _enforce_deadline(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise RequestError(408, f"the upload and its answer took longer than {seconds:g} s") from None


def _add_error_handlers(app: FastAPI) -> None:
    """Make every error JSON with one key."""

    def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": message}, status, headers)

    extra = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}, 408: {"Connection": "close"}}

    @app.exception_handler(RequestError)
    def refused(_: Request, error: RequestError) -> JSONResponse:
        return error_response(error.status, error.message, extra.get(error.status))

    @app.exception_handler(HTTPException)
    def http(_: Request, error: HTTPException) -> JSONResponse:
        return error_response(error.status_code, error.detail, dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
        return error_response(422, "; ".join(found))

    @app.exception_handler(Exception)
    def broken(_: Request, error: Exception) -> JSONResponse:
        return error_response(500, f"internal error ({type(error).__name__}); the server's log has more")
