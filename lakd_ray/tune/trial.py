"""One trial: an mtkd student with some of the search's settings, trained in the trial's own process."""

import os
import tempfile
from pathlib import Path
from typing import Any

from ray import tune

from lakd_ray.config import DistillLoss, Experiment
from lakd_ray.data.stream import Source
from lakd_ray.train.teaching import Job, teacher_logits

# The paper's loss. The search's first trial.
PAPER = DistillLoss(temperature=5.0, lam=0.25, tau=0.25, weighting="similarity", reference_compat=True)
SEARCHED = ("temperature", "lam", "tau")


def loss_of(settings: dict[str, Any], base: DistillLoss) -> DistillLoss:
    """The loss that a trial tries: the paper's own at the paper's settings, else the experiment's with these."""
    if all(settings[name] == getattr(PAPER, name) for name in SEARCHED):
        return PAPER
    return base.model_copy(update={name: settings[name] for name in SEARCHED})


def train_trial(settings: dict[str, Any], *, experiment: dict[str, Any], job: Job, source: Source | None) -> None:
    """Ray Tune's function: trains the student and reports after each epoch.

    Args:
        settings: temperature, lam and tau of this trial.
        experiment: the configuration, as plain data.
        job: the student and its inputs.
        source: cached features to train on, if any.
    """
    import torch  # only trials need it

    from lakd_ray.data import manifest as manifests
    from lakd_ray.train.feed import Feed
    from lakd_ray.train.loop import train

    config = Experiment.model_validate(experiment)
    trial = f"trials/{tune.get_context().get_trial_id()}"
    run = job.run.model_copy(update={"id": trial, "stage": "tune", "loss": loss_of(settings, config.distill.mtkd)})
    torch.set_num_threads(config.train.cpus_per_worker)
    _alone()
    manifest = manifests.load(config)
    logits = torch.from_numpy(teacher_logits(config, manifest, run))
    feed = Feed(run, config, manifest, logits, rank=0, world=1, source=source)
    made_by = {**job.made_by, "run": {**job.made_by["run"], "loss": run.loss and run.loss.model_dump()}}
    best = 0.0

    def report(line: dict[str, Any]) -> None:
        nonlocal best
        best = max(best, line["dev_UR"])
        known = {key: line[key] for key in ("epoch", "loss", "dev_UR", "dev_WR", "dev_ce", "audio_seconds", "seconds")}
        tune.report({**known, "best_dev_UR": best})

    train(feed, run.folder(config), made_by, list(job.parents), report)


def _alone() -> None:
    """A process group of one, which the engine's collectives need; a reused process has it already."""
    import torch.distributed as dist

    if not dist.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
        store = Path(tempfile.mkdtemp(prefix="lakd-"), "store")
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
