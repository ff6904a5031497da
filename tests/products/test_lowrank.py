"""Compressed cubes: the error that is reported is the error there is, and flats from maps are those of the cube."""

import numpy as np
import pytest
from cubes_of_known_response import FLOOR, SLOPE, make_cube, response

from lsstcal_dask.errors import DegenerateSolution, InsufficientInputs
from lsstcal_dask.products.lowrank import LowRankConfig, compress_amplifier, sum_maps
from lsstcal_dask.products.sums import exceptions_of, sum_slices
from lsstcal_dask.storage.cubes import CubeReader, read_cube

NM = np.arange(600.0, 700.1, 2)


def spoil(detector, k, one):
    """A spot that fades with wavelength in one pixel, one value that is unknown."""
    one.value[1, 7, 9] *= 1 + 0.3 * np.sin(k)
    if k == 3:
        one.value[1, 20, 20], one.repeats[1, 20, 20] = np.nan, 0
    return one


def reader_of(path, **options) -> CubeReader:
    store = make_cube(path, "mini1", NM, **options)
    return CubeReader(read_cube(store.url, "c"), store.camera.detectors[0].name)


def cube_values(reader, amplifier=1):
    return np.stack([reader.values(k, amplifier).ravel() for k in range(len(NM))])


def test_every_residual_is_within_the_bound_that_is_reported(tmp_path):
    reader = reader_of(tmp_path, form="f4", change=spoil)
    config = LowRankConfig(noise=0, bound=1e-4)
    low = compress_amplifier(reader, 1, response(NM), config)
    assert len(low.maps) in (2, 3)  # gray, gray times a tilt, and perhaps the odd pixel
    values, found = cube_values(reader), np.stack([low.values(k) for k in range(len(NM))])
    np.testing.assert_array_equal(np.isnan(found), np.isnan(values))
    error = np.abs(np.where(np.isnan(values), 0, found - values.astype(float)))
    ulp = 2.0**-23  # of adding what is listed
    assert np.all(error.max(axis=1) <= low.worst + ulp)
    assert np.all(low.worst <= 1e-4 * response(NM))
    assert low.worst.max() > 1e-8
    pixels = set(np.unique(low.at[np.isfinite(low.change)]).tolist())
    assert pixels <= {7 * 64 + 9, 20 * 64 + 20}  # the odd pixel, and the one whose map holds a stand-in
    assert low.nbytes < values.nbytes / 15


def test_flats_from_maps_are_within_the_proved_error(tmp_path):
    reader = reader_of(tmp_path, form="f4", change=spoil)
    low = compress_amplifier(reader, 1, response(NM), LowRankConfig(noise=0))
    weights = np.random.default_rng(1).uniform(0, 1, (3, len(NM)))
    weights /= (weights @ response(NM))[:, None]
    odd = {k: exceptions_of(reader, k, 1) for k in range(len(NM))}
    whole, short = sum_slices(reader, 1, weights, odd), sum_maps(low, weights)
    known = np.arange(64 * 64) != 20 * 64 + 20
    assert np.all(np.abs(short - whole)[:, known].max(axis=1) <= low.error_bound(weights) + 4e-6)  # 51 roundings
    assert np.all(low.error_bound(weights) <= 1e-4)


@pytest.mark.parametrize("form", ["i2", "i1"])
def test_noise_is_left_out_and_flats_lose_nothing(tmp_path, form):
    """Two maps hold 2 / 51 of the noise of a slice: flats of all slices differ by what rounding and that leave."""
    reader = reader_of(tmp_path, form=form, noise=True)
    low = compress_amplifier(reader, 1, response(NM))
    assert len(low.maps) == 2
    assert not low.change.size
    sigma = np.sqrt(SLOPE * response(NM) + FLOOR)
    assert np.all(low.worst < 6.5 * sigma)  # 6 of a pixel's own
    assert np.all(low.worst > 2.5 * sigma)  # the largest of 4096
    truth = reader_of(tmp_path / "quiet", form="f4")
    weights = response(NM)[None] / (response(NM) @ response(NM))  # equal noise: that of the flat is sigma / sqrt(51)
    exact = sum_slices(truth, 1, weights, {k: exceptions_of(truth, k, 1) for k in range(len(NM))})
    whole = sum_slices(reader, 1, weights, {k: exceptions_of(reader, k, 1) for k in range(len(NM))})
    errors = [np.std(flat - exact) for flat in (sum_maps(low, weights), whole)]
    assert errors[0] < 1.05 * errors[1]
    # each slice of the compressed cube has the noise of its maps only
    one = np.std(low.values(25) - truth.values(25, 1).ravel())
    assert one < 1.5 * np.sqrt(2 / 51) * sigma[25]


def test_what_has_no_low_rank_is_refused(tmp_path):
    def shuffle(detector, k, one):
        one.value[...] *= 1 + 0.1 * np.random.default_rng(k).standard_normal(one.value.shape, np.float32)
        return one

    reader = reader_of(tmp_path, form="f4", change=shuffle)
    with pytest.raises(DegenerateSolution, match="allow more maps"):
        compress_amplifier(reader, 0, response(NM), LowRankConfig(noise=0, rank=3))


def test_an_amplifier_without_slices_is_refused(tmp_path):
    store = make_cube(tmp_path, "mini9", NM[:2], only=[0])
    reader = CubeReader(read_cube(store.url, "c"), store.camera.detectors[1].name)
    with pytest.raises(InsufficientInputs, match="has no slices"):
        compress_amplifier(reader, 0, response(NM[:2]))
