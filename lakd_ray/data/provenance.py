"""What a checkpoint has seen, and the refusal to judge it on that.

A checkpoint records the speakers and audio it was trained on and selected on (its epoch chosen by). A model initialised
from another inherits that one's record. Refused: trained_on that meets dev or test, selected_on that meets test.

A released checkpoint names no speakers: it carries `salt$hash` in their place, by which those who have the speakers can
still tell whether it has heard one of theirs. That hides names from readers, not from somebody who tries names out.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from lakd_ray.errors import DataLeakageError

_HASHED_SPEAKER = re.compile(r"[^:$]+\$[0-9a-f]{24}")  # a speaker's name has its corpus and a colon before it


@dataclass(frozen=True)
class DataExposure:
    """Speakers (`corpus:speaker`, or `salt$hash` of one) and SHA-256 hashes of audio."""

    speakers: frozenset[str] = frozenset()
    audio: frozenset[str] = frozenset()

    def __or__(self, other: "DataExposure") -> "DataExposure":
        return DataExposure(self.speakers | other.speakers, self.audio | other.audio)

    def overlap(self, other: "DataExposure") -> list[str]:
        """Names of what both have seen: speakers first, then a count of shared recordings; empty if nothing."""
        shared = self.shared_speakers(other)
        recordings = len(self.audio & other.audio)
        return [*shared, *([f"{recordings} identical recordings"] if recordings else [])]

    def shared_speakers(self, other: "DataExposure") -> list[str]:
        """Speakers that both have seen, by name where either of them has it."""
        return sorted(
            (self.speakers & other.speakers)
            | _match_hashed_speakers(self.speakers, other.speakers)
            | _match_hashed_speakers(other.speakers, self.speakers)
        )

    def anonymized(self, salt: str) -> "DataExposure":
        """The same without names; those that are hashes already stay as they are."""
        return DataExposure(
            frozenset(name if _HASHED_SPEAKER.fullmatch(name) else _hash_speaker(name, salt) for name in self.speakers),
            self.audio,
        )


def _hash_speaker(speaker: str, salt: str) -> str:
    return f"{salt}${hashlib.sha256(f'{salt}{speaker}'.encode()).hexdigest()[:24]}"


def _match_hashed_speakers(hashes: frozenset[str], names: frozenset[str]) -> set[str]:
    """Those of the names whose hash is among some speakers."""
    salts = {one.partition("$")[0] for one in hashes if _HASHED_SPEAKER.fullmatch(one)}
    return {
        name
        for salt in salts
        for name in names
        if not _HASHED_SPEAKER.fullmatch(name) and _hash_speaker(name, salt) in hashes
    }


@dataclass(frozen=True)
class Provenance:
    """A checkpoint's record."""

    trained_on: DataExposure = DataExposure()
    selected_on: DataExposure = DataExposure()
    unknown: frozenset[str] = frozenset()
    """Models that it learned from and of which nobody said what they have heard."""

    def inherit(self, parents: Iterable["Provenance"]) -> "Provenance":
        """This record with what the models it was initialised or distilled from have seen."""
        trained_on, selected_on, unknown = self.trained_on, self.selected_on, self.unknown
        for parent in parents:
            trained_on, selected_on = trained_on | parent.trained_on, selected_on | parent.selected_on
            unknown |= parent.unknown
        return Provenance(trained_on, selected_on, unknown)

    def check_leakage(self, *, model: str, dev: DataExposure, test: DataExposure) -> None:
        """Refuse a model that has seen what it, or a student of its, is judged on.

        Raises:
            DataLeakageError: names the model, the speakers and the split.
        """
        for what, seen, split, judged in (
            ("trained on", self.trained_on, "test", test),
            ("trained on", self.trained_on, "dev", dev),
            ("selected on", self.selected_on, "test", test),
        ):
            if shared := seen.overlap(judged):
                raise DataLeakageError(
                    f"{model} was {what} what the {split} split of this fold holds: {', '.join(shared)} "
                    f"({len(seen.shared_speakers(judged))} of its {len(judged.speakers)} speakers). "
                    "Train it for this fold, or choose a fold that it has not seen."
                )

    def anonymized(self, salt: str) -> "Provenance":
        """This record without names, for release."""
        return Provenance(self.trained_on.anonymized(salt), self.selected_on.anonymized(salt), self.unknown)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        content: dict[str, Any] = {
            name: {"speakers": sorted(seen.speakers), "audio": sorted(seen.audio)}
            for name, seen in (("trained_on", self.trained_on), ("selected_on", self.selected_on))
        }
        return content | {"unknown": sorted(self.unknown)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        trained_on, selected_on = (
            DataExposure(frozenset(content[name]["speakers"]), frozenset(content[name]["audio"]))
            for name in ("trained_on", "selected_on")
        )
        return cls(trained_on, selected_on, frozenset(content.get("unknown", ())))
