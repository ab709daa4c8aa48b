"""Record the data that a checkpoint has seen, and reject evaluating it on that data.

A checkpoint records the speakers and audio of its training data and of its selection data, which chose its epoch. A
model that is initialized or distilled from other models inherits their records. It is rejected if its training data
overlap with dev or test, or its selection data with test.

A public model is known by the names of the datasets that it was trained on. They are compared with the datasets of the
evaluated corpora, whatever the names of the corpora are. Models whose training data is not known are listed by name.

A released checkpoint has `salt$hash` in place of speaker names. A reader who knows a speaker's name can still check
whether the model was trained on that speaker: the hash hides names from readers, but not from guessing.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from lakd_ray.errors import DataLeakageError

RETRAIN = "Train it for this fold, or choose a fold that it has not seen."
# Speaker names start with a corpus and a colon, so they never match.
_HASHED_SPEAKER = re.compile(r"[^:$]+\$[0-9a-f]{24}")


@dataclass(frozen=True)
class DataExposure:
    """A set of data that a model has seen or is evaluated on.

    Attributes:
        speakers: `corpus:speaker`, or its `salt$hash`.
        audio: SHA-256 hashes of recordings.
        acoustic: acoustic fingerprints of recordings, where the manifest has them.
        datasets: `dataset:speaker` (or its `salt$hash`) for one speaker of a public dataset, `dataset` for all of them.
    """

    speakers: frozenset[str] = frozenset()
    audio: frozenset[str] = frozenset()
    acoustic: frozenset[str] = frozenset()
    datasets: frozenset[str] = frozenset()

    def __or__(self, other: "DataExposure") -> "DataExposure":
        return DataExposure(*(mine | theirs for mine, theirs in zip(self._sets, other._sets, strict=True)))

    @property
    def _sets(self) -> tuple[frozenset[str], ...]:
        return self.speakers, self.audio, self.acoustic, self.datasets

    def overlap(self, other: "DataExposure") -> list[str]:
        """Return the shared speakers, then the number of shared recordings as text; empty without overlap."""
        counts = {
            "identical recordings": len(self.audio & other.audio),
            "recordings with the same acoustic fingerprint": len(self.acoustic & other.acoustic),
        }
        return [*self.shared_speakers(other), *(f"{count} {name}" for name, count in counts.items() if count)]

    def shared_speakers(self, other: "DataExposure") -> list[str]:
        """Return the speakers in both sets, by name if either of them has the name.

        Speakers are compared by corpus, and without a match by public dataset.
        """
        return sorted(
            _shared_names(self.speakers, other.speakers)
            or _shared_names(self.datasets, other.datasets)
            | _members(self.datasets, other.datasets)
            | _members(other.datasets, self.datasets)
        )

    def anonymized(self, salt: str) -> "DataExposure":
        """Return a copy with hashed speaker names; existing hashes and names of datasets stay unchanged."""
        return DataExposure(
            frozenset(name if _HASHED_SPEAKER.fullmatch(name) else _hash_speaker(name, salt) for name in self.speakers),
            self.audio,
            self.acoustic,
            frozenset(_hash_speaker(name, salt) if ":" in name else name for name in self.datasets),
        )

    def to_json(self) -> dict[str, list[str]]:
        """Return the record as plain JSON types."""
        return {name: sorted(values) for name, values in vars(self).items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Build a record from the output of `to_json`."""
        return cls(*(frozenset(content.get(name, ())) for name in ("speakers", "audio", "acoustic", "datasets")))


def _hash_speaker(speaker: str, salt: str) -> str:
    return f"{salt}${hashlib.sha256(f'{salt}{speaker}'.encode()).hexdigest()[:24]}"


def _shared_names(names: frozenset[str], others: frozenset[str]) -> set[str]:
    return set(names & others) | _match_hashed_speakers(names, others) | _match_hashed_speakers(others, names)


def _match_hashed_speakers(hashes: frozenset[str], names: frozenset[str]) -> set[str]:
    """Return the names whose hash is in `hashes`."""
    salts = {speaker.partition("$")[0] for speaker in hashes if _HASHED_SPEAKER.fullmatch(speaker)}
    return {
        name
        for salt in salts
        for name in names
        if not _HASHED_SPEAKER.fullmatch(name) and _hash_speaker(name, salt) in hashes
    }


def _members(datasets: frozenset[str], names: frozenset[str]) -> set[str]:
    """Return the speakers that belong to one of the datasets."""
    return {name for name in names if ":" in name and name.partition(":")[0] in datasets}


@dataclass(frozen=True)
class Provenance:
    """Record the data that a checkpoint was trained on and selected on."""

    trained_on: DataExposure = DataExposure()
    selected_on: DataExposure = DataExposure()
    undisclosed_models: frozenset[str] = frozenset()
    """Names of the models that it started from or learned from and whose training data is not known."""
    settings_selected_on: DataExposure = DataExposure()
    """Data on which its settings, not its weights, were selected: results on it are marked, not rejected."""

    def inherit(self, parents: Iterable["Provenance"]) -> "Provenance":
        """Return this record merged with those of the models that it was initialized or distilled from."""
        merged = self
        for parent in parents:
            merged = Provenance(
                merged.trained_on | parent.trained_on,
                merged.selected_on | parent.selected_on,
                merged.undisclosed_models | parent.undisclosed_models,
                merged.settings_selected_on | parent.settings_selected_on,
            )
        return merged

    def check_leakage(self, *, model: str, dev: DataExposure, test: DataExposure, advice: str = RETRAIN) -> None:
        """Check that neither this model nor its students are evaluated on data that it has seen.

        Args:
            model: the model's name, for the error message.
            dev: data that selects epochs.
            test: data that models are evaluated on.
            advice: what to do, for the error message.

        Raises:
            DataLeakageError: there is an overlap; the message has the model, the speakers and the split.
        """
        for use, seen, split, evaluated in (
            ("trained on", self.trained_on, "test", test),
            ("trained on", self.trained_on, "dev", dev),
            ("selected on", self.selected_on, "test", test),
        ):
            if overlap := seen.overlap(evaluated):
                raise DataLeakageError(
                    f"{model} was {use} data of the {split} split of this fold: {', '.join(overlap)} "
                    f"({len(seen.shared_speakers(evaluated))} of its {len(evaluated.speakers)} speakers). " + advice
                )

    def anonymized(self, salt: str) -> "Provenance":
        """Return this record with hashed speaker names, for release."""
        return Provenance(
            self.trained_on.anonymized(salt),
            self.selected_on.anonymized(salt),
            self.undisclosed_models,
            self.settings_selected_on.anonymized(salt),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON types."""
        return {
            "trained_on": self.trained_on.to_json(),
            "selected_on": self.selected_on.to_json(),
            "undisclosed_models": sorted(self.undisclosed_models),
            "settings_selected_on": self.settings_selected_on.to_json(),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Build a record from the output of `to_json`; version 0.1 had `undisclosed_teachers`."""
        undisclosed = content.get("undisclosed_models", content.get("undisclosed_teachers", ()))
        trained_on, selected_on = (DataExposure.from_json(content[name]) for name in ("trained_on", "selected_on"))
        settings = DataExposure.from_json(content.get("settings_selected_on", {}))
        return cls(trained_on, selected_on, frozenset(undisclosed), settings)
