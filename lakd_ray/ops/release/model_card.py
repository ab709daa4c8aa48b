"""The model card: README.md of a release, as the Hugging Face hub reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Self

import yaml
from jinja2 import Environment, StrictUndefined

from lakd_ray import __version__, storage
from lakd_ray.config import Experiment
from lakd_ray.corpora import IMPORTERS
from lakd_ray.errors import ConfigError
from lakd_ray.labels import POOLED
from lakd_ray.models import CheckpointMetadata
from lakd_ray.models.outputs import LANGUAGE_AWARE_MODEL_TYPE
from lakd_ray.report.results import format_percent

TEMPLATE_FILE = "README.md.j2"
_PARADIGM_DESCRIPTIONS = {
    "ft": "fine-tuned on labels alone",
    "kd": "distilled from one multilingual teacher (KD)",
    "mtkd": "distilled from several teachers at once (MTKD)",
}
_RUN_DEFAULTS: dict[str, Any] = {"variant": None, "loss": None, "teachers": (), "teacher_languages": ()}


@dataclass(frozen=True)
class CorpusInfo:
    """A corpus that it was trained on; what nobody said is None."""

    name: str
    importer: str | None
    license: str | None
    synthetic: bool | None


@dataclass(frozen=True)
class CardContext:
    """What is known of a checkpoint beside its own card."""

    corpora: tuple[CorpusInfo, ...]
    rows: tuple[Mapping[str, Any], ...]
    """Of a report, one for each language and one for all: see `lakd_ray.report.results.ResultRow`."""

    @classmethod
    def load(cls, metadata: CheckpointMetadata, report: str | None, experiment: Experiment | None) -> Self:
        """From a report.json and an experiment, either of which may be absent.

        Raises:
            StorageError: the report cannot be read.
            ConfigError: it has no rows of this run.
        """
        content = {} if report is None else storage.read_json(report)
        known = {one["name"]: (one["importer"], one["synthetic"]) for one in content.get("corpora", ())}
        known |= {one.name: (one.importer, one.is_synthetic) for one in experiment.corpora} if experiment else {}
        corpora = tuple(_corpus_info(name, *known.get(name, (None, None))) for name in metadata.corpora)
        return cls(corpora, () if report is None else _read_report_rows(metadata, content, report))


def _corpus_info(name: str, importer: str | None, synthetic: bool | None) -> CorpusInfo:
    layout = IMPORTERS.get(importer or "")
    license = None if layout is None else layout.license
    return CorpusInfo(name, importer, license, synthetic)


def _read_report_rows(
    metadata: CheckpointMetadata, content: Mapping[str, Any], report: str
) -> tuple[Mapping[str, Any], ...]:
    run = _run_id(metadata)
    rows = {row["language"]: row for row in content.get("results", ()) if row["model"] == run}
    if not rows:
        there = ", ".join(sorted({row["model"] for row in content.get("results", ())})) or "none"
        raise ConfigError(
            f"{report} has no results of {run}, it has those of {there}: name the report.json of the experiment and "
            "fold that it was trained in, or leave --report out"
        )
    return tuple(rows.values())


def _run_id(metadata: CheckpointMetadata) -> str:
    return str(metadata.training.get("run", {}).get("id", metadata.model_id.rpartition("/")[2]))


def render_model_card(
    metadata: CheckpointMetadata,
    network_config: Mapping[str, Any],
    context: CardContext,
    onnx_report: Mapping[str, Any] | None,
) -> str:
    """The card, whole.

    Args:
        card: the checkpoint's own.
        network: its config.json.
        figures: what `lakd_ray.ops.release.onnx` says of its graphs; None where there are none.
    """
    run = _RUN_DEFAULTS | metadata.training.get("run", {})
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"percent": format_percent, "format_list": _format_list}
    template = resources.files("lakd_ray.ops.release").joinpath(TEMPLATE_FILE).read_text(encoding="utf-8")
    aware = network_config["model_type"] == LANGUAGE_AWARE_MODEL_TYPE
    backbone = network_config["backbone"] if aware else network_config
    return environment.from_string(template).render(
        front_matter=yaml.safe_dump(
            _build_front_matter(metadata, context), sort_keys=False, allow_unicode=True, width=100
        ),
        card=metadata,
        run=run,
        told=context,
        figures=onnx_report,
        aware=aware,
        family=backbone["model_type"],
        layers=backbone.get("encoder_layers", backbone.get("num_hidden_layers")),
        size=backbone.get("d_model", backbone.get("hidden_size")),
        start=_describe_initialization(run.get("recipe", {}).get("model", {})),
        how=_PARADIGM_DESCRIPTIONS.get(run.get("paradigm", "")),
        dev=metadata.training.get("dev", {}),
        synthetic=[one.name for one in context.corpora if one.synthetic],
        origin_unrecorded=[one.name for one in context.corpora if one.synthetic is None],
        pooled=POOLED,
        version=__version__,
    )


def _build_front_matter(metadata: CheckpointMetadata, context: CardContext) -> dict[str, Any]:
    front_matter: dict[str, Any] = {
        "license": "unknown",
        "language": list(metadata.languages),
        "library_name": "transformers",
        "pipeline_tag": "audio-classification",
        "tags": ["speech-emotion-recognition", "emotion-recognition", "knowledge-distillation", "lakd-ray"],
        "metrics": ["recall", "accuracy"],
    }
    if context.rows:
        front_matter["model-index"] = [
            {"name": metadata.model_id, "results": [_build_index_result(row, context) for row in context.rows]}
        ]
    return front_matter


def _build_index_result(row: Mapping[str, Any], context: CardContext) -> dict[str, Any]:
    name = ", ".join(one.name for one in context.corpora) or "test utterances"
    return {
        "task": {"type": "audio-classification", "name": "Speech emotion recognition"},
        "dataset": {"name": f"{name} ({row['language']})", "type": "unknown", "split": f"test, fold {row['fold']}"},
        "metrics": [
            {"type": "recall", "name": "Unweighted recall (UR)", "value": round(row["UR"], 4)},
            {"type": "accuracy", "name": "Accuracy (WR)", "value": round(row["WR"], 4)},
        ],
    }


def _describe_initialization(model_config: Mapping[str, Any]) -> str:
    """Where its weights began. Only a name with a revision is surely the hub's and no path that tells of a machine."""
    if model_config.get("config") is not None:
        return "a random start"
    if model_config.get("pretrained") and model_config.get("revision"):
        return f"{model_config['pretrained']} (revision {model_config['revision']})"
    return (
        "a pretrained network whose name the checkpoint does not tell"
        if model_config
        else "a start that is not recorded"
    )


def _format_list(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] if names else "none"
