"""What a corpus holds, told without writing anything: `lakd scan`.

Every recording's header is opened, but nothing is decoded: what a header promises and the file does not hold is found
when the corpus is prepared.
"""

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import soundfile
from tqdm import tqdm

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE, decode_audio, sources
from lakd_ray.config import CorpusConfig
from lakd_ray.corpora import Clip, expected_counts, get_importer_spec, read_raw_corpus
from lakd_ray.errors import DataError, LakdError
from lakd_ray.labels import KNOWN_EMOTIONS

_THREADS = 16  # opening a file waits for the disk or the network
_MIN_BYTES_PER_SECOND = (
    25  # bytes for a second of audio; even silence takes more in any codec, and less means that the header lies
)
_IMPORTER_OVERRIDES = {"espeak": "csv"}  # it makes its corpus when it is read, and scanning makes nothing
_MAX_LISTED = 20  # problems and speakers shown to people; JSON has all


@dataclass(frozen=True)
class ScanReport:
    """What a corpus holds. Rows are the clips that can be used; problems are all others."""

    rows: int
    hours: float
    by_language: dict[str, int]
    by_emotion: dict[str, int]
    by_speaker: dict[str, int]
    by_session: dict[str, int]
    by_split: dict[str, int]
    problems: list[dict[str, str]]
    """`path` and `reason` of each."""
    notes: list[str]
    """What is worth knowing and no problem."""


def scan_corpus(importer: str, root: str, options: Mapping[str, Any]) -> ScanReport:
    """Read a corpus and open every clip's header; shows progress on stderr.

    Raises:
        ConfigError: the importer or an option is not known.
        DataError: the corpus as a whole cannot be read, or has no clips.
    """
    layout = get_importer_spec(importer)
    corpus = CorpusConfig(name="scan", importer=importer, root=root, options=dict(options))
    if importer in _IMPORTER_OVERRIDES:
        corpus = CorpusConfig(name="scan", importer=_IMPORTER_OVERRIDES[importer], root=root)
    everything = read_raw_corpus(corpus, storage_root="{storage}")
    problems = [(problem.source, problem.reason) for problem in everything.invalid_items]
    first: dict[str, str] = {}
    clips: list[Clip] = []
    total = 0.0
    for clip, seconds in _iter_durations(everything.clips):
        if isinstance(seconds, str):
            problems.append((clip.source, seconds))
        elif clip.id in first:
            problems.append((clip.source, f"has the id {clip.id}, as {first[clip.id]} has"))
        else:
            first[clip.id] = clip.source
            clips.append(clip)
            total += seconds
    notes = [f"{count} recordings left out: {reason}" for reason, count in sorted(everything.excluded.items())]
    if not set(layout.subset_options) & set(options):
        notes += expected_counts.describe_mismatches(layout.expected_counts, clips)
    notes += _iter_emotion_notes(clip.emotion for clip in clips)
    return ScanReport(
        rows=len(clips),
        hours=round(total / 3600, 4),
        by_language=_count_values(clip.language for clip in clips),
        by_emotion=_count_values(clip.emotion for clip in clips),
        by_speaker=_count_values(clip.speaker for clip in clips),
        by_session=_count_values(clip.session for clip in clips),
        by_split=_count_values(clip.split for clip in clips),
        problems=[{"path": path, "reason": reason} for path, reason in sorted(problems)],
        notes=notes,
    )


def format_report(report: ScanReport) -> str:
    """A scan for people."""
    lines = [f"{report.rows} rows, {report.hours:.2f} h, {len(report.problems)} problems"]
    for name in ("language", "emotion", "speaker", "session", "split"):
        counts: dict[str, int] = getattr(report, f"by_{name}")
        each = ", ".join(f"{value} {count}" for value, count in list(counts.items())[:_MAX_LISTED])
        more = f", and {len(counts) - _MAX_LISTED} more" if len(counts) > _MAX_LISTED else ""
        lines += [f"{name:<9} {each}{more}"] if counts else []
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"problem: {problem['path']}: {problem['reason']}" for problem in report.problems[:_MAX_LISTED]]
    if len(report.problems) > _MAX_LISTED:
        lines.append(f"and {len(report.problems) - _MAX_LISTED} more problems; --json has all")
    return "\n".join(lines)


def _count_values(values: Iterable[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(value for value in values if value is not None).items()))


def _iter_emotion_notes(emotions: Iterable[str]) -> Iterator[str]:
    """Names that an experiment will refuse."""
    for name, count in sorted(Counter(emotions).items()):
        if name not in KNOWN_EMOTIONS:
            yield f"emotion {name!r} ({count} rows) is not one of ours: rename it with `emotions: {{{name}: ...}}`"


def _iter_durations(clips: list[Clip]) -> Iterator[tuple[Clip, float | str]]:
    """Every clip with its seconds, or with why it cannot be used."""
    clips = sorted(clips, key=lambda clip: sources.read_order_key(clip.source))
    files = [list(group) for _, group in groupby(clips, key=lambda clip: sources.get_source_file(clip.source))]
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        tqdm(total=len(clips), desc="scan", unit="clip", mininterval=1) as bar,
    ):
        for told in pool.map(_measure_file, files):
            bar.update(len(told))
            yield from told


def _measure_file(clips: list[Clip]) -> list[tuple[Clip, float | str]]:
    """The clips in one file, by one thread: rows of a table are read in groups."""
    return [(clip, _clip_duration(clip)) for clip in clips]


def _clip_duration(clip: Clip) -> float | str:
    try:
        whole = _recording_duration(clip.source)
    except LakdError as error:
        return str(error)
    if (clip.start or 0.0) >= whole:
        return f"begins at {clip.start} s of a recording of {whole:.3f} s" if whole else "holds no samples"
    return min(clip.end or whole, whole) - (clip.start or 0.0)


def _recording_duration(source: str) -> float:
    """Seconds of a recording by its header; what has none that libsndfile reads goes through the audio door."""
    try:
        stream, size = _open_stream(source)
        with soundfile.SoundFile(stream) as file:
            seconds = float(file.frames / file.samplerate)
    except (soundfile.SoundFileError, OSError, RuntimeError, TypeError, ValueError, ArithmeticError):
        return len(decode_audio(sources.read_source(source), source_name=source)) / SAMPLE_RATE
    if seconds * _MIN_BYTES_PER_SECOND > size:
        raise DataError(f"claims to last {seconds:.0f} s in {size} bytes")
    return seconds


def _open_stream(source: str) -> tuple[Any, int]:
    """What soundfile opens, and its size in bytes."""
    if sources.get_source_file(source) != source:
        content = sources.read_source(source)
        return io.BytesIO(content), len(content)
    if not storage.is_remote(source):
        path = sources.local_path(source)
        return path, Path(path).stat().st_size
    filesystem, path = storage.resolve_filesystem(source)
    stream = filesystem.open_input_file(path)
    return io.BufferedReader(stream, 1 << 16), stream.size()
