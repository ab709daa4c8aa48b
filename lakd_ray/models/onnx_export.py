"""A network as an ONNX graph: written and held against torch, quantised; `lakd_ray.models.onnx_runtime` runs it.

The graph is `EmotionClassifier.forward` itself, masks and all, so an utterance's answer is its own there too:

    waves      [B, T] float32    16 kHz, in [-1, 1], whatever lies beyond the lengths
    lengths    [B]    int64      samples of each
    languages  [B]    int64      of a language-aware student alone: see `lakd_ray.models.classifier.language_ids`
    logits            [B, C] float32
    language_logits   [B, L] float32, of a language-aware student alone

Needs `pip install "lakd-ray[onnx]"`. Shape suffixes: B utterances, T samples, C classes, L languages.
"""

import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.errors import CheckpointError
from lakd_ray.models import onnx_runtime
from lakd_ray.models.classifier import EmotionClassifier, pad_batch
from lakd_ray.models.outputs import IDENTIFY_LANGUAGE, ClassifierOutput

MODEL_FILE, INT8_MODEL_FILE = "model.onnx", "model.int8.onnx"
OPSET = 20
LOGIT_TOLERANCE = 1e-4
"""How far a logit may be from torch's, as a share of the largest one where that is above 1."""
QUANTIZED_OPS = ("MatMul", "Gemm")

_CHECK_SECONDS = ((1.0,), (0.4, 2.5, 1.3), (3.0, 0.2, 3.0, 0.7, 1.9))  # seconds of the waves of each batch


@dataclass(frozen=True)
class CheckBatch:
    """What a graph is held against torch with."""

    wave_BT: Tensor
    lengths_B: Tensor
    languages_B: Tensor

    def unbatched(self) -> Iterator["CheckBatch"]:
        """Each utterance by itself, without its padding."""
        for row, length in enumerate(self.lengths_B.tolist()):
            part = slice(row, row + 1)
            yield CheckBatch(self.wave_BT[part, :length], self.lengths_B[part], self.languages_B[part])


def make_check_batches(num_languages: int) -> list[CheckBatch]:
    """Noise of several lengths and loudnesses, always the same; every language, UNKNOWN and IDENTIFY_LANGUAGE take turns."""
    generator = torch.Generator().manual_seed(0)
    batches: list[CheckBatch] = []
    for seconds in _CHECK_SECONDS:
        waves = [0.1 * torch.randn(round(each * SAMPLE_RATE), generator=generator) for each in seconds]
        told = [IDENTIFY_LANGUAGE + (len(batches) + row) % (num_languages + 2) for row in range(len(waves))]
        batches.append(CheckBatch(*pad_batch(waves), torch.tensor(told)))
    return batches


def require_onnx_packages() -> None:
    """Refuse to go on without the packages that write a graph and check it.

    Raises:
        ConfigError: one is not installed.
    """
    onnx_runtime.require_packages("onnx", "onnx", "onnxscript", "onnxruntime")


class _ExportModule(nn.Module):
    """What the graph computes. The network is registered, so that its weights are seen."""

    def __init__(self, model: EmotionClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, waves: Tensor, lengths: Tensor, languages: Tensor | None = None) -> tuple[Tensor, ...]:
        found = self.model(waves, lengths, languages)
        if found.language_logits_BL is None:
            return (found.logits_BC,)
        return found.logits_BC, found.language_logits_BL


def export_onnx(model: EmotionClassifier, file: Path, extra_metadata: Mapping[str, str] | None = None) -> float:
    """Write a network in eval mode, on the CPU, as a graph; nothing is left where it does not answer as torch does.

    Weights above 2 GB lie beside it, in `<file>.data`.

    Args:
        told: metadata that the file carries.

    Returns:
        The largest difference of a logit from torch's, over `make_check_batches`, together and alone.

    Raises:
        ConfigError: a package is missing.
        CheckpointError: torch cannot export this network, or the graph's answers are further than `LOGIT_TOLERANCE` away.
    """
    require_onnx_packages()
    try:
        with _suppress_exporter_warnings():
            program = _export_program(model)
    except torch.onnx.OnnxExporterError as error:
        family = model.network.config.model_type
        raise CheckpointError(
            f"torch cannot write this {family} network as ONNX: {_summarize_error(error)} Export it without --onnx, and "
            "serve it with the backend torch"
        ) from error
    metadata = {onnx_runtime.LANGUAGES_KEY: json.dumps(model.languages), **(extra_metadata or {})}
    program.model.metadata_props.update(metadata)
    program.save(file)
    try:
        return _check_against_torch(model, onnx_runtime.OnnxRuntime(file))
    except CheckpointError:
        for written in (file, file.with_name(file.name + ".data")):
            written.unlink(missing_ok=True)
        raise


