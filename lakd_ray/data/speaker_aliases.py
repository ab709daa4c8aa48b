"""Apply `speaker_aliases`, which lists people who have several names in the corpora.

The prepared data have the names of the corpora. Whatever reads the manifest sees a person's first name only, so that
splits, cross-fitting, intervals and provenance count one speaker.
"""

import difflib
from collections.abc import Iterable

import pyarrow as pa

from lakd_ray.config import Experiment
from lakd_ray.errors import ConfigError


def first_names(config: Experiment) -> dict[str, str]:
    """Return the first name of each person who has several, by their other names."""
    return {other: name for name, others in config.speaker_aliases.items() for other in others}


def merge_speakers(manifest: pa.Table, config: Experiment) -> pa.Table:
    """Return the manifest with first names in the column `speaker`.

    Raises:
        ConfigError: `speaker_aliases` has a name that is not in the manifest.
    """
    if not config.speaker_aliases:
        return manifest
    encoded = manifest["speaker"].combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    check_names(names, config)
    first = first_names(config)
    merged = pa.array([first.get(name, name) for name in names], pa.string()).take(encoded.indices)
    index = manifest.schema.get_field_index("speaker")
    return manifest.set_column(index, manifest.schema.field(index), merged)


def check_names(speakers: Iterable[str], config: Experiment) -> None:
    """Check that all names of `speaker_aliases` are speakers.

    Args:
        speakers: the names of all speakers of the corpora, `corpus:speaker`.
        config: the experiment.

    Raises:
        ConfigError: a name is not a speaker; the message has similar names.
    """
    known = set(speakers)
    aliases = [name for first, others in config.speaker_aliases.items() for name in (first, *others)]
    lines = []
    for name in aliases:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            corpus = name.partition(":")[0]
            others = close or sorted(speaker for speaker in known if speaker.startswith(f"{corpus}:"))[:5]
            lines.append(f"{name}; similar: {', '.join(others)}" if others else f"{name}; {corpus} has no speakers")
    if lines:
        raise ConfigError(
            "`speaker_aliases` lists speakers that the corpora do not have:\n  " + "\n  ".join(lines) + "\n"
            "Correct the names; `lakd prepare` imports only the experiment's languages."
        )
