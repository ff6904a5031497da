import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from lsstcal_dask.errors import InconsistentGeometry, StaleCalibration
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.isr.crosstalk import (
    Entries,
    between,
    coupled,
    crosstalk_image,
    crosstalk_rows,
    from_others,
    own_entries,
    raw_frame,
    unmeasured,
)
from lsstcal_dask.products.crosstalk import source_names
from lsstcal_dask.simulate.crosstalk import Crosstalk, add_crosstalk, couplings, crosstalk_truth
from lsstcal_dask.storage.rubin_crosstalk import in_electrons, read_rubin_crosstalk
from lsstcal_dask.variables import MASK_BITS

CROSSTALK = MASK_BITS["CROSSTALK"]


def oracle(v, variance, c, c2, ceiling=np.inf, sweeps=2):
    """The same in float64, matrix by matrix: (amplifier, y, x)."""
    shape = v.shape
    v, var = v.reshape(len(v), -1).astype(float), variance.reshape(len(v), -1).astype(float)
    q = v
    for _ in range(sweeps):
        source = np.minimum(np.nan_to_num(q), ceiling)
        q = v - c @ source - c2 @ source**2
    return q.reshape(shape), (var + c**2 @ np.nan_to_num(var)).reshape(shape)


def matrix_entries(c, c2):
    t, s = map(np.ascontiguousarray, np.nonzero((c != 0) | (c2 != 0)))
    return Entries(t, s, c[t, s].astype(np.float32), c2[t, s].astype(np.float32))


def _random(seed, n=6, fill=0.5):
    random = np.random.default_rng(seed)
    there = (random.random((n, n)) < fill) & ~np.eye(n, dtype=bool)
    there[2] = False
    c, c2 = random.normal(0, 2e-4, (n, n)) * there, random.normal(0, 3e-10, (n, n)) * there
    v = random.gamma(0.2, 2e4, (n, 5, 33)).astype(np.float32)
    v[1, 2, 3] = np.nan
    return v, (v.clip(0) + 36).astype(np.float32), c, c2


def test_two_pixels_by_hand():
    """1e5 e- leave 1e-3 of themselves less 1e-9 of their square: 100 - 10 = 90 e-; variance 36 + 1e-6 * 1e5."""
    v = np.array([[[1e5, 10.0]], [[95.0, 20.0]]], np.float32)
    entries = Entries(np.array([1]), np.array([0]), np.array([1e-3], np.float32), np.array([-1e-9], np.float32))
    values, variance, mask = crosstalk_image(v, np.array([[[1e5, 36]], [[36, 36]]]), np.zeros(v.shape, int), entries)
    np.testing.assert_allclose(values[1, 0], [5.0, 19.99], rtol=1e-5)
    np.testing.assert_allclose(variance[1, 0], [36.1, 36.000036], rtol=1e-6)
    np.testing.assert_array_equal(values[0], v[0])
    assert not mask.any()
    assert v[1, 0, 0] == 95  # the input is as it was


def test_a_saturated_source_counts_as_its_ceiling_and_marks_its_targets():
    v = np.array([[[3e5, 9e4]], [[50.0, 50.0]], [[0.0, 0.0]]], np.float32)
    entries = Entries(np.array([1]), np.array([0]), np.array([1e-4], np.float32), np.array([0], np.float32))
    ceiling = np.array([1e5, 1e5, 1e5])
    values, _, mask = crosstalk_image(v, np.ones(v.shape), np.zeros(v.shape, int), entries, ceiling)
    np.testing.assert_allclose(values[1, 0], [40.0, 41.0], rtol=1e-6)
    assert values[0, 0, 0] == np.float32(3e5)
    np.testing.assert_array_equal(mask[:, 0], [[0, 0], [CROSSTALK, 0], [0, 0]])


@settings(deadline=None)  # the first run compiles
@given(st.integers(0, 10_000), st.sampled_from([1.0, 0.5, 0.1]))
def test_rows_equal_the_oracle(seed, fill):
    v, variance, c, c2 = _random(seed, fill=fill)
    values, noise, _ = crosstalk_image(v, variance, np.zeros(v.shape, int), matrix_entries(c, c2))
    expected, expected_noise = oracle(v, variance, c.astype("f4"), c2.astype("f4"))
    # one rounding of the pixel, and of the sum of what is taken from it
    np.testing.assert_allclose(values, expected, rtol=2.4e-7, atol=1e-5)
    np.testing.assert_allclose(noise, expected_noise, rtol=2.4e-7)


