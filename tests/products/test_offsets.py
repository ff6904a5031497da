"""Offsets that were added to amplifiers of a made-up sky are found again, stars or not."""

from dataclasses import replace

import numpy as np
import pytest

from lsstcal_dask.errors import DegenerateSolution, InsufficientInputs
from lsstcal_dask.instrument import Box, load_camera
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.products.offsets import OffsetConfig, amplifier_offsets, sky_step
from lsstcal_dask.variables import MASK_BITS, validate

NY, NX = 400, 120
SIGMA = 12.0  # electron, of 100 of sky and the read noise


def ccd():
    """Two rows of four amplifiers, turned as those of LSST."""
    whole = load_camera("lsstcam").detector("R22_S11")
    chosen = []
    for i in range(8):
        row, column = divmod(i, 4)
        model = next(a for a in whole.amplifiers if a.flip_y == bool(row))
        chosen.append(
            replace(model, name=f"C{row}{column}", data=Box(10, 10 + NX, 0, NY), position=(column * NX, row * NY))
        )
    return replace(whole, amplifiers=tuple(chosen))


DETECTOR = ccd()
OFFSETS = np.array([2.0, 0, 0, 0, 0, -2.0, 0, 0])  # electron
SHAPE = (2 * NY, 4 * NX)


def sky(seed, stars=0):
    """CCD (y, x) with a gradient of the sky along both axes."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = random.normal(100 + 5 * x / SHAPE[1] - 3 * y / SHAPE[0], SIGMA)
    fluxes, *places = 10 ** random.uniform(2.5, 5, stars), *(random.uniform(0, n, stars) for n in SHAPE)
    for flux, cy, cx in zip(fluxes, *places, strict=True):
        part = np.s_[max(int(cy) - 30, 0) : int(cy) + 31, max(int(cx) - 30, 0) : int(cx) + 31]
        r2 = (y[part] - cy) ** 2 + (x[part] - cx) ** 2
        image[part] += flux / (2 * np.pi * 4) * np.exp(-r2 / 8)
    return image


def frame(image, offsets=OFFSETS):
    cut = []
    for amplifier, offset in zip(DETECTOR.amplifiers, offsets, strict=True):
        x0, y0 = amplifier.position
        part = image[y0 : y0 + NY, x0 : x0 + NX] + offset
        cut.append(part[:: -1 if amplifier.flip_y else 1, :: -1 if amplifier.flip_x else 1])
    values = np.array(cut, np.float32)
    return Frame("e1", DETECTOR, values, values, values[..., 0], np.zeros(values.shape, np.uint16), "electron")


@pytest.mark.parametrize("stars", [0, 150])
def test_two_electrons_are_found(stars):
    pulls, without = [], []
    for seed in range(8):
        found = validate(amplifier_offsets(frame(sky(seed, stars))))
        error = found["amplifier_offset_error"].values
        pulls.append((found["amplifier_offset"].values - (OFFSETS - OFFSETS.mean())) / error)
        plain = amplifier_offsets(frame(sky(seed, stars), 0 * OFFSETS))
        without.append(plain["amplifier_offset"].values)
        assert error.max() < 0.4  # so that two electrons are five sigma
    # 64 pulls, seven of eight free: their width is known to a tenth
    assert 0.7 < np.std(pulls) < 1.3
    assert np.abs(np.mean(pulls, axis=0)).max() < 4 / np.sqrt(8) * 1.3
    assert np.abs(without).max() < 5 * 0.4


def test_a_step_by_hand():
    along, across = np.mgrid[:100, :40]
    low, high = 0.1 * across - 4.0, 0.1 * across + 7.0
    noise = np.where((along + across) % 2, 1.0, -1.0)
    found, error = sky_step(low + noise, high + noise)
    assert found == pytest.approx(7.0, abs=0.01)
    assert 0 < error < 0.5


def test_masked_pixels_take_no_part():
    given = frame(sky(3))
    hit = given.image.copy()
    mask = given.mask.copy()
    hit[0, :, 60:90] += 500
    mask[0, :, 60:90] = MASK_BITS["BAD"]
    before = amplifier_offsets(given)
    after = amplifier_offsets(given.with_(image=hit, mask=mask))
    away = (after["amplifier_offset"] - before["amplifier_offset"]) / before["amplifier_offset_error"]
    assert np.abs(away).max() < 3


def test_an_amplifier_without_pixels_has_no_offset():
    given = frame(sky(3))
    mask = given.mask.copy()
    mask[1] = MASK_BITS["NO_DATA"]
    found = amplifier_offsets(given.with_(mask=mask))
    assert np.isnan(found["amplifier_offset"].values).tolist() == [False, True] + [False] * 6
    assert len(found.attrs["remarks"]) == 3
    assert "boundary of C00 and C01 not used: no usable pixel on one side" in found.attrs["remarks"]
    mask[:] = MASK_BITS["NO_DATA"]
    with pytest.raises(DegenerateSolution, match="no boundary between amplifiers"):
        amplifier_offsets(given.with_(mask=mask))


def test_what_is_too_narrow_or_too_crowded_is_refused():
    with pytest.raises(InsufficientInputs, match="too narrow: 1 pixels"):
        sky_step(np.ones((100, 4)), np.ones((100, 4)))
    crowded = np.random.default_rng(0).normal(0, 1, (100, 100))
    crowded[:80] = np.nan
    with pytest.raises(InsufficientInputs, match="sources or bad pixels nearly everywhere"):
        sky_step(crowded, crowded)
    assert OffsetConfig().order == 1
