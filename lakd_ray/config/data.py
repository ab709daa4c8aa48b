"""The sections `corpora` with `split`, `audio` and `batch`: the data, its checks and its batches."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from lakd_ray.config.base import LanguageCode, Name, Section

# The importers of lakd_ray.corpora.registry, which is above this package; a test compares the two lists.
IMPORTER_NAMES = (
    "csv", "audiofolder", "huggingface", "iemocap", "fesc", "cafe", "emodb", "cremad", "emozionalmente", "esd",
    "msp_podcast", "nemo", "oreau", "ravdess", "savee", "shemo", "subesco", "tess", "espeak",
)  # fmt: skip
# Importers of any corpus; the others are each for one public dataset.
_GENERIC_IMPORTERS = ("csv", "audiofolder", "huggingface", "espeak")
PAPER_FOLDS = {"iemocap": 5, "fesc": 9, "cafe": 3}  # sessions, speakers, groups of actors


class SplitConfig(Section):
    """How to divide a corpus into train, dev and test; no two splits share a speaker."""

    scheme: Literal[
        "speaker-folds", "leave-one-speaker-out", "leave-one-session-out", "speaker-groups", "given", "paper"
    ] = "speaker-folds"
    """Test data of one fold; `given` reads the manifest's `split` column, `paper` is the paper's own scheme for its
    corpora: a session of IEMOCAP, a speaker of FESC, a third of CaFE's actors."""
    folds: int = Field(4, ge=2)
    """`speaker-folds`: number of folds over which the speakers of each language are distributed."""
    groups: tuple[tuple[str, ...], ...] = ()
    """`speaker-groups`: the test speakers of each fold, named as in the corpus."""
    dev_speakers: int = Field(2, ge=1)
    """Number of training speakers of each language that are held out for dev (not used by `given`)."""

    def num_folds(self, importer: str) -> int | None:
        """Return the number of folds, or None if it depends on the data."""
        known = {"given": 1, "speaker-groups": len(self.groups), "speaker-folds": self.folds}
        return PAPER_FOLDS.get(importer) if self.scheme == "paper" else known.get(self.scheme)

    @model_validator(mode="after")
    def _validate_groups(self) -> Self:
        if (self.scheme == "speaker-groups") != bool(self.groups):
            raise ValueError("`groups` belongs to scheme `speaker-groups`, and that scheme needs it")
        return self


class CorpusConfig(Section):
    """One corpus of the experiment: its location, its importer and its splits."""

    name: Name
    """Short unique name; a prefix of the ids of its speakers and utterances."""
    importer: Name = Field("csv", json_schema_extra={"enum": list(IMPORTER_NAMES)})
    """Importer for the corpus's folder layout; `lakd corpora` lists all importers."""
    root: str
    """Folder or manifest file of the corpus; `{storage}` is replaced with the experiment's storage."""
    options: dict[str, Any] = Field({})
    """Options of the importer; `lakd corpora NAME` lists them."""
    languages: tuple[LanguageCode, ...] | None = None
    """Languages to import from a multilingual corpus; null: all."""
    emotion_map: dict[str, str] = Field({})
    """Map from the corpus's emotion names to the names used here, for instance {joy: happiness}."""
    dataset: Name | None = None
    """Public dataset that this is a copy or part of, such as iemocap: models known to be trained on that dataset are
    then recognized. null: the importer's dataset; none for csv, audiofolder, huggingface and espeak."""
    synthetic: bool | None = None
    """Whether the speech is synthetic, as reports and model cards then state; null: only for importer espeak."""
    split: SplitConfig = SplitConfig()
    """Division into train, dev and test."""
    independent_units: Literal["speakers", "sessions"] | None = None
    """Units of the test data that are independent of each other, over which reports compute intervals. `sessions`: the
    speakers of a session talk to each other; null: sessions for importer iemocap, else speakers."""

    @property
    def public_dataset(self) -> str | None:
        """Name of the public dataset that the corpus is a copy or part of; None if it is not known."""
        return self.dataset or (None if self.is_generic else self.importer)

    @property
    def is_generic(self) -> bool:
        """Whether the importer is one of any corpus, whose speakers may have any names."""
        return self.importer in _GENERIC_IMPORTERS

    @property
    def is_synthetic(self) -> bool:
        """Whether the corpus consists of synthetic speech."""
        return self.importer == "espeak" if self.synthetic is None else self.synthetic

    @property
    def units(self) -> Literal["speakers", "sessions"]:
        """Units of the test data that are independent of each other."""
        return self.independent_units or ("sessions" if self.importer == "iemocap" else "speakers")


class AudioConfig(Section):
    """Checks on recordings at import, and the size of the stored shards."""

    min_seconds: float = Field(0.1, gt=0)
    """Minimum duration in seconds; shorter clips are quarantined."""
    max_seconds: float = Field(20.0, gt=0)
    """Maximum duration in seconds, 20 in the paper; see `on_too_long`."""
    on_too_long: Literal["truncate", "quarantine"] = "truncate"
    """Treatment of clips longer than `max_seconds`; the paper truncates them."""
    silence_dbfs: float = Field(-70.0, ge=-96, le=0)
    """Peak level in dBFS below which a clip is quarantined as silent; 16-bit audio has a floor of -96."""
    max_clipped_fraction: float = Field(0.2, ge=0, le=1)
    """Maximum fraction of samples at full scale before a clip is quarantined; overdriven speech is far below this."""
    on_duplicate: Literal["quarantine", "keep"] = "quarantine"
    """Treatment of clips with identical audio. quarantine: retain one if their emotions and speakers agree and none if
    they differ; keep: retain all."""
    acoustic_duplicates: Literal["error", "warn", "off"] = "error"
    """Treatment of recordings in different splits whose manifest has the same `acoustic_fingerprint`. Stage `prepare`
    does not compute fingerprints: the setting has an effect only on a manifest to which the column was added."""
    max_quarantined_fraction: float = Field(0.01, ge=0, le=1)
    """Maximum fraction of a corpus's clips in quarantine before stage `prepare` fails."""
    row_group_utterances: int = Field(64, ge=1)
    """Utterances in one Parquet row group, the unit of streaming reads."""
    shard_utterances: int = Field(256, ge=1)
    """Utterances in one Parquet shard, the unit of one `prepare` task and the most that an interruption loses."""

    @model_validator(mode="after")
    def _validate_durations(self) -> Self:
        if self.min_seconds >= self.max_seconds:
            raise ValueError(f"min_seconds ({self.min_seconds}) must be below max_seconds ({self.max_seconds})")
        return self


class BatchConfig(Section):
    """How utterances are grouped into batches; every rank knows the plan of the epoch in advance."""

    max_padded_seconds: float = Field(60.0, gt=0)
    """Maximum seconds of audio in one worker's batch, padding included."""
    max_utterances: int = Field(16, ge=1)
    """Maximum number of utterances in one worker's batch."""
    language_sampling_alpha: float = Field(1.0, ge=0, le=1)
    """Exponent of a language's utterance count in its share of an epoch. 1: natural shares; 0: equal shares."""
    shuffle_row_groups: int = Field(16, ge=1)
    """Row groups that one worker shuffles and sorts by length together; more mix better and take more memory."""
