"""Layers of a store's CCD from its cube, and flats that get the fringes of their source by them."""

import json

import numpy as np
import pytest
from cubes_of_known_response import SLOPE, make_cube, response
from making import run_command as run

from lsstcal_dask.errors import CalibrationError, DegenerateSolution
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.assembly import assemble, split
from lsstcal_dask.physics.spectra import Curve, Spectrum
from lsstcal_dask.pipeline.build import Validity
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.flatfields import Wanted, make_flat
from lsstcal_dask.pipeline.fringes import FRINGES, fringes_for, make_fringes
from lsstcal_dask.pipeline.synthesis import Source, scan_of
from lsstcal_dask.pipeline.upstream import read_upstream, usable
from lsstcal_dask.products.fringe_light import fringing_share, slices_suffice
from lsstcal_dask.products.weights import Scan, make_weights
from lsstcal_dask.simulate.etalon import Fringing, fringe_map
from lsstcal_dask.simulate.thickness import thickness_maps
from lsstcal_dask.storage.cubes import read_cube
from lsstcal_dask.storage.products import open_product

SEED = 3
FRINGING = Fringing(wave=(2.0, 10.0), silicon_rms=0.3, epoxy_rms=0.2, inner_angle=0.0, outer_angle=0.5)
CENTRES = np.arange(945.0, 1036.0) + 0.1 * np.random.default_rng(4).normal(size=91)  # as a laser scatters
MEASURED = CENTRES + 0.01 * np.random.default_rng(5).normal(size=len(CENTRES))  # as well as the laser's are
CONFIG = Config.model_validate(
    {"fringes": {"beam": "parallel", "blocks": [16, 4], "knots": 64.0}, "synthesis": {"weights": {"gap": 0.02}}}
)
LINES = np.array([961.8, 968.3, 972.43, 978.9, 985.2, 992.6, 1001.3, 1004.81, 1008.7, 1012.2, 1021.4])
FLUX = np.linspace(1, 3, len(LINES))
SKY = Spectrum(np.array([900.0, 1100.0]), np.array([0.02, 0.02]), "sky", LINES, FLUX)
BAND = Curve(np.array([900.0, 949, 950, 1030, 1031, 1100]), np.array([0, 0, 1.0, 1, 0, 0]), "y")
LACKING = 7  # slice that one amplifier lacks
CAMERA = load_camera("mini1")
(CCD,) = CAMERA.detectors
GRAY = 1 + 0.01 * np.random.default_rng(1).normal(size=(len(CAMERA.amplifier_names), *CAMERA.image_shape))  # of pixels


def fringes(nm, share, width=None):
    """Simulated fringes (y, x) of bins, lines where they have no width."""
    return fringe_map(SEED, FRINGING, CAMERA, CCD, np.asarray(nm), np.asarray(share), None, width)


def fringed(detector, k, one, centres=CENTRES):
    """A slice with the fringes of a Gaussian line 1 nm wide, with its noise; an amplifier lacks one."""
    nm = centres[k] + (np.arange(24) - 11.5) / 8
    own = split(fringes(nm, np.exp(-4 * np.log(2) * (nm - centres[k]) ** 2)), CCD, CAMERA)
    one.value[...] = np.where(np.isnan(one.value), np.nan, response(centres[k]) * GRAY * own)
    one.value[...] += np.sqrt(SLOPE * one.value) * np.random.default_rng(k).normal(size=one.value.shape)
    if k == LACKING:
        one.value[1] = np.nan
    return one


def flat(store, threads, kind, source=Source(SKY, BAND)):
    built = make_flat(store, Wanted(kind, "y", source, "c", dust=False), CONFIG.synthesis, threads, Validity())
    assert not built.errors
    product = open_product(store.url, built.pointer.name, built.pointer.version, chunked=False)
    return assemble(product["image"].isel(detector=0).values, CCD, CAMERA), built.pointer.remarks


@pytest.fixture(scope="module")
def made(tmp_path_factory, threads):
    """Store with a cube in a parallel beam, the flat of the sky without layers, and then its layers."""
    store = make_cube(tmp_path_factory.mktemp("fringes") / "s", "mini1", MEASURED, form="f4", change=fringed)
    plain = flat(store, threads, "plain")
    built = make_fringes(store, CONFIG.fringes, threads, cube="c")
    assert not built.errors
    return store, plain, built


def test_layers_are_published(made):
    """Silicon but for whole fringes, glue with its mean: a hundredth of a fringe, in the orientation of the readout."""
    store, _, built = made
    product = open_product(store.url, "fringes", built.pointer.version, chunked=False).isel(detector=0)
    silicon, glue = thickness_maps(SEED, FRINGING, CCD)
    found = [assemble(product[f"{one}_thickness"].values, CCD, CAMERA) for one in ("silicon", "glue")]
    assert np.std(found[0] - silicon) < 0.01 * 0.14
    assert np.ptp(silicon) > 0.2
    assert np.abs(found[1] - glue).max() < 0.01 * 0.33
    assert (product["silicon_thickness_error"].values > 0).all()
    assert np.isnan(product["fringeless_response"].values[:, LACKING]).all()
    others = np.delete(product["fringeless_response"].values[0], LACKING)
    tilt = np.delete(response(MEASURED), LACKING)
    np.testing.assert_allclose(others / others.mean(), tilt / tilt.mean(), rtol=0.02)
    assert any("lack them: 1" in one for one in built.pointer.remarks)


