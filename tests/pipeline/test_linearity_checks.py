"""The three checks of linearity in a store of simulated visits and flats: right curves pass, none at all fails."""

import json
import shutil

import numpy as np
import pytest
import xarray as xr
from making import SEED, exposure, run_command

from lsstcal_dask.instrument import Frame, load_camera, write_frame
from lsstcal_dask.pipeline.build import build
from lsstcal_dask.pipeline.calibrate import calibrate
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.exchange import import_files
from lsstcal_dask.pipeline.ingest import ingest
from lsstcal_dask.pipeline.linearity_checks import choose_checks
from lsstcal_dask.pipeline.store import create_store, open_store
from lsstcal_dask.pipeline.upstream import read_upstream
from lsstcal_dask.pipeline.verify import verify
from lsstcal_dask.simulate import Observatory, Settings
from lsstcal_dask.simulate.electronics import read_out
from lsstcal_dask.simulate.frames import charge, frames
from lsstcal_dask.simulate.headers import header
from lsstcal_dask.simulate.linearity import Nonlinearity, linearity_truth
from lsstcal_dask.simulate.stars import PSF, Stars
from lsstcal_dask.simulate.truth import at
from lsstcal_dask.storage.rubin.linearizer import write_linearizer
from lsstcal_dask.storage.rubin.ptc import PhotonTransfer, labelled, write_ptc
from lsstcal_dask.verify.linearity import size_against_light
from lsstcal_dask.verify.slopes import METRICS
from lsstcal_dask.verify.stars import measure_stars

NAME = "R22_S11"
DATE = "2026-07-01T12:00:00"
SKIP = ["bias", "crosstalk", "deferred", "dark", "saturation", "defects"]
SECONDS = (8.0, 12.0, 20.0, 30.0, 40.0, 50.0)  # 300 to 1800 electrons of sky
LEVELS = np.geomspace(3e3, 9e4, 12)  # electrons
SLOPES = (
    "calibrated: star flux against sky",
    "calibrated: star flux against sky, amplifier",
    "calibrated: star size against peak and sky",
    "linearity: flat levels of amplifiers",
)


def observatory(*more):
    """A CCD with forty bright stars that stand alone, whose channels are up to 5 % off linear; no clouds."""
    stars = Stars(density=4e5, slope=0.1, bright=17.5, faint=20.5, variables=0.0, emission=0.0)
    settings = Settings(stars=stars, psf=PSF(seeing=0.5, system=0.2, scatter=0.05))
    settings = settings.model_copy(update={"nonlinearity": Nonlinearity(smooth=0.05)})
    on = ["stars", "psf", "airglow", "shot_noise", "quantum_efficiency", "filters", "mirrors"]
    on += ["read_noise", "gain", "digitisation", "nonlinearity"]
    return Observatory(SEED, load_camera("mini9"), settings.only([*on, *more]))


def visit(number, seconds):
    return exposure(number, "science", seconds)


def flat(site, number, level):
    """Raw frame of an even flat: an exposure of the lamp, its electrons drawn here."""
    detector = site.camera.detector(NAME)
    taken = exposure(number, "flat", level / 1e4)
    shape = (len(site.camera.amplifier_names), *site.camera.raw_shape)
    light = np.zeros(shape, np.float32)
    box = detector.amplifiers[0].data.slices
    light[(slice(None), *box)] = np.random.default_rng(number).poisson(level, light[(slice(None), *box)].shape)
    counts = read_out(site.seed, site.settings.electronics, site.camera, detector, number, light)
    return Frame(taken.name, NAME, header(site, taken), {}, counts, site.camera.amplifier_names)


def curves(site, right):
    """True curve of each channel, or level ones."""
    detector, nodes = site.camera.detector(NAME), np.linspace(0, 9e4, 60)
    nodes = np.insert(nodes, 1, [50.0, 200.0, 700.0])
    level = np.tile(nodes, (len(detector.amplifiers), 1))
    correction = np.zeros_like(level)
    if right:
        settings = site.settings.nonlinearity
        correction = np.stack([linearity_truth(site.seed, settings, detector, i, m) - m for i, m in enumerate(level)])
    values = {"level": level, "correction": correction, "error": np.zeros_like(level)}
    found = xr.Dataset({f"linearity_{k}": (("amplifier", "node"), v) for k, v in values.items()})
    found["linearity_ceiling"] = ("amplifier", np.full(len(level), 9e4))
    return found.assign_coords(amplifier=[a.name for a in detector.amplifiers])


def deliver(store, site, folder, right, threads):
    """Import gains, which are true, and curves."""
    detector, names = site.camera.detector(NAME), [a.name for a in site.camera.detector(NAME).amplifiers]
    gains = np.array([at(site, "gain", detector=NAME, amplifier=name) for name in names])
    unknown = np.full(len(names), np.nan)
    write_ptc(
        folder / "gain.ecsv",
        PhotonTransfer(
            NAME, labelled({"gain": gains}, detector), unknown, unknown, np.full((len(names), 1, 1), np.nan)
        ),
        site.camera,
        DATE,
    )
    path = folder / f"curve{int(right)}.ecsv"
    write_linearizer(path, curves(site, right), (site.camera, detector), DATE)
    for product, file in (("gain", folder / "gain.ecsv"), ("linearity", path)):
        assert not import_files(store, product, [str(file)], threads).errors
    for _, done in calibrate(store, [], Config().calibrate, threads, skip=SKIP):
        assert not done.errors


