"""Stars of a corrected frame: flux, peak, size and background, and which are the same in several frames (Sec. 2.3).

Sources are found and summed with SEP (Barbary 2016, JOSS 1, 58), the library of Source Extractor. The size is the mean
square radius under a Gaussian that is the same for all stars of a frame: it does not know how bright a star is, as
isophotes do.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.spatial import cKDTree

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.instrument.camera import Detector

__all__ = ["STAR", "amplifier_of", "match_stars", "measure_stars"]

STAR: Final = np.dtype(
    [(name, "f8") for name in ("x", "y", "flux", "flux_error", "background", "peak", "size", "size_error")]
)
"""A star: place, pixel; flux above the background, peak and background in the unit of the image; second moment less the
median of its frame, pixel**2."""

_MESH: Final = 64  # pixels of a cell of the background
_FOUND: Final = 5.0  # sigma of a pixel
_AREA: Final = 5  # pixels
_APERTURE: Final = 6.0  # radius over the Gaussian sigma of a star: 2.5 full widths
_ROUND: Final = 0.7  # least ratio of the axes
_SURE: Final = 50.0  # flux over its error: the bias of a size by its centroid is then 4e-4
_ROUNDS: Final = 4  # in which the width of the weight follows that of the stars
_FEW: Final = 5  # stars that must agree on a shift
_BRIGHTEST: Final = 80  # that vote on it
_BIN: Final = 4.0  # pixels of a vote
_REACH: Final = 2.0  # pixels within which two are one star


def measure_stars(image: np.ndarray, variance: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Measure the stars of a CCD that stand alone, are round, whole, and 50 times as bright as their error.

    Parameters
    ----------
    image, variance : (y, x), the image in electrons with its background.
    good : (y, x) bool; a star with any other pixel in its aperture is left out.

    Returns
    -------
    (star,) of `STAR`.

    Raises
    ------
    InsufficientInputs
        So much of the image is above its background that no stars can be found.
    """
    import sep  # noqa: PLC0415

    above, sky, bad = _above(image, good)
    noise = np.sqrt(np.where(good, variance, 1.0)).astype(np.float32)
    try:
        found = sep.extract(above, _FOUND, err=noise, mask=bad, minarea=_AREA)
    except Exception as full:  # SEP raises no other when its buffers are full
        reason = str(full).partition(":")[0]
        raise InsufficientInputs(
            f"stars cannot be told from what is round them, which is too bright ({reason})"
        ) from full
    if not len(found):
        return np.empty(0, STAR)
    sigma = float(np.median(np.sqrt(found["a"] * found["b"])))
    x, y, _ = sep.winpos(above, found["x"], found["y"], sigma, mask=bad)
    radius = _APERTURE * sigma
    flux, error, flag = sep.sum_circle(above, x, y, radius, err=noise, mask=bad)
    ny, nx = image.shape
    whole = (x > radius) & (y > radius) & (x < nx - 1 - radius) & (y < ny - 1 - radius)
    use = whole & (flag == 0) & (found["flag"] == 0) & (found["b"] > _ROUND * found["a"])
    use &= _alone(x, y, radius + 3 * sigma) & (flux > _SURE * error)
    if not use.any():
        return np.empty(0, STAR)
    stars = np.empty(int(use.sum()), STAR)
    for name, values in {"x": x, "y": y, "flux": flux, "flux_error": error}.items():
        stars[name] = values[use]
    stars["background"] = sky[np.rint(stars["y"]).astype(int), np.rint(stars["x"]).astype(int)]
    return _sized(stars, above, variance, sigma)


