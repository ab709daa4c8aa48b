"""What a checkpoint has seen, and the refusal to judge it on that.

A checkpoint records the speakers and audio it was trained on and selected on (its epoch chosen by). A model initialised
from another inherits that one's record. Refused: trained_on that meets dev or test, selected_on that meets test.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from lakd_ray.errors import HygieneError


@dataclass(frozen=True)
class Seen:
    """Speakers (`corpus:speaker`) and SHA-256 hashes of audio."""

    speakers: frozenset[str] = frozenset()
    audio: frozenset[str] = frozenset()

    def __or__(self, other: "Seen") -> "Seen":
        return Seen(self.speakers | other.speakers, self.audio | other.audio)

    def meets(self, other: "Seen") -> list[str]:
        """Names of what both have seen: speakers first, then a count of shared recordings; empty if nothing."""
        shared = sorted(self.speakers & other.speakers)
        recordings = len(self.audio & other.audio)
        return [*shared, *([f"{recordings} identical recordings"] if recordings else [])]


@dataclass(frozen=True)
class Provenance:
    """A checkpoint's record."""

    trained_on: Seen = Seen()
    selected_on: Seen = Seen()

    def inherit(self, parents: Iterable["Provenance"]) -> "Provenance":
        """This record with what the models it was initialised or distilled from have seen."""
        trained_on, selected_on = self.trained_on, self.selected_on
        for parent in parents:
            trained_on, selected_on = trained_on | parent.trained_on, selected_on | parent.selected_on
        return Provenance(trained_on, selected_on)

    def check(self, *, model: str, dev: Seen, test: Seen) -> None:
        """Refuse a model that has seen what it, or a student of its, is judged on.

        Raises:
            HygieneError: names the model, the speakers and the split.
        """
        for what, seen, split, judged in (
            ("trained on", self.trained_on, "test", test),
            ("trained on", self.trained_on, "dev", dev),
            ("selected on", self.selected_on, "test", test),
        ):
            if shared := seen.meets(judged):
                raise HygieneError(
                    f"{model} was {what} what the {split} split of this fold holds: {', '.join(shared)}. "
                    "Train it for this fold, or choose a fold that it has not seen."
                )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            name: {"speakers": sorted(seen.speakers), "audio": sorted(seen.audio)}
            for name, seen in (("trained_on", self.trained_on), ("selected_on", self.selected_on))
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(
            *(
                Seen(frozenset(content[name]["speakers"]), frozenset(content[name]["audio"]))
                for name in ("trained_on", "selected_on")
            )
        )
