"""The list of defects that a camera team delivers: what its tests see of the true ones, and some that are none (¶6)."""

from collections.abc import Iterator

import numpy as np
from pydantic import Field

from lsstcal_dask.instrument.camera import Detector
from lsstcal_dask.simulate.defects import DEFECT, KINDS
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.random import stream

__all__ = ["DefectSurvey", "listed"]


class DefectSurvey(Effect):
    """How well defects are found; switched off the list is the truth.

    The thresholds are those of the electro-optical tests of LSST's sensors. Shares of what is missed and listed in
    error are made up.
    """

    dim: float = Field(0.8, ge=0, le=1)  # sensitivity below which cold pixels and dark columns are seen
    bright: float = Field(5.0, ge=0)  # electron/s, from which bright columns are
    trap: float = Field(200.0, ge=0)  # electrons, from which traps are
    missed: float = Field(0.03, ge=0, le=1)  # share of those that could be seen and are not listed
    false: float = Field(2e-6, ge=0, le=1e-2)  # per pixel, good ones that are listed as cold
    gap: int = Field(2, ge=0)  # px, good columns between two bad ones of a kind up to which all are listed as one box


def listed(seed: int, settings: DefectSurvey, detector: Detector, found: np.ndarray) -> np.ndarray:
    """Defects of a CCD as they are delivered.

    Parameters
    ----------
    found : (defect,) of dtype `DEFECT`, the true ones.

    Returns
    -------
    (entry,) of the same dtype, sorted by kind; the value of a box of several columns is that of the first, of what is
    no defect NaN. ``found`` itself if switched off.
    """
    if not settings.on:
        return found
    random = stream(seed, "defect_survey", detector=detector.id)
    kept = found[_seen(settings, found) & (random.random(len(found)) >= settings.missed)]
    cold, dark, bright, traps = (kept[kept["kind"] == kind] for kind in KINDS)
    columns = [_merged(part, settings.gap) for part in (dark, bright)]
    return np.concatenate([cold, _false(random, settings, detector), *columns, traps])


def _seen(settings: DefectSurvey, found: np.ndarray) -> np.ndarray:
    """Which of the true defects are strong enough."""
    limits = dict(zip(KINDS, (settings.dim, settings.dim, settings.bright, settings.trap), strict=True))
    limit = np.array([limits[str(kind)] for kind in found["kind"]])
    faint = np.isin(found["kind"], KINDS[:2])
    return np.where(faint, found["value"] < limit, found["value"] >= limit)


def _merged(columns: np.ndarray, gap: int) -> np.ndarray:
    """Columns of one kind, those near each other that share rows as one box about them."""
    return np.array(list(_boxes(np.sort(columns, order=["x0", "y0"]), gap)), DEFECT)


def _boxes(columns: np.ndarray, gap: int) -> Iterator[tuple]:
    open_boxes: list[np.ndarray] = []
    for column in columns:
        for box in open_boxes:
            beside = column["x0"] - (box["x0"] + box["width"]) <= gap
            if beside and column["y0"] < box["y0"] + box["height"] and box["y0"] < column["y0"] + column["height"]:
                top = max(box["y0"] + box["height"], column["y0"] + column["height"])
                box["y0"] = min(box["y0"], column["y0"])
                box["height"] = top - box["y0"]
                box["width"] = max(box["width"], column["x0"] + column["width"] - box["x0"])
                break
        else:
            open_boxes.append(np.array(column))
    for box in open_boxes:
        yield box.item()


def _false(random: np.random.Generator, settings: DefectSurvey, detector: Detector) -> np.ndarray:
    """Entries of single good pixels."""
    ny, nx = detector.shape
    out = np.zeros(random.poisson(settings.false * ny * nx), DEFECT)
    out["x0"], out["y0"] = random.integers(nx, size=len(out)), random.integers(ny, size=len(out))
    out["width"] = out["height"] = 1
    out["kind"], out["value"] = KINDS[0], np.nan
    return out
