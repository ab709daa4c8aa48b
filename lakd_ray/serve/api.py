"""HTTP API of the endpoint, without Ray.

    GET  /                    web page
    POST /v1/emotion          predict the emotion of a recording
    POST /v1/emotion:batch    predict several recordings of a form, with a result or an error for each
    WS   /v1/stream           send audio while it is recorded, receive rolling results
    GET  /v1/model            metadata of the served model
    GET  /metrics             metrics for Prometheus
    GET  /-/healthz           health check; behind Ray Serve, the proxy answers this path with the same response

Every error is JSON, {"error": ...}. Invalid input is an error of the client (4xx), never of the server (5xx).
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response, Security, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

import lakd_ray
from lakd_ray.config import ServeConfig
from lakd_ray.inference.options import LANGUAGE_PATTERN, MAX_SEGMENT_S, MIN_HOP_S, MIN_WINDOW_S, PredictOptions
from lakd_ray.inference.results import EmotionResult, ModelInfo
from lakd_ray.serve import openapi, upload, websocket
from lakd_ray.serve.access import AccessMiddleware, AccessPolicy
from lakd_ray.serve.auth import ApiKeys, parse_bearer, resolve_keys
from lakd_ray.serve.budget import MIN_FORM_BYTES, ByteBudget
from lakd_ray.serve.clients import identify_client
from lakd_ray.serve.decoding import RequestDecoder
from lakd_ray.serve.draining import Drain, DrainMiddleware
from lakd_ray.serve.errors import RequestError
from lakd_ray.serve.messages import BatchItem, BatchResponse, ErrorResponse
from lakd_ray.serve.model import ModelHandle
from lakd_ray.serve.parameters import check_query
from lakd_ray.serve.prediction import PredictionService, Upload
from lakd_ray.serve.prometheus import METRICS_CONTENT_TYPE, Metrics, MetricsMiddleware
from lakd_ray.serve.proxy.backpressure import CreditMiddleware
from lakd_ray.serve.scheduling import Caller
from lakd_ray.serve.upload import MEGABYTE
from lakd_ray.serve.web import create_web_router


@dataclass(frozen=True)
class ModelRouter:
    """The stable model, and optionally a canary that receives a fraction of the recordings.

    The selection depends only on the bytes of the recording, so that the same recording always has the same result.
    """

    stable: ModelHandle
    canary: ModelHandle | None = None
    canary_fraction: float = 0.0

    def select(self, content: bytes, requested: str | None = None) -> ModelHandle:
        """Return the model for a recording.

        Args:
            content: the encoded recording.
            requested: `stable` or `canary` to bypass the selection.

        Raises:
            RequestError: 422 the canary is requested, but there is no canary.
        """
        if requested == "canary" and self.canary is None:
            raise RequestError(422, "X-Model is canary, but this endpoint has no canary: omit the header")
        position = int.from_bytes(hashlib.sha256(content).digest()[:4]) / 2**32
        if self.canary is not None and (
            requested == "canary" or (requested is None and position < self.canary_fraction)
        ):
            return self.canary
        return self.stable


class RequestOptions:
    """Query parameters and headers of a prediction request, as a FastAPI dependency."""

    def __init__(
        self,
        request: Request,
        language: Annotated[
            str | None,
            Query(
                pattern=LANGUAGE_PATTERN,
                description="Language of the recording, such as `en`; the default is the language that the model "
                "identifies, if it can",
            ),
        ] = None,
        window_s: Annotated[
            float | None,
            Query(
                ge=MIN_WINDOW_S,
                le=MAX_SEGMENT_S,
                description="Length of the timeline's segments in seconds; no timeline by default",
            ),
        ] = None,
        hop_s: Annotated[
            float | None,
            Query(
                ge=MIN_HOP_S,
                le=MAX_SEGMENT_S,
                description="Seconds from the start of a segment to the start of the next; `window_s` by default",
            ),
        ] = None,
        top_k: Annotated[
            int | None, Query(ge=1, le=100, description="Return only the K most probable emotions; all by default")
        ] = None,
        model: Annotated[
            Literal["stable", "canary"] | None,
            Header(alias="X-Model", description="Use this model; by default a hash of the recording selects the model"),
        ] = None,
    ):
        check_query(request.query_params, ("language", "window_s", "hop_s", "top_k"))
        if len(request.headers.getlist("X-Model")) > 1:
            raise RequestError(422, "X-Model is given more than once, expected one value")
        if hop_s is not None and window_s is None:
            raise RequestError(422, "hop_s without window_s: add window_s, the length of the timeline's segments")
        self.options = PredictOptions(language=language, window_s=window_s, hop_s=hop_s, top_k=top_k)
        self.model = model


def _forbid_query(request: Request) -> None:
    """Reject a query of a route that has no parameters."""
    check_query(request.query_params, ())


@dataclass(frozen=True)
class _Service:
    """Dependencies that the routes share."""

    router: ModelRouter
    config: ServeConfig
    predictions: PredictionService
    keys: ApiKeys
    metrics: Metrics
    budget: ByteBudget

    @property
    def max_upload_bytes(self) -> int:
        return int(self.config.max_upload_mb * MEGABYTE)

    def identify(self, request: Request) -> str:
        """Return a name of the client, for fair turns."""
        return identify_client(
            request, parse_bearer(request.headers.get("authorization")) if self.keys.required else None
        )

    async def predict(self, client: str, content: bytes, request_options: RequestOptions) -> EmotionResult:
        """Decode a recording, predict its emotion and record the result in the metrics."""
        upload = Upload(content, self.router.select(content, request_options.model))
        result = await self.predictions.predict(Caller(client), upload, request_options.options)
        self.metrics.record_prediction(result)
        return result

    async def predict_batch(
        self, client: str, files: Sequence[tuple[str, bytes]], request_options: RequestOptions
    ) -> BatchResponse:
        """Predict the recordings of a batch; a rejected one becomes an item with the error."""
        uploads = [
            Upload(content, self.router.select(content, request_options.model)) for _, content in files if content
        ]
        outcomes = iter(await self.predictions.predict_batch(Caller(client), uploads, request_options.options))
        limit = f"{self.config.max_upload_mb:g} MB"
        missing = RequestError(422, f"the file is empty or larger than {limit}: send a recording within the limit")
        items = []
        for name, content in files:
            outcome = next(outcomes) if content else missing
            if isinstance(outcome, RequestError):
                items.append(BatchItem(name=name, status=outcome.status, error=outcome.message))
            else:
                self.metrics.record_prediction(outcome)
                items.append(BatchItem(name=name, status=200, result=outcome))
        return BatchResponse(items=tuple(items))


def create_app(
    router: ModelRouter,
    config: ServeConfig,
    decoder: RequestDecoder,
    *,
    drain: Drain | None = None,
    keys: ApiKeys | None = None,
) -> FastAPI:
    """Create the API for the given models, with the limits of the `serve` section.

    The application closes the decoder on shutdown. It rejects requests once `drain` runs.

    Args:
        router: the models.
        config: the `serve` section.
        decoder: decodes the recordings.
        drain: the requests in progress.
        keys: the API keys; those of the section and of the environment of this process if None.

    Raises:
        ConfigError: the API keys are missing or invalid.
    """
    service = _Service(
        router,
        config,
        PredictionService(config, decoder),
        keys or ApiKeys(resolve_keys(config)),
        Metrics(),
        ByteBudget(int(config.memory_mb * MEGABYTE)),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await decoder.warmup()
        yield
        decoder.close()

    app = FastAPIOffline(
        title="lakd-ray",
        version=lakd_ray.__version__,
        summary="Multilingual speech emotion recognition",
        description=openapi.DESCRIPTION,
        openapi_tags=openapi.TAGS,
        redoc_url=None,
        lifespan=lifespan,
    )
    _add_middleware(app, service, drain or Drain())
    _add_error_handlers(app)
    app.include_router(create_web_router())
    app.include_router(_create_api_router(service))

    stream_keys, slots = websocket.StreamKeys(service.keys), websocket.StreamSlots(config, service.metrics)

    @app.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        await websocket.handle_stream(socket, router.stable, config, stream_keys, slots, service.predictions)

    @app.get(
        "/-/healthz",
        operation_id="get_health",
        summary="Check that the endpoint is running",
        response_description="The endpoint is running.",
        tags=[openapi.OPERATIONS],
        response_class=PlainTextResponse,
    )
    async def get_health(_: Annotated[None, Depends(_forbid_query)]) -> str:
        """Return `success` while the endpoint is running."""
        return "success"

    return app


def _add_middleware(app: FastAPI, service: _Service, drain: Drain) -> None:
    """Add the middleware; the one that is added last receives requests first."""
    config = service.config
    app.add_middleware(DrainMiddleware, drain=drain)
    if config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Model"],
            expose_headers=["Retry-After"],
        )
    app.add_middleware(AccessMiddleware, policy=AccessPolicy(config, requires_key=service.keys.required))
    app.add_middleware(MetricsMiddleware, metrics=service.metrics)
    app.add_middleware(CreditMiddleware)


def _create_api_router(service: _Service) -> APIRouter:
    """Create the routes that require an API key, if the endpoint has keys."""
    scheme = HTTPBearer(auto_error=False, description="An API key, if the endpoint requires one")

    def require_api_key(request: Request, _: Annotated[Any, Security(scheme)]) -> None:
        if not service.keys.authorizes(request.headers.get("authorization")):
            raise RequestError(
                401, "the API key is missing or invalid: send the header `Authorization: Bearer KEY` with a valid key"
            )

    api = APIRouter(dependencies=[Depends(require_api_key)])
    _add_prediction_routes(api, service)
    _add_information_routes(api, service)
    return api


def _add_prediction_routes(api: APIRouter, service: _Service) -> None:
    config = service.config

    @api.post(
        "/v1/emotion",
        operation_id="predict",
        summary="Predict the emotion of a recording",
        response_description="The result of the recording.",
        tags=[openapi.PREDICTION],
        responses=openapi.PREDICT_ERRORS,
        openapi_extra=openapi.PREDICT_BODY,
    )
    async def predict(request: Request, options: Annotated[RequestOptions, Depends()]) -> EmotionResult:
        """Return the most probable emotion with the probabilities of all, and a timeline if `window_s` is given."""
        size = upload.expected_bytes(request, service.max_upload_bytes)
        async with _enforce_deadline(config.deadline_s), service.budget.reserve(size):
            content = await upload.read_upload(request, service.max_upload_bytes)
            return await service.predict(service.identify(request), content, options)

    @api.post(
        "/v1/emotion:batch",
        operation_id="predict_batch",
        summary="Predict the emotions of several recordings",
        response_description="A result or an error for each recording, in the order of the request.",
        tags=[openapi.PREDICTION],
        responses=openapi.PREDICT_ERRORS,
        openapi_extra=openapi.PREDICT_BATCH_BODY,
    )
    async def predict_batch(request: Request, options: Annotated[RequestOptions, Depends()]) -> BatchResponse:
        """Return a result or an error for each recording; a rejected recording does not affect the others."""
        max_bytes = service.max_upload_bytes
        size = max(MIN_FORM_BYTES, upload.expected_bytes(request, 4 * max_bytes))
        async with _enforce_deadline(config.deadline_s), service.budget.reserve(size):
            files = await upload.read_uploads(request, max_bytes, config.max_files, 4 * max_bytes)
            return await service.predict_batch(service.identify(request), files, options)


def _add_information_routes(api: APIRouter, service: _Service) -> None:
    @api.get(
        "/v1/model",
        operation_id="get_model",
        summary="Get the metadata of the served model",
        response_description="The metadata of the model.",
        tags=[openapi.MODEL],
        responses=openapi.error_responses(400, 401, 403, 421, 422, 429, 500, 503),
    )
    async def get_model(_: Annotated[None, Depends(_forbid_query)]) -> ModelInfo:
        """Return name, version, emotions, languages and development scores of the stable model."""
        return await service.router.stable.info()

    @api.get(
        "/metrics",
        operation_id="get_metrics",
        summary="Get the metrics for Prometheus",
        response_description="The metrics.",
        tags=[openapi.OPERATIONS],
        responses=openapi.TEXT_RESPONSE | openapi.error_responses(400, 401, 403, 421, 422),
        response_class=Response,  # without a media type, so that errors are documented as JSON
    )
    async def get_metrics(_: Annotated[None, Depends(_forbid_query)]) -> Response:
        """Return counters of requests, audio, emotions and warnings in Prometheus's text format."""
        return Response(service.metrics.render(), media_type=METRICS_CONTENT_TYPE)


