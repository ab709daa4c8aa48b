"""Inputs of a run: provenance of its checkpoints and teachers, and the plan and cache of teacher logits."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support import three_utterances

from lakd_ray import storage
from lakd_ray.config import Experiment, ExternalTeacherConfig, ModelConfig, Recipe
from lakd_ray.data.manifest import Manifest
from lakd_ray.data.provenance import DataExposure, Provenance
from lakd_ray.errors import ConfigError, DataError, DataLeakageError, SplitError, StageError
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.launch import teacher_logits
from lakd_ray.launch.run_inputs import resolve_inputs
from lakd_ray.models import CheckpointMetadata, build_model, save_checkpoint
from lakd_ray.runs import record
from lakd_ray.runs.graph import Run, build_run_graph
from lakd_ray.runs.state import ResumePoint, RunState

SPEAKERS = ["demo:train", "demo:dev", "demo:test"]
ARCHITECTURE = {
    "model_type": "wav2vec2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def manifest() -> Manifest:
    return three_utterances.manifest(SPEAKERS)


def experiment(tmp_path: Path, seen: set[str]) -> Experiment:
    """Return an experiment whose teacher starts from a checkpoint that was trained on the given speakers."""
    model = build_model(ModelConfig(config=ARCHITECTURE, freeze_feature_encoder=False), PAPER_EMOTIONS, seed=0)
    (tmp_path / "scratch").mkdir()
    metadata = CheckpointMetadata(
        "earlier", PAPER_EMOTIONS, ("en",), Provenance(trained_on=DataExposure(frozenset(seen))), {}
    )
    save_checkpoint(str(tmp_path / "earlier"), model.network, metadata, scratch=tmp_path / "scratch")
    recipe = Recipe(model=ModelConfig(pretrained=str(tmp_path / "earlier")))
    corpora = ({"name": "demo", "root": "nowhere"},)
    content = {"name": "x", "storage": str(tmp_path), "languages": ["en"], "corpora": corpora}
    return Experiment.model_validate({**content, "teacher": recipe, "student": recipe})


@pytest.mark.parametrize("speaker", ["demo:dev", "demo:test"])
def test_an_initial_checkpoint_trained_on_dev_or_test_is_rejected(tmp_path: Path, speaker: str) -> None:
    config = experiment(tmp_path, {speaker})
    with pytest.raises(DataLeakageError, match=speaker):
        resolve_inputs(build_run_graph(config), manifest(), build_run_graph(config).teachers[0])


def test_provenance_of_the_initial_checkpoint_is_inherited(tmp_path: Path) -> None:
    config = experiment(tmp_path, {"other:alma"})
    inputs = resolve_inputs(build_run_graph(config), manifest(), build_run_graph(config).teachers[0])
    assert Provenance().inherit(inputs.teacher_provenance).trained_on.speakers == {"other:alma"}
    assert str(tmp_path / "earlier") in inputs.fingerprint["inputs"]


LANGUAGES = ("en", "fi")
KNOWN = (*PAPER_EMOTIONS, "fear")


def polyglot() -> Manifest:
    """Six training speakers of each language with two utterances each, one speaker each for dev and test."""
    speakers = [f"{code}-{number}" for code in LANGUAGES for number in range(8) for _ in range(2)]
    count = len(speakers)
    languages = [name[:2] for name in speakers]
    splits = [{6: "dev", 7: "test"}.get(int(name[3:]), "train") for name in speakers]
    names = [f"u{row}" for row in range(count)]
    columns = {"utterance": names, "audio_sha256": names, "emotion": ["anger"] * count}
    zeros_N = np.zeros(count, dtype=np.int64)
    return Manifest(
        table=pa.table({**columns, "language": languages, "speaker": speakers, "corpus": ["c"] * count}),
        labels_N=zeros_N,
        splits_N=np.array(splits),
        languages_N=np.array(languages, dtype=object),
        num_samples_N=zeros_N + 16_000,
        shards=("shard",),
        shard_N=zeros_N,
        row_group_N=zeros_N,
        row_N=np.arange(count),
    )


def distilling(tmp_path: Path, **distill: Any) -> Experiment:
    recipe = Recipe(model=ModelConfig(config=ARCHITECTURE, freeze_feature_encoder=False))
    content = {"name": "x", "storage": str(tmp_path), "languages": LANGUAGES, "distill": distill}
    corpora = ({"name": "c", "root": "nowhere"},)
    return Experiment.model_validate({**content, "corpora": corpora, "teacher": recipe, "student": recipe})


def seen_rows(manifest: Manifest, run: Run) -> set[int]:
    """Return the rows that a teacher is trained on."""
    rows = manifest.rows("train", run.languages)
    if run.held_out_fold:
        rows = rows[manifest.speaker_folds(rows, run.held_out_fold.num_cross_fit_folds) != run.held_out_fold.index]
    return set(rows.tolist())


@pytest.mark.parametrize("setup", ["monolingual", "multilingual"])
@pytest.mark.parametrize("paradigm", ["kd", "mtkd"])
def test_cross_fitted_teachers_compute_rows_that_they_have_not_seen(tmp_path, paradigm, setup) -> None:
    config = distilling(tmp_path, paradigms=[paradigm], setups=[setup], **{paradigm: {"cross_fit": 3}})
    data = polyglot()
    graph = build_run_graph(config)
    teachers = {run.id: run for run in (*graph.teachers, *graph.cross_fitted)}
    for run in graph.students:
        queries = teacher_logits.plan_teacher_queries(graph, data, run)
        for index in range(len(run.teachers)):
            rows = np.concatenate([query.rows for query in queries if query.teacher_index == index])
            assert sorted(rows) == data.rows("train", run.languages).tolist()
        for query in queries:
            assert not seen_rows(data, teachers[query.model_id]) & set(query.rows.tolist())


def test_without_cross_fitting_every_teacher_computes_all_rows(tmp_path) -> None:
    config, data = distilling(tmp_path, paradigms=["mtkd"]), polyglot()
    queries = teacher_logits.plan_teacher_queries(build_run_graph(config), data, build_run_graph(config).students[0])
    assert [query.rows.tolist() for query in queries] == [data.rows("train").tolist()] * 2


def test_too_few_speakers_for_cross_fitting_are_rejected(tmp_path) -> None:
    config = distilling(tmp_path, paradigms=["mtkd"], mtkd={"cross_fit": 7})
    with pytest.raises(SplitError, match=r"language en has 6 training speakers .* too few for 7 cross-fitting folds"):
        teacher_logits.plan_teacher_queries(build_run_graph(config), polyglot(), build_run_graph(config).students[0])


@pytest.fixture
def trained(tmp_path, monkeypatch) -> Experiment:
    """An experiment whose teachers have the folders of finished runs."""
    config = distilling(tmp_path, paradigms=["kd", "mtkd"], mtkd={"weighting": "confidence", "cross_fit": 2})
    for run in build_run_graph(config).all_runs:
        if run.stage == "teachers":
            (tmp_path / "checkpoint").mkdir(exist_ok=True)
            (tmp_path / "checkpoint" / "weights").write_text(run.id)
            storage.write_checksummed_folder(tmp_path / "checkpoint", storage.join(run.folder(config), "best-0001"))
            RunState(ResumePoint(1), metrics=({"dev_UR": 0.5, "dev_ce": 1.0},)).write(run.folder(config))
            record.mark_finished(run.folder(config), {}, [])
    return config


def test_a_teacher_computes_each_row_once(trained: Experiment) -> None:
    data, passes = polyglot(), []

    def compute(rows: Any, checkpoints: Mapping[str, str]) -> dict[str, Any]:
        passes.append((len(rows), sorted(checkpoints)))
        return {
            name: np.stack([rows, *[np.full(len(rows), number)] * 3], axis=1).astype(np.float32)
            for number, name in enumerate(checkpoints)
        }

    students = build_run_graph(trained).students
    kd, mtkd_run = (next(run for run in students if run.paradigm == paradigm) for paradigm in ("kd", "mtkd"))
    teacher_logits.ensure_logits(build_run_graph(trained), data, [kd], compute)
    assert passes == [(24, ["teacher-all-f0-s42"])]
    teacher_logits.ensure_logits(build_run_graph(trained), data, [kd, mtkd_run], compute)
    computed = [(count, name) for count, names in passes[1:] for name in names]
    assert sum(count for count, _ in computed) == 2 * 24  # two teachers for every row
    assert {name for _, name in computed} == set(mtkd_run.dependencies)
    before = len(passes)
    teacher_logits.ensure_logits(build_run_graph(trained), data, [kd, mtkd_run], compute)
    assert len(passes) == before
    logits_NKC = teacher_logits.load_logits(build_run_graph(trained), data, mtkd_run)
    train = data.rows("train")
    assert logits_NKC.shape == (32, 2, 4)
    assert (logits_NKC[train, :, 0] == train[:, None]).all()
    assert np.isnan(logits_NKC[data.rows("test")]).all()


def test_cached_logits_of_a_base_experiment_are_read_by_class_name(trained: Experiment) -> None:
    """An experiment that lists the classes in a different order than its base experiment shares the teachers' cache."""
    data, computed = polyglot(), []
    order = ("sadness", "neutral", "happiness", "anger")

    def compute_in(emotions: tuple[str, ...]) -> teacher_logits.ComputeLogits:
        def compute(rows: Any, checkpoints: Mapping[str, Any]) -> dict[str, Any]:
            computed.append(emotions)
            columns = [1000 * KNOWN.index(name) + rows for name in emotions]  # depends on the class's name alone
            return {name: np.stack(columns, axis=1).astype(np.float32) for name in checkpoints}

        return compute

    def load(config: Experiment) -> Any:
        graph, run = build_run_graph(config), mtkd(config)
        teacher_logits.ensure_logits(graph, data, [run], compute_in(config.emotions))
        return teacher_logits.load_logits(graph, data, run)

    base_NKC = load(trained)
    derived = trained.model_copy(update={"name": "y", "base_experiment": trained.name, "emotions": order})
    first_passes = len(computed)
    np.testing.assert_array_equal(load(derived), base_NKC[..., [PAPER_EMOTIONS.index(name) for name in order]])
    assert len(computed) == first_passes  # read from the cache
    fewer = derived.model_copy(update={"emotions": (*order[:3], "fear")})
    assert (load(fewer)[data.rows("train"), :, 3] // 1000 == KNOWN.index("fear")).all()
    assert len(computed) > first_passes  # an external teacher is mapped to other classes
    np.testing.assert_array_equal(load(trained), base_NKC)


def test_cached_logits_of_a_different_checkpoint_or_recording_are_not_used(trained: Experiment, tmp_path: Path) -> None:
    data = polyglot()
    (kd, *_) = [run for run in build_run_graph(trained).students if run.paradigm == "kd"]

    def compute(rows: Any, checkpoints: Mapping[str, str]) -> dict[str, Any]:
        return {name: np.zeros((len(rows), 4), dtype=np.float32) for name in checkpoints}

    teacher_logits.ensure_logits(build_run_graph(trained), data, [kd], compute)
    changed = data.table.set_column(1, "audio_sha256", pa.array([f"{row}" for row in range(32)]))
    with pytest.raises(StageError, match="24 of 24 logits of teacher-all-f0-s42 are not in"):
        teacher_logits.load_logits(build_run_graph(trained), replace(data, table=changed), kd)
    (tmp_path / "checkpoint" / "weights").write_text("trained again")
    storage.write_checksummed_folder(
        tmp_path / "checkpoint", storage.join(build_run_graph(trained).teachers[-1].folder(trained), "best-0001")
    )
    with pytest.raises(StageError, match="24 of 24"):
        teacher_logits.load_logits(build_run_graph(trained), data, kd)


def with_external_teacher(config: Experiment, **teacher: Any) -> Experiment:
    external = ExternalTeacherConfig.model_validate(
        {"name": "theirs", "checkpoint": "some/hub-model", "language": "fi"} | teacher
    )
    return config.model_copy(update={"distill": config.distill.model_copy(update={"external_teachers": (external,)})})


@pytest.fixture
def with_metadata(trained: Experiment) -> Experiment:
    """Trained teachers whose metadata list no training data."""
    metadata = CheckpointMetadata("a teacher", PAPER_EMOTIONS, ("en",), Provenance(), {})
    for run in build_run_graph(trained).all_runs:
        if run.stage == "teachers":
            storage.write_json(storage.join(run.folder(trained), "best-0001", "lakd.json"), metadata.to_json())
    return trained


def test_a_teacher_may_list_the_classes_in_any_order_but_not_others(with_metadata: Experiment) -> None:
    def resolve(emotions: tuple[str, ...]) -> Any:
        config = with_metadata.model_copy(update={"emotions": emotions})
        return resolve_inputs(build_run_graph(config), polyglot(), mtkd(config)).fingerprint

    plain, reordered = resolve(PAPER_EMOTIONS), resolve(PAPER_EMOTIONS[::-1])
    assert plain["inputs"] == reordered["inputs"]
    differences = record.find_differences(plain, reordered)  # a finished student cannot be continued in this order
    assert differences and all(line.startswith("run.emotions") for line in differences)
    with pytest.raises(DataError, match=r"has the classes anger, happiness, neutral, sadness; expected fear, "):
        resolve(("fear", *PAPER_EMOTIONS[1:]))


def mtkd(config: Experiment) -> Run:
    return next(run for run in build_run_graph(config).students if run.paradigm == "mtkd")


def test_an_external_teacher_computes_all_rows_and_is_no_dependency(trained: Experiment) -> None:
    config, data = with_external_teacher(trained, trained_on=[]), polyglot()
    run = mtkd(config)
    assert run.teachers[-1] == "external-theirs" and run.teacher_languages == ("en", "fi", "fi")
    assert "external-theirs" not in run.dependencies
    queries = [
        query
        for query in teacher_logits.plan_teacher_queries(build_run_graph(config), data, run)
        if query.teacher_index == 2
    ]
    assert [(query.model_id, query.rows.tolist()) for query in queries] == [
        ("external-theirs", data.rows("train").tolist())
    ]


@pytest.mark.parametrize(("trained_on", "known"), [([], True), (None, False)])
def test_provenance_of_an_external_teacher_is_declared_or_unknown(with_metadata: Experiment, trained_on, known) -> None:
    config = with_external_teacher(with_metadata, trained_on=trained_on)
    inputs = resolve_inputs(build_run_graph(config), polyglot(), mtkd(config))
    assert Provenance().inherit(inputs.teacher_provenance).undisclosed_models == (frozenset() if known else {"theirs"})
    assert "external-theirs" in inputs.fingerprint["inputs"]


@pytest.mark.parametrize(
    ("trained_on", "message"),
    [
        (["fi-7"], "external-theirs was trained on data of the test split of this fold: fi-7"),
        (["c"], "external-theirs was trained on"),
        (["unknown"], r"`trained_on` lists unknown, but this experiment has neither corpora \(c\) nor speakers"),
    ],
)
def test_an_external_teacher_trained_on_test_speakers_is_rejected(
    with_metadata: Experiment, trained_on, message
) -> None:
    config = with_external_teacher(with_metadata, trained_on=trained_on)
    with pytest.raises((DataLeakageError, ConfigError), match=message):
        resolve_inputs(build_run_graph(config), polyglot(), mtkd(config))
