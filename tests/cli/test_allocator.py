"""The setting that lets the C library keep freed memory."""

import ctypes
import sys

import pytest

from deepsanitizer.allocator import keep_freed_memory


class Library:
    """Records what it is asked to set."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def mallopt(self, name: int, value: int) -> int:
        self.asked.append((name, value))
        return 1


def test_both_thresholds_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert keep_freed_memory(threshold=1 << 20)
    assert library.asked == [(-3, 1 << 20), (-1, (1 << 21) - 1)]


@pytest.mark.parametrize(("platform", "library"), [("darwin", Library()), ("linux", object())])
def test_other_c_libraries_are_left_alone(platform: str, library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert not keep_freed_memory()
    assert not getattr(library, "asked", [])
