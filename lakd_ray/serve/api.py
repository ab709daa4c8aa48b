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

from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.config import Serve
from lakd_ray.serve import answering, stream, upload
from lakd_ray.serve.answering import MAX_SEGMENTS, Model
from lakd_ray.serve.answers import Answer, Answers, Item, ModelCard, Problem
from lakd_ray.serve.decoding import Decoders
from lakd_ray.serve.keys import Keys
from lakd_ray.serve.meters import TYPE, Metered, Meters
from lakd_ray.serve.page import pages
from lakd_ray.serve.upload import MEGABYTE, RequestError

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"schema": {"type": "object", "required": ["file"], "properties": {"file": _BINARY["schema"]}}}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The recording (WAV, FLAC, OGG or MP3; others where the server has ffmpeg), as it is or in the "
        "field `file` of a form.",
        "content": {"audio/*": _BINARY, "application/octet-stream": _BINARY, "multipart/form-data": _FORM},
    }
}
_FILES = {"type": "array", "items": _BINARY["schema"], "minItems": 1}
_BODIES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "Recordings in fields `file` of a form.",
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["file"], "properties": {"file": _FILES}},
            }
        },
    }
}
_LATER: dict[int | str, dict[str, Any]] = {
    429: {"description": "Too many requests are waiting; try again after Retry-After seconds"},
    503: {"model": Problem, "description": "The model is not there at the moment; try again after Retry-After seconds"},
}
_KEY: dict[int | str, dict[str, Any]] = {401: {"model": Problem, "description": "A key is needed, or it is wrong"}}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The upload broke off"},
    **_KEY,
    408: {"model": Problem, "description": "The upload or the answer took too long"},
    413: {"model": Problem, "description": "The recording is too large or too long"},
    415: {"model": Problem, "description": "The Content-Type is not audio"},
    422: {"model": Problem, "description": "The recording cannot be decoded, or a parameter is not possible"},
    **_LATER,
}


@dataclass(frozen=True)
class Models:
    """The model that answers, and perhaps a second one that is tried out on a share of the recordings.

    Which of the two answers is a matter of the recording's bytes: the same recording has the same answer each time.
    """

    stable: Model
    canary: Model | None = None
    share: float = 0.0

    def pick(self, content: bytes, wanted: str | None = None) -> Model:
        """The model for a recording.

        Raises:
            RequestError: 422 the canary is wanted, and there is none.
        """
        if wanted == "canary" and self.canary is None:
            raise RequestError(422, "X-Model is canary, but none is being tried: leave the header out")
        drawn = int.from_bytes(hashlib.sha256(content).digest()[:4]) / 2**32
        if self.canary is not None and (wanted == "canary" or (wanted is None and drawn < self.share)):
            return self.canary
        return self.stable


class Options:
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
        self.language, self.window_s, self.hop_s, self.top_k, self.model = language, window_s, hop_s, top_k, model

    def check(self, seconds: float) -> None:
        """Refuse a timeline of too many segments.

        Raises:
            RequestError: 422.
        """
        if self.window_s is None:
            return
        count = len(answering.segments(round(seconds * SAMPLE_RATE), self.window_s, self.hop_s or self.window_s))
        if count > MAX_SEGMENTS:
            raise RequestError(422, f"the timeline has {count} segments, expected at most {MAX_SEGMENTS}: raise hop_s")


def create_app(models: Models, limits: Serve, decoders: Decoders) -> FastAPI:
    """The API in front of its models, with the limits of the `serve` section; it closes the decoders when it ends.

    Raises:
        ConfigError: the file of keys is not one.
    """
    keys, meters = Keys(limits.api_keys), Meters()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await decoders.warm()
        yield
        decoders.close()

    app = FastAPIOffline(
        title="lakd-ray", description="Emotion of a spoken utterance", redoc_url=None, lifespan=lifespan
    )
    app.add_middleware(Metered, meters=meters)
    _explain_errors(app)
    limit_bytes = int(limits.max_upload_mb * MEGABYTE)
    scheme = HTTPBearer(auto_error=False, description="One of the endpoint's keys, where it asks for one")

    def authorised(request: Request, _: Annotated[Any, Security(scheme)]) -> None:
        if not keys.opens(request.headers.get("authorization")):
            raise RequestError(401, "a key is needed: send the header `Authorization: Bearer KEY`")

    async def one(content: bytes, options: Options) -> Answer:
        model = models.pick(content, options.model)
        recording = await decoders.read(content, limits.max_seconds)
        options.check(len(recording.wave_T) / SAMPLE_RATE)
        answer = await answering.answer(
            model,
            recording,
            language=options.language,
            window_s=options.window_s,
            hop_s=options.hop_s,
            top_k=options.top_k,
        )
        meters.answered(answer)
        return answer

    app.include_router(pages())

    @app.post("/v1/emotion", responses=_REFUSALS, openapi_extra=_BODY, dependencies=[Depends(authorised)])
    async def emotion(request: Request, options: Annotated[Options, Depends()]) -> Answer:
        """Which emotion is heard in a recording."""
        async with _deadline(limits.deadline_s):
            return await one(await upload.read(request, limit_bytes), options)

    @app.post("/v1/emotion:batch", responses=_REFUSALS, openapi_extra=_BODIES, dependencies=[Depends(authorised)])
    async def emotions(request: Request, options: Annotated[Options, Depends()]) -> Answers:
        """Which emotion is heard in each of several recordings; one that is refused does not spoil the others."""

        async def item(name: str, content: bytes) -> Item:
            try:
                if not content:
                    raise RequestError(422, f"the file is empty, or larger than {limits.max_upload_mb:g} MB")
                return Item(name=name, status=200, answer=await one(content, options))
            except RequestError as error:
                return Item(name=name, status=error.status, error=error.message)

        async with _deadline(limits.deadline_s):
            files = await upload.read_many(request, limit_bytes, limits.max_files, 4 * limit_bytes)
            return Answers(items=tuple(await asyncio.gather(*[item(name, content) for name, content in files])))

    @app.websocket("/v1/stream")
    async def streamed(socket: WebSocket) -> None:
        await stream.serve(socket, models.stable, limits, keys, decoders, meters)

    @app.get("/v1/model", responses={**_KEY, 503: _LATER[503]}, dependencies=[Depends(authorised)])
    async def served() -> ModelCard:
        """What is being served."""
        return await models.stable.card()

    @app.get("/metrics", responses=_KEY, dependencies=[Depends(authorised)], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """What Prometheus reads."""
        return Response(meters.text(), media_type=TYPE)

    @app.get("/-/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        """Whether the endpoint is alive."""
        return "success"

    return app


@asynccontextmanager
async def _deadline(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise RequestError(408, f"the upload and its answer took longer than {seconds:g} s") from None


def _explain_errors(app: FastAPI) -> None:
    """Make every error JSON with one key."""

    def problem(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": message}, status, headers)

    extra = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}, 408: {"Connection": "close"}}

    @app.exception_handler(RequestError)
    def refused(_: Request, error: RequestError) -> JSONResponse:
        return problem(error.status, error.message, extra.get(error.status))

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
