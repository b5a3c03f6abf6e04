"""Write a file whole or not at all: a temporary file beside it, fsync, rename."""

import errno
import os
import tempfile
from pathlib import Path

from deepsanitizer.errors import UsageError, WorkError


def write(text: str, path: str | Path) -> None:
    """Put UTF-8 text at `path`; whatever goes wrong, the old file stays and no temporary file does.

    Raises UsageError where the folder does not exist or may not be written, WorkError where writing fails
    (disk full).
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"cannot write the report to {path}: it is a folder", "Give the name of a file.")
    target = path.resolve()  # a link stays a link
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:60]}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise _failure(error, path) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(_mode(target))
        temporary.replace(target)
    except OSError as error:
        raise _failure(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _mode(target: Path) -> int:
    """The old file's permissions, or those that a new file gets: mkstemp's own are for the owner alone."""
    try:
        return target.stat().st_mode & 0o777
    except FileNotFoundError:
        return 0o666 & ~_umask()


def _umask() -> int:
    """The process's umask; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems cannot; the file itself is complete
        pass
    finally:
        os.close(handle)


def _failure(error: OSError, path: Path) -> UsageError | WorkError:
    reason = (error.strerror or type(error).__name__).lower()
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR):
        return UsageError(f"cannot write {path}: {reason}", "Choose a folder that exists and may be written.")
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "Free some space and run again." if full else "Check the disk and run again."
    return WorkError(f"writing {path} failed: {reason}", remedy)
