"""Plan and event log of a grid: its cells, the runs that they share, the printed plan, restarts. No training."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lakd_ray import storage
from lakd_ray.config import Experiment, load_config, to_dict, with_variant
from lakd_ray.data.schema import MANIFEST_SCHEMA
from lakd_ray.errors import ConfigError, DataLeakageError, StageError
from lakd_ray.launch import driver
from lakd_ray.launch.driver import stage_tasks
from lakd_ray.launch.plan import GridPlan, format_plan, log_settings_selection, plan_grid
from lakd_ray.launch.run_log import RunLog
from lakd_ray.pipeline import run_grid
from lakd_ray.runs import build_run_graph, record
from lakd_ray.runs.state import ResumePoint, RunState

NUM_SPEAKERS = {"en": 5, "fi": 9}
EMOTIONS = ("anger", "happiness", "neutral", "sadness")


def manifest_row(language: str, speaker: int, emotion: str) -> dict[str, Any]:
    name = f"{language}/{speaker}/{emotion}"
    clip = {"emotion": emotion, "language": language, "corpus": language, "num_samples": 16_000 * 9, "cut": False}
    source = {"shard": "a.parquet", "row_group": 0, "row": 0, "source": name, "audio_sha256": name}
    return {"utterance": name, "speaker": f"{language}:{speaker}", **clip, **source}


@pytest.fixture
def config(tmp_path: Path) -> Experiment:
    """Prepared data of five English and nine Finnish speakers; each speaker is a test fold."""
    corpora = [
        {"name": code, "root": "x", "languages": [code], "split": {"scheme": "speaker-folds", "folds": count}}
        for code, count in NUM_SPEAKERS.items()
    ]
    recipe = {"model": {"pretrained": "somewhere"}, "optim": {"epochs": 10}}
    variants = {"language": {"distill.mtkd.weighting": "language", "distill.paradigms": ["mtkd"]}}
    content = {"name": "g", "storage": str(tmp_path), "languages": list(NUM_SPEAKERS), "corpora": corpora}
    grid = {"seeds": [1, 2], "variants": variants}
    experiment = Experiment.model_validate(
        {**content, "teacher": recipe, "student": recipe, "grid": grid, "train": {"gpu": False}}
    )
    rows = [
        manifest_row(code, speaker, emotion)
        for code, count in NUM_SPEAKERS.items()
        for speaker in range(count)
        for emotion in EMOTIONS
    ]
    table = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    storage.write_table(f"{experiment.stage_folder('prepare')}/manifest.parquet", table)
    return experiment


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="lakd_ray")
    return caplog


def test_cells_share_runs(config):
    plan = plan_grid(config)
    assert len(plan.graphs) == 9 * 2 * 2
    assert {(graph.config.fold, graph.config.seed, graph.config.variant) for graph in plan.graphs} == {
        (fold, seed, variant) for fold in range(9) for seed in (1, 2) for variant in (None, "language")
    }
    ids = [task.run.id for task in plan.tasks]
    assert len(set(ids)) == len(ids)
    # for each seed: English teachers for 5 folds, Finnish and multilingual ones for 9; kd, mtkd and its variant for 9
    assert len(ids) == 2 * (5 + 9 + 9 + 3 * 9)
    assert plan.runs_without_sharing == 2 * 9 * (3 + 2 + 1)


def test_cost_of_a_plan(config):
    plan = plan_grid(config)
    seconds = {run.rsplit("-f", 1)[0]: value for run, value in plan.train_seconds.items() if run.endswith("-f0-s1")}
    assert seconds["teacher-en"] == 10 * 9 * 4 * (5 - 1 - 2)  # epochs, seconds, utterances, training speakers
    assert seconds["teacher-fi"] == 10 * 9 * 4 * (9 - 1 - 2)
    assert seconds["kd-multilingual"] == seconds["teacher-en"] + seconds["teacher-fi"]
    text = format_plan(plan, throughput=100.0)
    assert "plan: 9 folds x 2 seeds x 2 settings of the students = 36 cells, 100 runs (not 108" in text
    hours = sum(plan.train_seconds.values()) / 100 / 3600
    assert f"left: {hours:.1f} CPU-hours" in text
    assert "not known before a run is finished" in format_plan(plan, throughput=None)


def test_cost_is_estimated_from_the_throughput_of_finished_runs(config):
    plan = plan_grid(config)
    task = plan.tasks[0]
    folder = task.run.folder(task.config)
    record.mark_finished(folder, {}, [])
    epochs = [{"dev_UR": 0.5, "dev_ce": 1.0, "audio_seconds_per_second": speed} for speed in (40.0, 60.0)]
    RunState(ResumePoint(2), metrics=tuple(epochs)).write(folder)
    text = format_plan(plan, throughput=None)
    assert "at 50 audio-seconds per second and run (the median of the finished runs' epochs)" in text


def test_a_dry_run_writes_nothing_and_needs_prepared_data(config, log):
    before = sorted(Path(config.storage).rglob("*"))
    assert run_grid(config, dry_run=True) is None
    assert sorted(Path(config.storage).rglob("*")) == before
    assert "plan: 9 folds" in log.text
    with pytest.raises(StageError, match=r"nothing is prepared in .*Run `lakd prepare`"):
        run_grid(config.model_copy(update={"name": "unprepared"}), dry_run=True)


def test_folds_can_be_selected(config):
    selected = config.model_copy(update={"grid": config.grid.model_copy(update={"folds": (0, 5)})})
    ids = {task.run.id for task in plan_grid(selected).tasks}
    assert {run for run in ids if run.startswith("teacher-en")} == {"teacher-en-f0-s1", "teacher-en-f0-s2"}
    assert {run for run in ids if run.startswith("teacher-fi-f5")} == {"teacher-fi-f5-s1", "teacher-fi-f5-s2"}


def finish(plan: GridPlan, index: int) -> str:
    """Mark a task's run as finished, as its worker does, and return its id."""
    task = plan.tasks[index]
    record.mark_finished(task.run.folder(task.config), {}, [])
    return task.run.id


