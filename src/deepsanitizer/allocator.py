"""How a program of its own (not the library) asks the C library to keep freed memory.

glibc gives every freed tensor of some size back to the kernel, which clears the pages again for the next one of the
same size. The demo takes 103 s in place of 125 s and at its peak 2.1 GiB in place of 1.8 (docs/research/log.md, 20);
the memory stays with the process until it ends.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt's parameters in malloc.h


def keep_freed_memory(*, threshold: int = 1 << 30) -> bool:
    """Let glibc keep freed blocks of up to `threshold` bytes; False where the C library has no such setting."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, threshold)) and bool(mallopt(_TRIM_THRESHOLD, 2 * threshold - 1))
