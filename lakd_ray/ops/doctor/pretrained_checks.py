"""Whether pretrained encoders and teachers brought along can be had, without loading any."""

from collections.abc import Collection
from pathlib import Path

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.ops.doctor.check import CheckResult, Status

_CONFIG_FILE, _WEIGHT_FILES = "config.json", ("model.safetensors", "model.safetensors.index.json")
_Finding = tuple[Status, str]


def check_pretrained(config: Experiment, stages: Collection[str], *, timeout_s: float | None) -> CheckResult:
    """In their folder, in the hub's cache, or at the hub.

    Args:
        answer_s: seconds that the hub has for an answer; None: it is not asked.
    """
    models = [recipe.model for recipe in (config.teacher, config.student)]
    wanted = {(model.pretrained, model.revision) for model in models if model.pretrained is not None}
    if {"distill", "tune"} & set(stages):
        wanted |= {(teacher.checkpoint, teacher.revision) for teacher in config.distill.external_teachers}
    if not wanted:
        return CheckResult("encoders", "ok", "none is needed: networks start at random")
    found = [_check_model(name, revision, timeout_s) for name, revision in sorted(wanted, key=str)]
    told = "; ".join(text for _, text in found)
    statuses = {status for status, _ in found}
    if statuses == {"ok"}:
        return CheckResult("encoders", "ok", told)
    expected = "folders with config.json and model.safetensors, or models of the hub that have them"
    todo = "correct the name, give network access, or load it beforehand: hf download NAME"
    return CheckResult("encoders", "fail" if "fail" in statuses else "warn", told, expected, todo)


def _check_model(name: str, revision: str | None, timeout_s: float | None) -> _Finding:
    """A folder where there is one, else a name of the hub, as transformers takes it."""
    if storage.is_remote(name) or Path(name).is_absolute() or Path(name).is_dir():
        return _check_folder(name)
    if _is_cached(name, revision):
        return "ok", f"{name} is in the hub's cache"
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "fail", f"{name} is not in the hub's cache, and HF_HUB_OFFLINE forbids asking"
    if timeout_s is None:
        return "warn", f"{name} is not in the hub's cache"
    return _check_hub(name, revision, timeout_s)


def _check_folder(location: str) -> _Finding:
    if not storage.exists(location):
        return "fail", f"there is nothing at {location}"
    names = {info.name for info in storage.list_files(location) if info.location == storage.join(location, info.name)}
    missing = [] if _CONFIG_FILE in names else [_CONFIG_FILE]
    missing += [] if names & set(_WEIGHT_FILES) else [_WEIGHT_FILES[0]]
    return ("fail", f"{location} has no {' and no '.join(missing)}") if missing else ("ok", f"{location} is there")


def _is_cached(name: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    def there(file: str) -> bool:
        return isinstance(try_to_load_from_cache(name, file, revision=revision), str)

    try:
        return there(_CONFIG_FILE) and any(map(there, _WEIGHT_FILES))
    except HFValidationError:  # no possible name; asking the hub says so
        return False


def _check_hub(name: str, revision: str | None, timeout_s: float) -> _Finding:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]  # its client's own

    try:
        files = HfApi().model_info(name, revision=revision, timeout=timeout_s).siblings or []
    except (OSError, HTTPError, HFValidationError) as error:
        return "fail", f"{name} is not in the hub's cache, and cannot be had from it ({str(error).splitlines()[0]})"
    if not {file.rfilename for file in files} & set(_WEIGHT_FILES):
        return "warn", f"{name} has no {_WEIGHT_FILES[0]} at the hub"
    return "ok", f"{name} is at the hub, not yet in its cache"
