"""Read and write files on a disk or in a bucket with one set of functions.

A location is a plain path or `s3://bucket/prefix`. Writes are atomic: a single file is written to a temporary name and
moved (an S3 upload is atomic by itself), and a folder without a valid checksum file is rejected. The checksum file,
SEAL.json, is written last and has the size and SHA-256 of every other file (`write_checksummed_folder`,
`open_checksummed_folder`). What is published survives a power loss (`publish`), a full disk is a DiskFullError
(`explain_full_disk`), and names that this program did not choose are confined to their folder (`confine`).
docs/how-to/storage.md has credentials and retries.
"""

from lakd_ray.processes import ProcessId
from lakd_ray.storage.checksummed import (
    CHECKSUMS_FILE,
    Checksums,
    empty_folder,
    open_checksummed_folder,
    remove_checksums,
    upload_folder,
    write_checksummed_folder,
    write_checksums,
)
from lakd_ray.storage.confined import confine
from lakd_ray.storage.disk_space import (
    explain_full_disk,
    find_full_disk,
    format_bytes,
    free_bytes,
    nearest_existing_parent,
)
from lakd_ray.storage.fences import check_fences
from lakd_ray.storage.files import (
    FileInfo,
    add_line,
    atomic_writer,
    create_json,
    delete,
    exists,
    list_files,
    list_folders,
    read_bytes,
    read_json,
    read_lines,
    read_row_groups,
    read_schema,
    read_table,
    write_bytes,
    write_json,
    write_table,
)
from lakd_ray.storage.filesystems import is_remote, join, resolve_filesystem, short_timeouts
from lakd_ray.storage.lease import (
    Lease,
    current_fences,
    end_lease,
    find_holder,
    has_lease_records,
    hold,
    join_fences,
    last_holder,
    refuse_if_held,
)
from lakd_ray.storage.local_walk import walk_files
from lakd_ray.storage.publishing import publish, publish_folder
from lakd_ray.storage.syncing import make_folder

__all__ = [
    "CHECKSUMS_FILE",
    "Checksums",
    "FileInfo",
    "Lease",
    "ProcessId",
    "add_line",
    "atomic_writer",
    "check_fences",
    "confine",
    "create_json",
    "current_fences",
    "delete",
    "empty_folder",
    "end_lease",
    "exists",
    "explain_full_disk",
    "find_full_disk",
    "find_holder",
    "format_bytes",
    "free_bytes",
    "has_lease_records",
    "hold",
    "is_remote",
    "join",
    "join_fences",
    "last_holder",
    "list_files",
    "list_folders",
    "make_folder",
    "nearest_existing_parent",
    "open_checksummed_folder",
    "publish",
    "publish_folder",
    "read_bytes",
    "read_json",
    "read_lines",
    "read_row_groups",
    "read_schema",
    "read_table",
    "refuse_if_held",
    "remove_checksums",
    "resolve_filesystem",
    "short_timeouts",
    "upload_folder",
    "walk_files",
    "write_bytes",
    "write_checksummed_folder",
    "write_checksums",
    "write_json",
    "write_table",
]
