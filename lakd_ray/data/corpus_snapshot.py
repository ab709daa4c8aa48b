"""What the corpora hold right now: clips with their labels, and for each a key of what its audio is made from.

The key covers the utterance, the file's place below the corpus's root, its size and version, the part of it that is the
clip, and the settings of the audio door. While a clip's key stays, its audio in the shards is good.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lakd_ray import corpora, storage
from lakd_ray.audio import sources as recordings
from lakd_ray.config import AudioConfig, CorpusConfig, Experiment, to_dict
from lakd_ray.corpora.items import Clip, InvalidItem
from lakd_ray.errors import StorageError
from lakd_ray.runs import record

# Settings that decide what becomes of a clip's audio, each by itself.
_AUDIO_KEY_FIELDS = ("min_seconds", "max_seconds", "on_too_long", "silence_dbfs", "max_clipped_fraction")


@dataclass(frozen=True)
class CorpusSnapshot:
    """A corpus as it is now.

    Attributes:
        clips: with labels.
        keys: what each clip's audio is made from, in the order of `clips`.
        problems: files and rows that are no clips.
        left_out: recordings left out on purpose, by reason; not counted.
    """

    corpus: CorpusConfig
    clips: list[Clip]
    audio_keys: list[str]
    invalid_items: list[InvalidItem]
    excluded: Counter[str]

    @property
    def num_items(self) -> int:
        """Everything found."""
        return len(self.clips) + len(self.invalid_items)

    @property
    def digest(self) -> str:
        """Changes with any label, file or problem."""
        labels = [list(vars(clip).values()) for clip in self.clips]
        return record.digest(
            [labels, self.audio_keys, [list(vars(problem).values()) for problem in self.invalid_items]]
        )


def take_snapshot(corpus: CorpusConfig, config: Experiment) -> CorpusSnapshot:
    """Read a corpus and list its files.

    Raises:
        ConfigError, DataError, StorageError: it cannot be read.
    """
    read = corpora.read_corpus(corpus, languages=config.languages, storage_root=config.storage)
    root = resolve_corpus_root(corpus, config)
    versions = _source_versions(root, {clip.source for clip in read.clips})
    keys = [_audio_key(clip, corpus, root, versions[clip.source], config.audio) for clip in read.clips]
    return CorpusSnapshot(corpus, read.clips, keys, read.invalid_items, read.excluded)


def resolve_corpus_root(corpus: CorpusConfig, config: Experiment) -> str:
    """The corpus's root with its placeholder filled in."""
    return corpus.root.replace("{storage}", config.storage.rstrip("/"))


def _audio_key(clip: Clip, corpus: CorpusConfig, root: str, version: str, audio: AudioConfig) -> str:
    door = {name: value for name, value in to_dict(audio).items() if name in _AUDIO_KEY_FIELDS}
    place = clip.source.removeprefix(root)  # a corpus may be moved
    return record.digest([corpus.name, clip.id, clip.language, place, version, clip.start, clip.end, door])


def _source_versions(root: str, sources: set[str]) -> dict[str, str]:
    """Size and version of every source, from one listing for the root and one for each folder elsewhere.

    A fragment (`x.parquet#row=17`) has the version of its file. A file that is not there has none, and is found
    missing when it is read.
    """
    known: dict[str, str] = {}
    for folder in sorted({_listing_folder(root, recordings.get_source_file(source)) for source in sources}):
        known |= _list_versions(folder)
    files = {source: recordings.get_source_file(source) for source in sources}
    return {source: known.get(_canonical_location(file)) or _stat_version(file) for source, file in files.items()}


def _list_versions(folder: str) -> dict[str, str]:
    try:
        return {
            _canonical_location(info.location): f"{info.size}-{info.version}" for info in storage.list_files(folder)
        }
    except UnicodeDecodeError:
        return {}  # Arrow lists no names in other encodings; those files are looked at one by one


def _stat_version(file: str) -> str:
    """Of a file that no listing shows."""
    if storage.is_remote(file):
        return ""
    try:
        found = Path(recordings.local_path(file)).stat()
    except OSError:
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}"


def _listing_folder(root: str, source: str) -> str:
    folder = root if not root.endswith((".csv", ".jsonl")) else root.rpartition("/")[0] or "."
    return (
        folder
        if _canonical_location(source).startswith(_canonical_location(folder) + "/")
        else source.rpartition("/")[0]
    )


def _canonical_location(location: str) -> str:
    """One spelling for each location."""
    return storage.resolve_filesystem(location)[1].rstrip("/") if location else ""


def unreachable_corpora(config: Experiment) -> list[str]:
    """Corpora whose root cannot be reached, as lines for people."""
    lines = []
    for corpus in config.corpora:
        root = resolve_corpus_root(corpus, config)
        try:
            if storage.exists(root):
                continue
            reason = "there is nothing"
        except StorageError as error:
            reason = str(error)
        lines.append(f"{corpus.name} at {root}: {reason}")
    return lines
