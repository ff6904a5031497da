from dataclasses import replace

import numpy as np
import pytest

from lsstcal_dask.errors import InconsistentGeometry, WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.assembly import assemble, split, trim
from lsstcal_dask.simulate.bias import BiasStructure, OverscanDrift
from lsstcal_dask.simulate.crosstalk import Crosstalk, add_crosstalk, coupled, couplings, crosstalk_truth
from lsstcal_dask.simulate.electronics import (
    Electronics,
    ReadNoise,
    channel,
    read_out,
)
from lsstcal_dask.simulate.linearity import Nonlinearity

SEED = 3
CROWDED = Crosstalk(per_board=40)


@pytest.fixture(scope="module")
def camera():
    return load_camera("mini9")


@pytest.fixture(scope="module")
def detector(camera):
    return camera.detector("R22_S01")


def _dark(camera):
    return np.zeros((len(camera.amplifier_names), *camera.raw_shape), np.float32)


def _matrix(found, n, detector, order=None):
    """c and c2 (target, source) within a CCD."""
    own = found.source_detector == detector.id
    out = np.zeros((2, n, n))
    out[:, found.target[own], found.source[own]] = found.c[own], found.c2[own]
    return out


@pytest.mark.parametrize(("y", "x"), [(0, 0), (50, 30), (60, 80), (133, 40)])
def test_one_pixel_reaches_the_same_moment_of_others(camera, detector, y, x):
    """Data, serial overscan (x = 80) and parallel overscan (y = 133) alike, with the quadratic term."""
    found = couplings(SEED, Crosstalk(), camera, detector)
    charge = _dark(camera)
    source = 4
    charge[source, y, x] = 1.2e5
    out = add_crosstalk(camera, detector, found, charge)
    c, c2 = _matrix(found, 16, detector)
    expected = c[:, source] * 1.2e5 + c2[:, source] * 1.2e5**2
    assert c2[5, source] * 1.2e5**2 < -1  # electrons: the term is there
    expected[source] = 1.2e5
    np.testing.assert_allclose(out[:, y, x], expected, rtol=1e-6)
    assert np.abs(out[5, y, x]) > 5
    out[:, y, x] = 0
    assert not out.any()
    assert charge[source, y, x] == charge.sum()  # the input is as it was


def test_ghosts_are_mirrored_on_the_ccd(camera):
    """C00 reads from the lower left, C10 of an e2v from the upper right: its ghost is seen point-mirrored."""
    detector = camera.detector("R22_S00")
    settings = Crosstalk(opposite_share=1.0, opposite=1e-4, quadratic_opposite=0, scatter=0)
    ccd = np.zeros(detector.shape, np.float32)
    ccd[10, 7] = 1e5  # in C00, pixel (10, 7) from its readout corner
    charge = _dark(camera)
    charge[:, :128, 4:68] = split(ccd, detector, camera)
    out = add_crosstalk(camera, detector, couplings(SEED, settings, camera, detector), charge)
    seen = assemble(trim(out, detector, camera), detector, camera)
    ny, nx = detector.shape
    assert (ny, nx) == (256, 512)
    ghosts = seen - ccd
    # C10 is the first of the upper row, columns 0 to 63, rows 128 to 255
    assert ghosts[255 - 10, 63 - 7] == pytest.approx(10, rel=1e-6)
    upper = np.argwhere(ghosts[128:] != 0)
    np.testing.assert_array_equal(upper, [[127 - 10, 63 - 7 + 64 * i] for i in range(8)])
    lower = np.argwhere(ghosts[:128] != 0)
    np.testing.assert_array_equal(lower, [[10, 7 + 64 * i] for i in range(1, 8)])


def test_other_ccds_of_the_board(camera, detector):
    found = couplings(SEED, CROWDED, camera, detector)
    names = coupled(SEED, CROWDED, camera, detector)
    assert set(names) == {"R22_S00", "R22_S02"}
    aggressors = {name: _dark(camera) for name in names}
    k = int(np.flatnonzero(found.source_detector == camera.detector("R22_S02").id)[0])
    aggressors["R22_S02"][found.source[k], 17, 9] = 2e5
    out = add_crosstalk(camera, detector, found, _dark(camera), aggressors)
    assert out[found.target[k], 17, 9] == pytest.approx(found.c[k] * 2e5, rel=1e-6)
    assert found.c2[k] == 0
    assert not add_crosstalk(camera, detector, found, _dark(camera)).any()  # the others dark


