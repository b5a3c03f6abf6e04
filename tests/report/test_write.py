import errno
import os
import stat
from pathlib import Path

import pytest

from deepsanitizer.errors import UsageError, WorkError
from deepsanitizer.report import write


def test_writes_utf8_with_the_permissions_of_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write("é猫\n", path)
    assert path.read_bytes() == "é猫\n".encode()
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["plain", "report.html"]


def test_replaces_keeping_permissions_and_links(tmp_path: Path) -> None:
    real = tmp_path / "real.json"
    real.write_text("old")
    real.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(real)
    write("new", link)
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_while_writing_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(WorkError, match=r"report\.json") as caught:
        write("new" * 1000, path)
    assert ("space" in caught.value.remedy) == (code in (errno.ENOSPC, errno.EDQUOT))
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_a_really_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    opened: list[int] = []

    def full(**_: object) -> tuple[int, str]:
        opened.append(os.open("/dev/full", os.O_WRONLY))
        return opened[0], str(tmp_path / "none.part")

    monkeypatch.setattr("tempfile.mkstemp", full)
    with pytest.raises(WorkError, match="no space left"):
        write("x" * 100_000, tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write("new", tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_usage_errors(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "missing" / "report.json", tmp_path / "file" / "report.json"):
        with pytest.raises(UsageError):
            write("text", path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_text_that_is_not_unicode_is_written_visibly(tmp_path: Path) -> None:
    write("dir/\udcff", tmp_path / "x")
    assert (tmp_path / "x").read_text() == "dir/\\udcff"
