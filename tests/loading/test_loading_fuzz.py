"""Whatever the bytes, loading gives a model or a DeepSanitizerError, and nothing else."""

import contextlib
import functools
import io
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from deepsanitizer.errors import CannotJudgeError, DeepSanitizerError, WorkError
from deepsanitizer.loading import FORMATS, load
from deepsanitizer.loading.sniff import recognise
from loading.models import ARCH, SOURCE, network, state_of

FUZZ = settings(max_examples=120, deadline=None, derandomize=True)
KINDS = ["safetensors", "torch", "legacy"]


@functools.cache
def valid(kind: str) -> bytes:
    state = state_of(network(), torch.float16)
    if kind == "safetensors":
        return save(state, {"a": "b"})
    buffer = io.BytesIO()
    torch.save({"epoch": 1, "state_dict": state}, buffer, _use_new_zipfile_serialization=kind == "torch")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples, with the code."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "nets.py").write_text(SOURCE)
    return folder


def outcome(place: Path, data: bytes) -> str:
    """What loading these bytes comes to, by name."""
    (place / "w").write_bytes(data)
    refusal: DeepSanitizerError | None = None
    try:
        model = load(place / "w", import_from=place, **ARCH)
    except DeepSanitizerError as error:
        refusal = error
    if refusal is not None:
        assert type(refusal) in (CannotJudgeError, WorkError), refusal
        assert str(refusal).isprintable()
        return type(refusal).__name__
    assert model.checkpoint is not None
    assert all(value.isfinite().all() for value in model.network.state_dict().values())
    return "loaded"


def test_the_files_that_are_damaged_below_are_good(place: Path) -> None:
    assert {kind: outcome(place, valid(kind)) for kind in KINDS} == dict.fromkeys(KINDS, "loaded")


@FUZZ
@given(st.binary(max_size=400))
def test_random_bytes(place: Path, data: bytes) -> None:
    assert outcome(place, data) == "CannotJudgeError"


@FUZZ
@given(st.sampled_from([
    b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"\x80\x04\x95", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j",
    b"\x10" + bytes(7) + b"{", b"\x02" + bytes(7) + b"{}", b"version https://git", b"<html"]),
    st.binary(max_size=300))
def test_random_bytes_after_a_good_beginning(place: Path, start: bytes, data: bytes) -> None:
    assert outcome(place, start + data) == "CannotJudgeError"


@FUZZ
@given(st.sampled_from(KINDS), st.floats(0, 1, exclude_max=True))
@example("safetensors", 0.9999)
def test_truncated(place: Path, kind: str, share: float) -> None:
    data = valid(kind)
    assert outcome(place, data[:int(len(data) * share)]) == "CannotJudgeError"


@FUZZ
@given(st.sampled_from(KINDS),
       st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bits(place: Path, kind: str, flips: list[tuple[float, int]]) -> None:
    data = bytearray(valid(kind))
    for at, mask in flips:
        data[int(at * len(data))] ^= mask
    outcome(place, bytes(data))


@FUZZ
@given(st.sampled_from(KINDS), st.floats(0, 1), st.binary(min_size=1, max_size=40))
def test_inserted_bytes(place: Path, kind: str, share: float, extra: bytes) -> None:
    data = valid(kind)
    at = int(share * len(data))
    outcome(place, data[:at] + extra + data[at:])


@FUZZ
@given(st.binary(max_size=2000))
def test_the_sniffer_answers_or_refuses(data: bytes) -> None:
    with contextlib.suppress(CannotJudgeError):
        assert recognise(data, "w") in FORMATS
