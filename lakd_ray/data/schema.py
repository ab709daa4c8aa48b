"""Columns of the tables by which stages meet, and the kinds of clips that none of them uses.

MANIFEST     one row per utterance: what it is and where its audio lies in the shards (corpora -> data)
SHARD        the audio itself. Labels are in the manifest alone: to correct one, no audio is touched
QUARANTINE   one row per clip that cannot be used, and why
FEATURES     cached output of a frozen feature encoder, a file for each shard with the same rows in the same row groups
LOGITS       one row per utterance and model (inference -> training)
LANGUAGES    one row per test utterance and way of telling a language-aware student its language (evaluation -> report)
PREDICTIONS  one row per test utterance and model (evaluation -> report)
answers      one row per recording of a bulk prediction, with a column of probabilities for each of the model's emotions
UNANSWERED   those of them that have no answer, and why
"""

from collections.abc import Sequence

import pyarrow as pa

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("utterance", pa.string(), nullable=False),  # <corpus>/<id>, unique
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),  # ISO 639
        pa.field("speaker", pa.string(), nullable=False),  # <corpus>:<speaker>
        pa.field("session", pa.string()),
        pa.field("sentence", pa.string()),  # what was said, where the corpus tells
        pa.field("emotion", pa.string(), nullable=False),  # canonical name
        pa.field("split", pa.string()),  # as given by the corpus
        pa.field("source", pa.string(), nullable=False),  # where the recording came from
        pa.field("start", pa.float64()),  # seconds, where the clip is a part of it
        pa.field("end", pa.float64()),
        pa.field("num_samples", pa.int32(), nullable=False),  # at 16 kHz
        pa.field("cut", pa.bool_(), nullable=False),  # was longer than audio.max_seconds
        pa.field("audio_sha256", pa.string(), nullable=False),  # of the 16-bit samples at 16 kHz
        pa.field("shard", pa.string(), nullable=False),  # file name below shards/
        pa.field("row_group", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),  # within the row group
    ]
)

SHARD_SCHEMA = pa.schema(
    [
        MANIFEST_SCHEMA.field("utterance"),
        pa.field("recording", pa.string(), nullable=False),  # what was read and how, see lakd_ray.data.corpus_snapshot
        *(MANIFEST_SCHEMA.field(name) for name in ("num_samples", "cut", "audio_sha256")),
        pa.field("audio", pa.binary(), nullable=False),  # FLAC, 16 kHz, mono, 16 bit
    ]
)

QUARANTINE_KINDS = {
    "missing": "there is a label, and no file",
    "unlabeled": "there is no label that can be used",
    "unreadable": "the file is there and could not be read",
    "needs-ffmpeg": "the container needs ffmpeg, which was not installed",
    "undecodable": "not audio, or damaged",
    "header": "the header claims an absurd rate or number of channels",
    "truncated": "there is less audio than the file promises",
    "outside": "the part is not in the recording",
    "not-finite": "samples are not numbers, or infinite",
    "empty": "no samples",
    "short": "shorter than audio.min_seconds",
    "long": "longer than audio.max_seconds, with audio.on_too_long: quarantine",
    "silent": "never louder than audio.silence_dbfs",
    "clipped": "more than audio.max_clipped_fraction of its samples are at full scale",
    "duplicate": "the same audio as another clip",
}
TRANSIENT_KINDS = frozenset(
    {"unreadable", "needs-ffmpeg"}
)  # may go well another time: tried again by the next `prepare`

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("utterance", pa.string(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # one of KINDS
        pa.field("reason", pa.string(), nullable=False),
    ]
)

FEATURES_SCHEMA = pa.schema(
    [
        pa.field("utterance", pa.string(), nullable=False),
        pa.field("features", pa.binary(), nullable=False),  # little-endian float16, [frames, channels]
    ]
)

LOGITS_SCHEMA = pa.schema(
    [
        pa.field("utterance", pa.string(), nullable=False),
        MANIFEST_SCHEMA.field("audio_sha256"),
        pa.field("model", pa.string(), nullable=False),  # run id
        pa.field("logits", pa.list_(pa.float32()), nullable=False),  # one per class, in the experiment's order
    ]
)

PREDICTIONS_SCHEMA = pa.schema(
    [
        pa.field("utterance", pa.string(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("speaker", pa.string(), nullable=False),
        pa.field("sentence", pa.string()),
        pa.field("sentence_in_train", pa.bool_()),  # whether a training speaker says it too, where the corpus tells
        pa.field("fold", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("paradigm", pa.string(), nullable=False),  # teacher, ft, kd, mtkd
        pa.field("setup", pa.string(), nullable=False),  # monolingual, multilingual
        pa.field("variant", pa.string()),  # whose settings a student has
        pa.field("model", pa.string(), nullable=False),  # run id
        pa.field("unknown", pa.string(), nullable=False),  # teachers of whom nobody said what they have heard
        pa.field("emotion", pa.string(), nullable=False),  # the label
        pa.field("probabilities", pa.list_(pa.float32()), nullable=False),  # one per class
    ]
)

LANGUAGE_CONDITIONS_SCHEMA = pa.schema(
    [
        pa.field("utterance", pa.string(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("corpus_in_train", pa.bool_(), nullable=False),  # whether the model was trained on others of its clips
        pa.field("language", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),  # run id
        pa.field("condition", pa.string(), nullable=False),  # given, identified, unknown, wrong
        pa.field("predicted_language", pa.string(), nullable=False),  # the language that it heard
        pa.field("emotion", pa.string(), nullable=False),  # the label
        pa.field("probabilities", pa.list_(pa.float32()), nullable=False),  # one per class
    ]
)

BULK_QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # one of KINDS
        pa.field("reason", pa.string(), nullable=False),
    ]
)


def bulk_predictions_schema(emotions: Sequence[str]) -> pa.Schema:
    """Columns of a bulk prediction by a model of these emotions; whatever an answer tells is null without one."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),  # the manifest's, else the path as it was given
            pa.field("path", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),  # ok, quarantined
            pa.field("kind", pa.string()),  # why there is no answer: one of KINDS
            pa.field("reason", pa.string()),  # the same in words
            pa.field("emotion", pa.string()),  # the most probable
            *(pa.field(f"p_{emotion}", pa.float32()) for emotion in emotions),  # calibrated; they sum to 1
            pa.field("language", pa.string()),  # as given, else as a language-aware student heard it
            pa.field("language_probability", pa.float32()),  # of what was heard
            pa.field("duration_s", pa.float64()),
            pa.field("warnings", pa.list_(pa.string())),  # codes of lakd_ray.inference.results.InputWarning
            pa.field("model", pa.string()),
            pa.field("version", pa.string()),  # short hash of the checkpoint
        ]
    )
