"""The grid: what its cells are, what they share, what is printed of it, and the ledger. No training."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lakd_ray import storage
from lakd_ray.config import Experiment, load_config, with_variant
from lakd_ray.data.schema import MANIFEST_SCHEMA
from lakd_ray.errors import ConfigError, StageError
from lakd_ray.reproduce import RunLog, build_plan, format_plan
from lakd_ray.reproduce import run_grid as reproduce
from lakd_ray.runs import record
from lakd_ray.runs.state import ResumePoint, RunState

LANGUAGES = {"en": 5, "fi": 9}
EMOTIONS = ("anger", "happiness", "neutral", "sadness")


def row(language: str, speaker: int, emotion: str) -> dict[str, Any]:
    name = f"{language}/{speaker}/{emotion}"
    known = {"emotion": emotion, "language": language, "corpus": language, "num_samples": 16_000 * 9, "cut": False}
    places = {"shard": "a.parquet", "row_group": 0, "row": 0, "source": name, "audio_sha256": name}
    return {"utterance": name, "speaker": f"{language}:{speaker}", **known, **places}


@pytest.fixture
def config(tmp_path: Path) -> Experiment:
    """Five English speakers and nine Finnish ones, prepared; each is a fold."""
    corpora = [
        {"name": code, "root": "x", "languages": [code], "split": {"scheme": "speaker-folds", "folds": count}}
        for code, count in LANGUAGES.items()
    ]
    recipe = {"model": {"pretrained": "somewhere"}, "optim": {"epochs": 10}}
    variants = {"language": {"distill.mtkd.weighting": "language", "distill.paradigms": ["mtkd"]}}
    content = {"name": "g", "storage": str(tmp_path), "languages": list(LANGUAGES), "corpora": corpora}
    grid = {"seeds": [1, 2], "variants": variants}
    made = Experiment.model_validate({**content, "teacher": recipe, "student": recipe, "grid": grid})
    rows = [
        row(code, speaker, name) for code, count in LANGUAGES.items() for speaker in range(count) for name in EMOTIONS
    ]
    table = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    storage.write_table(f"{made.stage_folder('prepare')}/manifest.parquet", table)
    return made


def test_what_cells_have_in_common_is_one_run(config):
    plan = build_plan(config)
    assert len(plan.cells) == 9 * 2 * 2
    assert {(cell.config.fold, cell.config.seed, cell.config.variant) for cell in plan.cells} == {
        (fold, seed, variant) for fold in range(9) for seed in (1, 2) for variant in (None, "language")
    }
    ids = [task.run.id for task in plan.tasks]
    assert len(set(ids)) == len(ids)
    # for each seed: English teachers for 5 folds, Finnish and multilingual ones for 9; kd, mtkd and its variant for 9
    assert len(ids) == 2 * (5 + 9 + 9 + 3 * 9)
    assert plan.runs_without_sharing == 2 * 9 * (3 + 2 + 1)


def test_what_it_costs(config):
    plan = build_plan(config)
    of = {run.rsplit("-f", 1)[0]: seconds for run, seconds in plan.train_seconds.items() if run.endswith("-f0-s1")}
    assert of["teacher-en"] == 10 * 9 * 4 * (5 - 1 - 2)  # epochs, seconds, utterances, training speakers
    assert of["teacher-fi"] == 10 * 9 * 4 * (9 - 1 - 2)
    assert of["kd-multilingual"] == of["teacher-en"] + of["teacher-fi"]
    told = format_plan(config, plan, throughput=100.0)
    assert "plan: 9 folds x 2 seeds x 2 settings of the students = 36 cells, 100 runs (not 108" in told
    hours = sum(plan.train_seconds.values()) / 100 / 3600
    assert f"left: {hours:.1f} CPU-hours" in told
    assert "not known before a run is finished" in format_plan(config, plan, throughput=None)


def test_the_cost_goes_by_what_finished_runs_took(config):
    plan = build_plan(config)
    task = plan.tasks[0]
    folder = task.run.folder(task.config)
    record.mark_finished(folder, {}, [])
    epochs = [{"dev_UR": 0.5, "dev_ce": 1.0, "audio_seconds_per_second": speed} for speed in (40.0, 60.0)]
    RunState(ResumePoint(2), metrics=tuple(epochs)).write(folder)
    told = format_plan(config, plan, throughput=None)
    assert "at 50 audio-seconds a second for one run (the median of the finished runs' epochs)" in told


def test_a_dry_run_does_nothing_and_needs_prepared_data(config, capsys):
    before = sorted(Path(config.storage).rglob("*"))
    assert reproduce(config, dry_run=True) is None
    assert sorted(Path(config.storage).rglob("*")) == before
    assert "plan: 9 folds" in capsys.readouterr().out
    with pytest.raises(StageError, match=r"nothing is prepared in .*Run `lakd prepare`"):
        reproduce(config.model_copy(update={"name": "another"}), dry_run=True)


def test_folds_can_be_chosen(config):
    some = config.model_copy(update={"grid": config.grid.model_copy(update={"folds": (0, 5)})})
    ids = {task.run.id for task in build_plan(some).tasks}
    assert {run for run in ids if run.startswith("teacher-en")} == {"teacher-en-f0-s1", "teacher-en-f0-s2"}
    assert {run for run in ids if run.startswith("teacher-fi-f5")} == {"teacher-fi-f5-s1", "teacher-fi-f5-s2"}


def finish(plan: Any, place: int) -> str:
    task = plan.tasks[place]
    record.mark_finished(task.run.folder(task.config), {}, [])
    return str(task.run.id)


def entries(config: Experiment) -> list[tuple[str, str]]:
    lines = storage.read_bytes(f"{config.stage_folder('reproduce')}/ledger.jsonl").splitlines()
    return [(entry["event"], entry["run"]) for entry in map(json.loads, lines)]


def test_every_run_is_entered_once_as_finished_over_restarts(config, capsys):
    plan = build_plan(config)
    ledger = RunLog(config, plan)
    first = finish(plan, 0)
    ledger.on_event({"event": "started", "run": first, "group": "a"})
    ledger.on_event({"event": "epoch", "run": first, "line": LINE})
    ledger.on_event({"event": "finished", "run": first, "group": "a"})
    second = finish(plan, 1)  # and the driver is killed before it can write that down
    again = RunLog(config, plan)
    again.on_event({"event": "finished", "run": first, "group": "a"})
    again.reconcile()
    assert entries(config) == [("started", first), ("finished", first), ("finished", second)]
    said = capsys.readouterr().out
    assert "[1/100 runs, 0 failed, " in said and f"{first} finished" in said


def test_failures_are_kept_with_their_reasons(config, capsys):
    ledger = RunLog(config, build_plan(config))
    ledger.on_event({"event": "failed", "run": "teacher-en-f0-s1", "reason": "the loss is nan"})
    assert ledger.failed == {"teacher-en-f0-s1": "the loss is nan"}
    assert "1 failed] teacher-en-f0-s1 failed (the loss is nan)" in capsys.readouterr().out
    assert RunLog(config, build_plan(config)).failed == {}  # it is tried again


LINE = {
    "run": "teacher-en-f0-s1", "epoch": 1, "epochs": 10, "loss": 1.0, "dev_UR": 0.5, "dev_recall": {"en": 0.5},
    "audio_seconds": 700.0, "audio_seconds_per_second": 50.0, "seconds_left": 3.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"variants": {"a": {"teacher.optim.epochs": 2}}}, "only student and distill may vary"),
        ({"variants": {"a": {"student.optim.epoch": 2}}}, "unknown key `student.optim.epoch`; did you mean `epochs`"),
        ({"variants": {"a": {"distill.mtkd.lam": 2}}}, "grid.variants.a: refused"),
        ({"seeds": [1, 1]}, "each only once"),
        ({"folds": []}, "null for all"),
    ],
)
def test_impossible_grids_are_refused_when_the_file_is_read(grid, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_config("demo", [f"grid={json.dumps(grid)}"])


def test_a_variant_changes_what_it_names_and_nothing_else(config):
    changed = with_variant(config, "language")
    assert changed.variant == "language" and changed.distill.mtkd.weighting == "language"
    assert changed.teacher == config.teacher and changed.student == config.student and not changed.grid.variants