def test_through_the_readout(camera, detector):
    """In adu of the target: c Q / g_t, though the source is beyond the converter's range."""
    electronics = Electronics(
        read_noise=ReadNoise(on=False),
        nonlinearity=Nonlinearity(on=False),
        bias_structure=BiasStructure(on=False),
        overscan_drift=OverscanDrift(on=False),
        crosstalk=Crosstalk(quadratic=0, quadratic_opposite=0),
    )
    found = couplings(SEED, electronics.crosstalk, camera, detector)
    charge = _dark(camera)
    charge[4] = 8e5  # 480 kadu, the converter ends at 262 kadu
    counts = read_out(SEED, electronics, camera, detector, 1, charge)
    assert (counts[4, :, :88] == 2**18 - 1).all()
    index = [a.name for a in detector.amplifiers].index(camera.amplifier_names[5])
    target = channel(SEED, electronics, camera, detector, index)
    c = _matrix(found, 16, detector)[0][5, 4]
    assert (counts[5] == np.floor(target.pedestal + c * 8e5 / target.gain + 0.5)).all()
    assert c * 8e5 / target.gain > 50


def test_structure_within_a_ccd():
    """Entries about their medians by distance; 16 x 15 of them scatter by 0.25, medians by 1.25 x 0.25 / sqrt(n)."""
    camera = load_camera("lsstcam")
    ring = [f"C1{i}" for i in range(8)] + [f"C0{i}" for i in reversed(range(8))]
    assert list(camera.amplifier_names) == ring
    settings = Crosstalk()
    for vendor, decay in (("e2v", 0.15), ("ITL", 0.37)):
        chosen = [d for d in camera.detectors if d.vendor == vendor and len(d.amplifiers) == 16][:40]
        matrices = np.array([_matrix(couplings(SEED, settings, camera, d), 16, d) for d in chosen])
        c, c2 = matrices[:, 0], matrices[:, 1]
        target, source = np.indices((16, 16))
        same = target // 8 == source // 8
        for distance, tail in ((1, -3e-6), (-1, 6e-6), (2, -3e-6), (-3, 6e-6), (-7, 6e-6)):
            entries = c[:, same & (source - target == distance)]
            expected = 1.85e-4 * decay ** (abs(distance) - 1) + tail
            assert np.median(entries) == pytest.approx(expected, rel=5 * 1.25 * 0.25 / np.sqrt(entries.size))
        far = c[:, same & (source - target == 6)]
        assert (far < 0).all()
        assert not c[:, target == source].any()
        opposite = c[:, ~same]
        share = np.mean(opposite != 0)
        assert abs(share - 0.6) < 5 * np.sqrt(0.24 / opposite.size)
        neighbours = c2[:, same & (abs(source - target) == 1)]
        assert np.median(neighbours) == pytest.approx(-3.3e-10, rel=5 * 1.25 * 0.25 / np.sqrt(neighbours.size))
        assert not c2[c == 0].any()


def test_whole_camera():
    camera = load_camera("lsstcam")
    found = crosstalk_truth(SEED, Crosstalk(), camera)
    inter = found.target_detector != found.source_detector
    names = {d.id: d.name for d in camera.detectors}
    # 63 boards of science CCDs
    assert abs(inter.sum() - 3.2 * 63) < 5 * np.sqrt(3.2 * 63)
    for target, source in zip(found.target_detector[inter], found.source_detector[inter], strict=True):
        assert names[target][:-1] == names[source][:-1]
    sizes = np.abs(found.c[inter])
    assert sizes.min() >= 3e-6
    assert sizes.max() <= 3e-5
    assert abs(np.mean(found.c[inter] < 0) - 0.3) < 5 * np.sqrt(0.21 / inter.sum())
    # ln uniform: the mean of ln |c| is in the middle
    width = np.log(10) / np.sqrt(12)
    assert abs(np.log(sizes).mean() - np.log(np.sqrt(3e-6 * 3e-5))) < 5 * width / np.sqrt(inter.sum())
    assert not found.c2[inter].any()
    pairs = np.stack([found.target_detector, found.target, found.source_detector, found.source])
    assert len(np.unique(pairs, axis=1).T) == len(found.c)
    # what one CCD is told is its part of the whole
    detector = camera.detector("R22_S11")
    part, mine = couplings(SEED, Crosstalk(), camera, detector), found.target_detector == detector.id
    np.testing.assert_array_equal(part.c, found.c[mine])
    np.testing.assert_array_equal(part.source, found.source[mine])


