import numpy as np
import pytest

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.geometry import focal_to_field
from lsstcal_dask.simulate.exposure import Exposure
from lsstcal_dask.simulate.filters import wavelength_range
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.optics import disc_in_annulus
from lsstcal_dask.simulate.projector import MIRROR, Projector
from lsstcal_dask.simulate.scans import (
    Spectrum,
    dithers,
    each_amplifier,
    footprints,
    scan_wavelength,
    sinusoids,
    sparse_sequence,
    wavelengths,
    with_filters,
)
from lsstcal_dask.simulate.settings import Settings
from lsstcal_dask.simulate.spots import spot_table

MINI, LSST = load_camera("mini9"), load_camera("lsstcam")


def constant(scan, *names):
    return all(len({getattr(one, n) for one in scan}) == 1 for n in names)


def test_10a_is_complete_at_1_nm():
    scan = scan_wavelength()
    np.testing.assert_array_equal([s.wavelength for s in scan], np.arange(350, 1101))
    assert {s.bandwidth for s in scan} == {1.0}
    assert constant(scan, "azimuth", "elevation", "rotation", "footprint", "mask")
    assert scan_wavelength(Spectrum(600, 605, 2.5))[-1].wavelength == 605.0
    assert len(scan_wavelength(Spectrum(600, 604.9, 2.5))) == 2
    assert scan_wavelength(footprint=(1.0, 2.0))[0].footprint == (1.0, 2.0)


def test_10b_spans_ccds_at_every_wavelength_and_rotation():
    scan = dithers(LSST)
    assert len(scan) == 7 * 4 * 5
    assert constant(scan, "footprint")
    assert {(s.wavelength, s.bandwidth) for s in scan} == {(float(w), 20.0) for w in range(400, 1001, 100)}
    for turn in 0.0, 90.0, 180.0, 270.0:
        chosen = np.array([(s.azimuth, s.elevation) for s in scan if s.rotation == turn and s.wavelength == 700])
        assert len(np.unique(chosen.round(6), axis=0)) == 5
        # e2v CCDs are 4096 px wide, ITL CCDs of turned corner rafts 4072 px high; distortion is 1e-5 near the axis
        ccds = np.ptp(chosen, axis=0) * 3600 / LSST.plate_scale / np.array([40.96, 40.72])
        np.testing.assert_allclose(ccds, 1.5, rtol=1e-4)
    few = dithers(MINI, Spectrum(500, 500), number=2, span=0.5, rotations=(0.0,))
    assert len(few) == 2
    assert (few[0].azimuth, few[0].elevation) == (0.0, 0.0)
    assert len(dithers(MINI, Spectrum(500, 500), number=1, rotations=(0.0,))) == 1


def test_10b_shares_spots_between_amplifiers():
    """After a dither a hole lights another amplifier or CCD than before: the intensities can be solved for."""
    places = []
    for number, source in enumerate(dithers(LSST, Spectrum(700, 700), rotations=(0.0,)), 1):
        exposure = Exposure("e", number, "cbp", np.datetime64("2026-07-01"), 1.0, 1.0, source=source)
        places.append(spot_table(Observatory(1, LSST), exposure)["detector"])
    both = (places[0] != "") & (places[1] != "")
    assert both.sum() > 300
    assert np.mean(places[0][both] != places[1][both]) > 0.5


def test_10c_footprints_lie_whole_on_the_mirror():
    scan = footprints(rings=2)
    assert len(scan) == 7 * 12
    places = np.array([s.footprint for s in scan if s.wavelength == 400])
    radius = np.hypot(*places.T)
    np.testing.assert_array_equal(disc_in_annulus(radius, 0.12, *MIRROR), 1.0)
    assert len(np.unique(radius.round(9))) == 2
    angles = np.sort(np.arctan2(places[:6, 1], places[:6, 0]))
    np.testing.assert_allclose(np.diff(angles), np.pi / 3, atol=1e-12)
    assert constant(scan, "azimuth", "elevation", "rotation")
    assert np.hypot(*footprints()[0].footprint) == pytest.approx((0.61 * 4.18 + 4.18) / 2)


def test_10d_covers_each_band_and_10e_everything():
    bands = with_filters()
    without = {s.wavelength for s in scan_wavelength()}
    assert list(bands) == list("ugrizy")
    for name, scan in bands.items():
        found, (first, last) = [s.wavelength for s in scan], wavelength_range(name)
        np.testing.assert_array_equal(found, np.arange(max(first, 350), min(last, 1100) + 1))
        assert set(found) <= without
    leaks = with_filters(whole=True)
    for scan in leaks.values():
        np.testing.assert_array_equal([s.wavelength for s in scan], np.arange(350, 1101, 20))
        assert {s.bandwidth for s in scan} == {20.0}
    assert len(with_filters({"r": (600.0, 603.0)}, Spectrum(590, 610, 2.0))["r"]) == 2


def test_10f_lights_every_amplifier():
    scan = each_amplifier(MINI, detectors=["R22_S11", "R22_S12"])
    assert len(scan) == 32
    detector = MINI.detector("R22_S12")
    for source, amplifier in zip(scan[16:], detector.amplifiers, strict=True):
        exposure = Exposure("e", 1, "cbp", np.datetime64("2026-07-01"), 1.0, 1.0, source=source)
        spot = spot_table(Observatory(1, MINI, Settings().only([])), exposure)[0]
        (x, y), (ny, nx) = amplifier.position, amplifier.data.shape
        assert spot["detector"] == detector.name
        np.testing.assert_allclose([spot["x"], spot["y"]], [x + (nx - 1) / 2, y + (ny - 1) / 2], atol=1e-6)
    assert len(each_amplifier(LSST)) == 3024 + 8 * 16 + 8 * 8
    assert len({(s.azimuth, s.elevation) for s in sparse_sequence(MINI)}) == 6  # two in each of three rows of CCDs
    moved = [s.elevation for s in sparse_sequence(MINI, number=1)]
    assert sparse_sequence(MINI, number=1)[0].azimuth == moved[0] == 0
    up = next(d for d in MINI.detectors if d.center_mm[0] == 0 and d.center_mm[1] > 0)
    row = float(np.rad2deg(focal_to_field(MINI, *up.center_mm)[1]))
    np.testing.assert_allclose(moved, [0, row, -row], atol=1e-12)


def test_scans_that_cannot_be_are_refused():
    for bad in Spectrum(step=0), Spectrum(bandwidth=-1), Spectrum(rate=0), Spectrum(first=float("nan")):
        with pytest.raises(WrongUse, match="positive number"):
            wavelengths(bad)
    with pytest.raises(WrongUse, match=r"from 700\.0 to 600\.0 nm"):
        wavelengths(Spectrum(700.0, 600.0))
    with pytest.raises(WrongUse, match="filter x: no wavelength"):
        with_filters({"x": (200.0, 210.0)})
    with pytest.raises(WrongUse, match="0 dithers"):
        dithers(MINI, number=0)
    with pytest.raises(WrongUse, match="0 footprints"):
        footprints(number=0)
    with pytest.raises(WrongUse, match="too wide for the mirror"):
        footprints(Projector(aperture=2.0))
    with pytest.raises(WrongUse, match="pointings of the sparse mask"):
        sparse_sequence(MINI, reach=0.5)
    with pytest.raises(WrongUse, match="2 phases of a sinusoid"):
        sinusoids([4.0], [0.0], 2)
