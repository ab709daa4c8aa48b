"""A few recordings and their answers, from an endpoint or from a model in this process. Without Ray."""

import asyncio
import glob
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from lakd_ray import storage
from lakd_ray.config import Backend
from lakd_ray.corpora import recordings
from lakd_ray.errors import ConfigError, DataError, LakdError
from lakd_ray.predict import show
from lakd_ray.serve.answers import Answer
from lakd_ray.serve.client import Client

MAX_SECONDS = 120.0  # as the endpoint's `serve.max_seconds`

_AT_ONCE = 4  # requests: while one is answered, others are sent and decoded
_QUIET_S = 2.0  # no progress is shown before
_LANGUAGE = re.compile("[a-z]{2,3}")


@dataclass(frozen=True)
class Question:
    """What is asked about every recording, as by the endpoint's parameters.

    Raises:
        ConfigError: a value is impossible.
    """

    language: str | None = None
    """Language of the recordings, where it is known."""
    window_s: float | None = None
    """Length of a timeline's segments in seconds; no timeline if None."""
    hop_s: float | None = None
    """From one segment to the next in seconds; `window_s` if None."""
    top_k: int | None = None
    """Only so many of the most probable emotions; all if None."""

    def __post_init__(self) -> None:
        if self.language is not None and not _LANGUAGE.fullmatch(self.language):
            raise ConfigError(f"language {self.language!r}: expected a code of two or three letters, such as en")
        for name, value, least in (("window", self.window_s, 0.25), ("hop", self.hop_s, 0.05)):
            if value is not None and not least <= value <= 60:
                raise ConfigError(f"{name} of {value:g} s: expected {least:g} to 60 s")
        if self.hop_s is not None and self.window_s is None:
            raise ConfigError("a hop without a window: give the length of the timeline's segments too")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"the {self.top_k} most probable emotions: expected 1 or more")


class Asked(Protocol):
    """Whoever answers."""

    emotions: tuple[str, ...]
    at_once: int

    def answer(self, content: bytes, question: Question) -> Answer:
        """The answer to an encoded recording; raises LakdError if there is none."""


class Endpoint:
    """A running endpoint.

    Raises:
        ResourceError: it does not answer.
    """

    at_once = _AT_ONCE

    def __init__(self, client: Client):
        self._client = client
        self.emotions = client.model().emotions

    def answer(self, content: bytes, question: Question) -> Answer:
        """The endpoint's answer."""
        return self._client.emotion(content, **asdict(question))


class Here:
    """A model in this process, which answers as the endpoint does.

    Args:
        folder: checkpoint folder, a path or s3:// location.
        max_seconds: longer recordings are refused.
        backend: what computes.

    Raises:
        StorageError, CheckpointError: there is no such checkpoint, or it is damaged.
        ConfigError: the backend cannot be had here.
    """

    at_once = 1

    def __init__(self, folder: str, max_seconds: float, backend: Backend):
        import transformers  # it and torch take seconds to load

        from lakd_ray.infer.predictor import Predictor
        from lakd_ray.serve.answering import LocalModel

        transformers.utils.logging.disable_progress_bar()  # of a moment, and it would go where nobody looks for one
        predictor = Predictor.load(folder, backend=backend)
        self._model, self._max_seconds = LocalModel(predictor), max_seconds
        self.emotions = predictor.emotions

    def answer(self, content: bytes, question: Question) -> Answer:
        """The model's answer."""
        from lakd_ray.predict import opening
        from lakd_ray.serve import answering

        recording = opening.decoded(content, self._max_seconds)
        if question.window_s is not None:
            samples, hop_s = len(recording.wave_T), question.hop_s or question.window_s
            count = len(answering.segments(samples, question.window_s, hop_s))
            if count > answering.MAX_SEGMENTS:
                most = answering.MAX_SEGMENTS
                raise DataError(f"the timeline has {count} segments, expected at most {most}: raise the hop")
        return asyncio.run(answering.answer(self._model, recording, **asdict(question)))


@dataclass(frozen=True)
class Result:
    """A file, and its answer or the reason why there is none."""

    file: str
    answer: Answer | None = None
    error: str | None = None


