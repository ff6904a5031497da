"""Late charge against registers clocked one transfer at a time, formulas summed by hand, and published totals."""

import numpy as np
import pytest

from lsstcal_dask.errors import InconsistentGeometry
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate.deferred import Deferred, defer, late, transfers
from lsstcal_dask.simulate.exposure import Exposure, Lamp
from lsstcal_dask.simulate.frames import packets
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.settings import Settings

SEED = 5
LSST = load_camera("lsstcam")
E2V, ITL = LSST.detector("R22_S11"), LSST.detector("R01_S00")
NONE = {name: 0.0 for name in Deferred.model_fields if name.partition("_")[0] in ("serial", "parallel", "offset")}
STILL = Deferred(traps_e2v=0, traps_itl=0, **NONE)
ULP = 2.0**-24  # of a float32


def settings(**numbers):
    return STILL.model_copy(update=numbers)


def random_charge(rows, columns, amplifiers=16):
    return np.random.default_rng(0).uniform(0, 1e5, (amplifiers, rows, columns)).astype(np.float32)


def clocked(line, b, count):
    """What a register delivers in ``count`` transfers, each of which leaves the share b behind; and what stays."""
    register, out = np.append(line.astype(float), np.zeros(count)), []
    for _ in range(count):
        moved, register = (1 - b) * register, b * register
        out.append(moved[0])
        register[:-1] += moved[1:]
    return np.array(out), register.sum()


@pytest.mark.parametrize("axis", ["serial", "parallel"])
def test_deferral_is_that_of_a_register_clocked_step_by_step(axis):
    given = settings(**{f"{axis}_e2v": 1.5e-5})
    charge = random_charge(1, 300) if axis == "serial" else random_charge(300, 1)
    charge[:, -5:, -5:] = 1e5 if axis == "serial" else charge[:, -5:, -5:]
    found, left = defer(SEED, given, E2V, charge, LSST.amplifier_names)
    own = dict(zip((a.name for a in E2V.amplifiers), transfers(SEED, given, E2V), strict=True))
    for i, name in enumerate(LSST.amplifier_names):
        b = getattr(own[name], f"{axis}_cti")
        wanted, stays = clocked(charge[i].ravel(), b, 300)
        np.testing.assert_allclose(found[i].ravel(), wanted, atol=1e5 * (4 * ULP + 2e-8), rtol=0)
        assert left[i] == pytest.approx(stays, rel=1e-4)
        assert np.abs(found[i].ravel() - charge[i].ravel()).max() > 100  # 300 transfers of 1e5 electrons


@pytest.mark.parametrize(("detector", "vendor"), [(E2V, "e2v"), (ITL, "itl")])
def test_two_overscan_pixels_give_back_the_inefficiency(detector, vendor):
    """EPER by hand: (first + second overscan pixel) / last image pixel / transfers, prescan included, is b."""
    for axis, size in (("serial", 1e-6), ("parallel", 1e-7)):
        given = settings(**{f"{axis}_{vendor}": size})
        box = detector.amplifiers[0].data
        shape = (2, LSST.raw_shape[1]) if axis == "serial" else (LSST.raw_shape[0], box.x1)
        charge = np.zeros((16, *shape), np.float32)
        charge[:, : box.y1, box.x0 : box.x1] = 8e4
        found, _ = defer(SEED, given, detector, charge, LSST.amplifier_names)
        by_name = dict(zip((a.name for a in detector.amplifiers), transfers(SEED, given, detector), strict=True))
        for i, name in enumerate(LSST.amplifier_names):
            line, last = (found[i, 0], box.x1) if axis == "serial" else (found[i, :, box.x1 - 1], box.y1)
            eper = (line[last] + line[last + 1]) / line[last - 1] / last
            b = getattr(by_name[name], f"{axis}_cti")
            assert eper == pytest.approx(b, rel=2 * last * b)  # the next order
            assert 0.2 * size < b < 5 * size


