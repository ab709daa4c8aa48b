"""The final layer of a network that starts from a pretrained classifier: its rows are matched by class name.

Rows of classes that the pretrained model has under the same name, or an abbreviation such as `ang`, are used; those of
other classes have random weights.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lakd_ray.labels import canonical_emotion


def match_classes(labels: Sequence[str], emotions: Sequence[str]) -> dict[str, int]:
    """Return the index of the pretrained class with the name of each emotion, for those that exactly one matches."""
    names = [canonical_emotion(label) for label in labels]
    return {emotion: names.index(emotion) for emotion in emotions if names.count(emotion) == 1}


def reorder_head(network: Any, rows: dict[str, int], emotions: Sequence[str]) -> None:
    """Replace the final layer by one for `emotions`, in place.

    Args:
        network: a transformers network with a plain head.
        rows: the row of the present final layer for an emotion; other emotions get random weights.
        emotions: names of the classes, in the order of the new layer.
    """
    source = network.classifier
    layer = nn.Linear(source.in_features, len(emotions), bias=source.bias is not None)
    network._init_weights(layer)  # as transformers initializes a new head
    with torch.no_grad():
        for index, emotion in enumerate(emotions):
            if emotion in rows:
                layer.weight[index] = source.weight[rows[emotion]]
                if source.bias is not None:
                    layer.bias[index] = source.bias[rows[emotion]]
    network.classifier = layer


def describe_head(labels: Sequence[str], rows: dict[str, int], emotions: Sequence[str]) -> str:
    """Return a sentence on which classes of a pretrained classifier are used."""
    found = f"the pretrained model has the classes {', '.join(labels)}"
    if not rows:
        return f"{found}: none of them is {', '.join(emotions)}, so the final layer starts from random weights"
    taken = ", ".join(
        emotion if labels[row] == emotion else f"{emotion} ({labels[row]})" for emotion, row in rows.items()
    )
    new = ", ".join(emotion for emotion in emotions if emotion not in rows)
    return f"{found}: the final layer starts from its weights for {taken}" + (f", and is new for {new}" if new else "")
