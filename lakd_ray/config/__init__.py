"""The experiment file as typed, frozen configuration.

Each section of the file has a module: `experiment` is the root, `data` has corpora, audio and batches, `model` and
`optim` the recipes of teachers and students, and the others are named after their section. `loader` reads files and
overrides, `dump` writes YAML and the JSON schema, `known_names` and `renamed` check names. Other packages import from
here only.
"""

from lakd_ray.config.base import LanguageCode, Name, Section
from lakd_ray.config.cluster import ClusterConfig
from lakd_ray.config.data import IMPORTER_NAMES, AudioConfig, BatchConfig, CorpusConfig, SplitConfig
from lakd_ray.config.distill import DistillConfig, DistillLossConfig, Paradigm, Setup, Weighting
from lakd_ray.config.experiment import Experiment, Stage
from lakd_ray.config.external_teachers import ExternalTeacherConfig
from lakd_ray.config.grid import GridConfig
from lakd_ray.config.loader import (
    experiment_names,
    find_experiment,
    json_schema,
    load_config,
    parse_overrides,
    resolve_location,
    to_dict,
    to_documented_yaml,
    with_settings,
    with_variant,
)
from lakd_ray.config.model import LanguageAwareHeadConfig, ModelConfig
from lakd_ray.config.optim import LabelLossConfig, OptimConfig, Recipe
from lakd_ray.config.serve import CPU_BACKENDS, Backend, CanaryConfig, ServeConfig, validate_backend_device
from lakd_ray.config.tracking import MlflowConfig, TrackingConfig, WandbConfig
from lakd_ray.config.train import TrainConfig
from lakd_ray.config.tune import Dimension, ReevaluationConfig, SettingsSelection, TuningConfig

__all__ = [
    "CPU_BACKENDS",
    "IMPORTER_NAMES",
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
    "LanguageCode",
    "MlflowConfig",
    "ModelConfig",
    "Name",
    "OptimConfig",
    "Paradigm",
    "Recipe",
    "ReevaluationConfig",
    "Section",
    "ServeConfig",
    "SettingsSelection",
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
    "json_schema",
    "load_config",
    "parse_overrides",
    "resolve_location",
    "to_dict",
    "to_documented_yaml",
    "validate_backend_device",
    "with_settings",
    "with_variant",
]
