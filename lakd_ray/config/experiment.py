"""The root of the configuration: an experiment with all its sections, and the rules between sections."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lakd_ray.config.base import LanguageCode, Name, Section
from lakd_ray.config.cluster import ClusterConfig
from lakd_ray.config.data import AudioConfig, BatchConfig, CorpusConfig
from lakd_ray.config.distill import DistillConfig
from lakd_ray.config.grid import GridConfig
from lakd_ray.config.optim import Recipe
from lakd_ray.config.serve import ServeConfig
from lakd_ray.config.tracking import TrackingConfig
from lakd_ray.config.train import TrainConfig
from lakd_ray.config.tune import SettingsSelection, TuningConfig
from lakd_ray.labels import KNOWN_EMOTIONS, PAPER_EMOTIONS
from lakd_ray.redaction import find_credentials

Stage = Literal["prepare", "teachers", "distill", "tune", "evaluate", "report", "serve"]

_CREDENTIAL_VARIABLES = {
    "tracking.mlflow.uri": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "tune.study_storage": "LAKD_STUDY_PASSWORD (the user's name stays in the address)",
}
_S3_VARIABLES = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


class Experiment(Section):
    """The complete configuration of one experiment."""

    name: Name
    """Name of the experiment and of its output folder below `storage`."""
    storage: str = "outputs"
    """Folder or s3://bucket/prefix for all outputs; must be absolute in a Ray job."""
    base_experiment: Name | None = None
    """Experiment in the same storage whose prepared data and teachers to use; null: prepare and train its own."""
    stages: tuple[Stage, ...] = ("prepare", "teachers", "distill", "tune", "evaluate", "report", "serve")
    """Stages of the pipeline, in this order; `serve` starts the endpoint, sends it held-out clips and stops it."""
    languages: tuple[LanguageCode, ...] = Field(min_length=1)
    """Languages of the experiment (ISO 639-1 or 639-3 codes), with one teacher each."""
    emotions: tuple[str, ...] = PAPER_EMOTIONS
    """Emotion classes, in the order of the logits; utterances with other emotions are excluded."""
    seed: int = Field(42, ge=0)
    """Random seed of weights, dropout and the order of the data."""
    fold: int = Field(0, ge=0)
    """Index of the test fold, for each corpus modulo its number of folds."""
    variant: Name | None = None
    """Name of the students' settings if the experiment has several; part of the names of their runs."""
    corpora: tuple[CorpusConfig, ...] = Field(min_length=1)
    """Corpora with their importers and splits."""
    speaker_aliases: dict[str, tuple[str, ...]] = Field({})
    """People with several names, as {corpus:speaker: [corpus:speaker, ...]}. All names of a person count as one speaker
    in splits, cross-fitting, intervals and the records of training data."""
    audio: AudioConfig = AudioConfig()
    """Checks on recordings, and the stored shards."""
    teacher: Recipe
    """Model and training settings of every teacher."""
    student: Recipe
    """Model and training settings of every student."""
    distill: DistillConfig = DistillConfig()
    """Students to train, and their distillation losses."""
    batch: BatchConfig = BatchConfig()
    """Size and composition of batches."""
    train: TrainConfig = TrainConfig()
    """Workers, engine, saved states and checkpoints."""
    grid: GridConfig = GridConfig()
    """Folds, seeds and variants to compare."""
    selected_on: tuple[SettingsSelection, ...] = ()
    """Searches that selected the settings of this experiment. Where their dev speakers are test speakers, as in other
    folds, results of students are optimistic and have a mark."""
    tune: TuningConfig = TuningConfig()
    """Hyperparameter search for the student."""
    serve: ServeConfig = ServeConfig()
    """HTTP endpoint for predictions."""
    tracking: TrackingConfig = TrackingConfig()
    """Experiment trackers: TensorBoard, MLflow, Weights & Biases."""
    cluster: ClusterConfig = ClusterConfig()
    """Ray cluster to join or to start."""

    @model_validator(mode="before")
    @classmethod
    def _reject_credentials(cls, tree: Any) -> Any:
        """Reject passwords and keys in addresses: the configuration is written to records, reports and trackers."""
        for key in find_credentials(tree):
            raise ValueError(
                f"`{key}` contains a password or a key, which does not belong in an experiment: it would be written to "
                f"records and reports. Remove it, and set {_CREDENTIAL_VARIABLES.get(key, _S3_VARIABLES)} in the "
                "environment"
            )
        return tree

    @field_validator("languages", "emotions")
    @classmethod
    def _validate_unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"expected each name only once, found {list(value)}")
        return value

    @field_validator("emotions")
    @classmethod
    def _validate_emotions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [emotion for emotion in value if emotion not in KNOWN_EMOTIONS]
        if unknown or len(value) < 2:
            raise ValueError(f"expected two or more of {sorted(KNOWN_EMOTIONS)}, found {list(value)}")
        return value

    @model_validator(mode="after")
    def _validate_corpora(self) -> Self:
        names = [corpus.name for corpus in self.corpora]
        if len(set(names)) != len(names):
            raise ValueError(f"corpus names must be unique, found {names}")
        return self

    @model_validator(mode="after")
    def _validate_trial_gpus(self) -> Self:
        if self.tune.workers_per_trial > 1 and self.train.gpus_per_worker < 1:
            raise ValueError(
                f"the {self.tune.workers_per_trial} workers of a trial cannot share a GPU, because NCCL needs one for "
                f"each: found train.gpus_per_worker: {self.train.gpus_per_worker:g}, set it to 1, or "
                "tune.workers_per_trial: 1"
            )
        return self

    @model_validator(mode="after")
    def _validate_speaker_aliases(self) -> Self:
        names = [name for first, others in self.speaker_aliases.items() for name in (first, *others)]
        corpora = {corpus.name for corpus in self.corpora}
        if unknown := [name for name in names if ":" not in name or name.partition(":")[0] not in corpora]:
            raise ValueError(
                f"`speaker_aliases` has {', '.join(unknown)}: expected corpus:speaker, with the corpora "
                f"{', '.join(sorted(corpora))}"
            )
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"`speaker_aliases` has {', '.join(repeated)} more than once: list all other names of a person below "
                "the first one"
            )
        return self

    @model_validator(mode="after")
    def _validate_feature_cache(self) -> Self:
        models = {"teacher": self.teacher.model, "student": self.student.model}
        trained = [name for name, model in models.items() if not (model.freeze_feature_encoder or model.freeze_encoder)]
        if self.train.cache_features and trained:
            raise ValueError(
                f"`train.cache_features` stores the feature encoder's output, but the feature encoder of "
                f"{' and '.join(trained)} is trained: set model.freeze_feature_encoder: true, or "
                "train.cache_features: false"
            )
        return self

    @model_validator(mode="after")
    def _validate_ema(self) -> Self:
        zero_3 = self.train.engine == "deepspeed" and self.train.zero_stage == 3
        if zero_3 and (self.teacher.optim.ema_decay or self.student.optim.ema_decay):
            raise ValueError(
                "`optim.ema_decay` needs all weights on every worker, and ZeRO-3 partitions them: set train.zero_stage "
                "to 2 or less, or optim.ema_decay: 0"
            )
        return self

    @model_validator(mode="after")
    def _validate_language_aware(self) -> Self:
        if self.teacher.model.language_aware is not None:
            raise ValueError(
                "`teacher.model.language_aware` is for students: set it to null, for a teacher has the plain head"
            )
        if self.distill.kd.weighting == "attention":
            raise ValueError(
                "`distill.kd` has one teacher, so attention weights do not apply: leave its weighting at similarity"
            )
        if self.distill.mtkd.weighting == "attention" and self.student.model.language_aware is None:
            raise ValueError(
                "weighting `attention` is learned by a language-aware student: set student.model.language_aware: {}, "
                "or a weighting that is not learned, such as `language`"
            )
        if self.train.cache_features and self.student.model.freeze_encoder and self.student.model.language_aware:
            raise ValueError(
                "a language-aware student reads the frames of every layer, which are not cached: set "
                "train.cache_features: false, or student.model.freeze_encoder: false"
            )
        return self

    @property
    def speakers_selected_on(self) -> frozenset[str]:
        """Speakers, as `corpus:speaker`, whose results selected the settings."""
        return frozenset(speaker for selection in self.selected_on for speaker in selection.speakers)

    @property
    def folder(self) -> str:
        """Location of the experiment's outputs, without a trailing slash."""
        return f"{self.storage.rstrip('/')}/{self.name}"

    @property
    def cell(self) -> str:
        """Short name of this fold and seed, for instance `f0-s42`."""
        return f"f{self.fold}-s{self.seed}"

    def stage_folder(self, stage: str) -> str:
        """Return the location of a stage's outputs, which for data and teachers may be the base experiment's."""
        return f"{self.owner_folder(stage)}/{stage}"

    def owner_folder(self, stage: str) -> str:
        """Return the location of the experiment to which a stage's outputs belong: this one or the base experiment."""
        is_shared = self.base_experiment is not None and stage in ("prepare", "teachers")
        owner = self.base_experiment if is_shared else self.name
        return f"{self.storage.rstrip('/')}/{owner}"
