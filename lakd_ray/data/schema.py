"""Schemas of the tables that stages exchange, and the kinds of problems that exclude a clip.

MANIFEST     one row per utterance: its labels and the location of its audio in the shards (corpora -> data)
SHARD        the audio. Labels are only in the manifest: correcting one does not change the shards
QUARANTINE   one row per clip that cannot be used, with the reason
FEATURES     cached output of a frozen feature encoder, a file for each shard with the same rows in the same row groups
LOGITS       one row per utterance and model (inference -> training)
LANGUAGES    one row per test utterance and language condition of a language-aware student (evaluation -> report)
PREDICTIONS  one row per test utterance and model (evaluation -> report)
             LOGITS, LANGUAGES and PREDICTIONS also have a column per class, see `lakd_ray.data.class_columns`
bulk         one row per recording of a bulk prediction, with a probability column for each of the model's emotions
QUARANTINE   of a bulk prediction: the recordings without a prediction, with the reason
"""

from collections.abc import Sequence

import pyarrow as pa

from lakd_ray.data.class_columns import LOGIT, PROBABILITY, class_fields

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("utterance", pa.string(), nullable=False),  # <corpus>/<id>, unique
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),  # ISO 639
        pa.field("speaker", pa.string(), nullable=False),  # <corpus>:<speaker>
        pa.field("session", pa.string()),
        pa.field("sentence", pa.string()),  # the text, if the corpus has it
        pa.field("emotion", pa.string(), nullable=False),  # canonical name
        pa.field("split", pa.string()),  # as defined by the corpus
        pa.field("source", pa.string(), nullable=False),  # location of the recording
        pa.field("start", pa.float64()),  # seconds, if the clip is a part of the recording
        pa.field("end", pa.float64()),
        pa.field("num_samples", pa.int32(), nullable=False),  # at 16 kHz
        pa.field("cut", pa.bool_(), nullable=False),  # was longer than audio.max_seconds
        pa.field("audio_sha256", pa.string(), nullable=False),  # of the 16-bit samples at 16 kHz
        pa.field("acoustic_fingerprint", pa.string()),  # equal for recordings that sound the same; null: not computed
        pa.field("shard", pa.string(), nullable=False),  # file name below shards/
        pa.field("row_group", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),  # within the row group
    ]
)

SHARD_SCHEMA = pa.schema(
    [
        MANIFEST_SCHEMA.field("utterance"),
        pa.field("recording", pa.string(), nullable=False),  # audio key, see lakd_ray.data.corpus_snapshot
        *(MANIFEST_SCHEMA.field(name) for name in ("num_samples", "cut", "audio_sha256")),
        pa.field("audio", pa.binary(), nullable=False),  # FLAC, 16 kHz, mono, 16 bit
    ]
)

QUARANTINE_KINDS = {
    "missing": "there is a label but no file",
    "unlabeled": "there is no usable label",
    "unreadable": "the file exists but cannot be read",
    "needs-ffmpeg": "the container needs ffmpeg, which was not installed",
    "undecodable": "not audio, or corrupted",
    "header": "the header claims an absurd rate or number of channels",
    "truncated": "there is less audio than the header declares",
    "outside": "the part is outside the recording",
    "not-finite": "samples are NaN or infinite",
    "empty": "no samples",
    "short": "shorter than audio.min_seconds",
    "long": "longer than audio.max_seconds, with audio.on_too_long: quarantine",
    "silent": "never louder than audio.silence_dbfs",
    "clipped": "more than audio.max_clipped_fraction of its samples are at full scale",
    "duplicate": "the same audio as another clip",
}
# Problems that may disappear: the next `prepare` tries these clips again.
TRANSIENT_KINDS = frozenset({"unreadable", "needs-ffmpeg"})

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("utterance", pa.string(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # one of QUARANTINE_KINDS
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
    ]
)

PREDICTIONS_SCHEMA = pa.schema(
    [
        pa.field("utterance", pa.string(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("speaker", pa.string(), nullable=False),
        pa.field("cluster", pa.string(), nullable=False),  # independent unit: the speaker, or <corpus>:<session>
        pa.field("sentence", pa.string()),
        pa.field("sentence_in_train", pa.bool_()),  # whether train has the sentence too; null if unknown
        pa.field("fold", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("paradigm", pa.string(), nullable=False),  # teacher, ft, kd, mtkd
        pa.field("setup", pa.string(), nullable=False),  # monolingual, multilingual
        pa.field("variant", pa.string()),  # name of the settings of a student
        pa.field("model", pa.string(), nullable=False),  # run id
        pa.field("undisclosed_models", pa.string(), nullable=False),  # see `Provenance`; names, separated by commas
        pa.field("settings_selected_on", pa.string(), nullable=False),  # test speakers in it, separated by commas
        pa.field("emotion", pa.string(), nullable=False),  # the label
    ]
)

LANGUAGE_CONDITIONS_SCHEMA = pa.schema(
    [
        pa.field("utterance", pa.string(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("corpus_in_train", pa.bool_(), nullable=False),  # whether the model was trained on this corpus
        pa.field("language", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),  # run id
        pa.field("condition", pa.string(), nullable=False),  # given, identified, unknown, wrong
        pa.field("predicted_language", pa.string(), nullable=False),  # as the student identified it
        pa.field("emotion", pa.string(), nullable=False),  # the label
    ]
)

BULK_QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # one of QUARANTINE_KINDS
        pa.field("reason", pa.string(), nullable=False),
    ]
)


def with_logits(schema: pa.Schema, emotions: Sequence[str]) -> pa.Schema:
    """Return a schema with a column of logits for each class."""
    return pa.schema([*schema, *class_fields(LOGIT, emotions)])


def with_probabilities(schema: pa.Schema, emotions: Sequence[str]) -> pa.Schema:
    """Return a schema with a column of calibrated probabilities for each class; those of a row sum to 1."""
    return pa.schema([*schema, *class_fields(PROBABILITY, emotions)])


def bulk_predictions_schema(emotions: Sequence[str]) -> pa.Schema:
    """Return the schema of a bulk prediction; the columns of a result are null for a quarantined recording."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),  # of the manifest, else the given path
            pa.field("path", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),  # ok, quarantined
            pa.field("kind", pa.string()),  # reason for quarantine: one of QUARANTINE_KINDS
            pa.field("reason", pa.string()),  # human-readable reason
            pa.field("emotion", pa.string()),  # the most probable
            *class_fields(PROBABILITY, emotions, nullable=True),  # calibrated; they sum to 1
            pa.field("language", pa.string()),  # as given, else as a language-aware student identified it
            pa.field("language_probability", pa.float32()),  # of the identified language
            pa.field("duration_s", pa.float64()),
            pa.field("warnings", pa.list_(pa.string())),  # codes of lakd_ray.inference.results.InputWarning
            pa.field("model", pa.string()),
            pa.field("version", pa.string()),  # short hash of the checkpoint
        ]
    )
