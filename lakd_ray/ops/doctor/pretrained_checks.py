"""Checks of pretrained models and external teachers without loading them: availability and training data."""

from collections.abc import Collection, Iterator
from pathlib import Path

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.data.manifest import MANIFEST_FILE, load_manifest
from lakd_ray.data.provenance import Provenance
from lakd_ray.errors import ConfigError, DataLeakageError
from lakd_ray.launch.run_inputs import check_sources
from lakd_ray.models.origin import read_origin
from lakd_ray.ops.doctor.check import CheckResult, Status
from lakd_ray.runs.graph import build_run_graph

_CONFIG_FILE, _WEIGHT_FILES = "config.json", ("model.safetensors", "model.safetensors.index.json")
_Finding = tuple[Status, str]


def check_pretrained(config: Experiment, stages: Collection[str], *, timeout_s: float | None) -> CheckResult:
    """Check that every pretrained model is in a folder, in the cache of the hub, or on the hub.

    Args:
        config: the experiment.
        stages: stages to run.
        timeout_s: seconds for a response of the hub; None skips requests to the hub.
    """
    models = [recipe.model for recipe in (config.teacher, config.student)]
    required = {(model.pretrained, model.revision) for model in models if model.pretrained is not None}
    if {"distill", "tune"} & set(stages):
        required |= {(teacher.checkpoint, teacher.revision) for teacher in config.distill.external_teachers}
    if not required:
        return CheckResult("pretrained models", "ok", "none required, networks are initialized at random")
    findings = [_check_model(name, revision, timeout_s) for name, revision in sorted(required, key=str)]
    found = "; ".join(text for _, text in findings)
    statuses = {status for status, _ in findings}
    if statuses == {"ok"}:
        return CheckResult("pretrained models", "ok", found)
    expected = "folders or models of the hub with config.json and model.safetensors"
    hint = "correct the name, allow network access, or download it first: hf download NAME"
    return CheckResult("pretrained models", "fail" if "fail" in statuses else "warn", found, expected, hint)


def check_training_data(config: Experiment) -> CheckResult:
    """Check that no pretrained model or external teacher was trained on dev or test data of this fold.

    Before the data are prepared, this compares the names of datasets only.
    """
    name, expected = "training data", "models that were not trained on dev or test speakers"
    is_prepared = storage.exists(storage.join(config.stage_folder("prepare"), MANIFEST_FILE))
    try:
        found = list(_check_prepared_sources(config) if is_prepared else _check_datasets(config))
    except (DataLeakageError, ConfigError) as error:
        return CheckResult(name, "fail", str(error), expected, "choose a different model, or correct `trained_on`")
    if unknown := sorted({model for provenance in found for model in provenance.undisclosed_models}):
        text = f"not known for {', '.join(unknown)}: tables mark the results that depend on it"
        return CheckResult(name, "warn", text, "known training data", "declare it with trained_on, [] for none")
    return CheckResult(name, "ok", "no model was trained on dev or test speakers")


def _check_prepared_sources(config: Experiment) -> Iterator[Provenance]:
    graph, manifest = build_run_graph(config), load_manifest(config)
    for run in graph.all_runs:
        yield from check_sources(graph, manifest, run).values()


def _check_datasets(config: Experiment) -> Iterator[Provenance]:
    datasets = {corpus.public_dataset for corpus in config.corpora}
    models = [recipe.model for recipe in (config.teacher, config.student)]
    sources = [(model.pretrained, model.revision, model.trained_on) for model in models]
    sources += [(item.checkpoint, item.revision, item.trained_on) for item in config.distill.external_teachers]
    for source, revision, trained_on in dict.fromkeys(sources):
        if source is None or trained_on is not None:
            continue
        provenance = read_origin(source, revision)
        if shared := {entry.partition(":")[0] for entry in provenance.trained_on.datasets} & datasets:
            raise DataLeakageError(
                f"{source} was trained on {', '.join(sorted(filter(None, shared)))}, a corpus of this experiment"
            )
        yield provenance


def _check_model(name: str, revision: str | None, timeout_s: float | None) -> _Finding:
    """Check a folder if there is one with this name, a model of the hub otherwise, as transformers does."""
    if storage.is_remote(name) or Path(name).is_absolute() or Path(name).is_dir():
        return _check_folder(name)
    if _is_cached(name, revision):
        return "ok", f"{name} is in the cache of the hub"
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "fail", f"{name} is not in the cache of the hub, and HF_HUB_OFFLINE disables requests"
    if timeout_s is None:
        return "warn", f"{name} is not in the cache of the hub"
    return _check_hub(name, revision, timeout_s)


def _check_folder(location: str) -> _Finding:
    if not storage.exists(location):
        return "fail", f"{location} does not exist"
    names = {info.name for info in storage.list_files(location) if info.location == storage.join(location, info.name)}
    missing = [] if _CONFIG_FILE in names else [_CONFIG_FILE]
    missing += [] if names & set(_WEIGHT_FILES) else [_WEIGHT_FILES[0]]
    return ("fail", f"{location} has no {' and no '.join(missing)}") if missing else ("ok", f"{location} exists")


def _is_cached(name: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    def is_cached(file: str) -> bool:
        return isinstance(try_to_load_from_cache(name, file, revision=revision), str)

    try:
        return is_cached(_CONFIG_FILE) and any(map(is_cached, _WEIGHT_FILES))
    except HFValidationError:  # not a valid name; the request to the hub reports it
        return False


def _check_hub(name: str, revision: str | None, timeout_s: float) -> _Finding:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]  # of its HTTP client

    try:
        files = HfApi().model_info(name, revision=revision, timeout=timeout_s).siblings or []
    except (OSError, HTTPError, HFValidationError) as error:
        return (
            "fail",
            f"{name} is not in the cache of the hub, and not available from it ({str(error).splitlines()[0]})",
        )
    if not {file.rfilename for file in files} & set(_WEIGHT_FILES):
        return "warn", f"{name} has no {_WEIGHT_FILES[0]} on the hub"
    return "ok", f"{name} is on the hub, not yet in the cache"
