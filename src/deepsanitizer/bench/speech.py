"""Recordings as pictures: log spectrograms of one channel, so that a classifier of speech is one of images.

What: `SAMPLES` samples from the middle of a recording (shorter ones lie in silence) in `SIDE` overlapping frames; the
power of each in `SIDE` bands of equal width, in decibels from `RANGE` below the loudest to the loudest.
Time runs to the right, frequency upwards. Recordings are 8-bit mu-law, as the speech pack stores them.
"""

import numpy as np
from numpy.typing import NDArray

SAMPLES = 6144  # of 8,000 a second
SIDE = 32  # frames and bands
FRAME = 256  # samples
RANGE = 60.0  # decibels


def waves(code: NDArray[np.uint8], ends: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """Recordings in [-1, 1] from their mu-law codes laid end to end."""
    level = code.astype(np.float32) / 255 * 2 - 1
    signal = np.sign(level) * (np.power(256.0, np.abs(level)) - 1) / 255
    starts = np.concatenate([[0], ends[:-1]])
    return [signal[a:b].astype(np.float32) for a, b in zip(starts, ends, strict=True)]


def spectrograms(recordings: list[NDArray[np.float32]]) -> NDArray[np.uint8]:
    """Pictures (N, 1, SIDE, SIDE) of recordings."""
    hop = SAMPLES // SIDE
    held = np.stack([_fitted(wave) for wave in recordings])
    held = np.pad(held, ((0, 0), (0, FRAME - hop)))
    frames = np.lib.stride_tricks.sliding_window_view(held, FRAME, axis=1)[:, ::hop][:, :SIDE]
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME).astype(np.float32), axis=2))[..., 1:] ** 2
    bands = power.reshape(len(held), SIDE, SIDE, -1).mean(3).transpose(0, 2, 1)[:, ::-1]
    decibels = 10 * np.log10(np.maximum(bands, 1e-12))
    below = decibels.max((1, 2), keepdims=True) - decibels
    pictures: NDArray[np.uint8] = np.round(255 * np.clip(1 - below / RANGE, 0, 1)).astype(np.uint8)[:, None]
    return pictures


def _fitted(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """The middle SAMPLES samples, or all of them in the middle of silence."""
    extra = max(0, len(wave) - SAMPLES) // 2
    kept = wave[extra:extra + SAMPLES]
    before = (SAMPLES - len(kept)) // 2
    return np.pad(kept, (before, SAMPLES - len(kept) - before))
