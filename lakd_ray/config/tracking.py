"""Define the configuration section `tracking`: the experiment trackers that receive the metrics of every epoch."""

import re
from typing import Literal

from pydantic import Field, field_validator

from lakd_ray.config.base import Section


class MlflowConfig(Section):
    """An MLflow tracking server; needs `lakd-ray[mlflow]`."""

    uri: str
    """Tracking server (https://...) or database (sqlite:////absolute/path.db); credentials: MLFLOW_TRACKING_*."""
    experiment: str | None = None
    """Name of the MLflow experiment; null: the name of this experiment."""

    @field_validator("uri")
    @classmethod
    def _validate_uri(cls, value: str) -> str:
        if "://" not in value or re.match(r"sqlite:/{0,3}(?!/)", value):
            raise ValueError(
                "expected a server, https://host:5000, or a database by its absolute path, sqlite:////data/mlflow.db; "
                "MLflow has dropped support for plain folders"
            )
        return value


class WandbConfig(Section):
    """A Weights & Biases project; needs `lakd-ray[wandb]`."""

    project: str = Field("lakd-ray", min_length=1)
    """Name of the Weights & Biases project."""
    entity: str | None = None
    """User or team that owns the project; null: the default of the API key."""
    mode: Literal["offline", "online"] = "offline"
    """offline: write to the storage, for `wandb sync`; online: upload at once, with the key in WANDB_API_KEY."""


class TrackingConfig(Section):
    """The experiment trackers; a failing tracker neither stops nor slows training."""

    tensorboard: bool = True
    """Write event files to <storage>/<experiment>/tensorboard/<run>."""
    mlflow: MlflowConfig | None = None
    """MLflow server with `uri` and `experiment`; null: none."""
    wandb: WandbConfig | None = None
    """Weights & Biases project with `project`, `entity` and `mode`; null: none."""
