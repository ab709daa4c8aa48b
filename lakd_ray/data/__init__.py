"""Corpora as manifest and Parquet shards, and shards as streams of planned batches."""
