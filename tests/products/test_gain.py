"""Which measurement of the gain is used, on made-up raw frames; and two methods on one measured camera."""

import numpy as np
import pytest
import xarray as xr

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.products.gain import GainConfig, gain_amplifiers, silicon_temperature
from lsstcal_dask.products.pairs import pair_gain
from lsstcal_dask.products.spectrum import fit_spectrum, kalpha_electrons
from lsstcal_dask.products.xrays import SCALE_ERROR, find_hits, fit_hits, select_hits

CAMERA = load_camera("mini1")
CCD = CAMERA.detectors[0]
GAIN, READ, LOSS = 1.5, 4.0, -3e-6  # electron/adu, adu, 1/electron


def flat(rng, level):
    """Poisson electrons whose variance is damped as by pixels that shrink by ``LOSS`` per electron."""
    damped = np.expm1(2 * LOSS * level) / (2 * LOSS * level)
    return level + np.sqrt(damped) * (rng.poisson(level, CCD.amplifiers[0].data.shape) - level)


def raw_flats(levels):
    rng = np.random.default_rng(1)
    counts = rng.normal(1000, READ, (2 * len(levels), 4, *CAMERA.raw_shape))
    for i, level in enumerate(np.repeat(levels, 2)):
        for amplifier in CCD.amplifiers:
            place = (i, CAMERA.amplifier_names.index(amplifier.name), *amplifier.data.slices)
            counts[place] += flat(rng, level) / GAIN
    n = len(counts)
    columns = {
        "exposure_type": ["flat"] * n,
        "exposure_time": np.repeat(levels, 2) / 1e4,
        "filter": ["r"] * n,
        "wavelength": [np.nan] * n,
    }
    coords = {name: ("exposure", values) for name, values in columns.items()}
    names = {"exposure": [f"flat_{i}" for i in range(n)], "amplifier": list(CAMERA.amplifier_names)}
    variables = {
        "counts": (("exposure", "amplifier", "y", "x"), np.rint(counts).astype(np.int32)),
        "present": ("exposure", np.ones(n, bool)),
    }
    return xr.Dataset(variables, {**coords, **names})


@pytest.mark.parametrize(
    ("levels", "pairs", "method"),
    [
        (np.linspace(4e3, 8e4, 10), "auto", "transfer"),
        (np.linspace(4e3, 8e4, 10), "extrapolated", "extrapolated"),
        ([2e4, 4e4, 8e4], "auto", "extrapolated"),
        ([4e4], "auto", "summed"),
    ],
)
def test_six_levels_or_more_are_fitted_with_the_covariance_model(levels, pairs, method):
    for _, found in gain_amplifiers(raw_flats(levels), CCD, 173.0, GainConfig(pairs=pairs), {}):
        summary = found.attrs["summary"]
        assert (summary["method"], summary["pair_method"]) == ("pair", method)
        if method != "summed":  # nothing gives the neighbours here what a pixel loses
            assert abs(found["gain"] - GAIN) < 4 * found["gain_error"]
            assert summary["gain_pair_variance_only"] > GAIN * 1.05  # what the effect does where it is ignored


def test_too_few_levels_for_the_method_asked_for():
    raw = raw_flats([2e4, 4e4, 8e4])
    for _, found in gain_amplifiers(raw, CCD, 173.0, GainConfig(pairs="transfer"), {}):
        assert np.isnan(found["gain"])
        assert "3 flux levels, at least 6" in found.attrs["remarks"][0]


@pytest.mark.real
def test_real_methods_agree(msfc_taps):
    """55Fe and a pair of flats of one camera agree within errors, with and without what the neighbours share.

    One level cannot fix a_00. What can be said is that nearest neighbours share 2 % of the variance: their sum
    lowers the gain by that, and 55Fe, known to 1.1 %, excludes neither.
    """
    charges, plain, shared = [], [], []
    for tap in msfc_taps("fe55/ESIS1_00002.fit.gz"):
        noise, image = float(tap[:, 10:50].std()), tap[:, 50:1074] - np.mean(tap[:, 10:50])
        hits = fit_hits(image, find_hits(image, noise), noise, gain=2.5)
        charges.append(hits.charge[select_hits(hits, (0.0, 0.3))])
    line = fit_spectrum(np.concatenate(charges), resolution=0.025)
    fe55 = kalpha_electrons(193.0) / line.peak
    error = fe55 * np.hypot(line.peak_error / line.peak, SCALE_ERROR)
    for first, second in zip(*(msfc_taps(f"led/ESIS1_0480{n}.fit.gz") for n in (3, 4)), strict=True):
        blank = [tap[:, 10:50] for tap in (first, second)]
        a, b = (tap[:, 50:1074] - np.mean(part) for tap, part in zip((first, second), blank, strict=True))
        pair = pair_gain(a, b, float(np.std(blank[0] - blank[1]) / np.sqrt(2)), max_lag=1)
        plain.append((pair.gain, pair.gain_error))
        shared.append((pair.gain_summed, pair.gain_summed_error))
    for found in (plain, shared):
        gain, each = np.array(found).T
        mean, doubt = gain.mean(), np.sqrt(np.sum(each**2)) / len(each)
        assert abs(mean - fe55) < 3 * np.hypot(error, doubt)
    lower = np.mean(np.array(shared)[:, 0]) / np.mean(np.array(plain)[:, 0]) - 1
    assert -0.04 < lower < -3 * 0.014 / 2.5 / np.sqrt(4)  # neighbours do share, by more than chance


def test_temperature_of_the_silicon_is_that_of_its_thermometer():
    """The mean of the 55Fe exposures that are there; a thermometer that is broken, or none, tells nothing."""
    kinds, kelvin = ["fe55", "fe55", "fe55", "fe55", "flat"], [172.0, 174.0, 160.0, -726.0, 190.0]
    raw = xr.Dataset(
        {"present": ("exposure", [True, True, False, True, True])},
        {"exposure_type": ("exposure", kinds), "temperature": ("exposure", kelvin)},
    )
    assert silicon_temperature(raw) == 173.0
    assert silicon_temperature(raw.isel(exposure=[3])) is None
    assert silicon_temperature(raw.drop_vars("temperature")) is None
