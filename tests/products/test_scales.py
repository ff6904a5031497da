"""Scales of synthetic flats: their covariance is what many photodiodes, each wrong in its own way, make of them."""

import numpy as np
import pytest
import xarray as xr

from lsstcal_dask.physics.spectra import Spectrum
from lsstcal_dask.pipeline.cubes import photon_error
from lsstcal_dask.products.monochromatic import MonochromaticConfig
from lsstcal_dask.products.photodiode import Photodiode
from lsstcal_dask.products.scales import scale_covariance, scale_errors
from lsstcal_dask.products.slices import group_flats, mean_response
from lsstcal_dask.products.weights import Scan, make_weights

NM = np.arange(600.0, 700.1, 10)
TRUE = 0.8 - 0.3 * ((NM - 650) / 300) ** 2  # response
COMMON = 1e-3 * (1 + (NM - 650) / 50)  # of the photodiode's table: its error grows with wavelength
SINGLE = 2e-4  # of the photodiode in an exposure
PIXELS, EACH, SEEDS = 1000, 3, 400
SPECTRA = [Spectrum(NM, np.clip(sign * (650 - NM), 0, None) + 1, name) for sign, name in ((1, "blue"), (-1, "red"))]
PLACE = np.zeros(1), np.zeros(1)


def taken(asked, charge):
    """Header table of monochromatic flats."""
    columns = {"wavelength": asked, "photodiode": charge, "exposure_time": 1 + 0 * asked}
    names = [f"e{i}" for i in range(len(asked))]
    time = np.datetime64("2026-07-11T20:00:00", "ns") + np.arange(len(asked)) * np.timedelta64(1, "s")
    texts = {"exposure_type": ["flat"] * len(asked), "filter": ["none"] * len(asked), "time": time}
    return xr.Dataset(coords={"exposure": names, **{k: ("exposure", v) for k, v in (columns | texts).items()}})


def scan_of_a_night(seed):
    """What a cube says of its response, of light through a photodiode whose table has an error of its own."""
    rng = np.random.default_rng(seed)
    asked = np.repeat(NM, EACH)
    photons = 1e5 * rng.uniform(0.8, 1.2, len(asked))  # for each pixel: the lamp is as it likes
    right = Photodiode(NM, np.full(len(NM), 0.4), np.zeros(len(NM)))
    current = right.photons(1.0, 0.0, asked)
    charge = photons / current * (1 + SINGLE * rng.standard_normal(len(asked)))
    known = Photodiode(NM, 0.4 * (1 + COMMON * rng.standard_normal()), 0.4 * COMMON)
    groups, left_out = group_flats(taken(asked, charge), {}, known, MonochromaticConfig(photodiode_error=SINGLE))
    assert not left_out
    electrons = rng.poisson(np.repeat(TRUE, EACH) * photons * PIXELS).reshape(-1, EACH).sum(axis=1)
    measured = np.array([sum(one.photons) for one in groups])
    total = electrons / measured
    noise = [
        photon_error({"d": {"total": [t], "pixels": [PIXELS], "numbers": _line(1 / m)}})
        for t, m in zip(total, measured, strict=True)
    ]
    response = mean_response(total[None], np.full((1, len(NM)), PIXELS), NM)
    common, single = (np.array([getattr(one, f"{kind}_error") for one in groups]) for kind in ("common", "single"))
    return Scan(NM, response, np.ones(len(NM)), *PLACE, common, np.hypot(single, noise))


def _line(slope):
    return {"variance_slope": [slope], "variance_floor": [0.0]}


@pytest.fixture(scope="module")
def nights():
    """Logarithm of the ratio of the scales of two flats, over what it should be, with its error told two ways."""
    truth = Scan(NM, TRUE, np.ones(len(NM)), *PLACE)
    scales = np.log([make_weights(one, None, truth).scale for one in SPECTRA])
    found = []
    for seed in range(SEEDS):
        scan = scan_of_a_night(seed)
        weights = [make_weights(one, None, scan) for one in SPECTRA]
        away = np.log([one.scale for one in weights]) - scales
        one, other = scale_covariance(weights, scan), scale_covariance(weights, _apart(scan))
        ratio = np.array([1, -1])
        found.append(
            (away @ ratio, np.sqrt(ratio @ one @ ratio), np.sqrt(ratio @ other @ ratio), *away, *one.diagonal())
        )
    return np.array(found)


def _apart(scan):
    """The same errors as if no two wavelengths shared any."""
    return Scan(*(scan.wavelength, scan.response, scan.bandwidth), *PLACE, None, np.hypot(scan.common, scan.single))


def test_the_ratio_of_two_scales_scatters_as_its_covariance_says(nights):
    pull = nights[:, 0] / nights[:, 1]
    assert abs(pull.mean()) < 4 / np.sqrt(SEEDS)
    assert abs(pull.std() - 1) < 4 / np.sqrt(2 * SEEDS)


def test_so_does_each_scale(nights):
    pulls = nights[:, 3:5] / np.sqrt(nights[:, 5:7])
    assert np.all(np.abs(pulls.std(axis=0) - 1) < 4 / np.sqrt(2 * SEEDS))


def test_without_what_wavelengths_share_the_errors_are_wrong(nights):
    assert (nights[:, 0] / nights[:, 2]).std() > 1.5


def test_what_is_common_to_all_wavelengths_to_the_same_part_falls_out_of_the_ratio():
    scan = Scan(NM, TRUE, np.ones(len(NM)), *PLACE, np.full(len(NM), 0.01), np.zeros(len(NM)))
    weights = [make_weights(one, None, scan) for one in SPECTRA]
    covariance = scale_covariance(weights, scan)
    np.testing.assert_allclose(covariance, 1e-4, rtol=1e-12)
    assert scale_errors(weights[0], scan) == pytest.approx((0.01, 0.01))
    assert weights[0].light.sum() == pytest.approx(1)
