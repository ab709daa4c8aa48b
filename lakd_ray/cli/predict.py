"""Predict a few recordings with an endpoint or with a model in this process, without Ray."""

import glob
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from lakd_ray import storage
from lakd_ray.audio import sources
from lakd_ray.cli import format
from lakd_ray.cli.output import print_text
from lakd_ray.config import Backend
from lakd_ray.errors import ConfigError, LakdError
from lakd_ray.inference.options import PredictOptions
from lakd_ray.inference.recordings import MAX_SECONDS, decode_and_validate, validate_segment_count
from lakd_ray.inference.results import EmotionResult
from lakd_ray.progress import ProgressBar, progress_bar
from lakd_ray.serve.client import Client

_MAX_IN_FLIGHT = 4  # requests: while the endpoint computes one, others are sent and decoded


class RecordingPredictor(Protocol):
    """A source of predictions, either an endpoint or a local model."""

    emotions: tuple[str, ...]
    max_in_flight: int

    def predict(self, content: bytes, options: PredictOptions) -> EmotionResult:
        """Return the prediction for an encoded recording; raise LakdError if that fails."""


class RemotePredictor:
    """Predicts with a running endpoint.

    Raises:
        ResourceError: the endpoint does not respond.
    """

    max_in_flight = _MAX_IN_FLIGHT

    def __init__(self, client: Client):
        self._client = client
        self.emotions = client.model_info().emotions

    def predict(self, content: bytes, options: PredictOptions) -> EmotionResult:
        """Return the response of the endpoint."""
        return self._client.predict(content, **asdict(options))


class LocalPredictor:
    """Predicts with a model in this process; the results are those of the endpoint.

    Args:
        checkpoint: checkpoint folder, a path or s3:// location.
        max_seconds: longer recordings are rejected.
        backend: inference backend.
        device: see `Predictor.load`.

    Raises:
        StorageError, CheckpointError: there is no such checkpoint, or it is corrupted.
        ConfigError: the backend is not available, or the device is not for it.
        ResourceError: this machine does not have the device.
    """

    max_in_flight = 1

    def __init__(self, checkpoint: str, max_seconds: float, backend: Backend, device: str = "auto"):
        from lakd_ray.inference.predictor import Predictor  # torch and transformers take seconds to load

        self._predictor, self._max_seconds = Predictor.load(checkpoint, backend=backend, device=device), max_seconds
        self.emotions = self._predictor.emotions

    def predict(self, content: bytes, options: PredictOptions) -> EmotionResult:
        """Return the prediction of the model."""
        recording = decode_and_validate(content, self._max_seconds)
        validate_segment_count(len(recording.wave_T), options)
        (result,) = self._predictor.predict_recordings([recording], [options])
        return result


@dataclass(frozen=True)
class FileResult:
    """A file with its prediction, or the reason why it has none."""

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
    device: str = "auto",
    as_json: bool = False,
) -> int:
    """Print the prediction for every recording; a file that fails does not stop the others.

    Args:
        inputs: files, folders and patterns; local, or s3:// files and prefixes.
        options: options of the predictions.
        url: endpoint to query; its key is read from LAKD_API_KEY.
        model: checkpoint folder to load in this process, if there is no `url`.
        max_seconds: longer recordings are rejected by `model`; the endpoint has its own limit.
        backend: inference backend of `model`; the endpoint has its own.
        device: device of `model`, see `Predictor.load`.
        as_json: print JSON lines, one per file, instead of a table.

    Returns:
        0 if all files have a prediction, otherwise 1.

    Raises:
        ConfigError: no file is found, or neither or both of `url` and `model` are given.
        LakdError: the endpoint or the model is not available.
    """
    if (url is None) == (model is None):
        raise ConfigError("give either an endpoint (--url) or a checkpoint folder (--model)")
    files = _find_files(inputs)
    with ExitStack() as stack:
        predictor = (
            RemotePredictor(stack.enter_context(Client(str(url))))
            if model is None
            else LocalPredictor(model, max_seconds, backend, device)
        )
        names = [_file_name(file) for file in files]
        formatter = format.make_formatter(as_json, predictor.emotions, options.top_k, names)
        bar = stack.enter_context(_terminal_bar(len(files)))
        for line in formatter.header:
            print_text(line)
        failed = 0
        for result in _predict_files(files, predictor, options):
            failed += result.prediction is None
            for line in formatter.format_result(result.file, result.prediction, result.error):
                print_text(line)
            if bar:
                bar.update()
    if failed:
        print_text(f"{failed} of {len(files)} files have no prediction", file=sys.stderr)
    return 1 if failed else 0


def _find_files(inputs: Sequence[str]) -> list[str | FileResult]:
    """Return the files of all inputs without duplicates, with a result for each input that has an error.

    Raises:
        ConfigError: there is no file.
    """
    files = list(dict.fromkeys(file for name in inputs for file in expand_paths(name)))
    if not any(isinstance(file, str) for file in files):
        reasons = "".join(f"\n  {file.file}: {file.error}" for file in files if isinstance(file, FileResult))
        raise ConfigError(f"found no recordings:{reasons}" if reasons else "no files were given")
    return files


def _terminal_bar(count: int) -> AbstractContextManager[ProgressBar | None]:
    """Return a progress bar if the results go to a file or pipe and a terminal can show the bar."""
    if sys.stderr.isatty() and not sys.stdout.isatty():
        return progress_bar(count, "predict", "file")
    return nullcontext()


def _predict_files(
    files: Sequence[str | FileResult], predictor: RecordingPredictor, options: PredictOptions
) -> Iterator[FileResult]:
    """Yield the results in the order of the files."""

    def predict_file(file: str | FileResult) -> FileResult:
        if isinstance(file, FileResult):
            return file
        try:
            return FileResult(file, predictor.predict(sources.read_clip_source(file), options))
        except LakdError as error:
            return FileResult(file, error=str(error))

    with ThreadPoolExecutor(predictor.max_in_flight) as pool:
        try:
            yield from pool.map(predict_file, files)
        finally:
            pool.shutdown(cancel_futures=True)


def _file_name(item: str | FileResult) -> str:
    return item.file if isinstance(item, FileResult) else item


def expand_paths(pattern: str) -> Iterator[str | FileResult]:
    """Yield the recordings of an argument: a file, all files below a folder, or all that match a pattern."""
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
    folders = [] if "**" in pattern else [match for match in matches if Path(match).is_dir()]  # ** is recursive already
    files = [match for match in matches if sources.has_audio_suffix(match) and Path(match).is_file()]
    if not files and not folders:
        yield FileResult(pattern, error="no recording matches this pattern")
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
        yield FileResult(folder, error=f"the folder has no recordings ({', '.join(sources.AUDIO_SUFFIXES[:4])} ...)")
    for file in files:
        yield storage.join(folder, file)
