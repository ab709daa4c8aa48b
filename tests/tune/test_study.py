"""The study: its suggestions, early stopping, and resuming. No Ray."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.errors import ConfigError, DiskFullError, LeaseError, StageError
from lakd_ray.tune.study import PAPER_LOSS, Study, build_trial_config, paper_settings, validate_search_space

T, LAM, TAU = "distill.mtkd.temperature", "distill.mtkd.lam", "distill.mtkd.weighting_temperature"
WEIGHTING = "distill.mtkd.weighting"


def experiment(folder: Path | str, **tune: Any) -> Experiment:
    recipe = {"model": {"pretrained": "somewhere"}}
    content = {"name": "s", "storage": str(folder), "languages": ["en", "fi"], "corpora": [{"name": "c", "root": "x"}]}
    return Experiment.model_validate({**content, "teacher": recipe, "student": recipe, "tune": {"trials": 4, **tune}})


opened: list[Study] = []


@pytest.fixture(autouse=True)
def _close_studies() -> Iterator[None]:
    yield
    while opened:
        opened.pop().close()


def study(folder: Path | str, **tune: Any) -> Study:
    config = experiment(folder, **tune)
    opened.append(Study(config, config.stage_folder("tune")))
    return opened[-1]


def kill(search: Study) -> None:
    """End the lease of a search without writing the study, as the next driver does after a kill."""
    storage.end_lease(search._folder)
    search._lease.release()
    search._lease = None


SPACE = {
    WEIGHTING: {"choices": ["similarity", "uniform", "language"]},
    TAU: {"low": 0.05, "high": 2.0, "log": True, "conditions": {WEIGHTING: ["similarity"]}},
    "distill.mtkd.same_language_weight": {"low": 0.3, "high": 1.0, "conditions": {WEIGHTING: ["language"]}},
    "student.optim.lr": {"low": 1e-5, "high": 1e-3, "log": True},
}


def run_trial(search: Study, values: list[float], number: int | None = None) -> tuple[int, bool]:
    """Run a trial whose epochs have these objectives; return its number and whether it was stopped."""
    if number is None:
        number, _ = search.next_trial()
    for epoch, value in enumerate(values, start=1):
        if search.report_epoch(number, epoch, value, 10.0):
            search.finish_trial(number, None, stopped=True)
            return number, True
    search.finish_trial(number, None, stopped=False)
    return number, False


def test_the_first_trial_has_the_papers_settings_once(tmp_path: Path):
    search = study(tmp_path)
    number, settings = search.next_trial()
    assert (number, settings) == (0, {T: 5.0, LAM: 0.25, TAU: 0.25})
    assert build_trial_config(experiment(tmp_path), settings).distill.mtkd == PAPER_LOSS
    run_trial(search, [0.5], number)
    kill(search)
    resumed = study(tmp_path)
    _, other = resumed.next_trial()
    assert other != settings
    loss = build_trial_config(experiment(tmp_path), other).distill.mtkd
    assert (loss.temperature, loss.lam, loss.weighting_temperature) == (
        other[T],
        other[LAM],
        other[TAU],
    ) and not loss.reference_compat


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_a_second_driver_is_refused_and_a_driver_that_was_replaced_records_nothing(where, tmp_path, request):
    root = str(tmp_path) if where == "disk" else f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    first = study(root)
    number, _ = first.next_trial()
    second = study(root)
    with pytest.raises(LeaseError, match="in use by this process"):
        second.next_trial()
    storage.end_lease(first._folder)
    assert second.next_trial()[0] == number, "it was interrupted"
    second.report_epoch(number, 1, 0.4, 10.0)
    for write in (
        first.next_trial,
        lambda: first.report_epoch(number, 1, 0.9, 10.0),
        lambda: first.finish_trial(number, None, stopped=False),
        lambda: first.fail_trial(number, "cause"),
    ):
        with pytest.raises(LeaseError):
            write()
    assert second.get_trials()[0].curve == (0.4,)


def test_a_shared_study_storage_has_one_driver(tmp_path):
    shared = {"study_storage": f"sqlite:///{tmp_path}/shared.db"}
    first = study(tmp_path / "a", **shared)
    number, settings = first.next_trial()
    second = study(tmp_path / "b", **shared)
    with pytest.raises(LeaseError, match="in use by"):
        second.next_trial()
    kill(first)
    second.close()
    assert study(tmp_path / "b", **shared).next_trial() == (number, settings)


def test_papers_settings_outside_the_space_are_not_tried(tmp_path: Path):
    config = experiment(tmp_path, space={T: {"low": 6.0, "high": 9.0}})
    assert paper_settings(config) == {}
    assert 6 <= study(tmp_path, space=config.tune.space).next_trial()[1][T] <= 9


def test_settings_apply_only_under_their_conditions(tmp_path: Path):
    search = study(tmp_path, trials=30, space=SPACE, sampler="random")
    seen = {}
    for _ in range(30):
        number, settings = search.next_trial()
        run_trial(search, [0.5], number)
        seen[settings[WEIGHTING]] = set(settings) - {WEIGHTING, "student.optim.lr"}
        build_trial_config(experiment(tmp_path, space=SPACE), settings)
    assert seen == {"similarity": {TAU}, "uniform": set(), "language": {"distill.mtkd.same_language_weight"}}


def test_trials_are_stopped_at_rungs_and_count_as_stopped(tmp_path: Path):
    search = study(tmp_path, trials=9, grace_epochs=1, reduction_factor=3)
    ended = [run_trial(search, [value, value + 0.01, value + 0.02]) for value in (0.8, 0.3, 0.5, 0.2, 0.7, 0.1)]
    assert not ended[0][1] and all(stopped for _, stopped in ended[1:3])
    states = {trial.number: (trial.state, trial.epochs) for trial in search.get_trials()}
    assert states[0] == ("complete", 3) and states[1] == ("stopped", 1)
    assert search.remaining == 3, "stopped trials count"


def test_a_trial_is_complete_after_its_last_epoch_whatever_its_objective(tmp_path: Path):
    search = study(tmp_path, trials=9, grace_epochs=1, reduction_factor=3, epochs=3)
    ended = [run_trial(search, [0.8, 0.8, value]) for value in (0.90, 0.85, 0.80, 0.81)]
    assert not any(stopped for _, stopped in ended)


def test_an_interrupted_trial_is_run_again_with_its_reported_epochs(tmp_path: Path):
    search = study(tmp_path, scheduler="none")
    number, settings = search.next_trial()
    search.report_epoch(number, 1, 0.4, 10.0)
    kill(search)
    resumed = study(tmp_path, scheduler="none")
    assert resumed.remaining == 4
    assert resumed.next_trial() == (number, settings)
    resumed.report_epoch(number, 1, 0.4, 10.0)  # its state was saved, so the epoch is reported again
    run_trial(resumed, [0.4, 0.6], number)
    (trial,) = resumed.get_trials()
    assert (trial.curve, trial.audio_seconds, trial.state) == ((0.4, 0.6), 20.0, "complete")
    assert resumed.remaining == 3


def test_failed_trials_are_recorded_with_their_cause_and_more_can_be_added(tmp_path: Path):
    search = study(tmp_path, trials=2, scheduler="none")
    run_trial(search, [0.5])
    number, _ = search.next_trial()
    search.fail_trial(number, "RuntimeError: no room")
    assert search.remaining == 0
    assert [(trial.state, trial.cause) for trial in search.get_trials()] == [
        ("complete", None), ("failed", "RuntimeError: no room"),
    ]  # fmt: skip
    assert study(tmp_path, trials=5, scheduler="none").remaining == 3


def test_a_different_search_is_rejected(tmp_path: Path):
    study(tmp_path)
    with pytest.raises(StageError, match=r"a different search: tune.objective changed"):
        study(tmp_path, objective="worst")


def test_a_study_in_a_bucket_is_resumed(s3: str, tmp_path: Path):
    root = f"{s3}/study-{tmp_path.name}"
    search = study(root, scheduler="none")
    run_trial(search, [0.5])
    number, settings = search.next_trial()
    resumed = study(root, scheduler="none")  # opened while the first driver runs: it is read again below
    run_trial(search, [0.5], number)
    number, settings = search.next_trial()
    kill(search)
    assert resumed.next_trial() == (number, settings)
    assert [trial.state for trial in resumed.get_trials()] == ["complete", "complete", "running"]
    assert storage.exists(f"{root}/s/tune/study.db")


def test_a_grid_tries_all_choices(tmp_path: Path):
    space = {WEIGHTING: {"choices": ["uniform", "language"]}, T: {"choices": [1.0, 5.0]}}
    search = study(tmp_path, space=space, sampler="grid", trials=4)
    seen = []
    for _ in range(4):
        number, settings = search.next_trial()
        run_trial(search, [0.5], number)
        seen.append((settings[WEIGHTING], settings[T]))
    assert len(set(seen)) == 4


def test_two_objectives_are_never_stopped_early(tmp_path: Path):
    search = study(tmp_path, second_objective="size", grace_epochs=1)
    for UR, size in ((0.8, 100.0), (0.2, 50.0), (0.1, 90.0)):
        number, _ = search.next_trial()
        assert not any(search.report_epoch(number, epoch, UR, 1.0) for epoch in (1, 2, 3))
        search.finish_trial(number, size, stopped=False)
    assert [(trial.objective, trial.cost) for trial in search.get_trials()] == [(0.8, 100.0), (0.2, 50.0), (0.1, 90.0)]


def test_importance_of_a_decisive_setting(tmp_path: Path):
    search = study(tmp_path, trials=40, sampler="random", scheduler="none")
    for _ in range(40):
        number, settings = search.next_trial()
        run_trial(search, [1 - abs(settings[T] - 3) / 10], number)
    importances = search.get_param_importances()
    assert max(importances, key=lambda key: importances[key]) == T


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"space": {"train.workers": {"choices": [1, 2]}}}, "expected keys below student"),
        ({"space": {"student.optim.epochs": {"low": 1, "high": 2}}}, "except"),
        ({"space": {T: {"low": 5.0}}}, "expected `low` and `high`"),
        ({"space": {T: {"low": 5.0, "high": 2.0}}}, "low < high"),
        ({"space": {T: {"choices": [1]}}}, "two or more `choices`"),
        ({"space": {T: {"low": 1, "high": 2, "conditions": {LAM: [0.5]}}}}, "listed before it"),
        ({"sampler": "grid"}, "list choices"),
        ({"space": {}}, "name a setting"),
    ],
)
def test_invalid_searches_are_rejected(tmp_path: Path, tune: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        experiment(tmp_path, **tune)


def test_invalid_choices_are_rejected_before_any_trial(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"attention.*language-aware"):
        validate_search_space(experiment(tmp_path, space={WEIGHTING: {"choices": ["uniform", "attention"]}}))


@pytest.mark.parametrize("name", ["a b", "a#b", "a?b", "100%25", "a;b&c=d", "{x}", "日本 ö", "+~@:"])
def test_the_file_is_in_its_folder_whatever_its_path(tmp_path: Path, name: str):
    run_trial(study(tmp_path / name), [0.5])
    assert list(tmp_path.iterdir()) == [tmp_path / name]
    assert list(tmp_path.rglob("study.db*")) == [tmp_path / name / "s" / "tune" / "study.db"]
    assert len(study(tmp_path / name).get_trials()) == 1


def test_a_full_disk(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        search = study(disk, trials=1000)
        number, _ = search.next_trial()
        with pytest.raises(OSError, match="No space"), (disk / "fill").open("wb") as file:
            file.write(bytes(1_000_000))
        with pytest.raises(DiskFullError, match=f"cannot write {disk}/s/tune/study.db: No space left on device"):
            for epoch in range(1, 1000):
                search.report_epoch(number, epoch, epoch / 1000, 10.0)
        (disk / "fill").unlink()
        assert run_trial(search, [0.5], number) == (number, False)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
