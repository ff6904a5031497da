"""The closed loops of flats and of the sky at their smallest: that they measure what they say, and that errors show."""

import numpy as np
import pytest

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.pipeline.closed import contamination, photometric_flat, sky, sky_flat, synthesis
from lsstcal_dask.pipeline.closed.flat_scan import CUBE, START, exact_passband, expected, lamp_light, store_scan
from lsstcal_dask.simulate import Exposure, Observatory, Settings
from lsstcal_dask.simulate.exposure import Lamp
from lsstcal_dask.storage.cubes import open_cube, read_cube


def by_name(targets):
    found = {one.name: one for one in targets}
    assert len(found) == len(targets)
    return found


def met(targets):
    """Names of those that are not; of one seed the error is not known."""
    return [one.name for one in targets if not one.low <= one.measured <= one.high]


def test_a_scan_in_light_is_a_cube(tmp_path):
    """Its slices are the light of the laser where it was, with the noise that is asked for."""
    camera = load_camera("mini1")
    site = Observatory(3, camera, Settings().without(["dust", "ghosts", "scatter"]))
    store = store_scan(site, tmp_path / "s", np.array([600.0, 620.0]), camera.detectors, 1e4)
    slots, cube = read_cube(store.url, CUBE).pointer.slots, open_cube(store.url, CUBE, chunked=False)
    asked, centre = (np.array([getattr(one, name) for one in slots]) for name in ("nominal", "wavelength"))
    assert (centre != asked).all()
    assert np.abs(centre - asked).max() < 0.6  # six times the jitter of the laser
    for k, one in enumerate(slots):
        taken = Exposure(*one.exposures, k + 1, "flat", START, 1.0, 1.0, "none", Lamp(1.0, one.nominal))
        true = expected(site, taken, camera.detectors[0])
        ratio = cube["flat"].isel(detector=0, wavelength=k).values / true
        # a hundredth, larger where there is less light, and as the mean of so many pixels tells it
        noise = np.nanstd((ratio - 1) * np.sqrt(true / np.nanmean(true)))
        assert noise == pytest.approx(0.01, rel=4 / np.sqrt(2 * ratio.size))
        assert np.nanmean(ratio) == pytest.approx(1, abs=4 * 0.01 / np.sqrt(ratio.size))


def test_the_true_filter_is_that_of_the_light():
    """Between its 5 by 5 places of a CCD, to 1e-4 of the lamp's light."""
    camera = load_camera("mini9")
    site = Observatory(3, camera, Settings().without(["dust", "ghosts", "scatter"]))
    nm = np.arange(530.0, 725, 2.0)
    glass, lit = exact_passband(site, "r", nm), synthesis.lamp_spectrum(nm)
    x, y = np.random.default_rng(1).uniform(-2, 2, (2, 30))
    true = synthesis.transmission(3, site.settings.filters, camera, "r", nm, x, y) @ lit
    ratio = glass.at(x, y) @ lit / true
    assert np.std(ratio) < 1e-4
    assert lamp_light(site, "r", camera.detectors[0]).shape == (16, *camera.image_shape)


def test_synthesis():
    found = by_name(synthesis.measure(1, ccds=(0, 1), step=8.0, delivered={"mini9": "r"}))
    *rest, known = found.values()
    assert met(rest) == []
    # nine curves: no estimator could, and this one is near what the best could
    assert known.measured > known.high
    assert 0.7 < known.measured / known.best < 1.6


def test_the_best_shares_are_those_of_the_covariance():
    """Exact where values are known, and a sum of one everywhere."""
    at = np.random.default_rng(1).uniform(-1, 1, (9, 2))
    np.testing.assert_allclose(synthesis._oracle(at, at), np.eye(9), atol=1e-6)
    assert synthesis._oracle(at, at + 0.1).sum(axis=0) == pytest.approx(1)


def test_contamination(monkeypatch):
    """A night of dust alone on three CCDs; drifts have their own test in products, and take a minute here."""
    monkeypatch.setattr(contamination, "_CCDS", contamination._CCDS[:3])
    row = contamination._seed(1, 45.0, ("epoch", "dust")).values
    assert max(row["missed"]) < 5e-4
    assert max(row["elsewhere"]) < 1.2
    assert row["kinds"] == [1.0, 1.0, 1.0]
    assert row["false"] == row["alarm"] == [0.0, 0.0]


def test_sky():
    found = by_name(sky.measure(1, visits=1))
    # pulls of one spectrum hang together, so that it tells a width to a quarter; of which a limit is four
    assert [one.name for one in found.values() if max(one.low - one.measured, one.measured - one.high) > 1] == []
    assert found["photons of single lines: relative error"].measured < 0.05
    assert found["lines that are on no list: rejected"].measured == 1
    assert found["spectra that are stale refused, others not"].measured == 1
    assert found["families changed by 20 %: error of the change"].measured < 0.1


def test_sky_flat():
    """Steps of 8 nm leave little of the sky in r."""
    found = sky_flat.measure(1, "r", (0,), 8.0)
    # 32 blocks of 36 cells of a CCD: their noise is known to 2.2 %
    pixels, cells, *rest = found
    assert cells.measured < cells.high + 0.1
    assert met([pixels, *rest]) == []


def test_photometric_flat():
    found = photometric_flat.measure(1, 16, 5, 30.0, (0, 1))
    identity, undone, itself, clean, plain = found
    assert met([identity, undone, clean, plain]) == []
    # what the cube holds that no star sees is all that is left
    assert itself.measured == pytest.approx(itself.best, rel=0.1)
    assert itself.measured > 5 * clean.measured


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("loop", "numbers"), [(synthesis, {}), (contamination, {}), (sky, {}), (sky_flat, {}), (photometric_flat, {})]
)
def test_the_flats_loops_at_two_seeds(loop, numbers):
    found = loop.measure(20 if loop is sky else 2, **numbers)
    assert [one.name for one in found if one.verdict == "fail"] == []