@asynccontextmanager
async def _enforce_deadline(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise RequestError(
            408, f"upload and prediction took longer than {seconds:g} s: send the request again, or a shorter recording"
        ) from None


def _add_error_handlers(app: FastAPI) -> None:
    """Give every error the same JSON body."""

    def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse(ErrorResponse(error=message).model_dump(), status, headers)

    headers = {401: {"WWW-Authenticate": "Bearer"}, 408: {"Connection": "close"}}

    @app.exception_handler(RequestError)
    def handle_request_error(_: Request, error: RequestError) -> JSONResponse:
        if error.status in (429, 503):
            return error_response(error.status, error.message, {"Retry-After": str(error.retry_after_s or 1)})
        return error_response(error.status, error.message, headers.get(error.status))

    @app.exception_handler(HTTPException)
    def handle_http_error(request: Request, error: HTTPException) -> JSONResponse:
        path, message = request.url.path[:100], error.detail
        if error.status_code == 404:
            message = f"{path} does not exist: see /docs for the API"
        elif error.status_code == 405:
            message = f"{path} does not support {request.method}: see /docs for the API"
        return error_response(error.status_code, message, dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    def handle_validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
        details = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
        return error_response(422, "; ".join(details))

    @app.exception_handler(Exception)
    def handle_internal_error(_: Request, error: Exception) -> JSONResponse:
        return error_response(500, f"internal error ({type(error).__name__}); the log of the server has the details")
