"""Run a graph of `lakd_ray.models.onnx_export` on CPUs, with onnxruntime or OpenVINO.

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

EMOTIONS_KEY, LANGUAGES_KEY = "lakd.emotions", "lakd.languages"
"""Metadata keys of a graph: its classes in the order of the logits, and the languages that it distinguishes."""

# OpenVINO compiles kernels for each new input shape. So utterances run one by one, padded to a multiple of half a
# second, which does not change the logits; and shapes of up to ten seconds can be compiled in advance.
_PAD_SAMPLES, _WARMUP_COUNT = 8_000, 20


def require_packages(extra: str, *packages: str) -> None:
    """Check that packages are installed.

    Args:
        extra: the optional dependency group of this project that contains them.
        packages: names of the modules.

    Raises:
        ConfigError: a package is not installed.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f'{", ".join(missing)} is required but not installed: pip install "lakd-ray[{extra}]"')


class GraphRuntime(ABC):
    """Base class of runtimes, which compute logits with an exported graph.

    Attributes:
        emotions: the classes in the order of the logits.
        languages: the languages that the graph distinguishes; empty unless it is a language-aware student.
        threads: number of threads of one call.
        warmup_lengths: lengths of waves in samples whose first call is slower than the next, so should run in advance.
    """

    emotions: tuple[str, ...]
    languages: tuple[str, ...]
    threads: int
    warmup_lengths: tuple[int, ...] = (_PAD_SAMPLES,)

    @abstractmethod
    def __call__(self, wave_BT: Tensor, lengths_B: Tensor, languages_B: Tensor) -> ClassifierOutput:
        """Compute the logits of a batch of waves, as `EmotionClassifier.forward` does."""

    def _build_feed(self, wave_BT: Tensor, lengths_B: Tensor, languages_B: Tensor) -> dict[str, Any]:
        feed = {"waves": wave_BT.float().numpy(), "lengths": lengths_B.numpy()}
        return feed | ({"languages": languages_B.numpy()} if self.languages else {})


class OnnxRuntime(GraphRuntime):
    """Run a graph with onnxruntime on the CPU.

    Args:
        file: written by `export_onnx` or `quantize_int8`.
        threads: number of threads; torch's number if None.

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
        # Threads that spin between two calls take the CPU from decoding and from other replicas.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no other common base
            raise _load_error(file, "onnxruntime", error) from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.emotions, self.languages = (
            _parse_names(file, key, metadata.get(key)) for key in (EMOTIONS_KEY, LANGUAGES_KEY)
        )

    def __call__(self, wave_BT: Tensor, lengths_B: Tensor, languages_B: Tensor) -> ClassifierOutput:
        """Compute the logits: see `GraphRuntime.__call__`."""
        return ClassifierOutput(
            *map(torch.from_numpy, self._session.run(None, self._build_feed(wave_BT, lengths_B, languages_B)))
        )


class OpenVinoRuntime(GraphRuntime):
    """Run a graph with OpenVINO on the CPU.

    Args:
        file: written by `export_onnx`.
        threads: number of threads; torch's number if None.
        precision: of matrix products and convolutions.

    Raises:
        ConfigError: OpenVINO is not installed, or the CPU has no bf16.
        CheckpointError: the file is not such a graph, or OpenVINO does not support the network (Whisper).
    """

    warmup_lengths = tuple(_PAD_SAMPLES * count for count in range(1, _WARMUP_COUNT + 1))

    def __init__(self, file: Path, threads: int | None = None, precision: Literal["f32", "bf16"] = "f32") -> None:
        require_packages("openvino", "openvino")
        import openvino

        self.threads = threads or torch.get_num_threads()
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ConfigError("this CPU has no bf16 arithmetic: use the backend openvino (fp32) or onnx-int8")
        properties = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # all replicas of a machine would be pinned to the same cores
        }
        try:
            graph = core.read_model(file)
            self._infer_request = core.compile_model(graph, "CPU", properties).create_infer_request()
        except RuntimeError as error:
            raise _load_error(file, "OpenVINO", error) from error
        paths = {key: ["framework", key] for key in (EMOTIONS_KEY, LANGUAGES_KEY)}
        self.emotions, self.languages = (
            _parse_names(file, key, graph.get_rt_info(path).astype(str) if graph.has_rt_info(path) else None)
            for key, path in paths.items()
        )

    def __call__(self, wave_BT: Tensor, lengths_B: Tensor, languages_B: Tensor) -> ClassifierOutput:
        """Compute the logits: see `GraphRuntime.__call__`."""
        rows = [
            self._run_utterance(wave_BT[row : row + 1], length, language)
            for row, (length, language) in enumerate(zip(lengths_B, languages_B, strict=True))
        ]
        return ClassifierOutput(*(torch.cat(parts) for parts in zip(*rows, strict=True)))

    def _run_utterance(self, wave_1T: Tensor, length: Tensor, language: Tensor) -> list[Tensor]:
        padded_1T = nn.functional.pad(wave_1T[:, : int(length)], (0, -int(length) % _PAD_SAMPLES))
        feed = self._build_feed(padded_1T, length.unsqueeze(0), language.unsqueeze(0))
        return [torch.from_numpy(output.copy()) for output in self._infer_request.infer(feed).to_tuple()]


def _parse_names(file: Path, key: str, value: str | None) -> tuple[str, ...]:
    if value is None:
        raise CheckpointError(f"{file} has no metadata {key}: expected a graph that `lakd export --onnx` wrote")
    return tuple(json.loads(value))


def _load_error(file: Path, runtime: str, error: Exception) -> CheckpointError:
    cause = [line for line in str(error).splitlines() if any(map(str.isalpha, line))][-1]  # OpenVINO's summary
    return CheckpointError(
        f"{runtime} cannot load {file}: {cause.strip().rstrip('.')}. If the file is corrupted, export the checkpoint "
        "again; if the runtime does not support the network, use the torch backend"
    )
