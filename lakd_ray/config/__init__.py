"""The experiment file as typed, frozen configuration."""

from lakd_ray.config.base import Section
from lakd_ray.config.file import absolute, describe, dump, load, values, variant_of, with_settings
from lakd_ray.config.grid import Grid
from lakd_ray.config.losses import DistillLoss, LabelLoss, Weighting
from lakd_ray.config.recipe import LanguageAware, Model, Optim, Recipe
from lakd_ray.config.search import Confirm, Dimension, Tune
from lakd_ray.config.sections import (
    Audio,
    Backend,
    Batch,
    Canary,
    Cluster,
    Corpus,
    Distill,
    Experiment,
    Paradigm,
    Serve,
    Setup,
    Split,
    Stage,
    Train,
)
from lakd_ray.config.teachers import Brought
from lakd_ray.config.tracking import Mlflow, Tracking, Wandb

__all__ = [
    "Audio",
    "Backend",
    "Batch",
    "Brought",
    "Canary",
    "Cluster",
    "Confirm",
    "Corpus",
    "Dimension",
    "Distill",
    "DistillLoss",
    "Experiment",
    "Grid",
    "LabelLoss",
    "LanguageAware",
    "Mlflow",
    "Model",
    "Optim",
    "Paradigm",
    "Recipe",
    "Section",
    "Serve",
    "Setup",
    "Split",
    "Stage",
    "Tracking",
    "Train",
    "Tune",
    "Wandb",
    "Weighting",
    "absolute",
    "describe",
    "dump",
    "load",
    "values",
    "variant_of",
    "with_settings",
]
