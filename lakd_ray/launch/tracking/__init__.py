"""Log training runs to experiment trackers: MLflow, TensorBoard, and Weights & Biases.

`track_runs` passes the events of training to the trackers of the configuration, which `build_trackers` returns.
`base.Tracker` is the interface of a tracker; `mlflow`, `tensorboard` and `wandb` implement it.
"""

from lakd_ray.launch.tracking.base import Tracker
from lakd_ray.launch.tracking.manager import build_trackers, check_tracker_packages, track_runs

__all__ = ["Tracker", "build_trackers", "check_tracker_packages", "track_runs"]
