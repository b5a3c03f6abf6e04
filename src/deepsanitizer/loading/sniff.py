"""Read a file once and say what it is by its content; its name is not asked."""

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path

from deepsanitizer.errors import CannotJudgeError, UsageError, WorkError
from deepsanitizer.loading.formats import FORMATS, FormatName
from deepsanitizer.loading.weights import quote

_LFS = b"version https://git-lfs.github.com/spec/v1"
_KNOWN_ELSEWHERE = {  # formats that are recognised only to say so
    b"\x89HDF\r\n\x1a\n": "an HDF5 (Keras) file",
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x93NUMPY": "a NumPy array",
    b"PK\x05\x06": "an empty zip archive",
}
_WANTED = "Give a .safetensors, .pt or .pth file with the weights of a classifier."


@dataclass(frozen=True, slots=True)
class Sniffed:
    """A file's bytes, the format they are in, and their SHA-256."""

    data: bytes
    format: FormatName
    sha256: str


def sniff(path: Path) -> Sniffed:
    """Read a weights file and recognise its format.

    Raises UsageError where there is no such file, CannotJudgeError where it is not a weights file.
    """
    data = read_once(path)
    return Sniffed(data, recognise(data, path.name), hashlib.sha256(data).hexdigest())


def read_once(path: Path) -> bytes:
    """All bytes of a regular file. Raises UsageError where it does not exist or cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path} is not a regular file", "Give a weights file or a model folder.")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"there is no file {path}", "Check the path.") from error
    except ValueError as error:  # a null byte in the path
        raise UsageError(f"{quote(path)} is not a path", "Check the path.") from error
    except MemoryError as error:
        raise WorkError(f"there is not enough memory to read {path}", "Close other programs.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})", "Check its permissions.") from error


def recognise(data: bytes, name: str) -> FormatName:
    """The format of a file's bytes. `name` is for messages. Raises CannotJudgeError where there is none."""
    if not data:
        raise CannotJudgeError(f"{name} is empty", "Download or copy it again.")
    if data.startswith(_LFS):
        raise CannotJudgeError(f"{name} is a Git LFS pointer, not the weights themselves",
                               "Fetch them with `git lfs pull`, or download the file from its page.")
    start = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise CannotJudgeError(f"{name} is an HTML page, not weights",
                               "The download gave a web page: use the direct link to the file.")
    for format_name, file_format in FORMATS.items():
        if file_format.looks_like(data):
            return format_name
    for magic, what in _KNOWN_ELSEWHERE.items():
        if data.startswith(magic):
            raise CannotJudgeError(f"{name} is {what}", _WANTED)
    raise CannotJudgeError(
        f"{name} ({len(data)} bytes) is in no known format, or damaged from its first bytes", _WANTED)
