"""CCDs of which some or all lie outside the field: what is dark is told by a note, for nothing is wrong."""

from dataclasses import replace

import numpy as np
import pytest
from making import exposure, make_files

from lsstcal_dask.pipeline.build import build
from lsstcal_dask.pipeline.calibrate import calibrate
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.ingest import ingest
from lsstcal_dask.pipeline.store import create_store
from lsstcal_dask.variables import NOTE

WITHOUT = ["linearity", "gain", "crosstalk", "deferred", "dark", "saturation", "defects"]
MIDDLE, CORNER = "R22_S11", "R22_S00"


@pytest.fixture(scope="module")
def store(tmp_path_factory, threads):
    """Biases and a frame of the middle CCD of nine and of one in a corner."""
    folder = tmp_path_factory.mktemp("vignetted")
    made = create_store(folder / "s", "mini9")
    taken = [*(exposure(number, "bias") for number in range(1, 6)), exposure(40, "science", 30.0)]
    assert not ingest(made, make_files(folder / "raw", "mini9", taken, [MIDDLE, CORNER]), threads).errors
    ((_, bias),) = build(made, ["bias"], Config(), threads)
    assert not bias.errors
    return made


def calibrated(store, limits, threads, edge):
    """The frame as another field would leave it; ``edge`` tells one version from another."""
    seen = replace(store, camera=replace(store.camera, vignetting_mm=limits))
    ((_, done),) = calibrate(seen, [], Config(calibrate={"edge": edge}).calibrate, threads, skip=WITHOUT)
    return done


def about(done, detector):
    return [remark for remark in done.pointer.remarks if detector in remark]


def corner(store, name):
    """Distance, mm, of the corners of a CCD from its middle."""
    detector = store.camera.detector(name)
    return float(np.hypot(*detector.shape)) / 2 * detector.pixel_mm


def test_a_ccd_in_the_dark_is_left_out_with_a_note(store, threads):
    radius = corner(store, MIDDLE)
    done = calibrated(store, (radius, radius + 1e-6), threads, 1)
    assert not done.errors
    assert list(done.pointer.detectors) == [MIDDLE]
    assert done.pointer.failed == {}
    assert about(done, CORNER) == [f"{NOTE}{CORNER}: vignetted: no light"]


def test_of_a_ccd_in_half_light_it_is_said(store, threads):
    done = calibrated(store, (0.0, 1e3), threads, 2)
    assert not done.errors
    assert set(done.pointer.detectors) == {MIDDLE, CORNER}
    remarks = [text for name in (MIDDLE, CORNER) for text in about(done, name)]
    assert len(remarks) == 32
    assert all(text.startswith(NOTE) and text.endswith("vignetted all over: less light") for text in remarks)


def test_a_frame_in_the_dark_is_no_error(store, threads):
    done = calibrated(store, (0.0, 0.0), threads, 3)
    assert (done.pointer, done.errors) == (None, [])
    assert done.note == f"{CORNER}: vignetted: no light; {MIDDLE}: vignetted: no light"  # in the order of the camera


def test_what_is_unusable_in_the_light_still_warns(store, threads):
    """Every pixel an edge: no star is measured there, and the field is not to blame."""
    config = Config(calibrate={"edge": 10_000}).calibrate
    ((_, done),) = calibrate(store, [], config, threads, skip=WITHOUT)
    assert any(text.endswith("C00: no usable pixel") and not text.startswith(NOTE) for text in about(done, MIDDLE))
