"""The three checks of linearity in a store of simulated visits and flats: right curves pass, none at all fails."""

import numpy as np
import pytest
import xarray as xr
from making import SEED, exposure

from lsstcal_dask.instrument import load_camera, write_frame
from lsstcal_dask.pipeline.build import build
from lsstcal_dask.pipeline.calibrate import calibrate
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.exchange import import_files
from lsstcal_dask.pipeline.ingest import ingest
from lsstcal_dask.pipeline.linearity_checks import choose_checks
from lsstcal_dask.pipeline.store import create_store
from lsstcal_dask.pipeline.upstream import read_upstream
from lsstcal_dask.pipeline.verify import print_acceptance, verify
from lsstcal_dask.simulate import Observatory, Settings
from lsstcal_dask.simulate.frames import charge, frames
from lsstcal_dask.simulate.linearity import Nonlinearity, linearity_truth
from lsstcal_dask.simulate.stars import PSF, Stars
from lsstcal_dask.simulate.truth import at
from lsstcal_dask.storage.rubin.linearizer import write_linearizer
from lsstcal_dask.storage.rubin.ptc import PhotonTransfer, labelled, write_ptc
from lsstcal_dask.verify.acceptance import as_json
from lsstcal_dask.verify.linearity import size_against_light
from lsstcal_dask.verify.slopes import METRICS
from lsstcal_dask.verify.stars import measure_stars

NAME = "R22_S11"
DATE = "2026-07-01T12:00:00"
SKIP = ["crosstalk", "deferred", "dark", "saturation", "defects"]
SECONDS = (8.0, 12.0, 20.0, 30.0, 40.0, 50.0)
LEVELS = np.geomspace(3e3, 9e4, 12)  # electrons
SLOPES = (
    "calibrated: star flux against sky",
    "calibrated: star flux against sky, amplifier",
    "calibrated: star size against peak and sky",
    "linearity: flat levels of amplifiers",
)


def observatory(*without):
    """A CCD with forty bright stars that stand alone, whose channels are up to 5 % off linear; no clouds."""
    stars = Stars(density=4e5, slope=0.1, bright=17.5, faint=20.5, variables=0.0, emission=0.0)
    psf, bent = PSF(seeing=0.5, system=0.2, scatter=0.05), Nonlinearity(smooth=0.05)
    settings = Settings(stars=stars, psf=psf, nonlinearity=bent).without(["clouds", *without])
    return Observatory(SEED, load_camera("mini9"), settings)


def visit(number, seconds):
    return exposure(number, "science", seconds)


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
    taken = [exposure(number, "bias") for number in range(1, 7)]
    taken += [visit(40 + i, seconds) for i, seconds in enumerate(SECONDS)]
    taken += [exposure(60 + i, "flat", level / 1e4) for i, level in enumerate(LEVELS)]
    shown = [next(frames(site, one, [site.camera.detector(NAME)])) for one in taken]
    paths = [folder / f"{frame.exposure}.fits" for frame in shown]
    for path, frame in zip(paths, shown, strict=True):
        write_frame(path, site.camera, frame, compress=False)
    assert not ingest(store, [str(path) for path in paths], threads).errors
    ((_, bias),) = build(store, ["bias"], Config(), threads)
    assert not bias.errors
    return store, site, folder


@pytest.fixture(scope="module")
def judged(made, threads):
    """What is found with the true curves, and then with none."""
    store, site, folder = made
    found = []
    for right in (True, False):
        deliver(store, site, folder, right, threads)
        found.append(verify(store, threads))
    return found


def by_key(found):
    return {result.metric.key: result for result in found.results}


def test_true_curves_pass(judged):
    found = by_key(judged[0])
    assert {key: found[key].verdict for key in SLOPES} == dict.fromkeys(SLOPES, "PASS")
    size = found["calibrated: star size against peak"]
    assert size.verdict == "PASS"
    assert size.median > 4 * size.error  # brighter-fatter


def test_without_a_correction_they_fail(judged):
    """The slopes are far outside, and several times as large as with the curves."""
    right, none = map(by_key, judged)
    for key in ("calibrated: star flux against sky, amplifier", "linearity: flat levels of amplifiers"):
        assert none[key].verdict == "FAIL"
        assert np.nanmax(np.abs(none[key].judged)) > 2 * max(4.0, float(np.nanmax(np.abs(right[key].judged))))


def test_each_slope_has_its_error(judged, capsys):
    """In JSON, and in the table; the limits are multiples of it."""
    rows = {f"{row['product']}: {row['metric']}": row for row in as_json(judged[1])["metrics"]}
    for key in SLOPES:
        row = rows[key]
        assert (row["limits_in"], row["limits"]) == ("errors", [-4.0, 4.0])
        assert "Sec. 2.3" in row["source"]
        measured = [value for value in row["errors"][NAME].values() if value is not None]
        assert measured
        assert min(measured) > 0
    assert rows["calibrated: star size against peak"]["limits_in"] == "values"
    assert "brighter-fatter" in rows["calibrated: star size against peak"]["source"]
    print_acceptance(judged[1])
    line = next(text for text in capsys.readouterr().out.splitlines() if "flat levels of amplifiers" in text)
    assert "±" in line
    assert "-4 .. 4 sigma" in line


def test_the_flats_that_made_the_curves_are_used_for_want_of_others(made):
    store, _, _ = made
    upstream = read_upstream(store.url)
    checks = choose_checks(store, upstream, None)
    assert len(checks.visits) == len(SECONDS)
    assert len(checks.flats) == len(LEVELS)


def test_brighter_fatter_is_what_the_size_shows():
    """Stars of an exposure grow with their peak, by 0.1 to 0.3 pixel**2 at 1e5 electrons; without it they do not."""
    metric = next(one for one in METRICS if one.name == "star size against peak")
    for without, grows in ((("brighter_fatter",), False), ((), True)):
        site = observatory(*without)
        image = charge(site, visit(44, 40.0), site.camera.detector(NAME))
        stars = measure_stars(image, image + 30.0, np.ones(image.shape, bool))
        assert len(stars) > 20
        one = np.zeros(len(stars), int)
        slope, change = size_against_light(stars["size"], stars["size_error"], stars["peak"] / 1e5, one, one + 1.0)
        assert change is None
        assert (slope.value > 4 * slope.error) == grows
        assert (0.1 < slope.value < 0.3) == grows
        assert metric.aim[0] < slope.value < metric.aim[1]