def test_targets_without_sources_keep_their_bits():
    v, variance, c, c2 = _random(3)
    values, noise, _ = crosstalk_image(v, variance, np.zeros(v.shape, int), matrix_entries(c, c2))
    assert values[2].tobytes() == v[2].tobytes()
    assert noise[2].tobytes() == variance[2].tobytes()
    nothing = matrix_entries(0 * c, 0 * c2)
    same, _, _ = crosstalk_image(v, variance, np.zeros(v.shape, int), nothing)
    assert same.tobytes() == v.tobytes()


def test_rows_without_ceiling_are_the_same():
    v, variance, c, c2 = _random(4)
    v = np.nan_to_num(v)
    e = matrix_entries(c, c2)
    row, noise = v[:, 1].copy(), variance[:, 1].copy()
    crosstalk_rows(row, noise, e.targets, e.sources, e.linear, e.quadratic, np.empty((3, *row.shape), np.float32))
    whole, more, _ = crosstalk_image(v, variance, np.zeros(v.shape, int), e)
    np.testing.assert_array_equal(row, whole[:, 1])
    np.testing.assert_array_equal(noise, more[:, 1])


def test_two_sweeps_solve_what_one_leaves():
    """Of a pair that returns 2e-3 each way, one sweep leaves 4e-6 of the source, two 8e-9: 0.4 and 0.0008 e-."""
    c = np.array([[0, 2e-3], [2e-3, 0]])
    true = np.array([1e5, 50.0]).reshape(2, 1, 1)
    seen = true + (c @ true[:, 0])[:, None]
    one, _ = oracle(seen, seen, c, 0 * c, sweeps=1)
    values, _, _ = crosstalk_image(seen, seen, np.zeros(seen.shape, int), matrix_entries(c, 0 * c))
    assert abs(one - true)[0].max() == pytest.approx(0.4, rel=0.01)
    assert abs(values - true).max() < 0.0008 + 1e5 * 2**-24


@pytest.fixture(scope="module")
def camera():
    return load_camera("mini9")


def _product(camera, effect, seed=3):
    """The truth of the simulation as a product."""
    names, n = source_names(camera).tolist(), len(camera.amplifier_names)
    values = np.zeros((2, len(camera.detectors), n, len(names)), np.float32)
    found = crosstalk_truth(seed, effect, camera)
    place = {d.id: (i, d.name) for i, d in enumerate(camera.detectors)}
    for i in range(len(found.c)):
        at, source = place[int(found.target_detector[i])][0], place[int(found.source_detector[i])][1]
        column = names.index(f"{source}/{camera.amplifier_names[found.source[i]]}")
        values[:, at, found.target[i], column] = found.c[i], found.c2[i]
    dims = ("detector", "amplifier", "source")
    return xr.Dataset(
        {"crosstalk": (dims, values[0]), "crosstalk_quadratic": (dims, values[1])},
        coords={
            "detector": [d.name for d in camera.detectors],
            "amplifier": list(camera.amplifier_names),
            "source": names,
        },
    )


def test_what_the_observatory_adds_is_removed(camera):
    """Within a CCD and from the two others of its board, e2v and ITL; off, the ghosts are as large as they were."""
    effect = Crosstalk(per_board=60)
    product = _product(camera, effect)
    random = np.random.default_rng(1)
    board = [camera.detector(f"R22_S0{i}") for i in range(3)]
    true = {d.name: random.gamma(0.1, 3e4, (16, *camera.raw_shape)).astype(np.float32).clip(0, 1.2e5) for d in board}
    dark = {d.name: np.zeros_like(true["R22_S00"]) for d in camera.detectors} | true
    seen, clean = {}, {}
    for d in board:
        seen[d.name] = add_crosstalk(camera, d, couplings(3, effect, camera, d), true[d.name], dark)
    order = {d.name: [camera.amplifier_names.index(a.name) for a in d.amplifiers] for d in board}
    for d in board:
        own = seen[d.name][order[d.name]]
        entries = own_entries(product.sel(detector=d.name), d)
        values, _, _ = crosstalk_image(own, own, np.zeros(own.shape, int), entries)
        clean[d.name] = values
    for d in board:
        entries = coupled(product.sel(detector=d.name), d, camera)
        assert set(entries) == set(true) - {d.name}
        left = clean[d.name] - from_others(clean, entries, d) - true[d.name][order[d.name]]
        ghosts = seen[d.name] - true[d.name]
        assert np.abs(left).max() < 0.12  # 1e-6 of 1.2e5 electrons
        assert np.abs(ghosts).max() > 20
        assert np.abs(clean[d.name] - true[d.name][order[d.name]]).max() > 1  # of other CCDs alone
        clipped = from_others(clean, entries, d, {name: np.full(16, 100.0) for name in true})
        assert np.abs(clipped).max() < 100 * 3e-5 * 60


