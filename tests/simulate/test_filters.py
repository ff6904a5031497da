"""Filters: edges, angles and places against hand calculations, and the curves of the real filters."""

import numpy as np
import pytest
from scipy.integrate import quad

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate.filters import (
    _BANDS,
    BANDS,
    Filters,
    angle_factor,
    filter_curves,
    transmission,
    wavelength_range,
)
from lsstcal_dask.simulate.optics import (
    OBSCURATION,
    PUPIL_RADIUS,
    Vignetting,
    admitted,
    edge_mm,
    incidence,
    pupil_rays,
)

SEED = 5
PLAIN = Filters(gradient=0, wander=0, ripple=0, leak=0, floor=0)
OPEN = Vignetting(on=False)


@pytest.fixture(scope="module")
def lsstcam():
    return load_camera("lsstcam")


def half_power(wavelength, curve, level):
    """Wavelength, by straight lines, at which a falling or rising curve passes a level."""
    i = int(np.flatnonzero(np.diff(np.sign(curve - level)))[0])
    return wavelength[i] + (level - curve[i]) / (curve[i + 1] - curve[i]) * (wavelength[i + 1] - wavelength[i])


def test_shift_of_a_ray():
    # 700 (1 - (1 - sin(angle)**2 / 1.8**2)**0.5): 6.53 nm at 14.2 degrees, 17.53 nm at 23.6 degrees
    assert 700 * (1 - angle_factor(Filters(), 14.2)) == pytest.approx(6.53, abs=0.01)
    assert 700 * (1 - angle_factor(Filters(), 23.6)) == pytest.approx(17.53, abs=0.01)
    assert angle_factor(Filters(), 0.0) == 1


@pytest.mark.parametrize("ray", [(PUPIL_RADIUS, 0.0), (0.0, -PUPIL_RADIUS * OBSCURATION), (2.0, 2.5)])
def test_edge_of_one_footprint(lsstcam, ray):
    factor = angle_factor(PLAIN, incidence(lsstcam, 0, 0, *ray))
    for edge in (_BANDS["r"].blue, _BANDS["r"].red):
        at = edge.wavelength * factor
        w = at + np.array([-3 * edge.width, 0.0, 3 * edge.width]) * factor
        found = transmission(SEED, PLAIN, lsstcam, "r", w, 40.0, 10.0, ray)
        # the level varies little over an edge: 0.95 for r within 0.01
        np.testing.assert_allclose(np.sort(found), 0.955 * np.array([0.00135, 0.5, 0.99865]), atol=0.01)


def test_average_over_the_pupil_on_the_axis(lsstcam):
    w = np.array([545.0, 551.0, 620.0, 684.0, 690.0, 697.0])
    found = transmission(SEED, PLAIN, lsstcam, "r", w, 0.0, 0.0, stops=OPEN)

    def dense(wavelength):
        def ray(square):
            place = (PUPIL_RADIUS * np.sqrt(square), 0.0)
            return float(transmission(SEED, PLAIN, lsstcam, "r", wavelength, 0.0, 0.0, place))

        return quad(ray, OBSCURATION**2, 1, epsabs=1e-9)[0] / (1 - OBSCURATION**2)

    np.testing.assert_allclose(found, [dense(v) for v in w], atol=1e-4)


def test_average_over_a_pupil_that_is_vignetted(lsstcam):
    x, y, w = 310.0, -90.0, np.linspace(670, 710, 21)
    found = transmission(SEED, Filters(), lsstcam, "r", w, x, y)
    X, Y, share = pupil_rays(200)
    weights = share * admitted(Vignetting(), lsstcam, x, y, X, Y)
    rays = [transmission(SEED, Filters(), lsstcam, "r", w, x, y, ray) for ray in zip(X, Y, strict=True)]
    np.testing.assert_allclose(found, np.average(rays, axis=0, weights=weights), atol=2e-4)
    whole = transmission(SEED, Filters(), lsstcam, "r", w, x, y, stops=OPEN)
    assert np.abs(found - whole).max() > 2e-3  # so it matters which rays arrive


def test_edges_move_over_the_filter(lsstcam):
    settings = Filters(wander=0, ripple=0, leak=0, floor=0)
    ray = (3.0, 0.0)
    factor = angle_factor(settings, incidence(lsstcam, 0, 0, *ray))
    w = np.linspace(790, 840, 5001)
    band = _BANDS["i"]
    places = [0.0, edge_mm(lsstcam)]
    curves = [transmission(SEED, settings, lsstcam, "i", w, x, 0.0, ray) for x in places]
    shift = half_power(w, curves[1], 0.5) - half_power(w, curves[0], 0.5)
    # the square law and the fourth power at 1.75 degrees; the level changes by 0.0002 of itself, 0.003 nm at the edge
    assert shift == pytest.approx((band.red.square + band.red.fourth) * factor, abs=0.01)
    assert shift > 3


def test_wander_of_the_edges(lsstcam):
    settings = Filters(gradient=0, ripple=0, leak=0, floor=0, wander=0.5)
    ray, w = (3.0, 0.0), np.linspace(675, 700, 501)
    level = 0.5 * 0.955
    edges = [
        half_power(w, transmission(seed, settings, lsstcam, "r", w, 120.0, 30.0, ray), level) for seed in range(200)
    ]
    factor = float(angle_factor(settings, incidence(lsstcam, 0, 0, *ray)))
    assert np.std(edges) == pytest.approx(0.5 * factor, rel=4 / np.sqrt(2 * 200))


