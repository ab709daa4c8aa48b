"""Whether pretrained encoders and teachers brought along can be had, without loading any."""

from collections.abc import Collection
from pathlib import Path

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.doctor.results import Result, Status

_CONFIG, _WEIGHTS = "config.json", ("model.safetensors", "model.safetensors.index.json")
_Found = tuple[Status, str]


def encoders(config: Experiment, stages: Collection[str], *, answer_s: float | None) -> Result:
    """In their folder, in the hub's cache, or at the hub.

    Args:
        answer_s: seconds that the hub has for an answer; None: it is not asked.
    """
    models = [recipe.model for recipe in (config.teacher, config.student)]
    wanted = {(model.pretrained, model.revision) for model in models if model.pretrained is not None}
    if {"distill", "tune"} & set(stages):
        wanted |= {(teacher.checkpoint, teacher.revision) for teacher in config.distill.brought}
    if not wanted:
        return Result("encoders", "ok", "none is needed: networks start at random")
    found = [_find(name, revision, answer_s) for name, revision in sorted(wanted, key=str)]
    told = "; ".join(text for _, text in found)
    statuses = {status for status, _ in found}
    if statuses == {"ok"}:
        return Result("encoders", "ok", told)
    expected = "folders with config.json and model.safetensors, or models of the hub that have them"
    todo = "correct the name, give network access, or load it beforehand: hf download NAME"
    return Result("encoders", "fail" if "fail" in statuses else "warn", told, expected, todo)


def _find(name: str, revision: str | None, answer_s: float | None) -> _Found:
    """A folder where there is one, else a name of the hub, as transformers takes it."""
    if storage.is_remote(name) or Path(name).is_absolute() or Path(name).is_dir():
        return _in_folder(name)
    if _cached(name, revision):
        return "ok", f"{name} is in the hub's cache"
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "fail", f"{name} is not in the hub's cache, and HF_HUB_OFFLINE forbids asking"
    if answer_s is None:
        return "warn", f"{name} is not in the hub's cache"
    return _at_hub(name, revision, answer_s)


def _in_folder(location: str) -> _Found:
    if not storage.exists(location):
        return "fail", f"there is nothing at {location}"
    names = {info.name for info in storage.list_files(location) if info.location == storage.join(location, info.name)}
    missing = [] if _CONFIG in names else [_CONFIG]
    missing += [] if names & set(_WEIGHTS) else [_WEIGHTS[0]]
    return ("fail", f"{location} has no {' and no '.join(missing)}") if missing else ("ok", f"{location} is there")


def _cached(name: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    def there(file: str) -> bool:
        return isinstance(try_to_load_from_cache(name, file, revision=revision), str)

    try:
        return there(_CONFIG) and any(map(there, _WEIGHTS))
    except HFValidationError:  # no possible name; asking the hub says so
        return False


def _at_hub(name: str, revision: str | None, answer_s: float) -> _Found:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]  # its client's own

    try:
        files = HfApi().model_info(name, revision=revision, timeout=answer_s).siblings or []
    except (OSError, HTTPError, HFValidationError) as error:
        return "fail", f"{name} is not in the hub's cache, and cannot be had from it ({str(error).splitlines()[0]})"
    if not {file.rfilename for file in files} & set(_WEIGHTS):
        return "warn", f"{name} has no {_WEIGHTS[0]} at the hub"
    return "ok", f"{name} is at the hub, not yet in its cache"