def _above(image: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image less its background, the background, and what is not to be used, as SEP wants them."""
    import sep  # noqa: PLC0415

    bad = np.ascontiguousarray(~good)
    clean = np.ascontiguousarray(np.where(good, image, 0.0), np.float32)
    sky = sep.Background(clean, mask=bad, bw=_MESH, bh=_MESH).back()
    return clean - sky, sky, bad


def _alone(x: np.ndarray, y: np.ndarray, distance: float) -> np.ndarray:
    """Whether nothing else was found within a distance, pixel."""
    places = np.stack([x, y], axis=1)
    return np.array([len(near) == 1 for near in cKDTree(places).query_ball_point(places, distance)])


def _sized(stars: np.ndarray, above: np.ndarray, variance: np.ndarray, sigma: float) -> np.ndarray:
    """Fill in peak and size, from the moment under a weight as wide as the stars.

    Of a Gaussian with variance s under the weight w the moment is s w / (s + w): for w = s it changes by a quarter of
    what s does.
    """
    half = int(np.ceil(3.0 * sigma)) + 1
    offset = np.arange(-half, half + 1)
    x, y = np.rint(stars["x"]).astype(int), np.rint(stars["y"]).astype(int)
    ny, nx = above.shape
    rows = np.clip(y[:, None, None] + offset[None, :, None], 0, ny - 1)
    columns = np.clip(x[:, None, None] + offset[None, None, :], 0, nx - 1)
    stamps, noise = above[rows, columns].astype(float), variance[rows, columns].astype(float)
    square = ((columns - stars["x"][:, None, None]) ** 2 + (rows - stars["y"][:, None, None]) ** 2) / 2
    width = sigma**2
    for _ in range(_ROUNDS):
        weight = np.exp(-square / width)
        total = (weight * stamps).sum(axis=(1, 2))
        moment = (weight * stamps * square).sum(axis=(1, 2)) / total
        middle = float(np.median(moment))
        width = 2 * middle
    spread = ((weight * (square - moment[:, None, None])) ** 2 * noise).sum(axis=(1, 2))
    stars["peak"] = stamps[:, half - 1 : half + 2, half - 1 : half + 2].max(axis=(1, 2))
    stars["size"] = 4 * (moment - middle)
    stars["size_error"] = 4 * np.sqrt(spread) / total
    return stars


def amplifier_of(stars: np.ndarray, detector: Detector) -> np.ndarray:
    """Place (star,) in ``detector.amplifiers`` of the amplifier in which the middle of each star is."""
    found = np.zeros(len(stars), int)
    for i, amplifier in enumerate(detector.amplifiers):
        (x0, y0), (ny, nx) = amplifier.position, amplifier.data.shape
        x, y = stars["x"] + 0.5 - x0, stars["y"] + 0.5 - y0
        found[(x >= 0) & (x < nx) & (y >= 0) & (y < ny)] = i
    return found


def match_stars(lists: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Number of each star, the same in every frame; -1 for one that the frame with the most stars does not have.

    Frames may be shifted against each other, not turned. One that does not show the same field has none.

    Parameters
    ----------
    lists : (star,) of `STAR`, by frame.
    """
    if not lists:
        return []
    first = max(lists, key=len)
    found = []
    for stars in lists:
        number = np.full(len(stars), -1)
        shift = np.zeros(2) if stars is first else _shift(first, stars)
        if shift is not None and len(stars):
            places = np.stack([stars["x"], stars["y"]], axis=1) - shift
            distance, nearest = cKDTree(np.stack([first["x"], first["y"]], axis=1)).query(places)
            number = np.where(distance < _REACH, nearest, -1)
            taken, times = np.unique(number, return_counts=True)
            number[np.isin(number, taken[times > 1])] = -1
        found.append(number)
    return found


def _shift(first: np.ndarray, other: np.ndarray) -> np.ndarray | None:
    """Places of a frame less those of the first, pixel: the commonest difference of bright stars; None without one."""
    bright = [stars[np.argsort(-stars["flux"])[:_BRIGHTEST]] for stars in (first, other)]
    dx, dy = (np.subtract.outer(bright[1][axis], bright[0][axis]).ravel() for axis in ("x", "y"))
    if not dx.size:
        return None
    place = np.stack([dx, dy], axis=1)
    near = cKDTree(place).query_ball_point(place, _BIN / 2)
    best = max(near, key=len)
    return np.median(place[best], axis=0) if len(best) >= _FEW else None
