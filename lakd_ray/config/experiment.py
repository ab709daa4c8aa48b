"""The sections of the experiment file: typed, frozen, every field with a line of documentation."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lakd_ray.config.base import Section
from lakd_ray.config.distill import DistillLossConfig
from lakd_ray.config.external_teachers import ExternalTeacherConfig, LanguageCode
from lakd_ray.config.grid import GridConfig, Name
from lakd_ray.config.model import Recipe
from lakd_ray.config.tracking import TrackingConfig
from lakd_ray.config.tune import TuningConfig
from lakd_ray.labels import KNOWN_EMOTIONS, PAPER_EMOTIONS

Paradigm = Literal["ft", "kd", "mtkd"]
Setup = Literal["monolingual", "multilingual"]
PAPER_FOLDS = {"iemocap": 5, "fesc": 9, "cafe": 3}  # sessions, speakers, groups of actors
Backend = Literal["torch", "torch-bf16", "torch-int8", "onnx", "onnx-int8", "openvino", "openvino-bf16"]
Stage = Literal["prepare", "teachers", "distill", "tune", "evaluate", "report", "serve"]


class SplitConfig(Section):
    """How a corpus is divided into train, dev and test. Speakers are never shared between them."""

    scheme: Literal[
        "speaker-folds", "leave-one-speaker-out", "leave-one-session-out", "speaker-groups", "given", "paper"
    ] = "speaker-folds"
    """What one fold holds out for test; `given` reads the manifest's `split` column, `paper` is the paper's own scheme
    for its corpora: a session of IEMOCAP, a speaker of FESC, a third of CaFE's actors."""
    folds: int = Field(4, ge=2)
    """`speaker-folds`: number of folds that the speakers of each language are dealt into."""
    groups: tuple[tuple[str, ...], ...] = ()
    """`speaker-groups`: the test speakers of each fold, named as in the corpus."""
    dev_speakers: int = Field(2, ge=1)
    """Training speakers set aside for dev in each language (not with `given`)."""

    def num_folds(self, importer: str) -> int | None:
        """Number of folds; None where only the data tell."""
        known = {"given": 1, "speaker-groups": len(self.groups), "speaker-folds": self.folds}
        return PAPER_FOLDS.get(importer) if self.scheme == "paper" else known.get(self.scheme)

    @model_validator(mode="after")
    def _validate_groups(self) -> Self:
        if (self.scheme == "speaker-groups") != bool(self.groups):
            raise ValueError("`groups` belongs to scheme `speaker-groups`, and that scheme needs it")
        return self


class CorpusConfig(Section):
    """One corpus: where it lies, who reads it, how it is divided."""

    name: Name
    """Short unique name; qualifies speakers and utterances."""
    importer: Name = "csv"
    """The reader of its layout; `lakd corpora` lists them."""
    root: str
    """Folder or manifest file. `{storage}` stands for the experiment's storage."""
    options: dict[str, Any] = Field({})
    """Options of the importer."""
    languages: tuple[LanguageCode, ...] | None = None
    """Keep only these languages of a corpus that has more."""
    emotion_map: dict[str, str] = Field({})
    """Rename the corpus's own emotion names: theirs -> ours."""
    synthetic: bool | None = None
    """No person spoke: reports and model cards say so. null: only what importer espeak makes is."""
    split: SplitConfig = SplitConfig()
    """Folds."""

    @property
    def is_synthetic(self) -> bool:
        """Whether its speech is synthetic."""
        return self.importer == "espeak" if self.synthetic is None else self.synthetic


class AudioConfig(Section):
    """What is accepted at the door and how it is stored."""

    min_seconds: float = Field(0.1, gt=0)
    """Shorter clips are quarantined."""
    max_seconds: float = Field(20.0, gt=0)
    """The longest clip (20 s in the paper)."""
    on_too_long: Literal["cut", "quarantine"] = "cut"
    """What happens to longer ones; the paper cuts them."""
    silence_dbfs: float = Field(-70.0, ge=-96, le=0)
    """Clips that never get louder are quarantined as silent. 16 bits end at -96."""
    max_clipped_fraction: float = Field(0.2, ge=0, le=1)
    """Clips with more of their samples at full scale are quarantined; overdriven speech is far below this."""
    on_duplicate: Literal["quarantine", "keep"] = "quarantine"
    """Clips with the same audio: keep one if they agree on emotion and speaker and none if they do not, or keep all."""
    max_quarantined_fraction: float = Field(0.01, ge=0, le=1)
    """Share of a corpus's clips that may be quarantined before the stage fails."""
    row_group_utterances: int = Field(64, ge=1)
    """Utterances in one Parquet row group, the unit that streaming reads."""
    shard_utterances: int = Field(256, ge=1)
    """Utterances in one Parquet shard, the unit that one task prepares; an interrupted `prepare` loses no more."""

    @model_validator(mode="after")
    def _validate_durations(self) -> Self:
        if self.min_seconds >= self.max_seconds:
            raise ValueError(f"min_seconds ({self.min_seconds}) must be below max_seconds ({self.max_seconds})")
        return self


