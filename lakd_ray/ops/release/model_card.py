"""The model card of a release: a README.md with the metadata of the Hugging Face hub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Self

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lakd_ray import __version__, storage
from lakd_ray.config import Experiment
from lakd_ray.corpora import IMPORTERS
from lakd_ray.errors import ConfigError
from lakd_ray.escaping import for_markdown
from lakd_ray.models import CheckpointMetadata
from lakd_ray.models.outputs import LANGUAGE_AWARE_MODEL_TYPE
from lakd_ray.report.result_table import format_language, format_percent

TEMPLATE_FILE = "README.md.j2"
_PARADIGM_DESCRIPTIONS = {
    "ft": "fine-tuned on labels alone",
    "kd": "distilled from one multilingual teacher (KD)",
    "mtkd": "distilled from several teachers at once (MTKD)",
}
_RUN_DEFAULTS: dict[str, Any] = {"variant": None, "loss": None, "teachers": (), "teacher_languages": ()}


@dataclass(frozen=True)
class CorpusInfo:
    """A corpus in the training data; None stands for unknown."""

    name: str
    importer: str | None
    license: str | None
    synthetic: bool | None


@dataclass(frozen=True)
class CardContext:
    """Information about a checkpoint from outside its own metadata."""

    corpora: tuple[CorpusInfo, ...]
    rows: tuple[Mapping[str, Any], ...]
    """Test results, one row per language and one for all, see `lakd_ray.report.result_table.ResultRow`."""

    @classmethod
    def load(cls, metadata: CheckpointMetadata, report: str | None, experiment: Experiment | None) -> Self:
        """Load the information from a report.json and an experiment, either of which may be None.

        Raises:
            StorageError: the report cannot be read.
            ConfigError: the report has no rows of this run.
        """
        content = {} if report is None else storage.read_json(report)
        known = {corpus["name"]: (corpus["importer"], corpus["synthetic"]) for corpus in content.get("corpora", ())}
        known |= (
            {corpus.name: (corpus.importer, corpus.is_synthetic) for corpus in experiment.corpora} if experiment else {}
        )
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
        available = ", ".join(sorted({row["model"] for row in content.get("results", ())})) or "none"
        raise ConfigError(
            f"{report} has no results of {run}, only of {available}: use the report.json of its experiment and fold, "
            "or omit --report"
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
    """Render the model card as Markdown.

    Args:
        metadata: metadata of the checkpoint.
        network_config: content of its config.json.
        context: test results and corpora.
        onnx_report: result of `lakd_ray.ops.release.onnx.write_onnx_graphs`; None without graphs.
    """
    run = _RUN_DEFAULTS | metadata.training.get("run", {})
    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_escape,
    )
    environment.filters |= {"percent": format_percent, "format_list": _format_list, "language_name": format_language}
    template = resources.files("lakd_ray.ops.release").joinpath(TEMPLATE_FILE).read_text(encoding="utf-8")
    aware = network_config["model_type"] == LANGUAGE_AWARE_MODEL_TYPE
    backbone = network_config["backbone"] if aware else network_config
    return environment.from_string(template).render(
        front_matter=Markup(
            yaml.safe_dump(_build_front_matter(metadata, context), sort_keys=False, allow_unicode=True, width=100)
        ),
        card=metadata,
        run=run,
        context=context,
        figures=onnx_report,
        aware=aware,
        family=backbone["model_type"],
        layers=backbone.get("encoder_layers", backbone.get("num_hidden_layers")),
        size=backbone.get("d_model", backbone.get("hidden_size")),
        start=_describe_initialization(run.get("recipe", {}).get("model", {})),
        how=_PARADIGM_DESCRIPTIONS.get(run.get("paradigm", "")),
        dev=metadata.training.get("dev", {}),
        synthetic=[corpus.name for corpus in context.corpora if corpus.synthetic],
        origin_unrecorded=[corpus.name for corpus in context.corpora if corpus.synthetic is None],
        datasets=metadata.datasets,
        version=__version__,
    )


def _escape(value: Any) -> Any:
    """Escape every text that the template inserts, since a checkpoint's names may contain markup."""
    return for_markdown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


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
    name = ", ".join(corpus.name for corpus in context.corpora) or "test utterances"
    return {
        "task": {"type": "audio-classification", "name": "Speech emotion recognition"},
        "dataset": {
            "name": f"{name} ({format_language(row['language'])})",
            "type": "unknown",
            "split": f"test, fold {row['fold']}",
        },
        "metrics": [
            {"type": "recall", "name": "Unweighted recall (UR)", "value": round(row["UR"], 4)},
            {"type": "accuracy", "name": "Accuracy (WR)", "value": round(row["WR"], 4)},
        ],
    }


def _describe_initialization(model_config: Mapping[str, Any]) -> str:
    """Describe the initial weights; only a name with a revision is certainly of the hub and not a private path."""
    if model_config.get("config") is not None:
        return "random weights"
    if model_config.get("pretrained") and model_config.get("revision"):
        return f"{model_config['pretrained']} (revision {model_config['revision']})"
    return "a pretrained network whose name is not recorded" if model_config else "weights that are not recorded"


def _format_list(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] if names else "none"