def stored_events(config: Experiment) -> list[tuple[str, str]]:
    lines = storage.read_bytes(f"{config.stage_folder('grid')}/events.jsonl").splitlines()
    return [(entry["event"], entry["run"]) for entry in map(json.loads, lines)]


def test_every_run_has_one_finished_event_across_restarts(config, log):
    plan = plan_grid(config)
    run_log = RunLog(plan)
    first = finish(plan, 0)
    run_log.on_event({"event": "started", "run": first, "group": "a"})
    run_log.on_event({"event": "epoch", "run": first, "line": EPOCH})
    run_log.on_event({"event": "finished", "run": first, "group": "a"})
    assert "[1/100 runs, 0 failed, " in log.text and f"{first} finished" in log.text
    second = finish(plan, 1)  # and the driver is killed before it can store the event
    restarted = RunLog(plan)
    restarted.on_event({"event": "finished", "run": first, "group": "a"})
    restarted.reconcile()
    assert stored_events(config) == [("started", first), ("finished", first), ("finished", second)]


def test_two_drivers_lose_no_event(config):
    first, second = RunLog(plan_grid(config)), RunLog(plan_grid(config))
    first.on_event({"event": "started", "run": "a", "group": "1"})
    second.on_event({"event": "started", "run": "b", "group": "2"})
    first.on_event({"event": "finished", "run": "a", "group": "1"})
    assert stored_events(config) == [("started", "a"), ("started", "b"), ("finished", "a")]


def test_failures_are_stored_with_their_reasons(config, log):
    run_log = RunLog(plan_grid(config))
    run_log.on_event({"event": "failed", "run": "teacher-en-f0-s1", "reason": "the loss is nan"})
    assert run_log.failed == {"teacher-en-f0-s1": "the loss is nan"}
    assert "1 failed] teacher-en-f0-s1 failed (the loss is nan)" in log.text
    assert RunLog(plan_grid(config)).failed == {}, "a restarted grid tries it again"


