"""A short utterance as a picture of fixed size: log-mel energies, in NumPy alone."""

from functools import cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

SAMPLE_RATE = 8_000
BANDS = 32
FRAMES = 32

# 32 ms, the usual analysis window of speech.
_WINDOW = 256
_FFT = 512
# Below the quietest sample step of 16-bit audio, so that silence has a finite logarithm.
_FLOOR = 1e-6


def log_mel(samples: npt.NDArray[np.int16]) -> Floats:
    """int16[any] to float32[BANDS, FRAMES]: log-mel energies of zero mean and unit deviation.

    FRAMES windows are spread evenly from the first sample to the last, whatever the length: slow and quick speakers
    fill the same picture, and no clip is cut or padded with more than one window.
    """
    signal = np.zeros(max(len(samples), _WINDOW + FRAMES), dtype=np.float32)
    signal[: len(samples)] = samples.astype(np.float32) / 32768
    starts = np.linspace(0, len(signal) - _WINDOW, FRAMES).astype(np.int64)
    frames = signal[starts[:, None] + np.arange(_WINDOW)] * np.hanning(_WINDOW)
    power = np.abs(np.fft.rfft(frames, _FFT)) ** 2
    energies = np.log(power @ _filters().T + _FLOOR).T
    spread = energies.std()
    picture: Floats = ((energies - energies.mean()) / (spread if spread > 0 else 1)).astype(np.float32)
    return picture


@cache
def _filters() -> Floats:
    """Triangular filters, evenly spaced on the mel scale: float32[BANDS, _FFT // 2 + 1]."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    weights: npt.NDArray[np.float64] = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    return np.maximum(weights, 0).astype(np.float32)
