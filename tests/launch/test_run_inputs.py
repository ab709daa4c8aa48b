"""Test that models from outside the experiment are not evaluated on their training data, by their public datasets."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support import three_utterances
from support import tiny_models as tiny

from lakd_ray.config import Experiment
from lakd_ray.data.manifest import Manifest
from lakd_ray.data.provenance import Provenance
from lakd_ray.errors import ConfigError, DataError, DataLeakageError
from lakd_ray.inference import evaluate
from lakd_ray.launch.run_inputs import check_sources, resolve_inputs
from lakd_ray.models.min_length import min_samples
from lakd_ray.runs.graph import build_run_graph

SUPERB = "superb/wav2vec2-base-superb-er"


def experiment(model: dict[str, Any], **changes: Any) -> Experiment:
    recipe = {"model": model}
    corpora = [{"name": "mine", "root": "nowhere", "importer": "iemocap"}]
    return Experiment.model_validate(
        {"name": "x", "languages": ["en"], "corpora": corpora, "teacher": recipe, "student": recipe} | changes
    )


def manifest(*speakers: str, dataset: str | None = "iemocap") -> Manifest:
    return three_utterances.manifest(speakers, datasets={"mine": dataset} if dataset else {})


def check(config: Experiment, data: Manifest) -> Provenance:
    graph = build_run_graph(config)
    run = next(run for run in graph.students if run.paradigm == "mtkd")
    return Provenance().inherit(check_sources(graph, data, run).values())


CROSSED = ("mine:Ses02F", "mine:Ses03F", "mine:Ses01F")


def test_a_known_model_is_rejected_by_dataset_whatever_the_corpus_is_named() -> None:
    config = experiment({"pretrained": SUPERB})
    with pytest.raises(DataLeakageError, match=rf"{SUPERB} was trained on data of the dev split.*iemocap:Ses03F"):
        check(config, manifest(*CROSSED))
    with pytest.raises(DataLeakageError, match=r"test split.*iemocap:Ses04M \(1 of its 1 speakers\).*`trained_on`"):
        check(config, manifest("mine:Ses02F", "mine:Ses01M", "mine:Ses04M"))
    check(config, manifest("mine:Ses02F", "mine:Ses01M", "mine:Ses01F"))
    check(config, manifest(*CROSSED, dataset=None))


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ({"root": "/data/IEMOCAP_full/manifest.csv"}, r"corpus mine .* seems to be a copy: set its `dataset: iemocap`"),
        (
            {"root": "/data/x", "dataset": "iemocap"},
            r"speakers of iemocap, such as iemocap:Ses02F, but corpus mine has",
        ),
        ({"root": "/data/x", "dataset": "other"}, None),
        ({"root": "/data/notiemocap/x"}, None),
        ({"root": "/data/IEMOCAP_full", "dataset": "other"}, None),
    ],
)
def test_a_copy_with_other_names_is_not_passed_over(corpus: dict[str, str], message: str | None) -> None:
    """A manifest of IEMOCAP without `dataset`, or with its own names of the speakers."""
    config = experiment({"pretrained": SUPERB}, corpora=[{"name": "mine", "importer": "csv"} | corpus])
    data = manifest("mine:2F", "mine:3F", "mine:1F", dataset=corpus.get("dataset"))
    if message is None:
        check(config, data)
    else:
        with pytest.raises(ConfigError, match=message):
            check(config, data)
        declared = experiment({"pretrained": SUPERB, "trained_on": ["mine:2F"]}, corpora=config.corpora)
        if "dataset" in corpus:
            assert check(declared, data).trained_on.speakers == {"mine:2F"}


def test_a_declaration_replaces_the_list_for_the_corpora_of_the_experiment() -> None:
    provenance = check(experiment({"pretrained": SUPERB, "trained_on": []}), manifest(*CROSSED))
    assert provenance.trained_on.datasets == {"librispeech"}
    external = check(experiment({"pretrained": SUPERB, "trained_on": []}), manifest(*CROSSED, dataset="cafe"))
    assert "iemocap:Ses02F" in external.trained_on.datasets
    with pytest.raises(DataLeakageError, match=r"test split.*mine:Ses01F"):
        check(experiment({"pretrained": "facebook/wav2vec2-base", "trained_on": ["mine"]}), manifest(*CROSSED))
    with pytest.raises(ConfigError, match=r"model.pretrained: `trained_on` lists other"):
        check(experiment({"pretrained": SUPERB, "trained_on": ["other"]}), manifest(*CROSSED))


def test_a_declaration_adds_to_the_record_of_a_checkpoint(tmp_path: Path) -> None:
    location = tiny.checkpoint(tmp_path)
    provenance = check(experiment({"pretrained": location, "trained_on": ["mine:Ses02F"]}), manifest(*CROSSED))
    assert provenance.trained_on.speakers == {"c:one", "mine:Ses02F"}


def test_unknown_models_are_listed_by_name_and_random_weights_are_not() -> None:
    unknown = {"pretrained": "someone/something"}
    assert check(experiment(unknown), manifest(*CROSSED)).undisclosed_models == {"someone/something"}
    assert check(experiment(unknown | {"trained_on": []}), manifest(*CROSSED)) == Provenance()
    random = {"config": tiny.ARCHITECTURE, "freeze_feature_encoder": False}
    assert check(experiment(random), manifest(*CROSSED)) == Provenance()


def test_external_teachers_are_known_too() -> None:
    random = {"config": tiny.ARCHITECTURE, "freeze_feature_encoder": False}
    teacher = {"name": "theirs", "checkpoint": SUPERB}
    config = experiment(random, distill={"external_teachers": [teacher]})
    with pytest.raises(DataLeakageError, match="external-theirs was trained on data of the dev split"):
        check(config, manifest(*CROSSED))
    whisper = experiment(random, distill={"external_teachers": [teacher | {"checkpoint": "openai/whisper-base"}]})
    assert check(whisper, manifest(*CROSSED)).undisclosed_models == {"openai/whisper-base"}


def test_students_record_the_dev_speakers_of_the_search() -> None:
    random = {"config": tiny.ARCHITECTURE, "freeze_feature_encoder": False}
    search = {"experiment": "study", "fold": 3, "speakers": ["mine:Ses01F"]}
    config = experiment(
        random, selected_on=[search], distill={"paradigms": ["ft"]}, student={"model": random, "optim": {}}
    )
    graph, data = build_run_graph(config), manifest(*CROSSED)
    teacher = resolve_inputs(graph, data, graph.teachers[0]).teacher_provenance
    student = graph.students[0].model_copy(update={"stage": "distill"})
    selected = Provenance().inherit(resolve_inputs(graph, data, student).teacher_provenance)
    assert Provenance().inherit(teacher) == Provenance()
    assert selected.settings_selected_on.shared_speakers(data.evaluated_data["test"]) == ["mine:Ses01F"]
    assert Provenance.from_json(selected.to_json()) == selected
    selected.check_leakage(model="m", dev=data.evaluated_data["dev"], test=data.evaluated_data["test"])


def test_a_student_that_is_a_teacher_run_has_the_mark_of_the_search() -> None:
    random = {"config": tiny.ARCHITECTURE, "freeze_feature_encoder": False}
    search = {"experiment": "study", "fold": 3, "speakers": ["mine:Ses01F"]}
    config = experiment(random, selected_on=[search], corpora=[{"name": "mine", "root": "nowhere"}])
    data = manifest(*CROSSED, dataset=None)
    columns = {name: pa.nulls(3, pa.string()) for name in ("session", "sentence")}
    data = replace(data, table=pa.table({**{name: data.table[name] for name in data.table.column_names}, **columns}))
    run = build_run_graph(config).teachers[0]
    logits_RC, rows = np.zeros((1, 4), dtype=np.float32), data.rows("test")
    marks = {}
    for paradigm in ("teacher", "ft"):
        model = evaluate._EvaluatedModel(config, run, paradigm, "nowhere")
        model.__dict__["metadata"] = replace(tiny.card(), provenance=Provenance())
        table = evaluate._predictions_table(data, rows, model, logits_RC)
        marks[paradigm] = table["settings_selected_on"].to_pylist()
    assert marks == {"teacher": [""], "ft": ["mine:Ses01F"]}


def test_clips_that_are_too_short_for_the_encoder_are_listed_before_training() -> None:
    config = experiment(tiny.config().model_dump(), audio={"min_seconds": 0.001})
    needed = min_samples(tiny.ARCHITECTURE)
    fine = replace(manifest("mine:a", "mine:b", "mine:c"), num_samples_N=np.array([needed, needed, 99999]))
    check(config, fine)
    short = replace(fine, num_samples_N=np.array([needed, needed - 1, 99999]))
    message = rf"1 clips are shorter .* \({needed} samples\): {short.ids[1]} \(.*`audio.min_seconds` to .*now 0.001"
    with pytest.raises(DataError, match=message):
        check(config, short)