@pytest.fixture(scope="module")
def made(tmp_path_factory, threads):
    """A store with visits and flats of one CCD, and true curves; its observatory, and a folder."""
    folder, site = tmp_path_factory.mktemp("checks"), observatory()
    store = create_store(folder / "s", "mini9")
    shown = [next(frames(site, visit(40 + i, t), [site.camera.detector(NAME)])) for i, t in enumerate(SECONDS)]
    shown += [flat(site, 60 + i, level) for i, level in enumerate(LEVELS)]
    paths = [folder / f"{frame.exposure}.fits" for frame in shown]
    for path, frame in zip(paths, shown, strict=True):
        write_frame(path, site.camera, frame, compress=False)
    assert not ingest(store, [str(path) for path in paths], threads).errors
    return store, site, folder


@pytest.fixture(scope="module")
def judged(made, threads):
    """What is found with the true curves, and then with none."""
    store, site, folder = made
    found = []
    for right in (True, False):
        deliver(store, site, folder, right, threads)
        found.append({result.metric.key: result for result in verify(store, threads).results})
    return found


def test_true_curves_pass(judged):
    found, _ = judged
    assert {key: found[key].verdict for key in SLOPES} == dict.fromkeys(SLOPES, "PASS")
    size = found["calibrated: star size against peak"]
    assert size.verdict == "PASS"  # there is no brighter-fatter here: zero is within its limits too
    assert abs(size.median) < 4 * size.error


def test_without_a_correction_they_fail(judged):
    """The slopes are far outside, and several times as large as with the curves."""
    right, none = judged
    for key in ("calibrated: star flux against sky, amplifier", "linearity: flat levels of amplifiers"):
        assert none[key].verdict == "FAIL"
        assert np.nanmax(np.abs(none[key].judged)) > 2 * max(4.0, float(np.nanmax(np.abs(right[key].judged))))
    size = "calibrated: star size against peak"
    assert abs(none[size].median) > abs(right[size].median)


def test_each_slope_has_its_error(judged, made, capsys):
    store, _, _ = made
    code, said = run_command(capsys, "verify", store.url, "--json")
    assert code == 1
    rows = {f"{row['product']}: {row['metric']}": row for row in json.loads(said.out)["metrics"]}
    for key in SLOPES:
        row = rows[key]
        assert (row["limits_in"], row["limits"]) == ("errors", [-4.0, 4.0])
        assert "Sec. 2.3" in row["source"]
        measured = [value for value in row["errors"][NAME].values() if value is not None]
        assert measured
        assert min(measured) > 0
    assert rows["calibrated: star size against peak"]["limits_in"] == "values"
    assert "brighter-fatter" in rows["calibrated: star size against peak"]["source"]
    _, said = run_command(capsys, "verify", store.url)

    line = next(text for text in said.out.splitlines() if "flat levels of amplifiers" in text)
    assert "±" in line
    assert "-4 .. 4 sigma" in line


def test_the_flats_that_made_the_curves_are_used_for_want_of_others(made):
    store, _, _ = made
    upstream = read_upstream(store.url)
    checks = choose_checks(store, upstream, None)
    assert len(checks.visits) == len(SECONDS)
    assert len(checks.flats) == len(LEVELS)
    assert not checks.known


def test_what_does_not_suffice_is_told(ingested, threads, tmp_path):
    """One visit and six flats: no slope, and why not."""
    shutil.copytree(ingested.url, tmp_path / "s")
    store = open_store(tmp_path / "s")
    assert not [e for _, one in build(store, ["bias", "gain"], Config(), threads) for e in one.errors]
    skip = [name for name in SKIP if name != "bias"] + ["linearity"]
    ((_, done),) = calibrate(store, [], Config().calibrate, threads, skip=skip)
    assert not done.errors
    why = verify(store, threads, product="calibrated").not_measured
    assert "exposures of the same stars, at least 4 are needed" in why[SLOPES[0]]
    assert "stars" in why["calibrated: star size against peak"]


def test_brighter_fatter_is_what_the_size_shows():
    """Stars of an exposure grow with their peak, by 0.1 to 0.3 pixel**2 at 1e5 electrons; without it they do not."""
    metric = next(one for one in METRICS if one.name == "star size against peak")
    for more, grows in (((), False), (("brighter_fatter",), True)):
        site = observatory(*more)
        image = charge(site, visit(44, 40.0), site.camera.detector(NAME))
        stars = measure_stars(image, image + 30.0, np.ones(image.shape, bool))
        assert len(stars) > 20
        one = np.zeros(len(stars), int)
        slope, change = size_against_light(stars["size"], stars["size_error"], stars["peak"] / 1e5, one, one + 1.0)
        assert change is None
        assert (slope.value > 4 * slope.error) == grows
        assert (0.1 < slope.value < 0.3) == grows
        assert metric.aim[0] < slope.value < metric.aim[1]
