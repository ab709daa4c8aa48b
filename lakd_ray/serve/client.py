"""Asks the endpoint."""

from typing import Self, TypeVar

import httpx
from pydantic import ValidationError

from lakd_ray.errors import DataError, ResourceError
from lakd_ray.serve.answers import Answer, Message, ModelCard, Problem

Body = TypeVar("Body", bound=Message)


class Client:
    """A connection to an endpoint, kept open between questions.

    Args:
        url: the endpoint's base URL.
        timeout_s: longest wait for an answer.
    """

    def __init__(self, url: str, *, timeout_s: float = 60.0):
        self._url = url
        self._http = httpx.Client(base_url=url, timeout=timeout_s, transport=httpx.HTTPTransport(retries=2))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def model(self) -> ModelCard:
        """What is being served.

        Raises:
            ResourceError: there is no answer, or not from such an endpoint.
        """
        return self._read(self._http.build_request("GET", "/v1/model"), ModelCard)

    def emotion(self, content: bytes, language: str | None = None) -> Answer:
        """The emotion of an encoded recording.

        Args:
            content: a WAV, FLAC, OGG or MP3 file.
            language: the recording's language, where it is known.

        Raises:
            DataError: the endpoint refuses the recording or the language.
            ResourceError: there is no answer, or not from such an endpoint.
        """
        request = self._http.build_request(
            "POST",
            "/v1/emotion",
            content=content,
            params={} if language is None else {"language": language},
            headers={"Content-Type": "application/octet-stream"},
        )
        return self._read(request, Answer)

    def _read(self, request: httpx.Request, kind: type[Body]) -> Body:
        try:
            response = self._http.send(request)
        except httpx.TransportError as error:
            raise ResourceError(
                f"no answer from {self._url} ({type(error).__name__}: {error}); is it running?"
            ) from None
        try:
            if response.is_success:
                return kind.model_validate_json(response.content)
            reason = Problem.model_validate_json(response.content).error
        except ValidationError:
            reason = response.text[:200]
        if response.status_code in (413, 415, 422):
            raise DataError(f"refused ({response.status_code}): {reason}")
        raise ResourceError(f"{request.url} answered {response.status_code}: {reason}")
