"""Asks the endpoint. Needs neither Ray nor torch.

    with Client("http://127.0.0.1:8000") as client:
        answer = client.predict(Path("clip.wav").read_bytes(), language="de")

The key, where the endpoint asks for one, is an argument or the environment variable LAKD_API_KEY.
"""

import os
import time
from collections.abc import Iterable, Mapping
from typing import Self, TypeVar

import httpx
from pydantic import ValidationError

from lakd_ray.errors import DataError, ResourceError
from lakd_ray.inference.results import BatchResponse, EmotionResult, ErrorResponse, ModelInfo, ResponseModel

API_KEY_ENV = "LAKD_API_KEY"
ResponseT = TypeVar("ResponseT", bound=ResponseModel)
Files = Mapping[str, bytes] | Iterable[tuple[str, bytes]]

_RETRYABLE_STATUSES = (429, 503)  # too many wait, or the model is not there at the moment
_MAX_CONNECTION_ATTEMPTS = 3  # of a request whose connection breaks
_BACKOFF_S = (0.25, 8.0)  # first and longest pause before the next attempt, where the endpoint names none


class Client:
    """A connection to an endpoint, kept open between questions; several threads may share it.

    Args:
        url: the endpoint's base URL.
        api_key: its key; that of LAKD_API_KEY if None, and none at all if that is not set either.
        timeout_s: longest wait for an answer, in seconds. A busy endpoint (429, 503) is asked again within it, when it
            says that it may be.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 60.0):
        key = (os.environ.get(API_KEY_ENV, "") if api_key is None else api_key).strip()
        self._url, self._timeout_s, self._has_key = url, timeout_s, bool(key)
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            transport=httpx.HTTPTransport(retries=2),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def model_info(self) -> ModelInfo:
        """What is being served.

        Raises:
            ResourceError: there is no answer, or not from such an endpoint, or the key is missing or wrong.
        """
        return self._fetch(self._http.build_request("GET", "/v1/model"), ModelInfo)

    def predict(
        self,
        content: bytes,
        language: str | None = None,
        *,
        window_s: float | None = None,
        hop_s: float | None = None,
        top_k: int | None = None,
    ) -> EmotionResult:
        """The emotion of an encoded recording.

        Args:
            content: a file such as WAV, FLAC, OGG or MP3; others where the endpoint has ffmpeg.
            language: the recording's language (`en`, `de`), where it is known.
            window_s: length of a timeline's segments, in seconds; no timeline if None.
            hop_s: from one segment's begin to the next one's, in seconds; `window_s` if None.
            top_k: only so many of the most probable emotions are told; all if None.

        Raises:
            DataError: the endpoint refuses the recording, the language or another argument.
            ResourceError: there is no answer in time, or not from such an endpoint, or the key is missing or wrong.
        """
        request = self._http.build_request(
            "POST",
            "/v1/emotion",
            content=content,
            params=_query_params(language, window_s, hop_s, top_k),
            headers={"Content-Type": "application/octet-stream"},
        )
        return self._fetch(request, EmotionResult)

    def predict_batch(
        self,
        files: Files,
        language: str | None = None,
        *,
        window_s: float | None = None,
        hop_s: float | None = None,
        top_k: int | None = None,
    ) -> BatchResponse:
        """The emotions of several recordings, in one request; one that is refused does not spoil the others.

        Args:
            files: names and encoded recordings; at most as many as the endpoint's `serve.max_files`.
            language, window_s, hop_s, top_k: as in `emotion`, the same for all.

        Returns:
            An item for each file, in the same order: an answer, or a status and the reason why there is none.

        Raises:
            DataError: the endpoint refuses the request as a whole.
            ResourceError: as in `emotion`.
        """
        named = list(files.items() if isinstance(files, Mapping) else files)
        request = self._http.build_request(
            "POST",
            "/v1/emotion:batch",
            files=[("file", (name, content)) for name, content in named],
            params=_query_params(language, window_s, hop_s, top_k),
        )
        answers = self._fetch(request, BatchResponse)
        if len(answers.items) != len(named):
            raise ResourceError(f"{request.url} was sent {len(named)} recordings and answered {len(answers.items)}")
        return answers

    def _fetch(self, request: httpx.Request, response_type: type[ResponseT]) -> ResponseT:
        response = self._send_with_retry(request)
        try:
            if response.is_success:
                return response_type.model_validate_json(response.content)
            reason = ErrorResponse.model_validate_json(response.content).error
        except ValidationError:
            reason = response.text[:200]
        status = response.status_code
        if status in (401, 403):
            way_out = "give another one" if self._has_key else f"set {API_KEY_ENV}, or Client(..., api_key=...)"
            found = "refuses the key" if self._has_key else "asks for a key"
            raise ResourceError(f"{self._url} {found} ({status}: {reason}); {way_out}")
        if status in (413, 415, 422):
            raise DataError(f"refused ({status}): {reason}")
        if status in _RETRYABLE_STATUSES:
            reason += f"; it was asked again for {self._timeout_s:g} s (timeout_s)"
        raise ResourceError(f"{request.url} answered {status}: {reason}")

    def _send_with_retry(self, request: httpx.Request) -> httpx.Response:
        """The last response within the time."""
        deadline = time.monotonic() + self._timeout_s
        pause = _BACKOFF_S[0]
        broken = _MAX_CONNECTION_ATTEMPTS
        request.read()  # a form is a stream, and can be sent once more only from memory
        while True:
            left = max(0.001, deadline - time.monotonic())
            request.extensions["timeout"] = httpx.Timeout(left).as_dict()
            try:
                response = self._http.send(request)
            except httpx.TransportError as error:
                broken -= 1
                if broken and isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)):
                    continue  # a proxy or an ingress has gone, and another one is there or comes; nothing was changed
                raise ResourceError(
                    f"no answer from {self._url} ({type(error).__name__}: {error}); is it running?"
                ) from None
            wait = _retry_after(response, pause)
            if response.status_code not in _RETRYABLE_STATUSES or time.monotonic() + wait >= deadline:
                return response
            time.sleep(wait)
            pause = min(2 * pause, _BACKOFF_S[1])


def _query_params(
    language: str | None, window_s: float | None, hop_s: float | None, top_k: int | None
) -> dict[str, str | float | int]:
    asked = {"language": language, "window_s": window_s, "hop_s": hop_s, "top_k": top_k}
    return {name: value for name, value in asked.items() if value is not None}


def _retry_after(response: httpx.Response, default: float) -> float:
    """Seconds until the endpoint wants to be asked again."""
    try:
        return max(0.0, float(response.headers.get("Retry-After", default)))
    except ValueError:  # a date, which gateways may send
        return default