def left_of(found):
    """Rms (relative to that of the sky's fringes) of what a flat of the sky leaves of them."""
    bins = np.arange(950.05, 1030, 0.1)
    nm, share = np.r_[bins, LINES], np.r_[np.full(len(bins), 0.002) * response(bins), FLUX * response(LINES)]
    width, order = np.r_[np.full(len(bins), 0.1), np.zeros(len(LINES))], np.argsort(nm)
    true = fringes(nm[order], share[order], width[order])
    ratio = (found / assemble(GRAY, CCD, CAMERA) / true).reshape(32, 4, 32, 4).mean(axis=(1, 3))
    return np.std(ratio) / np.mean(ratio) / np.std(true)


def test_the_flat_of_the_sky_gets_the_fringes_of_the_sky(made, threads):
    """At most 15 % of those of the sky are left (SCIENCE 2.9); the slices, each a nm wide, leave most of them."""
    store, (plain, told), built = made
    found, note = flat(store, threads, "sky_flat")
    assert left_of(found) < 0.15
    assert left_of(plain) > 0.6
    assert any(built.pointer.version in one for one in note)
    assert any("lsstcal fringes" in one for one in told)


def test_light_that_does_not_fringe_keeps_its_flat(made, threads):
    """Light between wavelengths at which layers are known is looked at, and from the time on at which they are."""
    store, *_ = made
    line = Curve(np.array([900.0, 948, 950, 952, 1100]), np.array([0, 0, 1.0, 0, 0]), "line")
    scan = scan_of(read_cube(store.url, "c"), CAMERA)
    weights = make_weights(SKY, line, scan, None, CONFIG.synthesis.weights)
    own = (
        fringing_share(weights, CCD.center_mm, (990.0, 1036.0)),
        fringing_share(weights, CCD.center_mm, (900.0, 1036.0)),
    )
    assert own == pytest.approx((0, 1))
    known = usable(read_upstream(store.url), FRINGES, "2026-08-01")
    assert fringes_for(store, known[-1], Source(SKY, line), weights, scan)[0] is not None
    assert not usable(read_upstream(store.url), FRINGES, "2026-06-01")
    found, why = fringes_for(store, None, Source(SKY, line), weights, scan)  # before layers were known
    assert found is None
    assert "lsstcal fringes" in why


def test_slices_suffice_where_they_are_fine():
    """Fringes of 100 um of silicon are 1.2 nm apart: 0.1 nm tells them, 1 nm does not."""
    fine = np.arange(1000.0, 1010.0, 0.1)
    for step, enough in ((1, True), (10, False)):
        nm = fine[::step]
        scan = Scan(nm, np.ones(len(nm)), np.full(len(nm), 0.1 * step), np.zeros(1), np.zeros(1))
        assert slices_suffice(scan, (900.0, 1100.0), 100.0) is enough


def test_a_cube_without_red_flats_is_refused(tmp_path, threads, capsys):
    store = make_cube(tmp_path / "s", "mini1", np.arange(880.0, 910.0, 2.0))
    with pytest.raises(DegenerateSolution, match=r"cube c: 5 of its wavelengths \(880 to 908 nm\) lie beyond 900 nm"):
        make_fringes(store, CONFIG.fringes, threads, cube="c")
    status, said = run(capsys, "fringes", store.url, "--cube", "c")
    assert status != 0
    assert "add monochromatic flats" in said.err
    with pytest.raises(CalibrationError, match="cube d"):
        make_fringes(store, CONFIG.fringes, threads, cube="d")


@pytest.mark.slow
def test_even_steps_tell_layers_too(tmp_path, threads):
    """Steps of just 1 nm alias the fringes of silicon into slow ones, of which many orders are tried."""
    even = np.arange(945.0, 1036.0)
    store = make_cube(
        tmp_path / "s", "mini1", even, form="f4", change=lambda detector, k, one: fringed(detector, k, one, even)
    )
    built = make_fringes(store, CONFIG.fringes, threads, cube="c")
    assert not any("told badly" in one for one in built.pointer.remarks)
    assert left_of(flat(store, threads, "sky_flat")[0]) < 0.15


def test_the_command_publishes_layers(made, tmp_path, capsys):
    """What was made is known again."""
    store, _, built = made
    settings = tmp_path / "c.toml"
    settings.write_text('[fringes]\nbeam = "parallel"\nblocks = [16, 4]\nknots = 64.0\n')
    status, said = run(capsys, "fringes", store.url, "--cube", "c", "--config", settings, "--json")
    assert status == 0
    (row,) = json.loads(said.out)["products"]
    assert row["version"] == built.pointer.version
    assert not row["new"]
