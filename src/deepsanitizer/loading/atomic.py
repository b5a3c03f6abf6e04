"""Write a file or a folder whole or not at all: a hidden temporary beside it, fsync, rename.

On an error, Ctrl-C or SIGTERM the temporary is removed; after SIGKILL or a power cut a hidden
`.NAME.XXXXXXXX.partial` may be left, never half an output.
"""

import errno
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from deepsanitizer.errors import UsageError, WorkError


def write_file(path: Path, data: bytes) -> None:
    """Write or replace a file. Raises WorkError where that fails; the old file is then intact."""
    temporary = _temporary(path)
    with _explained(path), _terminable():
        try:
            _write_through(temporary, data)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a new folder (or fill an empty one). Raises WorkError where that fails."""
    temporary = _temporary(path)
    with _explained(path), _terminable():
        try:
            temporary.mkdir()
            for name, data in files.items():
                _write_through(temporary / name, data)
            _sync_folder(temporary)
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_folder(path.parent)


def check_writable(folder: Path, output: Path) -> None:
    """Raise UsageError where no file can be made in a folder. Tried, because permissions do not tell all."""
    temporary = _temporary(folder / output.name)
    try:
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except OSError as error:
        raise UsageError(f"nothing can be written in {folder} ({error.strerror})",
                         "Choose another --output.") from error


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.partial")


def _write_through(path: Path, data: bytes) -> None:
    # made here and not with tempfile, whose files are for their owner's eyes only
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make a rename durable, where folders can be synced; the file is whole anyway."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "Free some space, or choose another disk." if full else "Choose another --output."
        raise WorkError(f"{path} could not be written ({error.strerror or error}); nothing was changed",
                        remedy) from error


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception inside, so that the temporary is removed. Another's handler stays."""
    if (threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL):
        yield
        return

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
