"""The section that says where training can be watched."""

import re
from typing import Literal

from pydantic import Field, field_validator

from lakd_ray.config.base import Section


class MlflowConfig(Section):
    """An MLflow server; needs `lakd-ray[mlflow]`."""

    uri: str
    """Tracking server (https://...) or database (sqlite:////absolute/path.db); its password is in MLFLOW_TRACKING_*."""
    experiment: str | None = None
    """Experiment on that server; null: this one's name."""

    @field_validator("uri")
    @classmethod
    def _validate_uri(cls, value: str) -> str:
        if "://" not in value or re.match(r"sqlite:/{0,3}(?!/)", value):
            raise ValueError(
                "expected a server, https://host:5000, or a database by its absolute path, sqlite:////data/mlflow.db; "
                "MLflow has given up plain folders"
            )
        if re.search(r"://[^/]*:[^/]*@", value):
            raise ValueError(
                "a password does not belong in an experiment file: set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD where the driver runs"
            )
        return value


class WandbConfig(Section):
    """Weights & Biases; needs `lakd-ray[wandb]`."""

    project: str = Field("lakd-ray", min_length=1)
    """Project there."""
    entity: str | None = None
    """User or team that it belongs to; null: the key's own."""
    mode: Literal["offline", "online"] = "offline"
    """offline: written to the storage, for `wandb sync`; online: sent at once, with the key in WANDB_API_KEY."""


class TrackingConfig(Section):
    """Who is told of every epoch. None of them can stop or slow training."""

    tensorboard: bool = True
    """Event files in <storage>/<experiment>/tensorboard/<run>."""
    mlflow: MlflowConfig | None = None
    """MLflow: `uri` and `experiment`."""
    wandb: WandbConfig | None = None
    """Weights & Biases: `project`, `entity` and `mode`."""
