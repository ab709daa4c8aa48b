"""Export a network as an ONNX graph, check it against torch, and quantize it.

The graph is `EmotionClassifier.forward` including its masks, so that logits do not depend on the batch either.
`lakd_ray.models.onnx_runtime` runs it. Inputs and outputs:

    waves      [B, T] float32    16 kHz, in [-1, 1], any values beyond the lengths
    lengths    [B]    int64      number of samples
    languages  [B]    int64      language-aware students only: see `lakd_ray.models.classifier.encode_languages`
    logits            [B, C] float32
    language_logits   [B, L] float32, language-aware students only

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
"""Maximum difference of a logit from torch's, relative to the largest logit where that is above 1."""
QUANTIZED_OPS = ("MatMul", "Gemm")

_CHECK_SECONDS = ((1.0,), (0.4, 2.5, 1.3), (3.0, 0.2, 3.0, 0.7, 1.9))  # durations of the waves of each batch


@dataclass(frozen=True)
class CheckBatch:
    """Inputs for comparing a graph with torch."""

    wave_BT: Tensor
    lengths_B: Tensor
    languages_B: Tensor

    def unbatched(self) -> Iterator["CheckBatch"]:
        """Yield each utterance as its own batch, without padding."""
        for index, length in enumerate(self.lengths_B.tolist()):
            row = slice(index, index + 1)
            yield CheckBatch(self.wave_BT[row, :length], self.lengths_B[row], self.languages_B[row])


def make_check_batches(num_languages: int) -> list[CheckBatch]:
    """Make deterministic noise of several lengths, with every language, UNKNOWN and IDENTIFY_LANGUAGE in turn."""
    generator = torch.Generator().manual_seed(0)
    batches: list[CheckBatch] = []
    for seconds in _CHECK_SECONDS:
        waves = [0.1 * torch.randn(round(duration * SAMPLE_RATE), generator=generator) for duration in seconds]
        languages = [IDENTIFY_LANGUAGE + (len(batches) + row) % (num_languages + 2) for row in range(len(waves))]
        batches.append(CheckBatch(*pad_batch(waves), torch.tensor(languages)))
    return batches


def require_onnx_packages() -> None:
    """Check that the packages for writing and checking a graph are installed.

    Raises:
        ConfigError: a package is not installed.
    """
    onnx_runtime.require_packages("onnx", "onnx", "onnxscript", "onnxruntime")


class _ExportModule(nn.Module):
    """The function that the graph computes; the network is a submodule, so that its weights are exported."""

    def __init__(self, model: EmotionClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, waves: Tensor, lengths: Tensor, languages: Tensor | None = None) -> tuple[Tensor, ...]:
        outputs = self.model(waves, lengths, languages)
        if outputs.language_logits_BL is None:
            return (outputs.logits_BC,)
        return outputs.logits_BC, outputs.language_logits_BL


def export_onnx(model: EmotionClassifier, file: Path, extra_metadata: Mapping[str, str] | None = None) -> float:
    """Write a network as an ONNX graph; delete the file again if its logits differ from torch's.

    Weights above 2 GB are written to `<file>.data` in the same folder.

    Args:
        model: a network in eval mode, on the CPU.
        file: the file to write.
        extra_metadata: metadata to store in the file.

    Returns:
        The largest difference of a logit from torch's over `make_check_batches`, batched and unbatched.

    Raises:
        ConfigError: a package is missing.
        CheckpointError: torch cannot export this network, or logits differ by more than `LOGIT_TOLERANCE`.
    """
    require_onnx_packages()
    try:
        with _suppress_exporter_warnings():
            program = _export_program(model)
    except torch.onnx.OnnxExporterError as error:
        family = model.network.config.model_type
        raise CheckpointError(
            f"torch cannot export this {family} network to ONNX: {_summarize_error(error)} Export it without --onnx, "
            "and serve it with the torch backend"
        ) from error
    names = {onnx_runtime.EMOTIONS_KEY: model.emotions, onnx_runtime.LANGUAGES_KEY: model.languages}
    metadata = {key: json.dumps(value) for key, value in names.items()} | dict(extra_metadata or {})
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
    inputs: tuple[Tensor, ...] = (example.wave_BT, example.lengths_B)
    shapes: dict[str, Any] = {"waves": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}}
    outputs = ["logits"]
    if model.languages:
        inputs += (example.languages_B,)
        shapes["languages"] = {0: "batch"}
        outputs.append("language_logits")
    with torch.no_grad():
        model(*inputs)  # what it caches in its first call must be a real tensor, not the exporter's fake tensor
        return torch.onnx.export(
            _ExportModule(model).eval(),
            inputs,
            dynamo=True,
            input_names=list(shapes),
            output_names=outputs,
            dynamic_shapes=shapes,
            opset_version=OPSET,
            verbose=False,
        )


@contextmanager
def _suppress_exporter_warnings() -> Iterator[None]:
    """Silence the exporter's remarks, for example on missing torchvision and on constants it cannot fold."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Both inputs share the axis `batch` on purpose.
            warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
            # torch's exporter still uses a pytree check that torch itself has deprecated.
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
        batched = _concatenate_logits(runtime(batch.wave_BT, batch.lengths_B, batch.languages_B))
        unbatched = torch.cat(
            [_concatenate_logits(runtime(row.wave_BT, row.lengths_B, row.languages_B)) for row in batch.unbatched()]
        )
        scale = max(1.0, float(expected.abs().max()))
        for logits, mode in ((batched, "batched"), (unbatched, "one by one")):
            difference = float((logits - expected).abs().max())
            if not difference <= LOGIT_TOLERANCE * scale:  # false for NaN too
                raise CheckpointError(
                    f"the ONNX graph's logits differ from torch's by {difference:.2g} on {len(logits)} utterances "
                    f"({mode}), expected at most {LOGIT_TOLERANCE * scale:.2g}. The graph is not written: use the "
                    "torch backend for this network"
                )
            largest = max(largest, difference)
    return largest


def _concatenate_logits(outputs: ClassifierOutput) -> Tensor:
    parts = [outputs.logits_BC] + ([] if outputs.language_logits_BL is None else [outputs.language_logits_BL])
    return torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class QuantizationStats:
    """Number of matrix products of a graph in int8 and in fp32."""

    int8_matmuls: int
    """Products with a weight matrix that is stored in int8."""
    fp32_matmuls: int
    """Products that stay in fp32, because both sides are activations, as in attention."""


def quantize_int8(source: Path, target: Path) -> QuantizationStats:
    """Write a graph whose products with weight matrices compute in int8, with one scale for each output channel.

    Activations are quantized dynamically, with one scale for each tensor. Convolutions, norms, softmax and the products
    within attention stay in fp32.

    Raises:
        ConfigError: a package is missing.
    """
    require_onnx_packages()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it logs advice to preprocess the graph, which the exporter has done
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
