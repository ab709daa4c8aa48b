"""Read and write files on a disk or in a bucket with one set of functions.

A location is a plain path or `s3://bucket/prefix`. Writes are atomic: a single file is written to a temporary name and
moved (an S3 upload is atomic by itself), and a folder without a valid checksum file is rejected. The checksum file,
SEAL.json, is written last and has the size and SHA-256 of every other file (`write_checksummed_folder`,
`open_checksummed_folder`). docs/how-to/storage.md has credentials and retries.
"""

from lakd_ray.storage.checksummed import (
    CHECKSUMS_FILE,
    Checksums,
    open_checksummed_folder,
    remove_checksums,
    upload_folder,
    write_checksummed_folder,
    write_checksums,
)
from lakd_ray.storage.files import (
    FileInfo,
    atomic_writer,
    delete,
    exists,
    list_files,
    list_folders,
    read_bytes,
    read_json,
    read_row_groups,
    read_schema,
    read_table,
    write_bytes,
    write_json,
    write_table,
)
from lakd_ray.storage.filesystems import (
    format_bytes,
    free_bytes,
    is_remote,
    join,
    nearest_existing_parent,
    resolve_filesystem,
    short_timeouts,
)
from lakd_ray.storage.publishing import make_folder, publish, publish_folder

__all__ = [
    "CHECKSUMS_FILE",
    "Checksums",
    "FileInfo",
    "atomic_writer",
    "delete",
    "exists",
    "format_bytes",
    "free_bytes",
    "is_remote",
    "join",
    "list_files",
    "list_folders",
    "make_folder",
    "nearest_existing_parent",
    "open_checksummed_folder",
    "publish",
    "publish_folder",
    "read_bytes",
    "read_json",
    "read_row_groups",
    "read_schema",
    "read_table",
    "remove_checksums",
    "resolve_filesystem",
    "short_timeouts",
    "upload_folder",
    "write_bytes",
    "write_checksummed_folder",
    "write_checksums",
    "write_json",
    "write_table",
]
