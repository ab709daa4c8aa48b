"""Prepare corpora as a manifest and Parquet shards, split them, and stream planned batches from the shards.

- `prepare` writes the manifest and the shards (`corpus_snapshot`, `shards`, `quality`, `deduplicate`, `schema`).
- `splits` assigns train, dev and test; `manifest` loads the result; `provenance` detects leakage.
- `batch_plan` plans the batches of an epoch, and `reader` streams them.
"""
