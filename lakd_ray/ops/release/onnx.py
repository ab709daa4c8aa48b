"""ONNX graphs of a release, and onnx.json with their accuracy.

onnx.json:

    opset                 operator set of model.onnx
    logit_tolerance       allowed difference of a logit from that of torch, see `onnx_export.LOGIT_TOLERANCE`
    max_logit_difference  largest difference on the noise that every export is checked with
    int8
      int8_matmuls, fp32_matmuls  numbers of matrix products in int8 and in fp32
      max_probability_change      largest change of a probability, on that noise
      test                        `BackendAccuracy` on the test utterances of an experiment; null without an experiment
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lakd_ray.config import Experiment
from lakd_ray.inference.backend_accuracy import compare_backends, load_test_set
from lakd_ray.inference.backends import OnnxBackend
from lakd_ray.inference.predictor import Predictor
from lakd_ray.models import EmotionClassifier, onnx_export
from lakd_ray.models.checkpoint import load_local_checkpoint
from lakd_ray.models.onnx_runtime import OnnxRuntime

ONNX_REPORT_FILE = "onnx.json"


def write_onnx_graphs(source: Path, folder: Path, experiment: Experiment | None, *, int8: bool) -> dict[str, Any]:
    """Write the graphs of a verified checkpoint folder and onnx.json, and return the content of onnx.json.

    Args:
        source: local folder of the checkpoint.
        folder: local folder of the release.
        experiment: experiment with test utterances to evaluate int8 on; None to use only noise.
        int8: also write the graph in int8.

    Raises:
        CheckpointError: the graph cannot be written, or its outputs differ from those of torch.
        DataLeakageError, DataError: see `lakd_ray.inference.backend_accuracy.held_out`.
    """
    model, card = load_local_checkpoint(source)
    training_data = {"datasets": card.datasets, "undisclosed_models": sorted(card.provenance.undisclosed_models)}
    extra_metadata = {
        "lakd.temperature": str(card.calibration_temperature),
        "lakd.training_data": json.dumps(training_data),
    }
    figures: dict[str, Any] = {
        "opset": onnx_export.OPSET,
        "logit_tolerance": onnx_export.LOGIT_TOLERANCE,
        "max_logit_difference": onnx_export.export_onnx(model, folder / onnx_export.MODEL_FILE, extra_metadata),
    }
    if int8:
        stats = onnx_export.quantize_int8(folder / onnx_export.MODEL_FILE, folder / onnx_export.INT8_MODEL_FILE)
        runtime = OnnxRuntime(folder / onnx_export.INT8_MODEL_FILE)
        figures["int8"] = asdict(stats) | {
            "max_probability_change": _max_probability_change(model, runtime, card.calibration_temperature),
            "test": None,
        }
        if experiment is not None:
            test_set = load_test_set(experiment, card)
            accuracy = compare_backends(Predictor(model, card), Predictor(OnnxBackend(runtime), card), test_set)
            figures["int8"]["test"] = asdict(accuracy)
    (folder / ONNX_REPORT_FILE).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


@torch.inference_mode()
def _max_probability_change(model: EmotionClassifier, runtime: OnnxRuntime, calibration_temperature: float) -> float:
    changes = []
    for batch in onnx_export.make_check_batches(len(model.languages)):
        inputs = batch.wave_BT, batch.lengths_B, batch.languages_B
        expected_BC, actual_BC = (
            (network(*inputs).logits_BC / calibration_temperature).softmax(-1) for network in (model, runtime)
        )
        changes.append(float((expected_BC - actual_BC).abs().max()))
    return max(changes)