def run(
    named: Sequence[str],
    question: Question,
    *,
    url: str | None = None,
    model: str | None = None,
    max_seconds: float = MAX_SECONDS,
    backend: Backend = "torch",
    as_json: bool = False,
) -> int:
    """Print the answer to every recording; a file without one does not stop the others.

    Args:
        named: files, folders, patterns; local, or s3:// files and prefixes.
        url: the endpoint that is asked; its key is in LAKD_API_KEY.
        model: else the checkpoint folder that is loaded here.
        max_seconds: longer recordings are refused; the endpoint has a limit of its own.
        backend: what computes here; the endpoint has its own.
        as_json: print JSON lines, one a file, instead of a table.

    Returns:
        0 if all were answered, else 1.

    Raises:
        ConfigError: no file is found, or neither or both of `url` and `model` are given.
        LakdError: there is no endpoint or no model.
    """
    if (url is None) == (model is None):
        raise ConfigError("give either an endpoint (--url) or a checkpoint folder (--model)")
    found = list(dict.fromkeys(place for name in named for place in places(name)))
    if not any(isinstance(place, str) for place in found):
        reasons = "".join(f"\n  {place.file}: {place.error}" for place in found if isinstance(place, Result))
        raise ConfigError(f"found no recordings:{reasons}" if reasons else "no files were named")
    with ExitStack() as stack:
        asked = Endpoint(stack.enter_context(Client(str(url)))) if model is None else Here(model, max_seconds, backend)
        shown = show.lines(as_json, asked.emotions, question.top_k, [_file(place) for place in found])
        bar = stack.enter_context(
            tqdm(total=len(found), unit="file", delay=_QUIET_S, leave=False, disable=not sys.stderr.isatty())
        )
        for line in shown.header:
            bar.write(line, file=sys.stdout)
        failed = 0
        for result in _results(found, asked, question):
            failed += result.answer is None
            for line in shown.of(result.file, result.answer, result.error):
                bar.write(line, file=sys.stdout)
            sys.stdout.flush()  # whoever reads it through a pipe need not wait for the others
            bar.update()
    if failed:
        print(f"{failed} of {len(found)} without an answer", file=sys.stderr)
    return 1 if failed else 0


def _results(found: Sequence[str | Result], asked: Asked, question: Question) -> Iterator[Result]:
    """In the order of what was found."""

    def one(place: str | Result) -> Result:
        if isinstance(place, Result):
            return place
        try:
            return Result(place, asked.answer(recordings.content(place), question))
        except LakdError as error:
            return Result(place, error=str(error))

    with ThreadPoolExecutor(asked.at_once) as pool:
        try:
            yield from pool.map(one, found)
        finally:
            pool.shutdown(cancel_futures=True)


def _file(place: str | Result) -> str:
    return place.file if isinstance(place, Result) else place


def places(name: str) -> Iterator[str | Result]:
    """The recordings that an argument names: itself, those below a folder, or those that match a pattern."""
    remote = storage.is_remote(name)
    if (recordings.is_audio(name) and remote) or (not remote and Path(name).is_file()):
        yield name
    elif remote or Path(name).is_dir():
        yield from _below(name)
    elif glob.has_magic(name):
        yield from _matching(name)
    else:
        yield Result(name, error="there is no such file or folder")


def _matching(pattern: str) -> Iterator[str | Result]:
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 -- patterns may be absolute
    folders = [] if "**" in pattern else [match for match in matches if Path(match).is_dir()]  # ** goes in by itself
    files = [match for match in matches if recordings.is_audio(match) and Path(match).is_file()]
    if not files and not folders:
        yield Result(pattern, error="no recording matches it")
    yield from files
    for folder in folders:
        yield from _below(folder)


def _below(folder: str) -> Iterator[str | Result]:
    try:
        files = [file for file in recordings.files(folder) if recordings.is_audio(file)]
    except LakdError as error:
        yield Result(folder, error=str(error))
        return
    if not files:
        yield Result(folder, error=f"no file in it ends as recordings do ({', '.join(recordings.AUDIO[:4])} ...)")
    for file in files:
        yield storage.join(folder, file)
