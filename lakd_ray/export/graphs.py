"""The ONNX graphs of a release, and what is known of them.

onnx.json beside them:

    opset, bound          of model.onnx: operator set, how far a logit may be from torch's (see `graph.BOUND`)
    largest_difference    of a logit from torch's, on the noise that every export is checked with
    int8                  weights: matrices kept in int8; left: products that stay in fp32; largest_change: of a
                          probability, on that noise; test: the same by an experiment's test utterances, null if unknown
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lakd_ray.config import Experiment
from lakd_ray.infer.backends import OfGraph
from lakd_ray.infer.predictor import Predictor
from lakd_ray.infer.price import held_out, price
from lakd_ray.models import EmotionClassifier, graph
from lakd_ray.models.checkpoint import load_folder
from lakd_ray.models.runtimes import OnnxRuntime

FIGURES = "onnx.json"


def write(source: Path, folder: Path, experiment: Experiment | None, *, int8: bool) -> dict[str, Any]:
    """Write the graphs of a verified checkpoint folder and their figures, which are returned too.

    Args:
        experiment: whose test utterances int8 is measured by; None for the checking noise alone.
        int8: write the graph in int8 as well.

    Raises:
        CheckpointError: the graph cannot be written, or does not answer as torch does.
        HygieneError, DataError: see `lakd_ray.infer.price.held_out`.
    """
    model, card = load_folder(source)
    told = {"lakd.emotions": json.dumps(card.emotions), "lakd.temperature": str(card.temperature)}
    figures: dict[str, Any] = {
        "opset": graph.OPSET,
        "bound": graph.BOUND,
        "largest_difference": graph.write(model, folder / graph.MODEL, told),
    }
    if int8:
        quantised = graph.quantise(folder / graph.MODEL, folder / graph.INT8)
        answering = OnnxRuntime(folder / graph.INT8)
        figures["int8"] = asdict(quantised) | {
            "largest_change": _largest_change(model, answering, card.temperature),
            "test": None,
        }
        if experiment is not None:
            clips = held_out(experiment, card)
            found = price(Predictor(model, card), Predictor(OfGraph(answering), card), clips)
            figures["int8"]["test"] = asdict(found)
    (folder / FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


@torch.inference_mode()
def _largest_change(model: EmotionClassifier, answering: OnnxRuntime, temperature: float) -> float:
    changes = []
    for batch in graph.check_batches(len(model.languages)):
        given = batch.wave_BT, batch.lengths_B, batch.languages_B
        expected_BC, found_BC = ((each(*given).logits_BC / temperature).softmax(-1) for each in (model, answering))
        changes.append(float((expected_BC - found_BC).abs().max()))
    return max(changes)