class DistillConfig(Section):
    """Which students are trained."""

    paradigms: tuple[Paradigm, ...] = ("ft", "kd", "mtkd")
    """ft: labels only; kd: one multilingual teacher; mtkd: one teacher per language."""
    setups: tuple[Setup, ...] = ("multilingual",)
    """monolingual: a student per language; multilingual: one student on all."""
    external_teachers: tuple[ExternalTeacherConfig, ...] = ()
    """Teachers that were trained elsewhere, for mtkd beside the experiment's own."""
    kd: DistillLossConfig = DistillLossConfig(lam=3 / 7)
    """Loss of paradigm kd. 3/7 balances as the paper's 0.75 does with its four times smaller KL."""
    mtkd: DistillLossConfig = DistillLossConfig()
    """Loss of paradigm mtkd."""

    @field_validator("paradigms", "setups")
    @classmethod
    def _validate_unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("name at least one, and each only once")
        return value

    @field_validator("external_teachers")
    @classmethod
    def _validate_teacher_names(cls, value: tuple[ExternalTeacherConfig, ...]) -> tuple[ExternalTeacherConfig, ...]:
        if len({one.name for one in value}) != len(value):
            raise ValueError("each teacher needs a name of its own")
        return value


class BatchConfig(Section):
    """How utterances become batches. Batches are planned, so every rank knows all of them beforehand."""

    max_padded_seconds: float = Field(60.0, gt=0)
    """Audio seconds in one worker's batch, padding included."""
    max_utterances: int = Field(16, ge=1)
    """Utterances in one worker's batch."""
    language_sampling_alpha: float = Field(1.0, ge=0, le=1)
    """Share of a language in an epoch: its utterances to this power. 1: as they are; 0: languages equally often."""
    shuffle_row_groups: int = Field(16, ge=1)
    """Row groups that one worker reads together, shuffles and sorts by length; more mixes better and takes memory."""


class TrainConfig(Section):
    """Workers and engine."""

    workers: int = Field(1, ge=1)
    """Data-parallel Ray Train workers of one run."""
    cpus_per_worker: int = Field(1, ge=1)
    """Logical CPUs that one worker reserves; also its torch threads."""
    gpu: bool = False
    """One GPU for each worker."""
    parallel_runs: int = Field(1, ge=1)
    """Independent runs trained at the same time, each with its own workers."""
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """`torch` does the same without DeepSpeed, to look for faults: all of the optimizer on every worker."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of forward and backward; fp16 needs a GPU."""
    gradient_checkpointing: bool = False
    """Keep only what enters each transformer layer for backward and compute the rest again: less memory, more time."""
    compile: bool = False
    """torch.compile for the transformer layers: a minute or more at the start; what it gains is not measured yet."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in the CPU's memory; DeepSpeed on GPUs alone."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Micro-batches in one optimizer step."""
    cache_features: bool = False
    """Compute what the frozen part makes once and train from it; needs `freeze_feature_encoder` or `freeze_encoder`."""
    checkpoint_steps: int | None = Field(None, ge=1)
    """Optimizer steps after which the state is also saved within an epoch; null: only after each epoch."""
    keep_resume_states: int = Field(2, ge=1)
    """Newest saved states that are kept; a damaged one is replaced by the one before it."""
    keep_checkpoints: int = Field(1, ge=1)
    """Checkpoints that are kept, of the best epochs on dev."""
    max_failures: int = Field(2, ge=0)
    """Times in a row that a lost worker group is started again without having got on since."""
    collective_timeout_s: float = Field(600.0, gt=0)
    """Longest wait for a collective operation or for workers to start."""

    @model_validator(mode="after")
    def _validate_engine(self) -> Self:
        if self.precision == "fp16" and not self.gpu:
            raise ValueError("precision fp16 needs GPUs: set train.gpu: true, or take bf16")
        if self.offload_optimizer and not (self.gpu and self.engine == "deepspeed" and self.zero_stage):
            raise ValueError(
                "`offload_optimizer` is DeepSpeed's, from a GPU, with ZeRO: set train.gpu: true, train.engine: deepspeed and "
                "train.zero_stage from 1, or offload_optimizer: false"
            )
        if self.compile and (self.gradient_checkpointing or (self.engine == "deepspeed" and self.zero_stage == 3)):
            raise ValueError(
                "`compile` goes with neither ZeRO-3, which takes layers apart, nor `gradient_checkpointing`: set train.zero_stage "
                "to 2 or lower and train.gradient_checkpointing: false, or compile: false"
            )
        return self


