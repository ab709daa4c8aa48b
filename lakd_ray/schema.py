"""Columns of the tables by which stages meet.

MANIFEST     one row per utterance: what it is and where its audio lies in the shards (corpora -> data)
SHARD        the audio itself, with enough beside it to stand alone
FEATURES     cached output of a frozen feature encoder, a file for each shard with the same rows in the same row groups
LOGITS       one row per utterance and model (inference -> training)
PREDICTIONS  one row per test utterance and model (evaluation -> report)
"""

import pyarrow as pa

MANIFEST = pa.schema(
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
        pa.field("num_samples", pa.int32(), nullable=False),  # at 16 kHz
        pa.field("audio_sha256", pa.string(), nullable=False),  # of the 16-bit samples at 16 kHz
        pa.field("shard", pa.string(), nullable=False),  # file name below shards/
        pa.field("row_group", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),  # within the row group
    ]
)

SHARD = pa.schema(
    [
        *(MANIFEST.field(name) for name in ("utterance", "corpus", "language", "speaker", "session", "sentence")),
        *(MANIFEST.field(name) for name in ("emotion", "split", "source", "num_samples", "audio_sha256")),
        pa.field("audio", pa.binary(), nullable=False),  # FLAC, 16 kHz, mono, 16 bit
    ]
)

QUARANTINE = pa.schema(
    [
        pa.field("utterance", pa.string(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

FEATURES = pa.schema(
    [
        pa.field("utterance", pa.string(), nullable=False),
        pa.field("features", pa.binary(), nullable=False),  # little-endian float16, [frames, channels]
    ]
)

LOGITS = pa.schema(
    [
        pa.field("utterance", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),  # run id
        pa.field("logits", pa.list_(pa.float32()), nullable=False),  # one per class, in the experiment's order
    ]
)

PREDICTIONS = pa.schema(
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
        pa.field("model", pa.string(), nullable=False),  # run id
        pa.field("emotion", pa.string(), nullable=False),  # the label
        pa.field("probabilities", pa.list_(pa.float32()), nullable=False),  # one per class
    ]
)
