"""Saturation levels from spots and trails of the virtual observatory's silicon and electronics."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import xarray as xr

from lsstcal_dask.errors import DegenerateSolution, InsufficientInputs
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.assembly import split
from lsstcal_dask.products.saturation import (
    OUTPUTS,
    SaturationConfig,
    check_saturation,
    measure_saturation,
    saturation_amplifiers,
)
from lsstcal_dask.products.wells import (
    clipped_counts,
    lowest_level,
    plateau_runs,
    register_spills,
    row_lean,
    spot_break,
)
from lsstcal_dask.simulate import Settings
from lsstcal_dask.simulate.electronics import Digitisation, channel, read_out
from lsstcal_dask.simulate.saturation import (
    Saturation,
    SerialClamp,
    bloom,
    clamp_serial,
    full_well,
    serial_full_well,
)

CAMERA = load_camera("mini1")
DETECTOR = CAMERA.detectors[0]
NAMES = [a.name for a in DETECTOR.amplifiers]
ELECTRONICS = Settings().without(["crosstalk", "nonlinearity"]).electronics
LADDER = np.arange(40e3, 300e3, 20e3)  # electron at the centre of a spot, were there no full well


def spots(level, seed):
    """Charge (y, x) of one spot in the middle of every amplifier, with its shot noise."""
    ny, nx = DETECTOR.shape
    y, x = np.mgrid[:ny, :nx]
    image = np.full((ny, nx), 200.0)
    for amplifier in DETECTOR.amplifiers:
        (x0, y0), (height, width) = amplifier.position, amplifier.data.shape
        radius = np.hypot(y - y0 - height / 2, x - x0 - width / 2 - 0.3)
        image += level / (1 + np.exp((radius - 7) / 0.7))
    return np.random.default_rng(seed).poisson(image).astype(np.float32)


def counts_of(image, number, electronics=ELECTRONICS, clamp=SerialClamp(on=False)):
    """Raw counts (amplifier, y, x) of an image that has bled already."""
    raw = np.zeros((4, *CAMERA.raw_shape), np.float32)
    parts = split(image, DETECTOR, CAMERA, fill=0.0)
    for amplifier in DETECTOR.amplifiers:
        raw[(CAMERA.amplifier_names.index(amplifier.name), *amplifier.data.slices)] = parts[
            CAMERA.amplifier_names.index(amplifier.name)
        ]
    raw = clamp_serial(1, clamp, DETECTOR, raw, CAMERA.amplifier_names)[0]
    return read_out(1, electronics, CAMERA, DETECTOR, number, raw)


def dataset(counts, light, kind="cbp"):
    names = [f"MC_S_20260701_{i:06d}" for i in range(1, len(counts) + 1)]
    coords = {
        "exposure": names,
        "exposure_type": ("exposure", np.full(len(names), kind)),
        "photodiode": ("exposure", np.asarray(light, float)),
        "detector": [DETECTOR.name],
        "amplifier": list(CAMERA.amplifier_names),
    }
    dims = ("exposure", "detector", "amplifier", "y", "x")
    present = (("exposure", "detector"), np.ones((len(names), 1), bool))
    return xr.Dataset({"counts": (dims, np.array(counts)[:, None]), "present": present}, coords)


def gains(wrong=()):
    values = [channel(1, ELECTRONICS, CAMERA, DETECTOR, i).gain for i in range(4)]
    values = [value * 1.4 if name in wrong else value for name, value in zip(NAMES, values, strict=True)]
    table = dict(zip(NAMES, values, strict=True))
    row = np.array([[table[name] for name in CAMERA.amplifier_names]])
    dims = ("detector", "amplifier")
    return xr.Dataset(
        {"gain": (dims, row, {"units": "electron/adu"}), "gain_error": (dims, 1e-3 * row)},
        {"detector": [DETECTOR.name], "amplifier": list(CAMERA.amplifier_names)},
    )


@lru_cache
def ladder(serial=False, well=True):
    settings = Saturation(on=well)
    clamp = SerialClamp(e2v=110e3, on=serial)
    counts = [
        counts_of(bloom(1, settings, DETECTOR, spots(level, i))[0], i, clamp=clamp) for i, level in enumerate(LADDER, 1)
    ]
    return dataset(counts, LADDER * 1e-13)


def levels(raw, products=None):
    return measure_saturation(raw, CAMERA, products or {"gain": gains()}).isel(detector=0).sel(amplifier=NAMES)


def test_full_well_of_the_pixels_is_recovered():
    found = levels(ladder()).compute()
    truth = full_well(1, Saturation(), DETECTOR)
    np.testing.assert_allclose(found["well_bloom"], truth, rtol=2e-3)  # gain of 1e-3; read noise averages away
    assert np.all(np.abs(found["well_bloom"] - truth) < 4 * found["well_bloom_error"])
    assert np.isnan(found["well_serial"]).all()
    assert np.isnan(found["well_adc"]).all()
    assert np.isnan(levels(ladder(well=False)).compute()["well_bloom"]).all()  # no full well, no level


def test_full_well_of_the_serial_register_is_recovered_and_not_taken_for_the_pixels():
    found = levels(ladder(serial=True)).compute()
    truth = serial_full_well(1, SerialClamp(e2v=110e3), DETECTOR)
    np.testing.assert_allclose(found["well_serial"], truth, rtol=2e-3)
    assert np.isnan(found["well_bloom"]).all()


def test_converter_that_clips():
    electronics = replace(ELECTRONICS, digitisation=Digitisation(pedestal=0.6))
    counts = [counts_of(spots(level, i), i, electronics) for i, level in enumerate(LADDER, 1)]
    found = levels(dataset(counts, LADDER * 1e-13)).compute()
    for i, name in enumerate(NAMES):
        one = channel(1, electronics, CAMERA, DETECTOR, i)
        expected = (one.full_scale - one.pedestal) * one.gain
        assert float(found["well_adc"].sel(amplifier=name)) == pytest.approx(expected, rel=1e-3)


def test_graph_is_lazy(no_compute):
    assert set(levels(ladder()).data_vars) == set(OUTPUTS)


def remarks(raw, products):
    made = saturation_amplifiers(raw.isel(detector=0), DETECTOR, None, SaturationConfig(), products)
    return {name: result.attrs["remarks"] for name, result in made}


def test_a_full_well_off_its_ccd_puts_the_gain_in_doubt():
    wrong = gains(wrong=["C01"]).isel(detector=0)
    found = remarks(ladder(), {"gain": wrong})
    assert "is +40% off that of its CCD: check its gain" in found["C01"][0]
    assert not any("off that of its CCD" in line for name in NAMES if name != "C01" for line in found[name])


def test_without_gain_an_amplifier_is_nan_with_a_remark():
    wrong = gains()
    wrong["gain"] = wrong["gain"].where(wrong["amplifier"] != "C10")
    assert "no gain for this amplifier" in remarks(ladder(), {"gain": wrong.isel(detector=0)})["C10"][0]


def test_turnoffs_of_other_products_are_kept_and_curves_applied():
    level = np.linspace(0, 150e3, 40)
    dims = ("detector", "amplifier")
    bend = 0.02 * level**2 / level[-1]  # 2 % at the top
    linearity = xr.Dataset(
        {
            "linearity_level": ((*dims, "node"), np.tile(level, (1, 4, 1))),
            "linearity_correction": ((*dims, "node"), np.tile(bend, (1, 4, 1))),
            "linearity_turnoff": (dims, np.full((1, 4), 75e3), {"units": "adu"}),
        },
        gains().coords,
    )
    gain = gains().assign(ptc_turnoff=(dims, np.full((1, 4), 9e4), {"units": "electron"}))
    found = levels(ladder(), {"gain": gain, "linearity": linearity}).compute()
    plain = levels(ladder()).compute()
    values = gain["gain"].isel(detector=0).sel(amplifier=NAMES).values
    np.testing.assert_allclose(found["linearity_turnoff"], values * (75e3 + 0.02 * 75e3**2 / 150e3), rtol=1e-4)
    np.testing.assert_array_equal(found["ptc_turnoff"], 9e4)
    measured = plain["well_bloom"] / values
    np.testing.assert_allclose(found["well_bloom"], values * (measured + 0.02 * measured**2 / 150e3), rtol=1e-4)


# Kernels ------------------------------------------------------------------------------------------------------------


def test_plateaus_by_hand():
    random = np.random.default_rng(0)
    image = random.poisson(50e3, (40, 12)).astype(np.float32)  # a flat: shot noise, no plateau
    image += random.normal(0, 4, image.shape)
    assert len(plateau_runs(image, 4.0, 1.0, axis=0, floor=20e3)) == 0
    image[10:25, 5] = 80e3 + random.normal(0, 4, 15)
    ((level, pixels, before, after),) = plateau_runs(image, 4.0, 1.0, axis=0, floor=20e3)
    assert level == pytest.approx(80e3, abs=5)
    assert pixels == 13
    assert before == pytest.approx(50e3, rel=0.01)
    assert after == pytest.approx(50e3, rel=0.01)
    assert len(plateau_runs(image, 4.0, 1.0, axis=1, floor=20e3)) == 0
    assert len(plateau_runs(np.ascontiguousarray(image.T), 4.0, 1.0, axis=1, floor=20e3)) == 1


def test_lowest_level_that_several_share():
    level, error = lowest_level(np.array([70e3, 100e3, 100.2e3, 99.9e3, 130e3]), np.full(5, 10.0), 5.0, least=3)
    assert level == pytest.approx(100.03e3, abs=50)
    assert 50 < error < 200
    assert np.isnan(lowest_level(np.array([70e3, 100e3]), np.full(2, 10.0), 5.0)[0])


def test_a_register_that_spills_is_seen_behind_its_trails():
    level, pixels = np.full(5, 100e3), np.full(5, 10.0)
    symmetric = np.column_stack([level, pixels, [1e3, 9e3, 2e3, 5e3, 3e3], [8e3, 1e3, 3e3, 2e3, 6e3]])
    assert not register_spills(symmetric)
    spilled = np.column_stack([level, pixels, np.full(5, 1e3), np.full(5, 21e3)])
    assert register_spills(spilled)
    assert not register_spills(spilled[:2])


def test_rows_of_a_blob_lean_where_the_register_is_full():
    y, x = np.mgrid[:40, :60]
    disc = np.where((y - 20) ** 2 + (x - 25) ** 2 < 100, 150e3, 0.0)
    slope, error = row_lean(np.minimum(disc, 100e3), 100e3)
    assert abs(slope) < 3 * error
    clamped = clamp_serial(
        1, SerialClamp(e2v=100e3, scatter_detector=0, scatter_amplifier=0), DETECTOR, disc[None].astype("f4"), ["C00"]
    )[0][0]
    slope, error = row_lean(clamped, 100e3)
    assert slope == pytest.approx(0.5 * 0.5 / 1.5, abs=0.03)  # half of the part of the row that is overspill
    assert slope > 5 * error
    assert np.isnan(row_lean(np.zeros((5, 5)), 100e3)).all()


@pytest.mark.parametrize("step", [5e3, 20e3])
def test_ladder_breaks_at_the_full_well(step):
    random, well = np.random.default_rng(1), 150e3
    light = np.arange(20e3, 150e3 + 2.4 * step, step)
    noise = np.sqrt(light) / 3
    peak = np.minimum(light, well) + noise * random.normal(size=len(light)) * (light < well)
    level, error = spot_break(light * 1e-13, peak, noise)
    assert abs(level - well) < max(0.01 * well, step / 2)
    assert error < max(0.01 * well, step / 2)


def test_ladders_that_say_nothing_are_refused():
    light = np.arange(1.0, 9.0)
    with pytest.raises(InsufficientInputs, match="3 spots"):
        spot_break(light[:3], light[:3], np.ones(3))
    with pytest.raises(InsufficientInputs, match="no spot is full"):
        spot_break(light, 1e4 * light, np.full(8, 50.0))
    with pytest.raises(InsufficientInputs, match="fewer than two spots are fainter"):
        spot_break(light, np.full(8, 1e5), np.full(8, 50.0))
    with pytest.raises(DegenerateSolution, match="not proportional"):
        spot_break(light, 1e4 * np.r_[1, 6, 2, 5, 3, 20, 20, 20], np.full(8, 50.0))


def test_clipped_counts_by_hand():
    random = np.random.default_rng(2)
    counts = random.normal(1000, 50, 10_000).astype(int)
    assert np.isnan(clipped_counts(counts))
    assert clipped_counts(np.minimum(counts, 1060)) == 1060


def test_no_light_no_saturation():
    with pytest.raises(InsufficientInputs, match="no exposures of type flat, cbp, spot, science"):
        check_saturation(dataset([np.zeros((4, 2, 2))], [1.0], kind="bias"), SaturationConfig())


def test_streaks_that_go_on_into_the_overscan_are_of_the_register():
    """Spots at the edge that is read last: their rows end in the overscan, so no row tells by how much it leans."""
    image = np.zeros(DETECTOR.shape, np.float32)
    y, x = np.mgrid[: DETECTOR.shape[0], : DETECTOR.shape[1]]
    for amplifier in DETECTOR.amplifiers:
        (x0, y0), (height, width) = amplifier.position, amplifier.data.shape
        last = x0 if amplifier.flip_x else x0 + width - 1
        image += 140e3 * (np.hypot(y - y0 - height / 2, x - last) < 12)
    image = np.random.default_rng(0).poisson(image + 200).astype(np.float32)
    counts = [counts_of(image, i, clamp=SerialClamp(e2v=100e3)) for i in range(1, 4)]
    found = levels(dataset(counts, [np.nan] * 3, kind="science")).compute()
    truth = serial_full_well(1, SerialClamp(e2v=100e3), DETECTOR)
    np.testing.assert_allclose(found["well_serial"], truth, rtol=2e-3)
    assert np.isnan(found["well_bloom"]).all()


def test_flats_that_are_full_all_over_show_the_full_well():
    """A plateau without an edge: no column is fainter than its neighbour, and pixels scatter by their read noise."""
    charges = [np.random.default_rng(i).poisson(level, DETECTOR.shape) for i, level in enumerate([9e4, 2e5, 3e5])]
    counts = [counts_of(np.minimum(c, 130e3).astype(np.float32), i) for i, c in enumerate(charges, 1)]
    raw = dataset(counts, [1e-9, 2e-9, 3e-9], kind="flat")
    found = levels(raw).compute()
    np.testing.assert_allclose(found["well_bloom"], 130e3, rtol=2e-3)  # gain of 1e-3; read noise averages away
    assert (np.abs(found["well_bloom"] - 130e3) < 4 * found["well_bloom_error"]).all()
    assert np.isnan(levels(raw.isel(exposure=[0])).compute()["well_bloom"]).all()  # its shot noise is there
    one = levels(raw.isel(exposure=[0, 2])).compute()
    np.testing.assert_allclose(one["well_bloom"], 130e3, rtol=2e-3)


def test_a_turnoff_without_a_full_well_is_a_warning():
    turned = {"gain": gains().isel(detector=0), "linearity": turnoffs(120e3)}
    (remark,) = [text for text in remarks(ladder(well=False), turned)["C00"] if "full well unknown" in text]
    assert not remark.startswith("note")
    assert "stop to follow the light at 1" in remark


def turnoffs(level):
    """Linearity of one CCD without curves, with the level, electron, at which flats stop to follow the light."""
    names = list(CAMERA.amplifier_names)
    nothing = ("amplifier", "node"), np.full((4, 3), np.nan)
    values = {"linearity_level": nothing, "linearity_correction": nothing}
    turnoff = ("amplifier", np.full(4, level), {"units": "electron"})
    return xr.Dataset({**values, "linearity_turnoff": turnoff}, {"amplifier": names})


def test_exposures_that_saturate_nowhere_say_so():
    assert remarks(ladder(well=False), {"gain": gains().isel(detector=0)})["C00"][-1].startswith(
        "note: full well unknown: nothing saturates"
    )