class CanaryConfig(Section):
    """A second model that is tried out beside the one that serves."""

    checkpoint: str
    """Sealed checkpoint folder: an absolute path that every node sees, or s3://bucket/prefix."""
    traffic_fraction: float = Field(0.0, ge=0, le=1)
    """Share of recordings that it answers; any request may choose by the header X-Model: stable or canary."""
    replicas: int = Field(1, ge=1)
    """Copies of it."""


class ServeConfig(Section):
    """The HTTP endpoint."""

    host: str = "127.0.0.1"
    """Address to listen on. With another one, set `api_keys`, and put a gateway that speaks HTTPS in front."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    replicas: int = Field(1, ge=1)
    """Copies of the model."""
    max_replicas: int | None = Field(None, ge=1)
    """With it, Serve starts up to so many copies while many requests wait, and stops them again; never below
    `replicas`."""
    cpus: int = Field(1, ge=1)
    """Logical CPUs of one copy; also its threads."""
    backend: Backend = "torch"
    """What computes: torch in fp32, bf16 or int8, or an exported graph by onnxruntime (`lakd-ray[onnx]`) in fp32 or
    int8 or by OpenVINO (`lakd-ray[openvino]`) in fp32 or bf16. int8 and graphs are for CPUs alone; what they gain and
    cost is in docs/how-to/export.md."""
    max_upload_mb: float = Field(25.0, gt=0)
    """Larger uploads are refused (413)."""
    max_seconds: float = Field(120.0, gt=0)
    """Longer recordings are refused (413)."""
    max_files: int = Field(32, ge=1)
    """Most recordings of a batch; together they may have four times `max_upload_mb`."""
    max_streams: int = Field(8, ge=0)
    """Most streams that are open at a time."""
    max_stream_s: float = Field(600.0, gt=0)
    """Longest stream; its last answer is about its last `max_seconds`."""
    deadline_s: float = Field(60.0, gt=0)
    """Longest time from a request's arrival to its answer (408), and between two messages of a stream."""
    decoder_processes: int = Field(2, ge=1)
    """Processes that decode recordings, so that a bad one harms nothing else."""
    api_keys_file: str | None = None
    """File with one key a line, read again when it changes; keys may also be in LAKD_API_KEYS, separated by commas.
    Without either, everybody who reaches the endpoint may ask it."""
    canary: CanaryConfig | None = None
    """A second model to try out."""


class ClusterConfig(Section):
    """The Ray cluster. A running one is used if RAY_ADDRESS or `address` names it; otherwise one is started here."""

    address: str | None = None
    """Ray address; `auto` finds a cluster on this machine."""
    log_to_driver: bool = False
    """Show what workers print, besides the progress of stages; it is kept in Ray's session folder either way."""
    cpus: int | None = Field(None, ge=2)
    """Logical CPUs of a cluster started here; what the experiment needs if absent."""
    object_store_mb: int | None = Field(None, ge=80)
    """Object store of a cluster started here; Ray's default if absent."""


