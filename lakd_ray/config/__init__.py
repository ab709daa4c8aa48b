"""The experiment file as typed, frozen configuration."""

from lakd_ray.config.base import Section
from lakd_ray.config.distill import DistillLossConfig, LabelLossConfig, Weighting
from lakd_ray.config.experiment import (
    AudioConfig,
    Backend,
    BatchConfig,
    CanaryConfig,
    ClusterConfig,
    CorpusConfig,
    DistillConfig,
    Experiment,
    Paradigm,
    ServeConfig,
    Setup,
    SplitConfig,
    Stage,
    TrainConfig,
)
from lakd_ray.config.external_teachers import ExternalTeacherConfig
from lakd_ray.config.grid import GridConfig
from lakd_ray.config.loader import (
    experiment_names,
    find_experiment,
    load_config,
    parse_overrides,
    resolve_location,
    to_dict,
    to_documented_yaml,
    with_settings,
    with_variant,
)
from lakd_ray.config.model import LanguageAwareHeadConfig, ModelConfig, OptimConfig, Recipe
from lakd_ray.config.tracking import MlflowConfig, TrackingConfig, WandbConfig
from lakd_ray.config.tune import Dimension, ReevaluationConfig, TuningConfig

__all__ = [
    "AudioConfig",
    "Backend",
    "BatchConfig",
    "CanaryConfig",
    "ClusterConfig",
    "CorpusConfig",
    "Dimension",
    "DistillConfig",
    "DistillLossConfig",
    "Experiment",
    "ExternalTeacherConfig",
    "GridConfig",
    "LabelLossConfig",
    "LanguageAwareHeadConfig",
    "MlflowConfig",
    "ModelConfig",
    "OptimConfig",
    "Paradigm",
    "Recipe",
    "ReevaluationConfig",
    "Section",
    "ServeConfig",
    "Setup",
    "SplitConfig",
    "Stage",
    "TrackingConfig",
    "TrainConfig",
    "TuningConfig",
    "WandbConfig",
    "Weighting",
    "experiment_names",
    "find_experiment",
    "load_config",
    "parse_overrides",
    "resolve_location",
    "to_dict",
    "to_documented_yaml",
    "with_settings",
    "with_variant",
]
