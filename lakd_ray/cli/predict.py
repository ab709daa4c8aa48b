"""A few recordings and their answers, from an endpoint or from a model in this process. Without Ray."""

import glob
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from lakd_ray import storage
from lakd_ray.audio import sources
from lakd_ray.cli import format
from lakd_ray.config import Backend
from lakd_ray.errors import ConfigError, LakdError
from lakd_ray.inference.recordings import MAX_SECONDS, PredictOptions, decode_and_validate, validate_segment_count
from lakd_ray.inference.results import EmotionResult
from lakd_ray.serve.client import Client

_MAX_IN_FLIGHT = 4  # requests: while one is answered, others are sent and decoded
_PROGRESS_DELAY_S = 2.0  # no progress is shown before


class RecordingPredictor(Protocol):
    """Whoever answers."""

    emotions: tuple[str, ...]
    max_in_flight: int

    def predict(self, content: bytes, options: PredictOptions) -> EmotionResult:
        """The answer to an encoded recording; raises LakdError if there is none."""


class RemotePredictor:
    """A running endpoint.

    Raises:
        ResourceError: it does not answer.
    """

    max_in_flight = _MAX_IN_FLIGHT

    def __init__(self, client: Client):
        self._client = client
        self.emotions = client.model_info().emotions

    def predict(self, content: bytes, options: PredictOptions) -> EmotionResult:
        """The endpoint's answer."""
        return self._client.predict(content, **asdict(options))


class LocalPredictor:
    """A model in this process, which answers as the endpoint does.

    Args:
        folder: checkpoint folder, a path or s3:// location.
        max_seconds: longer recordings are refused.
        backend: what computes.

    Raises:
        StorageError, CheckpointError: there is no such checkpoint, or it is damaged.
        ConfigError: the backend cannot be had here.
    """

    max_in_flight = 1

    def __init__(self, checkpoint: str, max_seconds: float, backend: Backend):
        import transformers  # it and torch take seconds to load

        from lakd_ray.inference.predictor import Predictor

        transformers.utils.logging.disable_progress_bar()  # of a moment, and it would go where nobody looks for one
        self._predictor, self._max_seconds = Predictor.load(checkpoint, backend=backend), max_seconds
        self.emotions = self._predictor.emotions

    def predict(self, content: bytes, options: PredictOptions) -> EmotionResult:
        """The model's answer."""
        recording = decode_and_validate(content, self._max_seconds)
        validate_segment_count(len(recording.wave_T), options)
        (result,) = self._predictor.predict_recordings([recording], [options])
        return result


@dataclass(frozen=True)
class FileResult:
    """A file, and its answer or the reason why there is none."""

    file: str
    prediction: EmotionResult | None = None
    error: str | None = None


def run(
    inputs: Sequence[str],
    options: PredictOptions,
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
    found = list(dict.fromkeys(place for name in inputs for place in expand_paths(name)))
    if not any(isinstance(place, str) for place in found):
        reasons = "".join(f"\n  {place.file}: {place.error}" for place in found if isinstance(place, FileResult))
        raise ConfigError(f"found no recordings:{reasons}" if reasons else "no files were named")
    with ExitStack() as stack:
        asked = (
            RemotePredictor(stack.enter_context(Client(str(url))))
            if model is None
            else LocalPredictor(model, max_seconds, backend)
        )
        shown = format.make_formatter(as_json, asked.emotions, options.top_k, [_file_name(place) for place in found])
        bar = stack.enter_context(
            tqdm(total=len(found), unit="file", delay=_PROGRESS_DELAY_S, leave=False, disable=not sys.stderr.isatty())
        )
        for line in shown.header:
            bar.write(line, file=sys.stdout)
        failed = 0
        for result in _predict_files(found, asked, options):
            failed += result.prediction is None
            for line in shown.format_result(result.file, result.prediction, result.error):
                bar.write(line, file=sys.stdout)
            sys.stdout.flush()  # whoever reads it through a pipe need not wait for the others
            bar.update()
    if failed:
        print(f"{failed} of {len(found)} without an answer", file=sys.stderr)
    return 1 if failed else 0


def _predict_files(
    files: Sequence[str | FileResult], predictor: RecordingPredictor, options: PredictOptions
) -> Iterator[FileResult]:
    """In the order of what was found."""

    def one(place: str | FileResult) -> FileResult:
        if isinstance(place, FileResult):
            return place
        try:
            return FileResult(place, predictor.predict(sources.read_clip_source(place), options))
        except LakdError as error:
            return FileResult(place, error=str(error))

    with ThreadPoolExecutor(predictor.max_in_flight) as pool:
        try:
            yield from pool.map(one, files)
        finally:
            pool.shutdown(cancel_futures=True)


def _file_name(item: str | FileResult) -> str:
    return item.file if isinstance(item, FileResult) else item


def expand_paths(pattern: str) -> Iterator[str | FileResult]:
    """The recordings that an argument names: itself, those below a folder, or those that match a pattern."""
    remote = storage.is_remote(pattern)
    if (sources.has_audio_suffix(pattern) and remote) or (not remote and Path(pattern).is_file()):
        yield pattern
    elif remote or Path(pattern).is_dir():
        yield from _list_recordings(pattern)
    elif glob.has_magic(pattern):
        yield from _expand_pattern(pattern)
    else:
        yield FileResult(pattern, error="there is no such file or folder")


def _expand_pattern(pattern: str) -> Iterator[str | FileResult]:
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 -- patterns may be absolute
    folders = [] if "**" in pattern else [match for match in matches if Path(match).is_dir()]  # ** goes in by itself
    files = [match for match in matches if sources.has_audio_suffix(match) and Path(match).is_file()]
    if not files and not folders:
        yield FileResult(pattern, error="no recording matches it")
    yield from files
    for folder in folders:
        yield from _list_recordings(folder)


def _list_recordings(folder: str) -> Iterator[str | FileResult]:
    try:
        files = [file for file in sources.list_files(folder) if sources.has_audio_suffix(file)]
    except LakdError as error:
        yield FileResult(folder, error=str(error))
        return
    if not files:
        yield FileResult(
            folder, error=f"no file in it ends as recordings do ({', '.join(sources.AUDIO_SUFFIXES[:4])} ...)"
        )
    for file in files:
        yield storage.join(folder, file)
