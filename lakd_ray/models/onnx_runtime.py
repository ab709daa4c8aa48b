"""What runs a graph of `lakd_ray.models.onnx_export` on CPUs: onnxruntime, or OpenVINO.

Shape suffixes: B utterances, T samples, C classes, L languages.
"""

import importlib.util
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lakd_ray.errors import CheckpointError, ConfigError
from lakd_ray.models.outputs import ClassifierOutput

LANGUAGES_KEY = "lakd.languages"
"""Metadata of a graph: the languages that it knows apart."""

# OpenVINO makes its kernels anew for each shape that it has not met. So waves go through it one by one, padded to whole
# half seconds, which changes no answer, and shapes of up to ten seconds can be met beforehand.
_PAD_SAMPLES, _WARMUP_COUNT = 8_000, 20


def require_packages(extra: str, *packages: str) -> None:
    """Refuse to go on without some packages.

    Args:
        extra: the part of this project's installation that has them.

    Raises:
        ConfigError: one is not installed.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f'this needs {", ".join(missing)}, not installed here: pip install "lakd-ray[{extra}]"')


class GraphRuntime(ABC):
    """A graph that answers.

    Attributes:
        languages: those that it knows apart, if it is a language-aware student's.
        threads: that one call computes with.
        warmup_lengths: lengths of waves, in samples, whose first answers take longer than the next.
    """

    languages: tuple[str, ...]
    threads: int
    warmup_lengths: tuple[int, ...] = (_PAD_SAMPLES,)

    @abstractmethod
    def __call__(self, wave_BT: Tensor, lengths_B: Tensor, languages_B: Tensor) -> ClassifierOutput:
        """As `EmotionClassifier.forward`, of waves alone."""

    def _build_feed(self, wave_BT: Tensor, lengths_B: Tensor, languages_B: Tensor) -> dict[str, Any]:
        given = {"waves": wave_BT.float().numpy(), "lengths": lengths_B.numpy()}
        return given | ({"languages": languages_B.numpy()} if self.languages else {})


class OnnxRuntime(GraphRuntime):
    """onnxruntime.

    Args:
        file: as `graph.write` or `graph.quantize_int8` made it.
        threads: torch's number if None.

    Raises:
        ConfigError: onnxruntime is not installed.
        CheckpointError: the file is not such a graph.
    """

    def __init__(self, file: Path, threads: int | None = None) -> None:
        require_packages("onnx", "onnxruntime")
        import onnxruntime

        self.threads = threads or torch.get_num_threads()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Threads that spin between two calls take the CPU from whatever else runs beside: decoding, other replicas.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no other common base
            raise _load_error(file, "onnxruntime", error) from error
        self.languages = _parse_languages(file, self._session.get_modelmeta().custom_metadata_map.get(LANGUAGES_KEY))

    def __call__(self, wave_BT: Tensor, lengths_B: Tensor, languages_B: Tensor) -> ClassifierOutput:
        """As `GraphRuntime`."""
        return ClassifierOutput(
            *map(torch.from_numpy, self._session.run(None, self._build_feed(wave_BT, lengths_B, languages_B)))
        )


class OpenVinoRuntime(GraphRuntime):
    """OpenVINO.

    Args:
        file: as `graph.write` made it.
        threads: torch's number if None.
        precision: what products and convolutions compute in.

    Raises:
        ConfigError: OpenVINO is not installed, or the CPU has no bf16.
        CheckpointError: the file is not such a graph, or of a network that OpenVINO does not know (Whisper's).
    """

    warmup_lengths = tuple(_PAD_SAMPLES * count for count in range(1, _WARMUP_COUNT + 1))

    def __init__(self, file: Path, threads: int | None = None, precision: Literal["f32", "bf16"] = "f32") -> None:
        require_packages("openvino", "openvino")
        import openvino

        self.threads = threads or torch.get_num_threads()
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ConfigError("this CPU has no bf16 arithmetic: take the backend openvino, in fp32, or onnx-int8")
        wanted = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # several replicas of a machine would share the first cores
        }
        try:
            found = core.read_model(file)
            self._infer_request = core.compile_model(found, "CPU", wanted).create_infer_request()
        except RuntimeError as error:
            raise _load_error(file, "OpenVINO", error) from error
        place = ["framework", LANGUAGES_KEY]
        self.languages = _parse_languages(
            file, found.get_rt_info(place).astype(str) if found.has_rt_info(place) else None
        )

    def __call__(self, wave_BT: Tensor, lengths_B: Tensor, languages_B: Tensor) -> ClassifierOutput:
        """As `GraphRuntime`."""
        rows = [
            self._run_utterance(wave_BT[row : row + 1], *each)
            for row, each in enumerate(zip(lengths_B, languages_B, strict=True))
        ]
        return ClassifierOutput(*(torch.cat(parts) for parts in zip(*rows, strict=True)))

    def _run_utterance(self, wave_1T: Tensor, length: Tensor, language: Tensor) -> list[Tensor]:
        padded_1T = nn.functional.pad(wave_1T[:, : int(length)], (0, -int(length) % _PAD_SAMPLES))
        given = self._build_feed(padded_1T, length.unsqueeze(0), language.unsqueeze(0))
        return [torch.from_numpy(each.copy()) for each in self._infer_request.infer(given).to_tuple()]


def _parse_languages(file: Path, value: str | None) -> tuple[str, ...]:
    if value is None:
        raise CheckpointError(f"{file} was not made by this project: expected a graph that `lakd export --onnx` wrote")
    return tuple(json.loads(value))


def _load_error(file: Path, runtime: str, error: Exception) -> CheckpointError:
    cause = [line for line in str(error).splitlines() if any(map(str.isalpha, line))][-1]  # OpenVINO's summary
    return CheckpointError(
        f"{file} cannot be run by {runtime}: {cause.strip().rstrip('.')}. If the file is damaged, export the "
        "checkpoint again; if that runtime does not know the network, take another backend (torch knows all)"
    )
