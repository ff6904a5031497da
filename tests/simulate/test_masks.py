from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import Box, load_camera
from lsstcal_dask.instrument.geometry import ccd_to_amplifier
from lsstcal_dask.simulate.boards import board
from lsstcal_dask.simulate.exposure import Exposure
from lsstcal_dask.simulate.masks import choose, mask, mask_names
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.projector import Projector
from lsstcal_dask.simulate.scans import scan_wavelength, sparse_sequence
from lsstcal_dask.simulate.settings import Settings
from lsstcal_dask.simulate.spots import spot_table

PERFECT = Projector(on=False)
CAMERAS = {name: load_camera(name) for name in ("mini1", "mini9", "lsstcam")}


def taken(source, number=1):
    return Exposure("e", number, "cbp", np.datetime64("2026-07-01"), 10.0, 10.0, source=source)


def lit(camera, settings, source, seed=1, number=1):
    """(board, detector, amplifier, raw x, raw y, radius) of every spot that lies whole in one amplifier."""
    found = []
    for spot in spot_table(Observatory(seed, camera, Settings(projector=settings)), taken(source, number)):
        detector = camera.detector(spot["detector"])
        for amplifier in detector.amplifiers:
            x, y = ccd_to_amplifier(amplifier, spot["x"], spot["y"])
            ny, nx = amplifier.data.shape
            if min(x, y, nx - 1 - x, ny - 1 - y) > spot["radius"]:
                raw = x + amplifier.data.x0, y + amplifier.data.y0
                found.append((board(detector), detector.name, amplifier.name, *raw, spot["radius"]))
    return found


@pytest.mark.parametrize(("name", "per_ccd"), [("mini1", 3), ("mini9", 3), ("lsstcam", 2.5)])
def test_grid_has_so_many_spots_on_a_ccd_and_each_well_inside_an_amplifier(name, per_ccd):
    camera = CAMERAS[name]
    found = lit(camera, PERFECT, scan_wavelength(mask="grid")[0])
    assert len(found) == len(mask(1, PERFECT, camera, "grid"))
    assert len(found) / len(camera.detectors) == pytest.approx(per_ccd, abs=0.01)


def test_grid_holes_of_lsstcam_are_those_of_the_real_mask():
    assert mask(1, Projector(), CAMERAS["lsstcam"], "grid").typical_um == pytest.approx(100, abs=2)


@pytest.mark.parametrize("name", CAMERAS)
def test_sparse_mask_never_has_two_spots_read_at_the_same_time(name):
    """One spot for each amplifier, and those of one board are apart in raw pixels, which all amplifiers share."""
    camera = CAMERAS[name]
    n = sum(len(d.amplifiers) for d in camera.detectors)
    settings = [(PERFECT, source) for source in sparse_sequence(camera, number=4, moves=1)]
    settings.append((Projector(), scan_wavelength(mask="sparse")[0]))
    for number, (one, source) in enumerate(settings, 1):
        boards = defaultdict(list)
        for where, detector, amplifier, *place in lit(camera, one, source, number=number):
            boards[where].append((detector, amplifier, *place))
        assert sum(map(len, boards.values())) == n == len({s[:2] for b in boards.values() for s in b})
        for spots in boards.values():
            x, y, radius = np.array([s[2:] for s in spots]).T
            apart = np.maximum(np.abs(x[:, None] - x), np.abs(y[:, None] - y)) - (radius[:, None] + radius)
            np.fill_diagonal(apart, np.inf)
            assert apart.min() > 0


def test_boards_are_rows_of_a_raft():
    boards = defaultdict(list)
    for detector in CAMERAS["lsstcam"].detectors:
        boards[board(detector)].append(detector.name)
    assert boards["R22_S1"] == ["R22_S10", "R22_S11", "R22_S12"]
    assert max(map(len, boards.values())) == 3
    assert board(replace(CAMERAS["mini1"].detectors[0], name="RXX_S00")) == "RXX_S0"
    assert board(replace(CAMERAS["mini1"].detectors[0], name="CCD1")) == "CCD1"


def test_amplifiers_too_small_for_a_sparse_mask():
    camera = CAMERAS["mini9"]
    detectors = tuple(
        replace(d, amplifiers=tuple(replace(a, data=Box(0, 4, 0, 4)) for a in d.amplifiers)) for d in camera.detectors
    )
    with pytest.raises(WrongUse, match="48 amplifiers of one board do not fit in 4 x 4 px"):
        mask(1, PERFECT, replace(camera, detectors=detectors), "sparse")


def test_ladder_rises_from_star_like_spots():
    """A spot for each amplifier, of eight sizes; the hole's area sets the photons."""
    spots = spot_table(Observatory(1, CAMERAS["mini9"], Settings().only([])), taken(scan_wavelength(mask="ladder")[0]))
    assert len(spots) == len(lit(CAMERAS["mini9"], PERFECT, scan_wavelength(mask="ladder")[0])) == 144
    on_axis = 2 * spots["radius"][:8]  # distortion of the camera is 1e-3 at its corner
    np.testing.assert_allclose(on_axis, np.geomspace(2, 6, 8), rtol=2e-3)
    np.testing.assert_allclose(spots["photons"][:8], 1e7 * (np.geomspace(2, 6, 8) / 6) ** 2, rtol=1e-12)


def test_areas_scatter_as_they_should_and_only_there():
    camera = CAMERAS["lsstcam"]
    made, design = mask(5, Projector(), camera, "ladder"), mask(5, PERFECT, camera, "ladder")
    z = np.log(made.area) / 0.05
    assert abs(z.mean()) < 5 / np.sqrt(len(z))
    assert abs(z.std() - 1) < 5 / np.sqrt(2 * len(z))
    np.testing.assert_array_equal(design.area, 1.0)
    np.testing.assert_array_equal(design.x_mm, made.x_mm)
    assert np.corrcoef(z, np.log(mask(6, Projector(), camera, "ladder").area))[0, 1] < 5 / np.sqrt(len(z))


def test_masks_are_reproducible_and_cannot_be_written_to():
    a = mask(3, Projector(), CAMERAS["mini9"], "grid")
    mask.cache_clear()
    b = mask(3, Projector(), CAMERAS["mini9"], "grid")
    np.testing.assert_array_equal(a.area, b.area)
    with pytest.raises(ValueError, match="read-only"):
        a.area[0] = 2.0


def test_some_of_the_holes():
    whole = mask(1, Projector(), CAMERAS["mini9"], "grid")
    some = mask(1, Projector(), CAMERAS["mini9"], "grid/9")
    assert len(some) == 9
    assert some.name == "grid/9"
    np.testing.assert_array_equal(some.hole, np.arange(0, 27, 3))
    np.testing.assert_array_equal(some.area, whole.area[::3])
    assert len(choose(whole, 27)) == 27


def test_more_spots_than_holes_and_unknown_masks_are_refused():
    camera = CAMERAS["mini1"]
    with pytest.raises(WrongUse, match="mask grid has 3 holes: 4 spots"):
        choose(mask(1, Projector(), camera, "grid"), 4)
    with pytest.raises(WrongUse, match="ask for 1 to 3"):
        mask(1, Projector(), camera, "grid/0")
    with pytest.raises(WrongUse, match="'x' is no number of holes"):
        mask(1, Projector(), camera, "grid/x")
    with pytest.raises(WrongUse, match="no mask 'stars': use grid, sparse, single, ladder"):
        mask(1, Projector(), camera, "stars")
    assert mask_names() == ["grid", "sparse", "single", "ladder"]
