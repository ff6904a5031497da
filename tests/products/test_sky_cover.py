"""Spectra of the sky that do not reach over a band, or have a hole in it, are refused."""

import numpy as np
import pytest

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.physics.passbands import Surface
from lsstcal_dask.products.sky_cover import check_measured, unmeasured
from lsstcal_dask.products.sky_model import Measured

REACH = (340.0, 1060.0)
NM = np.arange(340.5, 1060.0)
EDGES = np.array([300.0, 549.9, 550.0, 690.0, 690.1, 1100.0])
PASSED = np.array([[0.0, 0.0, 1.0, 1.0, 0.0, 0.0]])
GLASS = Surface("r", EDGES, np.zeros((1, 2), int), 300.0, PASSED, np.zeros((1, 1)), np.zeros(6))


def spectrum(keep, nm=NM):
    flux = np.where(keep, 3.0, np.nan)
    return Measured("V1", np.datetime64("2026-08-10T03:00:00"), nm, flux, np.ones(len(nm)))


def test_a_spectrum_of_all_that_the_spectrograph_sees_covers_each_band():
    """Pixels that are lost within the width of a line do not count."""
    whole = spectrum(NM > 0)
    assert unmeasured(whole, GLASS, REACH, 200.0) == unmeasured(whole, None, REACH, 200.0) == 0
    assert unmeasured(spectrum(np.abs(NM - 600) > 2), GLASS, REACH, 200.0) == 0
    check_measured(spectrum(NM < 700), GLASS, REACH, 200.0, 1e-4)


@pytest.mark.parametrize(
    ("nm", "keep", "missing"), [(NM[NM < 620], NM[NM < 620] > 0, 67.4 / 140), (NM, np.abs(NM - 600) > 10, 15.0 / 140)]
)
def test_a_cut_and_a_hole_in_the_band_are_refused(nm, keep, missing):
    """All but a line's width, 3 nm, beyond the last pixel, 619.5 nm, is missing; of a hole, that from both sides."""
    one = spectrum(keep, nm)
    assert unmeasured(one, GLASS, REACH, 200.0) == pytest.approx(missing, abs=0.002)
    with pytest.raises(
        InsufficientInputs, match=r"sky spectrum V1: measured from 340\.5 to .* of the light of filter r"
    ):
        check_measured(one, GLASS, REACH, 200.0, 1e-4)


def test_without_light_in_the_band_all_of_it_is_missing():
    few = NM[NM < 500]
    assert unmeasured(spectrum(few > 0, few), GLASS, REACH, 200.0) == 1
    assert unmeasured(spectrum(few > 0, few), None, (340.0, 499.0), 200.0) == 0
