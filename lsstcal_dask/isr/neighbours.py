"""What other CCDs leave in one: charge to subtract, its noise, and where a source was saturated (Sec. 3.3; §5)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.isr.crosstalk import Entries, from_others, raw_frame
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.variables import MASK_BITS

__all__ = ["Seen", "Source", "add_noise", "seen"]


@dataclass(frozen=True, eq=False)
class Source:
    """Amplifiers of another CCD as they disturb others: trimmed, (amplifier, y, x)."""

    image: np.ndarray  # float32, electron, before its own crosstalk is removed
    variance: np.ndarray  # float32, electron**2
    ceiling: np.ndarray  # (amplifier,) electron, at which a source is saturated; inf where unknown


@dataclass(frozen=True, eq=False)
class Seen:
    """What other CCDs leave in the amplifiers of one, trimmed and padded."""

    charge: np.ndarray  # (amplifier, y, x) float32, electron
    places: np.ndarray  # (target,) amplifiers that are reached at all
    variance: np.ndarray  # (target, y, x) float32, electron**2
    clipped: np.ndarray  # (target, y, x) bool, a source was saturated there


def seen(sources: Mapping[str, tuple[Source, Detector, Entries]], detector: Detector, shape: tuple[int, int]) -> Seen:
    """Sum what sources leave: ``C Q + C2 Q**2`` with Q up to the ceiling, and ``C**2`` times the variance of Q.

    Parameters
    ----------
    sources : by CCD: its amplifiers that couple, the CCD with only these, and the coefficients with places among them.
    shape : (ny, nx) of the padded image.
    """
    raw = _largest([part for _, part, _ in sources.values()] + [detector])
    entries = {name: own for name, (_, _, own) in sources.items()}
    places = np.unique(np.concatenate([own.targets for own in entries.values()]))

    def total(images: dict[str, np.ndarray], entries: dict[str, Entries], high: dict[str, np.ndarray]) -> np.ndarray:
        laid = {name: raw_frame(image, sources[name][1], raw) for name, image in images.items()}
        return _trimmed(from_others(laid, entries, detector, high or None), detector, shape)

    squares = {name: _linear(own, own.linear**2) for name, own in entries.items()}
    ones = {name: _linear(own, np.ones_like(own.linear)) for name, own in entries.items()}
    full = {k: (s.image >= s.ceiling[:, None, None]).astype(np.float32) for k, (s, _, _) in sources.items()}
    ceilings = {name: source.ceiling for name, (source, _, _) in sources.items()}
    return Seen(
        total({name: source.image for name, (source, _, _) in sources.items()}, entries, ceilings),
        places,
        total({name: source.variance for name, (source, _, _) in sources.items()}, squares, {})[places],
        total(full, ones, {})[places] > 0,
    )


def add_noise(frame: Frame, others: Seen) -> Frame:
    """Add the noise of what was subtracted, and flag CROSSTALK where it came from a saturated source."""
    variance, mask = frame.variance.copy(), frame.mask.copy()
    for place, noise, clipped in zip(others.places, others.variance, others.clipped, strict=True):
        variance[place] += noise
        mask[place] |= np.where(clipped, MASK_BITS["CROSSTALK"], 0).astype(np.uint16)
    return frame.with_(variance=variance, mask=mask)


def _linear(entries: Entries, values: np.ndarray) -> Entries:
    return replace(entries, linear=values, quadratic=np.zeros_like(entries.quadratic))


def _trimmed(image: np.ndarray, detector: Detector, shape: tuple[int, int]) -> np.ndarray:
    out = np.zeros((len(image), *shape), np.float32)
    for i, amplifier in enumerate(detector.amplifiers):
        ny, nx = amplifier.data.shape
        out[i, :ny, :nx] = image[(i, *amplifier.data.slices)]
    return out


def _largest(detectors: list[Detector]) -> tuple[int, int]:
    """Shape that holds the raw amplifiers of all."""
    ny, nx = zip(*(a.raw_shape for d in detectors for a in d.amplifiers), strict=True)
    return max(ny), max(nx)