def test_the_lazy_sum_between_ccds(camera, no_compute):
    product = _product(camera, Crosstalk(per_board=3))
    random = np.random.default_rng(2)
    values = random.gamma(0.1, 3e4, (9, 16, *camera.raw_shape)).astype(np.float32)
    names = [d.name for d in camera.detectors]
    images = xr.DataArray(
        da.from_array(values, chunks=(1, 1, *camera.raw_shape)),
        dims=("detector", "amplifier", "y", "x"),
        coords={"detector": names, "amplifier": list(camera.amplifier_names)},
    )
    found = between(images, product, camera)
    with dask.config.set(scheduler="sync"):
        got = found.compute()
    matrix = product["crosstalk"].values
    sources = [f"{n}/{a}" for n in names for a in camera.amplifier_names]
    place = [product["source"].values.tolist().index(name) for name in sources]
    flat = values.reshape(144, -1).astype(float)
    for i, name in enumerate(names):
        c = matrix[i][:, place].astype(float)
        c[:, i * 16 : (i + 1) * 16] = 0
        expected = values[i] - (c @ flat).reshape(values[i].shape)
        np.testing.assert_allclose(got.sel(detector=name), expected, rtol=2.4e-7, atol=1e-5)
        for k in np.flatnonzero(~c.any(axis=1)):
            assert got.values[i, k].tobytes() == values[i, k].tobytes()
    assert np.abs(got.values - values).max() > 0.5


def test_equal_time_is_the_raw_index(camera):
    """A pixel of the data of an ITL at (y, x) is read with (y, x - 1) of an e2v, whose prescan is one longer."""
    itl, e2v = camera.detector("R22_S01"), camera.detector("R22_S00")
    image = np.full((16, *camera.image_shape), np.nan, np.float32)
    image[3, 10, 20] = 1e5
    raw = raw_frame(image, itl, camera.raw_shape)
    assert raw[3, 10, 23] == 1e5
    assert raw.sum() == 1e5
    assert e2v.amplifiers[0].data.x0 == 4


def test_bad_input(camera):
    product = _product(camera, Crosstalk(per_board=60))
    detector = camera.detector("R22_S00")
    part = product.sel(detector="R22_S00")
    entries = coupled(part, detector, camera)
    with pytest.raises(
        InconsistentGeometry, match="crosstalk of R22_S00: the image of R22_S01 is missing: pass it too"
    ):
        from_others({}, entries, detector)
    odd = {"R22_S01": np.zeros((16, 4, 4)), "R22_S02": np.zeros((16, 4, 5))}
    with pytest.raises(InconsistentGeometry, match=r"pixels of R22_S02 are \(4, 5\), not \(4, 4\)"):
        from_others(odd, entries, detector)
    with pytest.raises(InconsistentGeometry, match="no other CCD couples to it"):
        from_others({}, {}, detector)
    with pytest.raises(StaleCalibration, match="does not know R22_S00/C00, it is of another camera"):
        own_entries(part.sel(source=part["source"] != "R22_S00/C00"), detector)


def test_unmeasured_pairs_are_counted_and_left_alone(camera):
    """One source that is never lit: it is unknown in 15 targets; no amplifier is its own source."""
    detector = camera.detector("R22_S00")
    part = _product(camera, Crosstalk()).sel(detector="R22_S00")
    itself = np.char.add("R22_S00/", part["amplifier"].values.astype(str))[:, None] == part["source"].values
    lost = part["source"].values == "R22_S00/C05"
    holes = part.where(~(itself | lost))
    assert unmeasured(holes, detector) == 15
    place = [a.name for a in detector.amplifiers].index("C05")
    assert place in own_entries(part, detector).sources
    assert place not in own_entries(holes, detector).sources


@pytest.mark.real
def test_injecting_and_removing_real_matrices(real_data):
    """Measured LSSTCam matrices: 150 ke- in each amplifier in turn leave at most 1e-6 of themselves."""
    for name in ("r22_s11", "r01_s00", "r14_s22", "r43_s20"):
        found = read_rubin_crosstalk(real_data / "lsstcam" / "crosstalk" / name / "19700101T000000.ecsv")
        c, _, c2, _ = in_electrons(found)
        c, c2 = np.nan_to_num(c), np.nan_to_num(c2)
        assert np.abs(c).max() > 1e-4
        true = np.full((16, 1, 16), 200.0)
        true[np.arange(16), 0, np.arange(16)] = 1.5e5
        seen = true + (c @ true[:, 0] + c2 @ true[:, 0] ** 2)[:, None]
        values, _, _ = crosstalk_image(seen, seen, np.zeros(seen.shape, int), matrix_entries(c, c2))
        assert np.abs(seen - true).max() > 15
        assert np.abs(values - true).max() < 0.15
        dark = ~np.eye(16, dtype=bool)
        assert np.abs(values - true)[:, 0][dark].max() < 0.01  # 6e-8: float32 of what was seen