def test_leak_and_floor(lsstcam):
    ray, w = (3.0, 1.0), np.array([800.0, 1095.0])
    normal = w / angle_factor(PLAIN, incidence(lsstcam, 0, 0, *ray))
    found = [
        transmission(SEED, Filters(wander=0, leak=leak, floor=2e-5), lsstcam, "g", w, 0.0, 0.0, ray)
        for leak in (0.0, 2.0)
    ]
    np.testing.assert_allclose(found[0], 2e-5, rtol=1e-6)
    np.testing.assert_allclose(found[1] - found[0], 2 * 0.013 * np.exp(-0.5 * ((normal - 1110) / 18) ** 2), atol=1e-12)


def test_neutral_without_filter_or_switched_off(lsstcam):
    x, w = np.zeros((2, 3)), np.linspace(300, 1100, 5)
    np.testing.assert_array_equal(transmission(SEED, Filters(), lsstcam, "none", w, x, x), np.ones((2, 3, 5)))
    np.testing.assert_array_equal(transmission(SEED, Filters(on=False), lsstcam, "r", w, x, x), np.ones((2, 3, 5)))
    assert np.all(filter_curves(SEED, Filters(), lsstcam, "none", w).transmission == 1)
    assert np.all(filter_curves(SEED, Filters(on=False), lsstcam, "r", w).transmission == 1)


@pytest.mark.parametrize("call", [transmission, filter_curves])
def test_unknown_filter(lsstcam, call):
    more = (0.0, 0.0) if call is transmission else ()
    with pytest.raises(WrongUse, match=r"no filter 'Y'.*none, u, g, r, i, z, y"):
        call(SEED, Filters(), lsstcam, "Y", 500.0, *more)
    with pytest.raises(WrongUse, match="no filter 'B'"):
        wavelength_range("B")


@pytest.mark.parametrize("band", BANDS)
def test_range_of_a_band_holds_its_light(lsstcam, band):
    low, high = wavelength_range(band)
    w = np.arange(300.0, 1150.5, 0.5)
    light = transmission(SEED, Filters(leak=0, floor=0), lsstcam, band, w, 100.0, 100.0)
    inside = (w >= low) & (w <= high)
    assert light[~inside].sum() < 1e-5 * light.sum()
    assert band == "none" or inside.mean() < 0.35


def test_a_value_does_not_depend_on_what_else_is_asked(lsstcam):
    x, y = np.meshgrid([-200.0, 0.0, 130.0], [10.0, 300.0])
    w = np.arange(540.0, 560.0)
    found = transmission(SEED, Filters(), lsstcam, "r", w, x, y)
    assert found.shape == (2, 3, 20)
    np.testing.assert_array_equal(found[1, 2, 7], transmission(SEED, Filters(), lsstcam, "r", w[7], 130.0, 300.0))
    assert np.abs(found - transmission(SEED + 1, Filters(), lsstcam, "r", w, x, y)).max() > 1e-3


def test_curves_of_the_camera_team(lsstcam):
    small = load_camera("mini9")
    w = np.arange(500.0, 750.0)
    settings = Filters(measurement_noise=1e-3)
    found = filter_curves(SEED, settings, small, "r", w)
    assert found.transmission.dims == ("detector", "wavelength")
    x, y = np.array([d.center_mm for d in small.detectors]).T
    pull = (found.transmission.values - transmission(SEED, settings, small, "r", w, x, y)) / 1e-3
    assert pull.std() == pytest.approx(1, abs=5 / np.sqrt(2 * pull.size))
    assert abs(pull.mean()) < 5 / np.sqrt(pull.size)
    assert abs(np.corrcoef(pull)[np.triu_indices(9, 1)]).max() < 5 / np.sqrt(w.size)
    assert found.attrs["filter"] == "r"
    assert np.all(found.transmission_error == 1e-3)
    assert found.identical(filter_curves(SEED, settings, small, "r", w))


def test_a_filter_that_moved_is_as_it_was_elsewhere():
    """By half a nm towards the red; what the camera team measured before does not know it."""
    small, moved, w = load_camera("mini9"), Filters(moved=0.5), np.arange(540.0, 720)
    x, y = np.array([[0.0, 3.0], [1.0, -2.0]])
    now, then = transmission(SEED, moved, small, "r", w, x, y), transmission(SEED, Filters(), small, "r", w - 0.5, x, y)
    np.testing.assert_allclose(now, then)
    assert filter_curves(SEED, moved, small, "r", w).identical(filter_curves(SEED, Filters(), small, "r", w))


@pytest.mark.real
@pytest.mark.parametrize("band", BANDS[1:])
def test_curves_of_the_real_filters(real_data, lsstcam, band):
    from astropy.io import fits

    settings = Filters(wander=0, ripple=0)
    with fits.open(real_data / "lsstcam" / "filters" / f"integrated_transmission_materion_{band}band.fits") as file:
        w = file[1].data["wavelength"].ravel().astype(float)
        tables = np.array([hdu.data["integ_transmission"].ravel() for hdu in file[1::4]], float)
        x, y = np.array([(hdu.header["TARGET_XCCS"], hdu.header["TARGET_YCCS"]) for hdu in file[1::4]]).T
    low, high = wavelength_range(band)
    inside = (w > low) & (w < min(high, 1100))
    w, tables = w[inside], tables[:, inside]
    found = transmission(SEED, settings, lsstcam, band, w, x, y)
    assert np.sqrt(np.mean((found - tables) ** 2)) < 0.022  # 0.009 (y) to 0.021 (u)
    middle = len(w) // 2
    for side in (np.s_[:middle], np.s_[middle:])[: 1 if band == "y" else 2]:
        edges = [[half_power(w[side], row[side], 0.5 * tables.max()) for row in part] for part in (found, tables)]
        assert np.sqrt(np.mean(np.subtract(*edges) ** 2)) < 0.25  # nm; 0.06 (u) to 0.20 (y), which has no red edge
