"""The exceptions a user can meet. Each message says what was found, what was expected and what to do.

LakdError
├── ConfigError        the experiment file or an override
├── DataError          a corpus, a clip, a manifest
│   ├── ClipError      one recording that cannot be used, and of which kind (lakd_ray.data.schema.QUARANTINE_KINDS)
│   ├── SplitError     train, dev and test cannot be made, or share something they must not
│   └── DataLeakageError   a model has seen what it is about to be judged on
├── StorageError       a path or bucket that is missing, refused, full or half written
├── CheckpointError    a checkpoint that cannot be trusted
├── StageError         a stage's output was made by another configuration, or an input stage is missing
├── ResourceError      the cluster cannot give what was asked for
└── TrainingError      a training run that failed or diverged
"""


class LakdError(Exception):
    """Base of all errors that are meant for people; the command line prints them without a traceback."""


class ConfigError(LakdError):
    """The experiment file or an override is wrong."""


class DataError(LakdError):
    """A corpus, a clip or a manifest is not what it should be."""


class ClipError(DataError):
    """A recording cannot be used; `kind` is one of `lakd_ray.data.schema.QUARANTINE_KINDS`."""

    def __init__(self, message: str, kind: str = "undecodable"):
        super().__init__(message)
        self.kind = kind


class SplitError(DataError):
    """Train, dev and test cannot be made from this manifest, or share what they must not."""


class DataLeakageError(DataError):
    """A model has seen speakers or audio that it is about to be judged on."""


class StorageError(LakdError):
    """A path or bucket is missing, refused, full or half written."""


class CorruptedError(StorageError):
    """A folder that is not whole: unfinished, cut short or changed."""


class CheckpointError(LakdError):
    """A checkpoint is missing, damaged or not the kind that was asked for."""


class StageError(LakdError):
    """A stage's output was made by another configuration, or a stage it needs has not run."""


class ResourceError(LakdError):
    """The cluster cannot give the resources that the configuration asks for."""


class TrainingError(LakdError):
    """A training run failed or diverged."""
