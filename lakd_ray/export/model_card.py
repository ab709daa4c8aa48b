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
from lakd_ray.models import Card
from lakd_ray.models.outputs import LANGUAGE_AWARE
from lakd_ray.report.rows import percent

TEMPLATE = "README.md.j2"
_PARADIGMS = {
    "ft": "fine-tuned on labels alone",
    "kd": "distilled from one multilingual teacher (KD)",
    "mtkd": "distilled from several teachers at once (MTKD)",
}
_UNSAID: dict[str, Any] = {"variant": None, "loss": None, "teachers": (), "teacher_languages": ()}


@dataclass(frozen=True)
class CorpusTold:
    """A corpus that it was trained on; what nobody said is None."""

    name: str
    importer: str | None
    licence: str | None
    synthetic: bool | None


@dataclass(frozen=True)
class Told:
    """What is known of a checkpoint beside its own card."""

    corpora: tuple[CorpusTold, ...]
    rows: tuple[Mapping[str, Any], ...]
    """Of a report, one for each language and one for all: see `lakd_ray.report.rows.Row`."""

    @classmethod
    def read(cls, card: Card, report: str | None, experiment: Experiment | None) -> Self:
        """From a report.json and an experiment, either of which may be absent.

        Raises:
            StorageError: the report cannot be read.
            ConfigError: it has no rows of this run.
        """
        content = {} if report is None else storage.read_json(report)
        known = {one["name"]: (one["importer"], one["synthetic"]) for one in content.get("corpora", ())}
        known |= {one.name: (one.importer, one.spoken_by_none) for one in experiment.corpora} if experiment else {}
        corpora = tuple(_corpus(name, *known.get(name, (None, None))) for name in card.corpora)
        return cls(corpora, () if report is None else _rows(card, content, report))


def _corpus(name: str, importer: str | None, synthetic: bool | None) -> CorpusTold:
    layout = IMPORTERS.get(importer or "")
    licence = None if layout is None else layout.licence
    return CorpusTold(name, importer, licence, synthetic)


def _rows(card: Card, content: Mapping[str, Any], report: str) -> tuple[Mapping[str, Any], ...]:
    run = _run_id(card)
    rows = {row["language"]: row for row in content.get("results", ()) if row["model"] == run}
    if not rows:
        there = ", ".join(sorted({row["model"] for row in content.get("results", ())})) or "none"
        raise ConfigError(
            f"{report} has no results of {run}, it has those of {there}: name the report.json of the experiment and "
            "fold that it was trained in, or leave --report out"
        )
    return tuple(rows.values())


def _run_id(card: Card) -> str:
    return str(card.training.get("run", {}).get("id", card.model_id.rpartition("/")[2]))


def text(card: Card, network: Mapping[str, Any], told: Told, figures: Mapping[str, Any] | None) -> str:
    """The card, whole.

    Args:
        card: the checkpoint's own.
        network: its config.json.
        figures: what `lakd_ray.export.graphs` says of its graphs; None where there are none.
    """
    run = _UNSAID | card.training.get("run", {})
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"percent": percent, "listed": _listed}
    template = resources.files("lakd_ray.export").joinpath(TEMPLATE).read_text(encoding="utf-8")
    aware = network["model_type"] == LANGUAGE_AWARE
    backbone = network["backbone"] if aware else network
    return environment.from_string(template).render(
        front=yaml.safe_dump(_front(card, told), sort_keys=False, allow_unicode=True, width=100),
        card=card,
        run=run,
        told=told,
        figures=figures,
        aware=aware,
        family=backbone["model_type"],
        layers=backbone.get("encoder_layers", backbone.get("num_hidden_layers")),
        size=backbone.get("d_model", backbone.get("hidden_size")),
        start=_start(run.get("recipe", {}).get("model", {})),
        how=_PARADIGMS.get(run.get("paradigm", "")),
        dev=card.training.get("dev", {}),
        synthetic=[one.name for one in told.corpora if one.synthetic],
        unsaid=[one.name for one in told.corpora if one.synthetic is None],
        pooled=POOLED,
        version=__version__,
    )


def _front(card: Card, told: Told) -> dict[str, Any]:
    front: dict[str, Any] = {
        "license": "unknown",
        "language": list(card.languages),
        "library_name": "transformers",
        "pipeline_tag": "audio-classification",
        "tags": ["speech-emotion-recognition", "emotion-recognition", "knowledge-distillation", "lakd-ray"],
        "metrics": ["recall", "accuracy"],
    }
    if told.rows:
        front["model-index"] = [{"name": card.model_id, "results": [_result(row, told) for row in told.rows]}]
    return front


def _result(row: Mapping[str, Any], told: Told) -> dict[str, Any]:
    name = ", ".join(one.name for one in told.corpora) or "test utterances"
    return {
        "task": {"type": "audio-classification", "name": "Speech emotion recognition"},
        "dataset": {"name": f"{name} ({row['language']})", "type": "unknown", "split": f"test, fold {row['fold']}"},
        "metrics": [
            {"type": "recall", "name": "Unweighted recall (UR)", "value": round(row["UR"], 4)},
            {"type": "accuracy", "name": "Accuracy (WR)", "value": round(row["WR"], 4)},
        ],
    }


def _start(model: Mapping[str, Any]) -> str:
    """Where its weights began. Only a name with a revision is surely the hub's and no path that tells of a machine."""
    if model.get("architecture") is not None:
        return "a random start"
    if model.get("pretrained") and model.get("revision"):
        return f"{model['pretrained']} (revision {model['revision']})"
    return "a pretrained network whose name the checkpoint does not tell" if model else "a start that is not recorded"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] if names else "none"
