"""The two references of a broadband flat: when they agree, and what is told when they do not (Sec. 2.8.2)."""

import re
from dataclasses import replace

import numpy as np
import pytest

from lsstcal_dask.physics.nearby import Nearby
from lsstcal_dask.physics.passbands import Passband
from lsstcal_dask.physics.spectra import Spectrum
from lsstcal_dask.pipeline.references import difference, known_to, told_difference
from lsstcal_dask.products.contamination import ContaminationConfig
from lsstcal_dask.products.drift import Cells
from lsstcal_dask.products.weights import Scan, make_weights

CONFIG = ContaminationConfig()
SIGMA = 2e-4  # of a cell
SLOPES = (2e-3, -1e-3, 2.5e-3, -2e-3)  # of the drift, 1/nm, of CCDs of two vendors


def cells(seed=1, drift=0.0, bump=0.0, tilt=0.0):
    """Four CCDs of 32 by 32 cells: a lamp of second order, a drift (nm), a wave in the third, a slope in each."""
    found = {}
    for k, slope in enumerate(SLOPES):
        y, x = np.indices((32, 32)) / 8
        x = x + 4 * (k - 2)
        noise = SIGMA * np.random.default_rng([seed, k]).standard_normal(x.shape)
        change = 0.01 * x / 8 - 0.006 * (y / 8) ** 2 + noise + drift * slope
        change = change + bump * np.sin(4 * x) * (k == 2) + tilt * (-1) ** k * (y / 4 - 0.5)
        flat = (one.ravel() for one in (x, y, change, np.full(x.shape, SIGMA**2), np.full(x.shape, slope)))
        found[f"R0{k}"] = Cells(*flat, np.zeros((x.size, 0)))
    return found


def told(known=0.0, **what):
    return told_difference(difference("r", cells(**what), known, CONFIG), CONFIG)


def test_references_that_agree_are_a_note():
    for seed in range(5):
        (remark,) = told(seed=seed)
        assert remark.startswith("note: filter r: flats of the cube's epoch and those of the cube differ by")


def test_structure_names_the_ccd_where_it_is():
    found = difference("r", cells(bump=5e-3), 0.0, CONFIG)
    assert found.worst == "R02"
    # a sine of 5e-3 in one of four CCDs, of which the lamp's polynomial follows a little
    assert found.worst_rms == pytest.approx(5e-3 / np.sqrt(2), rel=0.1)
    assert found.rms == pytest.approx(5e-3 / np.sqrt(8), rel=0.1)
    field, within = told_difference(found, CONFIG)
    assert field.startswith("REFERENCES_DISAGREE: filter r: flats of the cube's epoch and those of the cube differ by")
    assert "most in R02" in field
    assert "rms within R02: did dust come or go between them?" in within


def test_what_the_curves_do_not_tell_is_no_alarm_unless_it_is_within_a_ccd():
    (remark,) = told(bump=5e-3, known=2e-3)
    assert "rms within R02" in remark
    assert told(tilt=5e-3, known=5e-3)[0].startswith("note:")
    assert "REFERENCES_DISAGREE" in told(tilt=5e-3)[0]


def test_a_filter_that_moved_before_the_cube_was_taken():
    remarks = told(drift=0.5)
    assert any(
        re.search(r"r moved by \+0\.(49|50)\d \+- 0.00\d nm from its curves to the cube", text) for text in remarks
    )
    assert all(text.startswith("REFERENCES_DISAGREE") for text in remarks)
    # by 8e-4 rms, which curves that are known to 5e-3 may do as well
    assert told(drift=0.5, known=5e-3)[0].startswith("note:")


def test_sensors_of_one_kind_tell_no_drift():
    even = {name: replace(one, drift=0 * one.drift) for name, one in cells().items()}
    found = difference("r", even, 0.0, CONFIG)
    assert np.isnan(found.drift)
    assert told_difference(found, CONFIG)[0].startswith("note:")


def test_how_well_the_light_is_known_is_how_well_curves_predict_each_other():
    """Of light as each curve passes it, whatever the spectrum and the response; without curves nothing is unknown."""
    nm = np.linspace(600.0, 610, 11)
    x, y = (axis.ravel() * 10.0 for axis in np.meshgrid(*[np.arange(5) - 2.0] * 2))
    level = np.random.default_rng(1).normal(0.5, 0.005, 25)
    names = tuple(f"P{i}" for i in range(25))
    glass = Nearby(Passband("r", names, x, y, nm, level[:, None] * np.ones(11), np.zeros((25, 11))))
    scan, spectrum = Scan(nm, np.linspace(0.5, 0.7, 11), np.ones(11), x, y), Spectrum(nm, np.linspace(1, 2, 11))
    expected = np.sqrt(np.mean((glass.missed(level) / level) ** 2))
    assert known_to(make_weights(spectrum, glass, scan)) == pytest.approx(expected)
    assert known_to(make_weights(spectrum, None, scan)) == 0
