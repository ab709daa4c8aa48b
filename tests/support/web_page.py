"""The web page in a browser, in front of the real API and a fake model."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from lakd_ray.audio import Wave
from lakd_ray.inference.results import ModelInfo, ModelPredictions
from support.fake_model import MODEL_INFO, FakeModel

OBSERVERS = """
window.announced = [];
window.violations = [];
addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) =>
  violations.push(`${violatedDirective} ${blockedURI}`));
addEventListener("DOMContentLoaded", () => {
  const liveRegion = document.querySelector("[role=status]");
  new MutationObserver(() => announced.push(liveRegion.textContent)).observe(liveRegion, { childList: true });
});
"""
_WAV = {"mimeType": "audio/wav"}


class LoudnessModel(FakeModel):
    """A model that predicts anger for loud and sadness for soft recordings, and identifies German."""

    async def info(self) -> ModelInfo:
        fields = {"identifiable_languages": ("en", "de"), "corpora": ("emodb",), "dev": {"UR": 0.75, "UR de": 0.5}}
        return MODEL_INFO.model_copy(update=fields)

    async def predict(self, waves: Sequence[Wave], language: str | None) -> ModelPredictions:
        result = await super().predict(waves, language)
        identified = {} if language else {"language": "de", "language_probability": 0.9}
        predictions = []
        for wave_T, prediction in zip(waves, result.predictions, strict=True):
            is_loud = float(np.sqrt(np.mean(np.square(wave_T)))) > 0.2
            probabilities = (0.7, 0.15, 0.1, 0.05) if is_loud else (0.05, 0.1, 0.15, 0.7)
            predictions.append(prediction.model_copy(update={"probabilities": probabilities, **identified}))
        return result.model_copy(update={"predictions": tuple(predictions)})


class Visit:
    """An open page, with its requests and the errors in its console."""

    def __init__(self, page: Any, url: str, model: FakeModel):
        self.page, self.url, self.model = page, url, model
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("websocket", lambda socket: self.requests.append(socket.url.replace("ws:", "http:", 1)))
        page.on("console", lambda message: message.type in ("error", "warning") and self._record_error(message.text))
        page.on("pageerror", lambda error: self._record_error(str(error)))

    def _record_error(self, text: str) -> None:
        if not re.search("the server responded with a status of 4", text):  # the browser logs every 4xx response
            self.errors.append(text)

    def choose(self, *files: tuple[str, bytes]) -> None:
        self.page.set_input_files("#files", [{"name": name, "buffer": content, **_WAV} for name, content in files])

    def article(self, name: str) -> Any:
        return self.page.get_by_role("article", name=name, exact=True)

    def wait_for_result(self, name: str) -> Any:
        article = self.article(name)
        article.locator(".emotion").wait_for()
        return article

    def announced(self) -> list[str]:
        return self.page.evaluate("announced")

    def prediction_requests(self) -> list[str]:
        return [url for url in self.requests if "/v1/emotion" in url]

    def check(self) -> None:
        """Assert that the console has no errors and that no request went to a different host."""
        assert self.page.evaluate("violations") == []
        assert self.errors == []
        external = [url for url in self.requests if not url.startswith((f"{self.url}/", f"blob:{self.url}/"))]
        assert self.requests and external == []


def percentages(article: Any) -> list[int]:
    """Return the percentages in an article's table of probabilities."""
    return [int(text.split()[-2]) for text in article.locator(".bars .figure").all_inner_texts()]
