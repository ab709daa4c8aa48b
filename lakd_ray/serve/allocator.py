"""Settings of the memory allocator of a process that receives large blocks of bytes."""

import ctypes
from contextlib import suppress

_M_MMAP_THRESHOLD = -3  # of mallopt(3)
_LARGE_BYTES = 256 * 1024


def return_large_blocks() -> None:
    """Let this process return blocks of 256 KB and more to the system as soon as they are free.

    By default, glibc's malloc stores blocks of up to 32 MB in its heap after the first of them was freed, and uploads
    of different sizes fragment it.
    """
    with suppress(OSError, AttributeError):  # a system with a different C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
