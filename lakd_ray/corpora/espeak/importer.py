"""Read the synthetic demo corpus, and synthesize it on first use (importer `espeak`).

The corpus is a local folder with `manifest.csv`, which has a speaker, a session and a sentence per row and no split.
License: synthesized locally, without restrictions.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lakd_ray import storage
from lakd_ray.corpora import csv_manifest
from lakd_ray.corpora.espeak import synthesis
from lakd_ray.corpora.items import Item
from lakd_ray.errors import ConfigError

_INTEGER_OPTIONS = ("speakers", "sentences", "takes", "seed")


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield every row of the demo corpus in a local folder, and synthesize the corpus first if the folder is empty.

    Raises:
        ConfigError: `root` is in a bucket, or an option has an invalid type.
        DataError: the folder contains other files, or the corpus cannot be synthesized.
    """
    if storage.is_remote(root):
        raise ConfigError(
            f"importer `espeak` synthesizes its corpus in a local folder, and `root` is {root}. Set it to a folder "
            "that every worker can read, or synthesize the corpus locally, copy it there and use importer `csv`."
        )
    for name in _INTEGER_OPTIONS:
        value = options.get(name, 0)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"option `{name}` of importer `espeak` is {value!r}; expected an integer.")
    languages = options.get("languages", ())
    if isinstance(languages, str) or not isinstance(languages, Sequence) or any(type(x) is not str for x in languages):
        raise ConfigError(f"option `languages` of importer `espeak` is {languages!r}; expected a list such as [en].")
    manifest = synthesis.synthesize_corpus(Path(storage.resolve_filesystem(root)[1]), **options)
    yield from csv_manifest.iter_items(str(manifest), {})
