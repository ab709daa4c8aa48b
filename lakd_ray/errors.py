"""Define the exceptions for users: each message has what was found, what was expected and what to do.

    LakdError
    ├── ConfigError        the experiment file or an override
    ├── DataError          a corpus, a clip, a manifest
    │   ├── ClipError      one recording that cannot be used
    │   ├── SplitError     train, dev and test cannot be created, or overlap
    │   └── DataLeakageError   a model was trained on data of its evaluation
    ├── StorageError       a path or bucket that is missing, not permitted or full
    │   ├── CorruptedError     a folder that is unfinished, truncated or changed
    │   └── DiskFullError      a disk without space or inodes, or one that is mounted read-only
    ├── CheckpointError    a checkpoint that is missing, damaged or of a different kind
    ├── StageError         a stage's output belongs to a different configuration, or an input stage is missing
    ├── LeaseError         a different process works on the folder, or has taken it over
    ├── ResourceError      the cluster does not have the requested resources
    └── TrainingError      a training run that failed or diverged

`except LakdError` catches all of them. Errors of arguments in code, such as shapes, are ValueError.
"""

from lakd_ray.redaction import redact


class LakdError(Exception):
    """Base class of all errors for users; the command line prints them without a traceback."""

    def __str__(self) -> str:
        """Return the message without credentials, which may be in the addresses and errors that it quotes."""
        return redact(super().__str__())


class ConfigError(LakdError):
    """The experiment file or an override is invalid."""


class DataError(LakdError):
    """A corpus, a clip or a manifest is invalid."""


class ClipError(DataError):
    """A recording cannot be used; `kind` is one of `lakd_ray.data.schema.QUARANTINE_KINDS`."""

    def __init__(self, message: str, kind: str = "undecodable"):
        super().__init__(message)
        self.kind = kind


class SplitError(DataError):
    """Train, dev and test cannot be created from a manifest, or they share speakers or audio."""


class DataLeakageError(DataError):
    """A model was trained on speakers or audio of its evaluation."""


class StorageError(LakdError):
    """A path or bucket is missing, not permitted or full."""


class CorruptedError(StorageError):
    """A folder is unfinished, truncated or changed, compared with its checksums."""


class DiskFullError(StorageError):
    """A disk has no space or inodes left, or is read-only: a retry would fail in the same way."""


class CheckpointError(LakdError):
    """A checkpoint is missing, damaged or not of the requested kind."""


class StageError(LakdError):
    """A stage's output belongs to a different configuration, or a required stage has not run."""


class LeaseError(LakdError):
    """A different process works on a folder, or has taken it over from this one."""


class ResourceError(LakdError):
    """The cluster does not have the resources that the configuration requests."""


class TrainingError(LakdError):
    """A training run failed or diverged."""
