"""Record the data that a checkpoint has seen, and reject evaluating it on that data.

A checkpoint records the speakers and audio of its training data and of its selection data, which chose its epoch. A
model that is initialized or distilled from other models inherits their records. It is rejected if its training data
overlap with dev or test, or its selection data with test.

A released checkpoint has `salt$hash` in place of speaker names. A reader who knows a speaker's name can still check
whether the model was trained on that speaker: the hash hides names from readers, but not from guessing.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from lakd_ray.errors import DataLeakageError

# Speaker names start with a corpus and a colon, so they never match.
_HASHED_SPEAKER = re.compile(r"[^:$]+\$[0-9a-f]{24}")


@dataclass(frozen=True)
class DataExposure:
    """A set of speakers (`corpus:speaker`, or its `salt$hash`) and of SHA-256 hashes of audio."""

    speakers: frozenset[str] = frozenset()
    audio: frozenset[str] = frozenset()

    def __or__(self, other: "DataExposure") -> "DataExposure":
        return DataExposure(self.speakers | other.speakers, self.audio | other.audio)

    def overlap(self, other: "DataExposure") -> list[str]:
        """Return the shared speakers, then the number of shared recordings as text; empty without overlap."""
        speakers = self.shared_speakers(other)
        num_recordings = len(self.audio & other.audio)
        return [*speakers, *([f"{num_recordings} identical recordings"] if num_recordings else [])]

    def shared_speakers(self, other: "DataExposure") -> list[str]:
        """Return the speakers in both sets, by name if either of them has the name."""
        return sorted(
            (self.speakers & other.speakers)
            | _match_hashed_speakers(self.speakers, other.speakers)
            | _match_hashed_speakers(other.speakers, self.speakers)
        )

    def anonymized(self, salt: str) -> "DataExposure":
        """Return a copy with hashed speaker names; existing hashes stay unchanged."""
        return DataExposure(
            frozenset(name if _HASHED_SPEAKER.fullmatch(name) else _hash_speaker(name, salt) for name in self.speakers),
            self.audio,
        )


def _hash_speaker(speaker: str, salt: str) -> str:
    return f"{salt}${hashlib.sha256(f'{salt}{speaker}'.encode()).hexdigest()[:24]}"


def _match_hashed_speakers(hashes: frozenset[str], names: frozenset[str]) -> set[str]:
    """Return the names whose hash is in `hashes`."""
    salts = {speaker.partition("$")[0] for speaker in hashes if _HASHED_SPEAKER.fullmatch(speaker)}
    return {
        name
        for salt in salts
        for name in names
        if not _HASHED_SPEAKER.fullmatch(name) and _hash_speaker(name, salt) in hashes
    }


@dataclass(frozen=True)
class Provenance:
    """Record the data that a checkpoint was trained on and selected on."""

    trained_on: DataExposure = DataExposure()
    selected_on: DataExposure = DataExposure()
    undisclosed_teachers: frozenset[str] = frozenset()
    """Names of the models that it learned from and whose training data is not disclosed."""

    def inherit(self, parents: Iterable["Provenance"]) -> "Provenance":
        """Return this record merged with those of the models that it was initialized or distilled from."""
        trained_on, selected_on, undisclosed = self.trained_on, self.selected_on, self.undisclosed_teachers
        for parent in parents:
            trained_on, selected_on = trained_on | parent.trained_on, selected_on | parent.selected_on
            undisclosed |= parent.undisclosed_teachers
        return Provenance(trained_on, selected_on, undisclosed)

    def check_leakage(self, *, model: str, dev: DataExposure, test: DataExposure) -> None:
        """Check that neither this model nor its students are evaluated on data that it has seen.

        Args:
            model: the model's name, for the error message.
            dev: data that selects epochs.
            test: data that models are evaluated on.

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
                    f"({len(seen.shared_speakers(evaluated))} of its {len(evaluated.speakers)} speakers). "
                    "Train it for this fold, or choose a fold that it has not seen."
                )

    def anonymized(self, salt: str) -> "Provenance":
        """Return this record with hashed speaker names, for release."""
        return Provenance(
            self.trained_on.anonymized(salt), self.selected_on.anonymized(salt), self.undisclosed_teachers
        )

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON types."""
        content: dict[str, Any] = {
            name: {"speakers": sorted(seen.speakers), "audio": sorted(seen.audio)}
            for name, seen in (("trained_on", self.trained_on), ("selected_on", self.selected_on))
        }
        return content | {"undisclosed_teachers": sorted(self.undisclosed_teachers)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Build a record from the output of `to_json`."""
        trained_on, selected_on = (
            DataExposure(frozenset(content[name]["speakers"]), frozenset(content[name]["audio"]))
            for name in ("trained_on", "selected_on")
        )
        return cls(trained_on, selected_on, frozenset(content.get("undisclosed_teachers", ())))
