import astropy.units as u
import numpy as np
import pytest
from astropy.constants import c, h

from lsstcal_dask.errors import UnitsError
from lsstcal_dask.physics.units import (
    AB_ZERO,
    CGS,
    air_to_vacuum,
    photons_from_ab,
    photons_from_flambda,
    photons_from_fnu,
    vacuum_to_air,
)

PHOTONS = u.photon / u.s / u.m**2 / u.nm
WAVELENGTH = np.array([300.0, 555.5, 1150.0])


def astropy_photons(flux):
    return flux.to(PHOTONS, equivalencies=u.spectral_density(WAVELENGTH * u.nm)).value


def test_photons_of_an_energy_per_wavelength_are_those_of_astropy():
    flux = np.array([1e-15, 3e-16, 2e-14])
    expected = astropy_photons(flux * u.erg / u.s / u.cm**2 / u.AA)
    np.testing.assert_allclose(photons_from_flambda(WAVELENGTH, CGS * flux), expected, rtol=1e-9)
    assert np.isclose(photons_from_flambda(1000.0, 1.0), 1e-6 / (h.value * c.value), rtol=1e-12)


def test_photons_of_an_energy_per_frequency_are_those_of_astropy():
    flux = np.array([1.0, 20.0, 3.0])
    np.testing.assert_allclose(photons_from_fnu(WAVELENGTH, flux * 1e-26), astropy_photons(flux * u.Jy), rtol=1e-9)


def test_photons_of_an_ab_magnitude_are_those_of_astropy():
    magnitude = np.array([0.0, 15.5, 22.0])
    # astropy's AB zero is 3631 Jy, a rounding of 10**(-48.6 / 2.5)
    expected = astropy_photons((magnitude * u.ABmag).to(u.Jy))
    np.testing.assert_allclose(photons_from_ab(WAVELENGTH, magnitude), expected, rtol=1e-4)
    assert abs(AB_ZERO / 3630.78e-26 - 1) < 1e-6


def test_a_flat_spectrum_per_frequency_has_photons_as_one_over_wavelength():
    found = photons_from_ab(np.array([400.0, 800.0]), 20.0)
    assert found[0] == pytest.approx(2 * found[1], rel=1e-14)


@pytest.mark.parametrize(
    ("air", "vacuum"),
    [(588.99509, 589.15832), (656.2793, 656.4606), (777.1944, 777.4083), (393.3663, 393.4775)],
    ids=["Na D2", "H alpha", "O I", "Ca K"],
)
def test_lines_of_the_laboratory(air, vacuum):
    # NIST lists both to its last digit
    assert abs(air_to_vacuum(air) - vacuum) < 1e-3
    assert abs(vacuum_to_air(vacuum) - air) < 1e-3


def test_air_and_vacuum_are_inverse():
    wavelength = np.linspace(200, 1200, 501)
    np.testing.assert_allclose(vacuum_to_air(air_to_vacuum(wavelength)), wavelength, rtol=4e-16 * 4)
    assert np.all(np.diff(air_to_vacuum(wavelength) - wavelength)[20:] > 0)


@pytest.mark.parametrize("wavelength", [0.0, -1.0, np.nan, [500.0, 0.0]])
@pytest.mark.parametrize("convert", [photons_from_flambda, photons_from_fnu, photons_from_ab])
def test_a_wavelength_must_be_positive(convert, wavelength):
    with pytest.raises(UnitsError, match="positive wavelengths in nm"):
        convert(wavelength, 1.0)


@pytest.mark.parametrize("wavelength", [5890.0, 0.589, np.nan])
@pytest.mark.parametrize("convert", [air_to_vacuum, vacuum_to_air])
def test_a_wavelength_in_another_unit_is_refused(convert, wavelength):
    with pytest.raises(UnitsError, match="give them in nm"):
        convert(wavelength)
