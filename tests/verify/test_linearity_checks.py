"""The three checks of linearity: pulls without an effect, the effect found where it is, what cannot be told refused."""

import numpy as np
import pytest

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.verify.linearity import amplifier_offsets, flux_against_background, remark, size_against_light


def stars(seed, slope=0.0, wild=0):
    random = np.random.default_rng(seed)
    star = np.repeat(np.arange(20), 8)
    background = random.uniform(200, 5000, len(star))
    error = np.full(len(star), 100.0)
    flux = (5e4 + 2e3 * star) * (1 + slope * background) + error * random.standard_normal(len(star))
    flux[:wild] *= 1.5
    return flux, error, background, star


def test_flux_against_background():
    pulls = [(one := flux_against_background(*stars(seed))).value / one.error for seed in range(60)]
    assert 0.75 < np.std(pulls) < 1.25  # sixty numbers: 9 %
    assert abs(np.mean(pulls)) < 0.5
    found = flux_against_background(*stars(1, slope=5e-7, wild=2))
    assert found.value == pytest.approx(5e-7, abs=5 * found.error)
    assert found.fails
    assert "FAIL: R22_S11: flux against background: slope +" in remark(found, "R22_S11")
    assert remark(flux_against_background(*stars(2)), "R22_S11") is None


def test_size_against_brightness_and_background():
    random = np.random.default_rng(3)
    flux, background = random.uniform(1e3, 1e5, 300), random.uniform(100, 3000, 300)
    error = np.full(300, 2e-3)
    size = 3e-8 * flux + error * random.standard_normal(300)
    bright, behind = size_against_light(size, error, flux, background)
    assert bright.fails
    assert bright.value == pytest.approx(3e-8, abs=4 * bright.error)
    assert not behind.fails
    assert bright.error == pytest.approx(2e-3 / np.sqrt(300) / flux.std(), rel=0.15)


def test_offsets_of_amplifiers_in_flats():
    random = np.random.default_rng(4)
    level = np.repeat(np.geomspace(1e3, 9e4, 12), 2)
    lamp = level * (1 + 0.01 * random.standard_normal(24))
    error = np.sqrt(lamp[:, None] / 1e4) * np.ones(3)
    signal = lamp[:, None] * np.array([1.0, 1.02, 0.97]) + error * random.standard_normal((24, 3))
    assert not any(slope.fails for slope in amplifier_offsets(signal, error))
    bent = signal * np.array([1.0, 1.0, 1.0])
    bent[:, 2] *= 1 + 1e-8 * bent[:, 2]  # a thousandth at 1e5 adu left uncorrected
    first, second = amplifier_offsets(bent, error)
    assert not first.fails
    assert second.fails
    assert second.value == pytest.approx(1e-8, rel=0.2)


def test_what_cannot_be_told_is_refused():
    flux, error, background, star = stars(1)
    with pytest.raises(InsufficientInputs, match="9 measurements, at least 10"):
        flux_against_background(flux[:9], error[:9], background[:9], star[:9])
    with pytest.raises(InsufficientInputs, match="same level or background"):
        flux_against_background(flux, error, np.full(len(flux), 500.0), star)
    with pytest.raises(InsufficientInputs, match="PSF size"):
        size_against_light(flux[:5], error[:5], flux[:5], flux[:5])
