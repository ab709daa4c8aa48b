"""The ONNX graphs of a release, and what is known of them.

onnx.json beside them:

    opset, logit_tolerance          of model.onnx: operator set, how far a logit may be from torch's (see `graph.LOGIT_TOLERANCE`)
    max_logit_difference    of a logit from torch's, on the noise that every export is checked with
    int8                  int8_matmuls: matrices kept in int8; fp32_matmuls: products that stay in fp32; max_probability_change: of a
                          probability, on that noise; test: the same by an experiment's test utterances, null if unknown
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
    """Write the graphs of a verified checkpoint folder and their figures, which are returned too.

    Args:
        experiment: whose test utterances int8 is measured by; None for the checking noise alone.
        int8: write the graph in int8 as well.

    Raises:
        CheckpointError: the graph cannot be written, or does not answer as torch does.
        DataLeakageError, DataError: see `lakd_ray.inference.backend_accuracy.held_out`.
    """
    model, card = load_local_checkpoint(source)
    told = {"lakd.emotions": json.dumps(card.emotions), "lakd.temperature": str(card.calibration_temperature)}
    figures: dict[str, Any] = {
        "opset": onnx_export.OPSET,
        "logit_tolerance": onnx_export.LOGIT_TOLERANCE,
        "max_logit_difference": onnx_export.export_onnx(model, folder / onnx_export.MODEL_FILE, told),
    }
    if int8:
        quantised = onnx_export.quantize_int8(folder / onnx_export.MODEL_FILE, folder / onnx_export.INT8_MODEL_FILE)
        answering = OnnxRuntime(folder / onnx_export.INT8_MODEL_FILE)
        figures["int8"] = asdict(quantised) | {
            "max_probability_change": _max_probability_change(model, answering, card.calibration_temperature),
            "test": None,
        }
        if experiment is not None:
            clips = load_test_set(experiment, card)
            found = compare_backends(Predictor(model, card), Predictor(OnnxBackend(answering), card), clips)
            figures["int8"]["test"] = asdict(found)
    (folder / ONNX_REPORT_FILE).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


@torch.inference_mode()
def _max_probability_change(model: EmotionClassifier, runtime: OnnxRuntime, calibration_temperature: float) -> float:
    changes = []
    for batch in onnx_export.make_check_batches(len(model.languages)):
        given = batch.wave_BT, batch.lengths_B, batch.languages_B
        expected_BC, found_BC = (
            (each(*given).logits_BC / calibration_temperature).softmax(-1) for each in (model, runtime)
        )
        changes.append(float((expected_BC - found_BC).abs().max()))
    return max(changes)
