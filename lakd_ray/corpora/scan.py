"""Report the contents of a corpus without writing anything: `lakd scan`.

The header of every recording is read, but recordings are not decoded: truncated ones are detected when the corpus is
prepared.
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

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE, decode_audio, sources
from lakd_ray.config import CorpusConfig
from lakd_ray.corpora import Clip, expected_counts, get_importer_spec, read_raw_corpus
from lakd_ray.errors import DataError, LakdError
from lakd_ray.labels import KNOWN_EMOTIONS
from lakd_ray.progress import progress_bar

_THREADS = 16  # opening a file waits for the disk or the network
_MIN_BYTES_PER_SECOND = 25  # even silence takes more in any codec; at a lower rate the header must be wrong
_IMPORTER_OVERRIDES = {"espeak": "csv"}  # reading with `espeak` would synthesize the corpus, and a scan writes nothing
_MAX_LISTED = 20  # problems and speakers in the text report; the JSON report has all


@dataclass(frozen=True)
class ScanReport:
    """The contents of a corpus: `rows` counts the usable clips, `problems` lists all other items."""

    rows: int
    hours: float
    by_language: dict[str, int]
    by_emotion: dict[str, int]
    by_speaker: dict[str, int]
    by_session: dict[str, int]
    by_split: dict[str, int]
    problems: list[dict[str, str]]
    """`path` and `reason` of each problem."""
    notes: list[str]
    """Remarks that are not problems, such as differences from the published numbers."""


def scan_corpus(importer: str, root: str, options: Mapping[str, Any]) -> ScanReport:
    """Read a corpus and the header of every clip, with a progress bar on stderr.

    Raises:
        ConfigError: the importer or an option is unknown.
        DataError: the corpus cannot be read, or has no clips.
    """
    spec = get_importer_spec(importer)
    corpus = CorpusConfig(name="scan", importer=importer, root=root, options=dict(options))
    if importer in _IMPORTER_OVERRIDES:
        corpus = CorpusConfig(name="scan", importer=_IMPORTER_OVERRIDES[importer], root=root)
    contents = read_raw_corpus(corpus, storage_root="{storage}")
    problems = [(item.source, item.reason) for item in contents.invalid_items]
    source_by_id: dict[str, str] = {}
    clips: list[Clip] = []
    total_s = 0.0
    for clip, duration in _iter_durations(contents.clips):
        if isinstance(duration, str):
            problems.append((clip.source, duration))
        elif clip.id in source_by_id:
            problems.append((clip.source, f"has the same id {clip.id} as {source_by_id[clip.id]}"))
        else:
            source_by_id[clip.id] = clip.source
            clips.append(clip)
            total_s += duration
    notes = [f"{count} recordings excluded: {reason}" for reason, count in sorted(contents.excluded.items())]
    if not set(spec.subset_options) & set(options):
        notes += expected_counts.describe_mismatches(spec.expected_counts, clips)
    notes += _iter_emotion_notes(clip.emotion for clip in clips)
    return ScanReport(
        rows=len(clips),
        hours=round(total_s / 3600, 4),
        by_language=_count_values(clip.language for clip in clips),
        by_emotion=_count_values(clip.emotion for clip in clips),
        by_speaker=_count_values(clip.speaker for clip in clips),
        by_session=_count_values(clip.session for clip in clips),
        by_split=_count_values(clip.split for clip in clips),
        problems=[{"path": path, "reason": reason} for path, reason in sorted(problems)],
        notes=notes,
    )


def format_report(report: ScanReport) -> str:
    """Format a report as human-readable text."""
    lines = [f"{report.rows} rows, {report.hours:.2f} h, {len(report.problems)} problems"]
    for name in ("language", "emotion", "speaker", "session", "split"):
        counts: dict[str, int] = getattr(report, f"by_{name}")
        listed = ", ".join(f"{value} {count}" for value, count in list(counts.items())[:_MAX_LISTED])
        more = f", and {len(counts) - _MAX_LISTED} more" if len(counts) > _MAX_LISTED else ""
        lines += [f"{name:<9} {listed}{more}"] if counts else []
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"problem: {problem['path']}: {problem['reason']}" for problem in report.problems[:_MAX_LISTED]]
    if len(report.problems) > _MAX_LISTED:
        lines.append(f"and {len(report.problems) - _MAX_LISTED} more problems; --json lists all")
    return "\n".join(lines)


def _count_values(values: Iterable[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(value for value in values if value is not None).items()))


def _iter_emotion_notes(emotions: Iterable[str]) -> Iterator[str]:
    """Yield a note for each emotion name that an experiment rejects."""
    for name, count in sorted(Counter(emotions).items()):
        if name not in KNOWN_EMOTIONS:
            yield f"emotion {name!r} ({count} rows) is unknown: map it with `emotion_map: {{{name}: ...}}`"


def _iter_durations(clips: list[Clip]) -> Iterator[tuple[Clip, float | str]]:
    """Yield every clip with its duration in seconds, or with the reason why it cannot be used."""
    clips = sorted(clips, key=lambda clip: sources.read_order_key(clip.source))
    files = [list(group) for _, group in groupby(clips, key=lambda clip: sources.get_source_file(clip.source))]
    with ThreadPoolExecutor(_THREADS) as pool, progress_bar(len(clips), "scan", "clip") as bar:
        for durations in pool.map(_measure_file, files):
            bar.update(len(durations))
            yield from durations


def _measure_file(clips: list[Clip]) -> list[tuple[Clip, float | str]]:
    """Measure the clips in one file; one thread does it, because it caches row groups of a table."""
    return [(clip, _clip_duration(clip)) for clip in clips]


def _clip_duration(clip: Clip) -> float | str:
    try:
        recording_s = _recording_duration(clip.source)
    except LakdError as error:
        return str(error)
    if (clip.start or 0.0) >= recording_s:
        return (
            f"starts at {clip.start} s of a recording of {recording_s:.3f} s" if recording_s else "contains no samples"
        )
    return min(clip.end or recording_s, recording_s) - (clip.start or 0.0)


def _recording_duration(source: str) -> float:
    """Return the duration in seconds from the header; recordings that libsndfile cannot open are decoded instead."""
    try:
        stream, size = _open_stream(source)
        with soundfile.SoundFile(stream) as file:
            seconds = float(file.frames / file.samplerate)
    except (soundfile.SoundFileError, OSError, RuntimeError, TypeError, ValueError, ArithmeticError):
        return len(decode_audio(sources.read_source(source), source_name=source)) / SAMPLE_RATE
    if seconds * _MIN_BYTES_PER_SECOND > size:
        raise DataError(f"has a header that states {seconds:.0f} s in a file of {size} bytes")
    return seconds


def _open_stream(source: str) -> tuple[Any, int]:
    """Return a path or stream that soundfile can open, and its size in bytes."""
    if sources.get_source_file(source) != source:
        content = sources.read_source(source)
        return io.BytesIO(content), len(content)
    if not storage.is_remote(source):
        path = sources.local_path(source)
        return path, Path(path).stat().st_size
    filesystem, path = storage.resolve_filesystem(source)
    stream = filesystem.open_input_file(path)
    return io.BufferedReader(stream, 1 << 16), stream.size()