class Experiment(Section):
    """Everything that one experiment is."""

    name: Name
    """Folder of its outputs under `storage`."""
    storage: str = "outputs"
    """Folder or s3://bucket/prefix for all outputs; absolute when submitted as a Ray job."""
    base_experiment: Name | None = None
    """Another experiment in the same storage whose prepared data and teachers are used instead of own ones."""
    stages: tuple[Stage, ...] = ("prepare", "teachers", "distill", "tune", "evaluate", "report", "serve")
    """What the pipeline does, in this order; its last stage asks the endpoint about held-out clips and stops it."""
    languages: tuple[LanguageCode, ...] = Field(min_length=1)
    """Languages, one teacher each."""
    emotions: tuple[str, ...] = PAPER_EMOTIONS
    """Classes, in the order of the logits; utterances with other emotions are left out."""
    seed: int = Field(42, ge=0)
    """Seeds weights, dropout and the order of the data."""
    fold: int = Field(0, ge=0)
    """Which fold is test; each corpus takes it modulo its own number of folds."""
    variant: Name | None = None
    """Names these settings of the students where the experiment has several; part of their runs' names."""
    corpora: tuple[CorpusConfig, ...] = Field(min_length=1)
    """The data."""
    audio: AudioConfig = AudioConfig()
    """The audio door and the shards."""
    teacher: Recipe
    """Every teacher."""
    student: Recipe
    """Every student."""
    distill: DistillConfig = DistillConfig()
    """Which students, and their losses."""
    batch: BatchConfig = BatchConfig()
    """Batches."""
    train: TrainConfig = TrainConfig()
    """Workers and engine."""
    grid: GridConfig = GridConfig()
    """Folds, seeds and variants that are compared."""
    tune: TuningConfig = TuningConfig()
    """The search."""
    serve: ServeConfig = ServeConfig()
    """The endpoint."""
    tracking: TrackingConfig = TrackingConfig()
    """Where training can be watched."""
    cluster: ClusterConfig = ClusterConfig()
    """The Ray cluster."""

    @field_validator("languages", "emotions")
    @classmethod
    def _validate_unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each may be named only once")
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
    def _validate_feature_cache(self) -> Self:
        models = {"teacher": self.teacher.model, "student": self.student.model}
        trained = [name for name, one in models.items() if not (one.freeze_feature_encoder or one.freeze_encoder)]
        if self.train.cache_features and trained:
            raise ValueError(
                f"`train.cache_features` keeps the feature encoder's output, but that of {' and '.join(trained)} is "
                "trained and changes it: set model.freeze_feature_encoder: true, or train.cache_features: false"
            )
        return self

    @model_validator(mode="after")
    def _validate_ema(self) -> Self:
        zero_3 = self.train.engine == "deepspeed" and self.train.zero_stage == 3
        if zero_3 and (self.teacher.optim.ema_decay or self.student.optim.ema_decay):
            raise ValueError(
                "`optim.ema_decay` needs all weights on every worker, which ZeRO-3 divides: set train.zero_stage to 2 or "
                "less, or optim.ema_decay: 0"
            )
        return self

    @model_validator(mode="after")
    def _validate_language_aware(self) -> Self:
        if self.teacher.model.language_aware is not None:
            raise ValueError(
                "`teacher.model.language_aware` is for students: a teacher has the plain head, set it to null"
            )
        if self.distill.kd.weighting == "attention":
            raise ValueError("`distill.kd` has one teacher and nothing to weigh: leave its weighting at similarity")
        if self.distill.mtkd.weighting == "attention" and self.student.model.language_aware is None:
            raise ValueError(
                "weighting `attention` is learned by a language-aware student: set student.model.language_aware: {}, "
                "or take another weighting, such as `language`, which goes by the language without learning"
            )
        if self.train.cache_features and self.student.model.freeze_encoder and self.student.model.language_aware:
            raise ValueError(
                "a language-aware student looks at every layer's frames, which are not cached: set "
                "train.cache_features: false, or student.model.freeze_encoder: false"
            )
        return self

    @property
    def folder(self) -> str:
        """Where the experiment's outputs lie."""
        return f"{self.storage.rstrip('/')}/{self.name}"

    @property
    def cell(self) -> str:
        """Short name of this fold and seed."""
        return f"f{self.fold}-s{self.seed}"

    def stage_folder(self, stage: str) -> str:
        """Where a stage's outputs lie: prepared data and teachers may be another experiment's."""
        owner = (
            self.base_experiment if self.base_experiment is not None and stage in ("prepare", "teachers") else self.name
        )
        return f"{self.storage.rstrip('/')}/{owner}/{stage}"
