"""HTTP client of the endpoint, which needs neither Ray nor torch.

    with Client("http://127.0.0.1:8000") as client:
        result = client.predict("clip.wav", language="de")

An endpoint's API key is an argument or the environment variable LAKD_API_KEY. The proxies of the environment
(http_proxy, https_proxy, all_proxy, no_proxy) are used, except for endpoints on this machine.
"""

import math
import os
import random
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Self, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from lakd_ray.addresses import find_proxy
from lakd_ray.errors import DataError, ResourceError
from lakd_ray.inference.results import EmotionResult, ModelInfo, ResponseModel
from lakd_ray.serve.messages import BatchResponse, ErrorResponse

API_KEY_ENV = "LAKD_API_KEY"
ResponseT = TypeVar("ResponseT", bound=ResponseModel)
Files = Mapping[str, bytes] | Iterable[tuple[str, bytes]]

_RETRYABLE_STATUSES = (429, 502, 503)  # too many requests, no response of the endpoint to a gateway, no model
_MAX_CONNECTION_ATTEMPTS = 3  # for a request whose connection breaks
_MIN_WAIT_S = 0.05  # before any further attempt, so that a Retry-After of 0 does not flood a busy endpoint
_BACKOFF_S = (0.25, 8.0)  # first and longest pause between attempts without a Retry-After header


class Client:
    """A persistent connection to an endpoint, which several threads may share.

    Args:
        url: the endpoint's base URL.
        api_key: its API key; the default is LAKD_API_KEY, and an empty string sends no key.
        timeout_s: longest wait for a response, in seconds. A busy endpoint (429, 502, 503) is queried again within it,
            after the time in its Retry-After header.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 60.0):
        key = (os.environ.get(API_KEY_ENV, "") if api_key is None else api_key).strip()
        self._url, self._timeout_s, self._has_key = url, timeout_s, bool(key)
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            transport=_create_transport(url),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection to the endpoint."""
        self._http.close()

    def model_info(self) -> ModelInfo:
        """Return the metadata of the model that the endpoint serves.

        Raises:
            ResourceError: no response, an unexpected one, or a missing or invalid key.
        """
        return self._fetch(self._http.build_request("GET", "/v1/model"), ModelInfo)

    def predict(
        self,
        source: str | os.PathLike[str] | bytes,
        language: str | None = None,
        *,
        window_s: float | None = None,
        hop_s: float | None = None,
        top_k: int | None = None,
    ) -> EmotionResult:
        """Return the emotion of a recording.

        Args:
            source: an audio file, as its path, its s3:// location or its bytes: WAV, FLAC, OGG or MP3; other formats if
                the endpoint has ffmpeg.
            language: the recording's language (`en`, `de`), if known.
            window_s: length of the timeline's segments, in seconds; no timeline if None.
            hop_s: from the start of one segment to the start of the next, in seconds; `window_s` if None.
            top_k: return only the `top_k` most probable emotions; all if None.

        Raises:
            DataError: the file cannot be read, or the endpoint rejects the recording, the language or a different
                argument.
            ResourceError: no response in time, an unexpected one, or a missing or invalid key.
        """
        request = self._http.build_request(
            "POST",
            "/v1/emotion",
            content=_read_source(source),
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
        """Return the emotions of several recordings, in one request; a rejected recording does not affect the others.

        Args:
            files: names and encoded recordings; at most `serve.max_files` of the endpoint.
            language: as in `predict`, the same for all recordings, as are the next three.
            window_s: as in `predict`.
            hop_s: as in `predict`.
            top_k: as in `predict`.

        Returns:
            An item for each file, in the same order: a result, or a status and an error message.

        Raises:
            DataError: the endpoint rejects the complete request.
            ResourceError: as in `predict`.
        """
        named = list(files.items() if isinstance(files, Mapping) else files)
        request = self._http.build_request(
            "POST",
            "/v1/emotion:batch",
            files=[("file", (name, content)) for name, content in named],
            params=_query_params(language, window_s, hop_s, top_k),
        )
        batch = self._fetch(request, BatchResponse)
        if len(batch.items) != len(named):
            raise ResourceError(
                f"{request.url} returned {len(batch.items)} items, expected {len(named)}, one per recording; "
                "check that the URL is a lakd-ray endpoint of the same version"
            )
        return batch

    def _fetch(self, request: httpx.Request, response_type: type[ResponseT]) -> ResponseT:
        response = self._send_with_retry(request)
        try:
            if response.is_success:
                return response_type.model_validate_json(response.content)
            reason = ErrorResponse.model_validate_json(response.content).error
        except ValidationError:
            reason = response.text[:200]
        status = response.status_code
        if status == 401 and self._has_key:
            raise ResourceError(f"{self._url} rejects the API key ({status}: {reason}); use a valid key")
        if status == 401:
            raise ResourceError(
                f"{self._url} requires an API key ({status}: {reason}); set {API_KEY_ENV}, or Client(..., api_key=...)"
            )
        if status in (413, 415, 422):
            raise DataError(f"rejected ({status}): {reason}")
        if status in _RETRYABLE_STATUSES:
            reason += f"; retried for {self._timeout_s:g} s (timeout_s)"
        raise ResourceError(f"{request.url} returned {status}: {reason}")

    def _send_with_retry(self, request: httpx.Request) -> httpx.Response:
        """Return the response, or the last one before the timeout if the endpoint stays busy."""
        deadline = time.monotonic() + self._timeout_s
        backoff_s = _BACKOFF_S[0]
        attempts_left = _MAX_CONNECTION_ATTEMPTS
        request.read()  # a multipart body is a stream, which can be sent again only from memory
        while True:
            remaining_s = max(0.001, deadline - time.monotonic())
            request.extensions["timeout"] = httpx.Timeout(remaining_s).as_dict()
            try:
                response = self._http.send(request)
            except httpx.TransportError as error:
                attempts_left -= 1
                if attempts_left and isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)):
                    continue  # a proxy or an ingress was replaced; requests are idempotent
                raise ResourceError(
                    f"no response from {self._url} ({type(error).__name__}: {error}); check the URL and that the "
                    "endpoint is running"
                ) from None
            wait_s = _retry_after(response, backoff_s)
            if (
                not (response.status_code in _RETRYABLE_STATUSES or _is_without_application(response))
                or time.monotonic() + wait_s >= deadline
            ):
                return response
            time.sleep(wait_s)
            backoff_s = min(2 * backoff_s, _BACKOFF_S[1])


