"""Decode recordings and predict their emotions, with limits of the cost and fair turns between clients.

The cost of a request is the audio that the model processes for it, in seconds: its recordings, and all segments of
their timelines. Segments that overlap count each time. It is known once the recordings are decoded, and is limited
before the model receives any of them.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from lakd_ray.audio import SAMPLE_RATE, Recording, Wave
from lakd_ray.config import ServeConfig
from lakd_ray.errors import DataError
from lakd_ray.grouping import group_by_budget
from lakd_ray.inference.options import PredictOptions
from lakd_ray.inference.recordings import assemble_result, plan_waves, validate_segment_count
from lakd_ray.inference.results import EmotionResult, ModelPredictions
from lakd_ray.serve.decoding import RequestDecoder
from lakd_ray.serve.errors import RequestError
from lakd_ray.serve.model import ModelHandle
from lakd_ray.serve.scheduling import Call, Caller, FairQueue

MAX_CALL_AUDIO_S = 10.0  # audio in one call of a replica: longer timelines take turns with other requests
_MIN_CALL_AUDIO_S = 1.0  # a call costs at least as much as this much audio
_WORKER_AUDIO_S = {"cpu": 20.0, "gpu": 120.0}  # audio that keeps a replica busy: two of its batches
_MAX_BUSY_CLIENTS = 2.0  # number of clients that may have as much audio in progress as one may: bounds the memory
_MAX_VERSION_ATTEMPTS = 4  # attempts to get all predictions of a recording from the same version of the model


@dataclass(frozen=True)
class Upload:
    """An encoded recording, and the model that predicts its emotion."""

    content: bytes
    model: ModelHandle


class PredictionService:
    """Decodes and predicts within the limits of the `serve` section.

    Args:
        config: the section.
        decoder: decodes the recordings.
    """

    def __init__(self, config: ServeConfig, decoder: RequestDecoder):
        self._config, self._decoder = config, decoder
        self._decoding = FairQueue(workers=config.decoder_processes, max_wait_s=config.max_wait_s)
        self._predicting = FairQueue(
            workers=config.max_replicas or config.replicas,
            worker_cost=_WORKER_AUDIO_S["gpu" if config.gpus else "cpu"],
            max_wait_s=config.max_wait_s,
            max_client_cost=config.max_client_audio_s,
            max_cost=_MAX_BUSY_CLIENTS * config.max_client_audio_s,
        )

    async def predict(
        self, caller: Caller, upload: Upload, options: PredictOptions, *, max_seconds: float | None = None
    ) -> EmotionResult:
        """Return the result of one recording.

        Args:
            caller: the origin of the request.
            upload: the recording.
            options: options of the prediction.
            max_seconds: longest accepted recording; `serve.max_seconds` if None.

        Raises:
            RequestError: the recording is rejected, its timeline costs too much, or the endpoint is busy.
        """
        (result,) = await self.predict_batch(caller, [upload], options, max_seconds=max_seconds)
        if isinstance(result, RequestError):
            raise result
        return result

    async def predict_batch(
        self, caller: Caller, uploads: Sequence[Upload], options: PredictOptions, *, max_seconds: float | None = None
    ) -> list[EmotionResult | RequestError]:
        """Return the result of each recording, or the error in its place.

        Raises:
            RequestError: the request costs too much, or the endpoint is busy; then nothing is predicted.
        """
        limit = self._config.max_seconds if max_seconds is None else max_seconds
        decoded: list[Recording] = []

        async def decode(content: bytes) -> Recording | RequestError:
            self._check_duration(decoded)  # before the next one is decoded: a small form can hold hours of silence
            recording = await self._decode(content, limit, options)
            if isinstance(recording, Recording):
                decoded.append(recording)
            return recording

        recordings = await self._decoding.run(caller, [Call(partial(decode, upload.content)) for upload in uploads])
        self._check_cost([recording for recording in recordings if isinstance(recording, Recording)], options)
        jobs = [
            _Job(upload.model, recording, options)
            for upload, recording in zip(uploads, recordings, strict=True)
            if isinstance(recording, Recording)
        ]
        results = iter(await self._predict_jobs(caller, jobs))
        return [next(results) if isinstance(recording, Recording) else recording for recording in recordings]

    async def _decode(self, content: bytes, max_seconds: float, options: PredictOptions) -> Recording | RequestError:
        try:
            recording = await self._decoder.decode(content, max_seconds)
            validate_segment_count(len(recording.wave_T), options)
        except RequestError as error:
            return error
        except DataError as error:
            return RequestError(422, str(error))
        return recording

    def _check_duration(self, recordings: Sequence[Recording]) -> None:
        limit = self._config.max_request_audio_s
        duration_s = sum(len(recording.wave_T) for recording in recordings) / SAMPLE_RATE
        if duration_s > limit:
            raise RequestError(
                413,
                f"the recordings of the request last more than the limit of {limit:g} s in all: send them in several "
                "requests",
            )

    def _check_cost(self, recordings: Sequence[Recording], options: PredictOptions) -> None:
        limit = self._config.max_request_audio_s
        self._check_duration(recordings)
        cost = sum(_audio_seconds(plan_waves(recording, options)) for recording in recordings)
        if cost > limit:
            raise RequestError(
                422,
                f"the timeline has {cost:.0f} s of audio, because its segments overlap, expected at most {limit:g} s: "
                "raise hop_s, or send less audio",
            )

    async def _predict_jobs(self, caller: Caller, jobs: Sequence["_Job"]) -> list[EmotionResult | RequestError]:
        """Predict recordings in calls of limited size, which take turns with those of other requests."""
        if not jobs:
            return []
        calls = [call for job in jobs for call in job.calls]
        outputs = iter(await self._predicting.run(caller, calls))
        parts = [(job, [next(outputs) for _ in job.calls]) for job in jobs]
        return [await self._assemble(caller, job, job_outputs) for job, job_outputs in parts]

    async def _assemble(
        self, caller: Caller, job: "_Job", outputs: list[ModelPredictions | RequestError]
    ) -> EmotionResult | RequestError:
        """Return the result of a recording, whose predictions must be from the same version of the model.

        During a rolling update they may not be; then they are made again.
        """
        for remaining in reversed(range(_MAX_VERSION_ATTEMPTS)):
            parts = [output for output in outputs if isinstance(output, ModelPredictions)]
            for output in outputs:
                if isinstance(output, RequestError):
                    return output
            if len({part.info.version for part in parts}) == 1:
                predictions = [prediction for part in parts for prediction in part.predictions]
                return assemble_result(parts[0].info, job.recording, predictions, job.options)
            if remaining:
                outputs = await self._predicting.run(caller, job.calls)
        return RequestError(503, "a new version of the model is being deployed: send the request again")


class _Job:
    """A decoded recording, with the calls of the model that its result needs."""

    def __init__(self, model: ModelHandle, recording: Recording, options: PredictOptions):
        self.recording, self.options = recording, options
        waves = plan_waves(recording, options)
        parts = group_by_budget(waves, lambda wave_T: len(wave_T) / SAMPLE_RATE, MAX_CALL_AUDIO_S)
        self.calls = [
            Call(
                partial(_capture_error, model.predict, part, options.language),
                max(_MIN_CALL_AUDIO_S, _audio_seconds(part)),
            )
            for part in parts
        ]


async def _capture_error(
    predict: Callable[..., Awaitable[ModelPredictions]], waves: list[Wave], language: str | None
) -> ModelPredictions | RequestError:
    """Return the error of a call instead of raising it, which would end the other recordings of the request."""
    try:
        return await predict(waves, language)
    except RequestError as error:
        return error


def _audio_seconds(waves: Sequence[Wave]) -> float:
    return sum(map(len, waves)) / SAMPLE_RATE
