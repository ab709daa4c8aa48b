"""Names of the folders and files that an experiment writes to its storage.

<storage>/<experiment>/
  prepare/                       manifest and shards
  teachers/<run>/                training runs, see `lakd_ray.runs.state`
  teachers/logits/<model>/       cached teacher logits
  distill/<run>/
  tune/trials/<number>/          training runs of the hyperparameter search
  evaluate/predictions/<cell>/   one Parquet file per model
  evaluate/languages/<cell>/     predictions of language-aware students in each language condition
  report/                        report.json and report.html
  lease/                         the process that works on the experiment, see `lakd_ray.storage.lease`
  grid/                          events.jsonl, see `lakd_ray.launch.run_log`
"""

from lakd_ray import storage
from lakd_ray.config import Experiment

RECORD_FILE = "record.json"
STATE_FILE = "state.json"
METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"


def checkpoint_name(epoch: int) -> str:
    """Return the name of an epoch's checkpoint folder; epochs are counted from 1."""
    return f"best-{epoch:04d}"


def resume_folder_name(epochs_done: int, batches_done: int) -> str:
    """Return the name of the folder with the engine state after some epochs and some batches of the next one."""
    return f"resume-{epochs_done:04d}" + (f"-{batches_done:05d}" if batches_done else "")


def trial_id(number: int, seed: int | None = None) -> str:
    """Return the run id of a trial of the hyperparameter search, which is its path below the tune stage's folder."""
    return f"trials/{number:04d}" + ("" if seed is None else f"-s{seed}")


def logits_folder(config: Experiment) -> str:
    """Return the folder of the cached teacher logits."""
    return storage.join(config.stage_folder("teachers"), "logits")


def predictions_folder(config: Experiment) -> str:
    """Return the folder to which evaluation writes the predictions for this fold and seed."""
    return storage.join(config.stage_folder("evaluate"), "predictions", config.cell)


def language_conditions_folder(config: Experiment) -> str:
    """Return the folder of the predictions of language-aware students in each language condition."""
    return storage.join(config.stage_folder("evaluate"), "languages", config.cell)