@pytest.mark.parametrize(("detector", "run6"), [(E2V, 3.76e-7), (ITL, 1.19e-6)])
def test_transfers_and_output_together_are_what_run_6_measured(detector, run6):
    """Medians of SCTI_HIGH; the two digits of the settings leave 3 %."""
    median = Deferred(scatter_detector=0, scatter_amplifier=0, traps_e2v=0, traps_itl=0)
    x = detector.amplifiers[0].data.x1
    charge = np.zeros((16, 1, LSST.raw_shape[1]), np.float32)
    charge[:, :, detector.amplifiers[0].data.x0 : x] = 5e4
    found, _ = defer(SEED, median, detector, charge, LSST.amplifier_names)
    eper = found[:, 0, x : x + 2].sum(axis=1) / found[:, 0, x - 1] / x
    np.testing.assert_allclose(eper, run6, rtol=0.03)


def test_charge_is_conserved():
    many = settings(serial_e2v=1e-6, parallel_e2v=1e-7, traps_e2v=3.0, trap_size=200.0)
    charge = random_charge(200, 576)
    found, left = defer(SEED, many, E2V, charge, LSST.amplifier_names)
    assert (left > 0).all()
    np.testing.assert_allclose(found.sum(axis=(1, 2), dtype=float) + left, charge.sum(axis=(1, 2), dtype=float), 1e-7)
    assert np.abs(found - charge).max() > 100
    assert found.min() >= 0


def test_a_trap_takes_its_share_and_gives_it_back_to_those_that_follow():
    one = settings(traps_e2v=1.0, trap_scatter=0.0, trap_size=40.0, share=0.01, emission=3.0)
    own = {a.name: t for a, t in zip(E2V.amplifiers, transfers(SEED, one, E2V), strict=True)}
    alone = [name for name in LSST.amplifier_names if len(own[name].traps) == 1]
    assert len(alone) > 2
    gives = 1 - np.exp(-1 / 3.0)
    for name in alone:
        (trap,) = own[name].traps
        column, i = int(trap["column"]), LSST.amplifier_names.index(name)
        for level, held in ((2e4, 40.0), (2000.0, 0.01 * (2000 - float(trap["threshold"]))), (250.0, 0.0)):
            charge = np.zeros((16, 2, 576), np.float32)
            charge[i, 0, column] = level  # lies in the trap when clocking begins
            charge[i, 1, column - 1] = level  # is nearer to the output
            found, _ = defer(SEED, one, E2V, charge, LSST.amplifier_names)
            trail = found[i, 0, column + 1 : column + 11]
            assert found[i, 0, column] == pytest.approx(level - held, abs=level * 2 * ULP)
            np.testing.assert_allclose(trail, (held * gives * np.exp(-np.arange(10) / 3.0))[: len(trail)], rtol=1e-5)
            np.testing.assert_array_equal(found[i, 1], charge[i, 1])


def naive_traps(line, traps, share):
    line = line.astype(float).copy()
    for trap in traps:
        held = 0.0
        for x in range(trap["column"], len(line)):
            free = held * (1 - np.exp(-1 / float(trap["emission"])))
            line[x], held = line[x] + free, held - free
            taken = max(0.0, min(float(trap["size"]), share * (line[x] - float(trap["threshold"]))) - held)
            line[x], held = line[x] - taken, held + taken
    return line


def test_several_traps_act_one_after_the_other():
    many = settings(traps_e2v=4.0, trap_size=300.0)
    charge = random_charge(2, 576) * np.float32(0.1)
    found, _ = defer(SEED, many, E2V, charge, LSST.amplifier_names)
    for amplifier, own in zip(E2V.amplifiers, transfers(SEED, many, E2V), strict=True):
        i = LSST.amplifier_names.index(amplifier.name)
        assert (np.diff(own.traps["column"]) <= 0).all()  # the farthest from the output is met first
        for y in range(2):
            wanted = naive_traps(charge[i, y], own.traps, many.share)
            np.testing.assert_allclose(found[i, y], wanted, atol=len(own.traps) * 1e4 * 4 * ULP)


