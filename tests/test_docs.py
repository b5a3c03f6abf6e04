"""The generated pages are current, and no link in the docs is broken."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_docs", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current(build: ModuleType) -> None:
    assert list(build.stale()) == []


def test_links(build: ModuleType) -> None:
    assert list(build.broken_links()) == []


def test_a_broken_link_is_found(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "ROOT", tmp_path)
    (tmp_path / "a.md").write_text("# A b!\n[x](b.md) [y](#a-b) [z](#c) `[not](a link)` [web](https://example.org)\n")
    assert list(build.broken_links()) == ["a.md: there is no b.md", "a.md: a.md has no heading #c"]