def test_truth_does_not_depend_on_the_rest_of_the_camera(camera):
    """Fewer CCDs, or channels stored in another order: the same pairs couple by the same amount."""

    def entries(camera):
        found = crosstalk_truth(SEED, CROWDED, camera)
        names = camera.amplifier_names
        rows = zip(
            found.target_detector, found.target, found.source_detector, found.source, found.c, found.c2, strict=True
        )
        return {(td, names[t], sd, names[s]): (c, c2) for td, t, sd, s, c, c2 in rows}

    whole = entries(camera)
    assert sum(key[0] != key[2] for key in whole) > 60
    fewer = entries(replace(camera, detectors=camera.detectors[1:5]))
    kept = {d.id for d in camera.detectors[1:5]}
    assert fewer == {key: value for key, value in whole.items() if key[0] in kept and key[2] in kept}
    assert entries(replace(camera, amplifier_names=camera.amplifier_names[::-1])) == whole


def test_ccds_whose_names_tell_no_board_have_no_partners(camera):
    detectors = tuple(replace(d, name=f"CCD{d.id}") for d in camera.detectors)
    found = crosstalk_truth(SEED, CROWDED, replace(camera, detectors=detectors))
    assert (found.target_detector == found.source_detector).all()


def test_reach_and_one_amplifier(camera, detector):
    near = couplings(SEED, Crosstalk(reach=1, opposite_share=0, per_board=0), camera, detector)
    assert len(near.c) == 2 * 14  # two rows of eight, each with seven neighbours, both ways
    alone = load_camera("ohp")
    assert len(couplings(SEED, Crosstalk(), alone, alone.detectors[0]).c) == 0
    assert len(crosstalk_truth(SEED, Crosstalk(), alone).c) == 0


def test_rows_are_rows_of_the_whole(camera, detector):
    charge = np.random.default_rng(1).uniform(0, 1e5, _dark(camera).shape).astype(np.float32)
    aggressors = dict.fromkeys(coupled(SEED, CROWDED, camera, detector), charge[::-1])
    found = couplings(SEED, CROWDED, camera, detector)
    whole = add_crosstalk(camera, detector, found, charge, aggressors)
    assert np.abs(whole - charge).max() > 10
    part = add_crosstalk(camera, detector, found, charge, aggressors, slice(40, 77))
    np.testing.assert_array_equal(part, whole[:, 40:77])


def test_off_is_neutral(camera, detector):
    off = Crosstalk(on=False)
    charge = np.random.default_rng(1).uniform(0, 1e5, _dark(camera).shape).astype(np.float32)
    found = couplings(SEED, off, camera, detector)
    assert len(found.c) == 0
    assert coupled(SEED, off, camera, detector) == ()
    np.testing.assert_array_equal(add_crosstalk(camera, detector, found, charge), charge)
    # and what nothing couples to is unchanged to the bit
    one = couplings(SEED, Crosstalk(nearest=0, before=0, after=0, quadratic=0, per_board=0), camera, detector)
    untouched = set(range(16)) - set(one.target.tolist())
    out = add_crosstalk(camera, detector, one, charge)
    np.testing.assert_array_equal(out[sorted(untouched)], charge[sorted(untouched)])


def test_errors(camera, detector):
    found = couplings(SEED, CROWDED, camera, detector)
    with pytest.raises(WrongUse, match="charge of R22_S00 is missing"):
        add_crosstalk(camera, detector, found, _dark(camera), {"R22_S02": _dark(camera)})
    aggressors = {"R22_S00": _dark(camera)[:, :5], "R22_S02": _dark(camera)}
    with pytest.raises(InconsistentGeometry, match="R22_S00 is"):
        add_crosstalk(camera, detector, found, _dark(camera), aggressors)


@pytest.mark.real
def test_defaults_are_like_the_laboratory_matrices(real_data):
    """Medians by distance agree within the scatter of the measured entries at that distance."""
    from astropy.table import Table

    camera = load_camera("lsstcam")
    target, source = np.indices((16, 16))
    same = target // 8 == source // 8
    for name in ("R22_S11", "R01_S11"):  # e2v and ITL
        vendor = camera.detector(name).vendor
        chosen = [d for d in camera.detectors if d.vendor == vendor and d.name[-3] == "S" and len(d.amplifiers) == 16][
            :20
        ]
        measured, simulated = [], []
        for d in chosen:
            path = next((real_data / "lsstcam" / "crosstalk" / d.name.lower()).glob("*.ecsv"))
            row = Table.read(path, format="ascii.ecsv")[0]
            measured.append([np.reshape(row[key], (16, 16)) for key in ("CT_COEFFS", "CT_COEFFS_SQR")])
            simulated.append(_matrix(couplings(SEED, Crosstalk(), camera, d), 16, d))
        for which in (0, 1):
            real, ours = np.array(measured)[:, which], np.array(simulated)[:, which]
            for distance in (-4, -3, -2, -1, 1, 2, 3, 4):
                a, b = (m[:, same & (source - target == distance)] for m in (real, ours))
                scatter = 1.4826 * np.median(np.abs(a - np.median(a)))
                assert abs(np.median(a) - np.median(b)) < scatter
