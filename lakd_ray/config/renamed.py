"""Configuration keys and values that were renamed; an old one gives an error that names the new one.

The tables are for one release: delete entries that are older.
"""

from collections.abc import Iterable, Iterator
from typing import Any

_RECIPE = {
    "model.layers": "num_layers",
    "model.architecture": "config",
    "model.language_aware.unknown_share": "language_dropout",
    "model.language_aware.identify": "language_id_loss_weight",
    "optim.warmup": "warmup_ratio",
    "optim.schedule": "lr_schedule",
    "optim.clip": "max_grad_norm",
    "optim.average": "ema_decay",
    "optim.patience": "early_stopping_patience",
}
_DISTILL_LOSS = {
    "tau": "weighting_temperature",
    "own_language": "same_language_weight",
    "confidence": "confidence_by",
    "attention": "attention_loss_weight",
    "entropy": "entropy_weight",
    "standardise": "standardize_logits",
}

# Dotted old key -> last part of the new key. Parents have their new names; `*` is an index or a name.
RENAMED = {
    "base": "base_experiment",
    "corpora.*.only_languages": "languages",
    "corpora.*.emotions": "emotion_map",
    "audio.too_long": "on_too_long",
    "audio.max_clipped": "max_clipped_fraction",
    "audio.max_quarantined": "max_quarantined_fraction",
    "audio.duplicates": "on_duplicate",
    **{f"{recipe}.{old}": new for recipe in ("teacher", "student") for old, new in _RECIPE.items()},
    "distill.brought": "external_teachers",
    "distill.external_teachers.*.emotions": "emotion_map",
    "distill.external_teachers.*.heard": "trained_on",
    **{f"distill.{loss}.{old}": new for loss in ("kd", "mtkd") for old, new in _DISTILL_LOSS.items()},
    "batch.padded_seconds": "max_padded_seconds",
    "batch.language_alpha": "language_sampling_alpha",
    "batch.window_row_groups": "shuffle_row_groups",
    "train.side_by_side": "parallel_runs",
    "train.recompute": "gradient_checkpointing",
    "train.offload": "offload_optimizer",
    "train.accumulation": "gradient_accumulation_steps",
    "train.cached_features": "cache_features",
    "train.keep_states": "keep_resume_states",
    "train.keep_best": "keep_checkpoints",
    "train.timeout_s": "collective_timeout_s",
    "tune.concurrent": "max_concurrent_trials",
    "tune.stopping": "scheduler",
    "tune.grace": "grace_epochs",
    "tune.reduction": "reduction_factor",
    "tune.against": "second_objective",
    "tune.study": "study_storage",
    "tune.space.*.when": "conditions",
    "tune.confirm": "reevaluate",
    "tune.reevaluate.best": "top_k",
    "serve.decoders": "decoder_processes",
    "serve.api_keys": "api_keys_file",
    "serve.canary.share": "traffic_fraction",
    "cluster.logs": "log_to_driver",
}

# Dotted old key -> dotted new key in a different section.
MOVED = {"tune.gpus_per_trial": "train.gpus_per_worker"}

# Dotted new key -> {old value: new value}.
RENAMED_VALUES = {
    "audio.on_too_long": {"cut": "truncate"},
    "distill.kd.weighting": {"similarity-centred": "similarity-centered"},
    "distill.mtkd.weighting": {"similarity-centred": "similarity-centered"},
}

_Path = tuple[str, ...]


def find_renamed(tree: Any, prefix: str = "") -> list[str]:
    """Return an error line for each old key or old value of an experiment's raw tree.

    Args:
        tree: mappings, lists and values as YAML has them; keys of `grid.variants.*`, of `tune.space` and of its
            `conditions` may be dotted.
        prefix: what error lines put before a key, for instance `grid.variants.large.`.
    """
    return list(dict.fromkeys(_find(tree, (), (), prefix)))


def nest(key: str, value: Any) -> dict[str, Any]:
    """Return nested mappings for a dotted key: `a.b` and 1 give {a: {b: 1}}."""
    first, *rest = key.split(".")
    for part in reversed(rest):
        value = {part: value}
    return {first: value}


def _find(node: Any, old: _Path, new: _Path, prefix: str) -> Iterator[str]:
    """Yield the error lines below `node`, whose path is `old` in the file and `new` with every part renamed."""
    for key, value in _items(node):
        if len(new) == 3 and new[:2] == ("grid", "variants"):
            yield from find_renamed(nest(key, value), f"{prefix}{'.'.join(old)}.")
            continue
        current = _lookup((*new, key))
        old_key, new_key = ".".join((*old, key)), ".".join((*new, current))
        values = _lookup_values((*new, current))
        if moved := MOVED.get(new_key):
            yield f"renamed key `{prefix}{old_key}`: use `{prefix}{moved}`"
        elif isinstance(value, str) and value in values:
            yield f"renamed value `{prefix}{old_key}: {value}`: use `{prefix}{new_key}: {values[value]}`"
        elif current != key:
            yield f"renamed key `{prefix}{old_key}`: use `{prefix}{new_key}`"
        if new == ("tune", "space"):
            yield from _find_in_setting(key, _choices(value), f"{prefix}tune.space.")
        elif new[:2] == ("tune", "space") and current == "conditions" and isinstance(value, dict):
            for other, allowed in value.items():
                yield from _find_in_setting(str(other), allowed, f"{prefix}{old_key}.")
            continue
        yield from _find(value, (*old, key), (*new, current), prefix)


def _find_in_setting(key: str, values: Any, prefix: str) -> Iterator[str]:
    """Yield the error lines of a dotted key and of the values that it may have."""
    for value in [None, *(values if isinstance(values, list) else [])]:
        yield from find_renamed(nest(key, value), prefix)


def _items(node: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(node, dict):
        return [(str(key), value) for key, value in node.items()]
    return [(str(index), item) for index, item in enumerate(node)] if isinstance(node, list) else []


def _choices(dimension: Any) -> Any:
    return dimension.get("choices") if isinstance(dimension, dict) else None


def _lookup(path: _Path) -> str:
    """Return the current name of the last part of a path."""
    for pattern, name in RENAMED.items():
        if _matches(path, pattern):
            return name
    return path[-1]


def _lookup_values(path: _Path) -> dict[str, str]:
    return next((values for pattern, values in RENAMED_VALUES.items() if _matches(path, pattern)), {})


def _matches(path: _Path, pattern: str) -> bool:
    parts = pattern.split(".")
    return len(parts) == len(path) and all(part in ("*", name) for part, name in zip(parts, path, strict=True))
