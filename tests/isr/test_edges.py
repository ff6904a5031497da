"""Flags by position, against distances worked out by hand."""

from dataclasses import replace

import numpy as np

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.assembly import assemble
from lsstcal_dask.isr.edges import flag_edges, position_flags
from lsstcal_dask.isr.frame import Frame
from lsstcal_dask.variables import MASK_BITS

EDGE, VIGNETTED, NO_DATA = (MASK_BITS[name] for name in ("EDGE", "VIGNETTED", "NO_DATA"))


def assembled(camera, detector, edge):
    names = [amplifier.name for amplifier in detector.amplifiers]
    return assemble(
        position_flags(detector, camera.image_shape, edge, camera.vignetting_mm), detector, camera, amplifiers=names
    )


def test_the_edge_is_that_of_the_ccd_not_of_its_amplifiers():
    camera = load_camera("mini9")
    for detector in camera.detectors:
        found = assembled(camera, detector, 5)
        wanted = np.full(detector.shape, EDGE)
        wanted[5:-5, 5:-5] = 0
        np.testing.assert_array_equal(found, wanted)
        assert not assembled(camera, detector, 0).any()


def test_vignetting_follows_the_distance_from_the_axis():
    camera = replace(load_camera("mini9"), vignetting_mm=(4.0, 6.0))
    detector = next(d for d in camera.detectors if d.center_mm[0] > 0 and d.center_mm[1] == 0)
    found = assembled(camera, detector, 0)
    ny, nx = detector.shape
    for y, x in ((0, 0), (ny // 2, nx // 2), (ny - 1, nx - 1), (ny // 2, nx - 1)):
        distance = np.hypot(
            detector.center_mm[0] + (x - (nx - 1) / 2) * detector.pixel_mm,
            detector.center_mm[1] + (y - (ny - 1) / 2) * detector.pixel_mm,
        )
        assert found[y, x] == VIGNETTED * (distance > 4) + NO_DATA * (distance > 6), (y, x, distance)
    assert len(np.unique(found)) == 3


def test_corner_of_lsstcam_is_vignetted_and_its_centre_is_not():
    camera = load_camera("lsstcam")
    assert not (assembled(camera, camera.detector("R22_S11"), 5) & ~np.uint16(EDGE)).any()
    corner = assembled(camera, camera.detector("R43_S22"), 5)
    assert 0.2 < np.mean(corner & VIGNETTED > 0) <= 1


def test_no_data_is_nan_and_the_rest_stays():
    camera = replace(load_camera("mini9"), vignetting_mm=(4.0, 6.0))
    detector = next(d for d in camera.detectors if d.center_mm[0] > 0 and d.center_mm[1] == 0)
    shape = (len(detector.amplifiers), *camera.image_shape)
    before = Frame(
        "e1", detector, np.ones(shape, np.float32), np.ones(shape, np.float32), np.ones(shape[:2], np.float32),
        np.zeros(shape, np.uint16), "electron",
    )  # fmt: skip
    found = flag_edges(before, 5, camera.vignetting_mm)
    np.testing.assert_array_equal(found.mask, position_flags(detector, shape[1:], 5, camera.vignetting_mm))
    lost = found.mask & NO_DATA > 0
    assert lost.any()
    for values in (found.image, found.variance):
        np.testing.assert_array_equal(np.isnan(values), lost)
        assert values.dtype == np.float32
    assert (before.image == 1).all()
