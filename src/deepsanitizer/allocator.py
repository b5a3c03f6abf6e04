"""How a program of its own (not the library) asks the C library to keep freed memory.

glibc gives every freed tensor of some size back to the kernel, which clears the pages again for the next one of the
same size: a quarter of the time of a scan on a CPU (docs/research/log.md, 20). The peak is the same, the memory
stays with the process until it ends.
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