@pytest.mark.parametrize("decay", [0.2, 3.1, 40.0])
def test_the_output_keeps_the_greatest_of_the_fading_offsets(decay):
    tired = settings(offset_e2v=2e-3, decay=decay)
    charge = random_charge(1, 200)
    charge[:, :, 60:110] = 0
    found, _ = defer(SEED, tired, E2V, charge, LSST.amplifier_names)
    for amplifier, own in zip(E2V.amplifiers, transfers(SEED, tired, E2V), strict=True):
        line = charge[LSST.amplifier_names.index(amplifier.name), 0].astype(float)
        wanted = [max(own.offset * line[x - j] * np.exp(-j / decay) for j in range(x + 1)) for x in range(200)]
        got = found[LSST.amplifier_names.index(amplifier.name), 0] - line
        np.testing.assert_allclose(got, wanted, atol=1e5 * (2 * ULP + 1e-6 * own.offset), rtol=1e-5)
        assert got[60] > 0  # an empty pixel after a bright one


def test_amplifiers_scatter_about_the_medians():
    """100 CCDs of 16 amplifiers: 0.2 from CCD to CCD and 0.25 within, of the logarithm."""
    given = Deferred()
    ccds = [d for d in LSST.detectors if d.vendor == "e2v"][:100]
    logs = np.log([[t.serial_cti / given.serial_e2v for t in transfers(SEED, given, d)] for d in ccds])
    assert np.sqrt(np.mean(logs.var(axis=1, ddof=1))) == pytest.approx(0.25, rel=4.5 / np.sqrt(2 * 1500))
    between = np.hypot(0.2, 0.25 / 4)
    assert logs.mean(axis=1).std(ddof=1) == pytest.approx(between, rel=4.5 / np.sqrt(2 * 99))
    assert abs(logs.mean()) < 4.5 * between / 10
    count = sum(len(t.traps) for d in ccds for t in transfers(SEED, given, d))
    assert count == pytest.approx(1600 * given.traps_e2v, abs=4.5 * np.sqrt(1600 * given.traps_e2v))
    assert transfers(SEED, given, ITL)[0].offset > transfers(SEED, given, E2V)[0].offset


def test_shares_add_up_and_the_smallest_are_left_out():
    assert late(0.0, 10).shape == (0, 10)
    assert late(1e-9, 2048).shape == (1, 2048)
    n, b = 2048, 1e-5
    found = late(b, n)
    assert found.shape == (3, n)
    ways = np.array([n, n * (n + 1) / 2, n * (n + 1) * (n + 2) / 6])
    np.testing.assert_allclose(found[:, -1], ways * b ** np.arange(1, 4) * (1 - b) ** n, rtol=1e-6)
    assert found[:, -1].sum() == pytest.approx(1 - (1 - b) ** n, rel=1e-4)


FLAT = Exposure("F", 1, "flat", np.datetime64("2026-07-02T06:00:00", "ms"), 10.0, 10.0, source=Lamp(5e3, 600.0))


@pytest.mark.parametrize("name", ["R22_S00", "R22_S01"])
def test_without_it_the_overscan_is_empty_and_with_it_it_is_not(name):
    camera = load_camera("mini9")
    detector = camera.detector(name)
    box = detector.amplifiers[0].overscan
    light = Settings().without(["cosmic_rays", "dark_current", "hot_pixels", "saturation", "serial_clamp"])
    on, off = (packets(Observatory(SEED, camera, s), FLAT, detector) for s in (light, light.without(["deferred"])))
    assert not off[:, :, box.x0 :].any()
    trail = on[:, box.y0 : box.y1, box.x0 : box.x1].mean(axis=1)
    assert (np.diff(trail, axis=1) < 0).all()
    assert trail[:, 0].min() > 0.5
    assert on[:, detector.amplifiers[0].parallel_overscan.y0].sum() > 0


def test_amplifiers_that_the_ccd_lacks_stay_and_nothing_is_overwritten():
    charge = random_charge(3, 40, amplifiers=2)
    before = charge.copy()
    name = E2V.amplifiers[0].name
    found, left = defer(SEED, Deferred(), E2V, charge, ("X", name))
    np.testing.assert_array_equal(found[0], before[0])
    assert left[0] == 0
    assert (found[1] != before[1]).any()
    np.testing.assert_array_equal(charge, before)
    assert defer(SEED, Deferred(on=False), E2V, charge, ("X", name))[0] is charge
    with pytest.raises(InconsistentGeometry, match="with 1 amplifier names"):
        defer(SEED, Deferred(), E2V, charge, (name,))