EPOCH = {
    "run": "teacher-en-f0-s1", "epoch": 1, "epochs": 10, "loss": 1.0, "dev_UR": 0.5, "dev_recall": {"en": 0.5},
    "audio_seconds": 700.0, "audio_seconds_per_second": 50.0, "seconds_left": 3.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"variants": {"a": {"teacher.optim.epochs": 2}}}, "only student and distill may vary"),
        (
            {"variants": {"a": {"student.optim.epoch": 2}}},
            "unknown key `student.optim.epoch`; did you mean `student.optim.epochs`",
        ),
        ({"variants": {"a": {"distill.mtkd.lam": 2}}}, "grid.variants.a: invalid configuration"),
        ({"seeds": [1, 1]}, "each only once"),
        ({"folds": []}, "null for all"),
    ],
)
def test_invalid_grids_are_rejected_when_the_file_is_loaded(grid, message):
    with pytest.raises(ConfigError, match=message):
        load_config("demo", [f"grid={json.dumps(grid)}"])


def test_a_variant_changes_only_the_keys_that_it_lists(config):
    changed = with_variant(config, "language")
    assert changed.variant == "language" and changed.distill.mtkd.weighting == "language"
    assert changed.teacher == config.teacher and changed.student == config.student and not changed.grid.variants


def test_folds_that_test_the_dev_speakers_of_a_search_are_named(config: Experiment) -> None:
    search = {"experiment": "study", "fold": 0, "speakers": ["en:2", "fi:3", "gone:1"]}
    tuned = Experiment.model_validate(to_dict(config) | {"selected_on": [search]})
    plan = plan_grid(tuned)
    affected = {fold: names for fold, names in plan.selected_on_test.items() if "en:2" in names}
    assert 1 <= len(affected) <= 2 and len(plan.selected_on_test) <= 3
    text = format_plan(plan, None)
    assert "selected by study (fold 0) on dev speakers who are test speakers here (fold " in text
    unaffected = sorted(set(range(9)) - plan.selected_on_test.keys())
    assert f"--set grid.folds={unaffected}" in text
    assert "test speakers here" not in format_plan(plan_grid(config), None)


def test_a_single_fold_with_dev_speakers_of_a_search_logs_a_warning(
    config: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    search = {"experiment": "study", "fold": 0, "speakers": ["en:2"]}
    tuned = Experiment.model_validate(to_dict(config) | {"selected_on": [search]})
    affected = plan_grid(tuned).selected_on_test.keys()
    for fold in range(9):
        caplog.clear()
        log_settings_selection(tuned.model_copy(update={"fold": fold}))
        assert ("have the mark †" in caplog.text) == (fold in affected)


def test_a_model_that_was_trained_on_a_corpus_is_rejected_before_anything_is_trained(config: Experiment) -> None:
    recipe = config.student.model_copy(
        update={"model": config.student.model.model_copy(update={"pretrained": "superb/hubert-base-superb-er"})}
    )
    english = config.corpora[0].model_copy(update={"dataset": "iemocap"})
    table = storage.read_table(f"{config.stage_folder('prepare')}/manifest.parquet")
    names = [
        name.replace("en:", "en:Ses0").replace("Ses00", "Ses05") + "F" * name.startswith("en")
        for name in table["speaker"].to_pylist()
    ]
    storage.write_table(
        f"{config.stage_folder('prepare')}/manifest.parquet",
        table.set_column(3, table.schema.field("speaker"), pa.array(names)),
    )
    changed = config.model_copy(update={"student": recipe, "corpora": (english, *config.corpora[1:])})
    with pytest.raises(DataLeakageError, match=r"superb/hubert-base-superb-er was trained on .*iemocap:Ses0\dF"):
        plan_grid(changed)
    task = stage_tasks([build_run_graph(changed)], "train")
    with pytest.raises(DataLeakageError, match="superb/hubert-base-superb-er"):
        driver._pending_tasks(task)  # the teachers are not trained yet, and not rejected
    assert driver._pending_tasks(stage_tasks([build_run_graph(changed)], "teachers"))


def test_training_starts_with_a_warning_about_unknown_models(config: Experiment, log: pytest.LogCaptureFixture) -> None:
    driver._pending_tasks(stage_tasks([build_run_graph(config)], "train"))
    assert log.text.count("the training data of somewhere is not known") == 1