def _create_transport(url: str) -> httpx.HTTPTransport:
    """Return the transport to an endpoint; httpx uses the proxies of the environment only without one.

    Raises:
        ResourceError: the proxy of the environment cannot be used.
    """
    proxy = find_proxy(url)
    try:
        return httpx.HTTPTransport(retries=2, proxy=proxy)
    except (ImportError, ValueError) as error:
        name = urlsplit(proxy or "").hostname  # without its password
        raise ResourceError(
            f"cannot use the proxy {name} of the environment for {url}: {error}; set a proxy with an http URL, or add "
            "the host to no_proxy"
        ) from None


def _read_source(source: str | os.PathLike[str] | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    from lakd_ray.audio.sources import read_clip_source  # Arrow, which a client of bytes does not need

    return read_clip_source(os.fspath(source))


def _query_params(
    language: str | None, window_s: float | None, hop_s: float | None, top_k: int | None
) -> dict[str, str | float | int]:
    params = {"language": language, "window_s": window_s, "hop_s": hop_s, "top_k": top_k}
    return {name: value for name, value in params.items() if value is not None}


def _is_without_application(response: httpx.Response) -> bool:
    """Return whether Serve's proxy responded because the endpoint is being started or stopped."""
    texts = (
        "Path '",
        '{"error": "no application is running',
    )  # of Serve itself, and of this project's middleware in it
    return response.status_code == 404 and response.text.startswith(texts)


def _retry_after(response: httpx.Response, default: float) -> float:
    """Return the seconds to wait before the next attempt: those of Retry-After, a number or a date, or the default.

    A random part spreads the clients that were rejected at the same time.
    """
    value = response.headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value, response.headers.get("Date"), default)
    if not 0 <= seconds < math.inf:
        seconds = default
    return max(seconds, _MIN_WAIT_S) * random.uniform(1.0, 1.1)


def _seconds_until(date: str, now: str | None, default: float) -> float:
    """Return the seconds between two dates of HTTP headers, by the clock of the server if it sends its time."""
    try:
        start = parsedate_to_datetime(now) if now else datetime.now(UTC)
        return max(0.0, (parsedate_to_datetime(date) - start).total_seconds())
    except (ValueError, TypeError):
        return default
