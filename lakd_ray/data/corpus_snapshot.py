"""List the current clips of a corpus with their labels, and a key for the audio of each clip.

The key covers the utterance, the file's path below the corpus's root, its size and version, the part of it that is the
clip, and the audio settings. As long as a clip's key does not change, its audio in the shards is up to date.
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

# Settings that affect the audio of a single clip.
_AUDIO_KEY_FIELDS = ("min_seconds", "max_seconds", "on_too_long", "silence_dbfs", "max_clipped_fraction")


@dataclass(frozen=True)
class CorpusSnapshot:
    """The content of a corpus at the time of reading.

    Attributes:
        clips: clips with labels.
        audio_keys: the key of each clip's audio, in the order of `clips`.
        invalid_items: files and rows that are not valid clips.
        excluded: number of recordings excluded on purpose, by reason; they are not in `num_items`.
    """

    corpus: CorpusConfig
    clips: list[Clip]
    audio_keys: list[str]
    invalid_items: list[InvalidItem]
    excluded: Counter[str]

    @property
    def num_items(self) -> int:
        """Number of clips and of invalid items."""
        return len(self.clips) + len(self.invalid_items)

    @property
    def digest(self) -> str:
        """Hash that changes with any label, file or invalid item."""
        labels = [list(vars(clip).values()) for clip in self.clips]
        return record.digest([labels, self.audio_keys, [list(vars(item).values()) for item in self.invalid_items]])


def take_snapshot(corpus: CorpusConfig, config: Experiment) -> CorpusSnapshot:
    """Read the clips of a corpus and the versions of its files.

    Raises:
        ConfigError, DataError, StorageError: the corpus cannot be read.
    """
    contents = corpora.read_corpus(corpus, languages=config.languages, storage_root=config.storage)
    root = resolve_corpus_root(corpus, config)
    versions = _source_versions(root, {clip.source for clip in contents.clips})
    keys = [_audio_key(clip, corpus, root, versions[clip.source], config.audio) for clip in contents.clips]
    return CorpusSnapshot(corpus, contents.clips, keys, contents.invalid_items, contents.excluded)


def resolve_corpus_root(corpus: CorpusConfig, config: Experiment) -> str:
    """Return the corpus's root with the placeholder `{storage}` filled in."""
    return corpus.root.replace("{storage}", config.storage.rstrip("/"))


def _audio_key(clip: Clip, corpus: CorpusConfig, root: str, version: str, audio: AudioConfig) -> str:
    settings = {name: value for name, value in to_dict(audio).items() if name in _AUDIO_KEY_FIELDS}
    path = clip.source.removeprefix(root)  # so that a corpus may be moved
    return record.digest([corpus.name, clip.id, clip.language, path, version, clip.start, clip.end, settings])


def _source_versions(root: str, sources: set[str]) -> dict[str, str]:
    """Return size and version of every source, from one listing of the root and one of each folder outside it.

    A fragment (`x.parquet#row=17`) has the version of its file. A missing file has an empty version, and is reported
    when it is read.
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
        return {}  # Arrow cannot list names that are not UTF-8, so these files are checked one by one


def _stat_version(file: str) -> str:
    """Return size and version of a local file that is not in any listing; empty if it is remote or missing."""
    if storage.is_remote(file):
        return ""
    try:
        stat = Path(recordings.local_path(file)).stat()
    except OSError:
        return ""
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def _listing_folder(root: str, source: str) -> str:
    folder = root if not root.endswith((".csv", ".jsonl")) else root.rpartition("/")[0] or "."
    return (
        folder
        if _canonical_location(source).startswith(_canonical_location(folder) + "/")
        else source.rpartition("/")[0]
    )


def _canonical_location(location: str) -> str:
    """Return the path of a location in a unique spelling."""
    return storage.resolve_filesystem(location)[1].rstrip("/") if location else ""


def unreachable_corpora(config: Experiment) -> list[str]:
    """Return a line for each corpus whose root cannot be reached, with the reason."""
    lines = []
    for corpus in config.corpora:
        root = resolve_corpus_root(corpus, config)
        try:
            if storage.exists(root):
                continue
            reason = "not found"
        except StorageError as error:
            reason = str(error)
        lines.append(f"{corpus.name} at {root}: {reason}")
    return lines
