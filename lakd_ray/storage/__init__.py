"""Files on a disk or in a bucket, by one set of calls.

A location is a plain path or `s3://bucket/prefix`. Nothing half written is ever taken for whole: single files are
written to a temporary name and moved (an S3 upload is atomic by itself), and folders carry a seal, written last, with
the size and hash of every file (`publish_folder`, `fetched_folder`). docs/storage.md has credentials and retries.
"""

from lakd_ray.storage.files import (
    FileInfo,
    delete,
    exists,
    list_files,
    list_folders,
    read_bytes,
    read_json,
    read_row_groups,
    read_table,
    write_bytes,
    write_json,
    write_table,
    writing,
)
from lakd_ray.storage.folders import SEAL, Seal, copy_into, fetched_folder, publish_folder, seal, unseal
from lakd_ray.storage.places import free_bytes, hurried, is_remote, join, nearest, resolve, size_text

__all__ = [
    "SEAL",
    "FileInfo",
    "Seal",
    "copy_into",
    "delete",
    "exists",
    "fetched_folder",
    "free_bytes",
    "hurried",
    "is_remote",
    "join",
    "list_files",
    "list_folders",
    "nearest",
    "publish_folder",
    "read_bytes",
    "read_json",
    "read_row_groups",
    "read_table",
    "resolve",
    "seal",
    "size_text",
    "unseal",
    "write_bytes",
    "write_json",
    "write_table",
    "writing",
]