def _export_program(model: EmotionClassifier) -> Any:
    example = make_check_batches(len(model.languages))[1]
    given: tuple[Tensor, ...] = (example.wave_BT, example.lengths_B)
    shapes: dict[str, Any] = {"waves": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}}
    outputs = ["logits"]
    if model.languages:
        given += (example.languages_B,)
        shapes["languages"] = {0: "batch"}
        outputs.append("language_logits")
    with torch.no_grad():
        model(*given)  # what it keeps from its first call must be a tensor, not the exporter's stand-in for one
        return torch.onnx.export(
            _ExportModule(model).eval(),
            given,
            dynamo=True,
            input_names=list(shapes),
            output_names=outputs,
            dynamic_shapes=shapes,
            opset_version=OPSET,
            verbose=False,
        )


@contextmanager
def _suppress_exporter_warnings() -> Iterator[None]:
    """Without what the exporter says of itself: that torchvision is missing, what it could not fold."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Both inputs have the axis `batch`, which is what is meant.
            warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
            # torch's exporter is not done with torch's own move to another test of a tree's leaves.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _summarize_error(error: Exception) -> str:
    cause: BaseException = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0].rstrip('.') if lines else ''}."


@torch.inference_mode()
def _check_against_torch(model: EmotionClassifier, runtime: onnx_runtime.GraphRuntime) -> float:
    largest = 0.0
    for batch in make_check_batches(len(model.languages)):
        expected = _concatenate_logits(model(batch.wave_BT, batch.lengths_B, batch.languages_B))
        together = _concatenate_logits(runtime(batch.wave_BT, batch.lengths_B, batch.languages_B))
        alone = torch.cat(
            [_concatenate_logits(runtime(one.wave_BT, one.lengths_B, one.languages_B)) for one in batch.unbatched()]
        )
        scale = max(1.0, float(expected.abs().max()))
        for found, how in ((together, "in a batch"), (alone, "alone")):
            difference = float((found - expected).abs().max())
            if not difference <= LOGIT_TOLERANCE * scale:  # NaN is no number below it
                raise CheckpointError(
                    f"the ONNX graph's logits are {difference:.2g} away from torch's on {len(found)} utterances {how}, "
                    f"expected at most {LOGIT_TOLERANCE * scale:.2g}: it is not written. Take the backend torch for this network"
                )
            largest = max(largest, difference)
    return largest


def _concatenate_logits(outputs: ClassifierOutput) -> Tensor:
    parts = [outputs.logits_BC] + ([] if outputs.language_logits_BL is None else [outputs.language_logits_BL])
    return torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class QuantizationStats:
    """What of a graph computes with eight bits."""

    int8_matmuls: int
    """Matrices that are kept in int8."""
    fp32_matmuls: int
    """Products that stay in fp32: both sides are computed, as in attention."""


def quantize_int8(source: Path, target: Path) -> QuantizationStats:
    """Write a graph whose products with a weight matrix compute in int8, one scale for each output channel.

    Activations are quantised as they come (dynamically), to eight bits for each tensor. Convolutions, norms, softmax
    and the products within attention stay in fp32.

    Raises:
        ConfigError: a package is missing.
    """
    require_onnx_packages()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises on the root logger to prepare the graph; the exporter has done so
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(QUANTIZED_OPS),
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=source.with_name(source.name + ".data").exists(),
        )
    finally:
        root.setLevel(level)
    nodes = Counter(node.op_type for node in cast(Any, onnx.load(str(target), load_external_data=False)).graph.node)
    return QuantizationStats(nodes["MatMulInteger"], nodes["MatMul"] + nodes["Gemm"])
