"""Every effect is live: without it the observatory gives something else; without all of them it gives whole numbers."""

from functools import cache

import numpy as np
import pytest
from pydantic import ValidationError

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate.atmosphere import Clouds
from lsstcal_dask.simulate.cosmics import CosmicRays
from lsstcal_dask.simulate.dark import BlinkingPixels, HotPixels
from lsstcal_dask.simulate.defects import BadPixels
from lsstcal_dask.simulate.deliveries import deliveries
from lsstcal_dask.simulate.dust import Dust
from lsstcal_dask.simulate.effect import Effect
from lsstcal_dask.simulate.electronics import channel
from lsstcal_dask.simulate.exposure import Exposure, Lamp, Pointing, Projection, Sinusoid, XRays
from lsstcal_dask.simulate.frames import frames
from lsstcal_dask.simulate.headers import header
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.persistence import Persistence
from lsstcal_dask.simulate.settings import Settings
from lsstcal_dask.simulate.spectrograph import observe
from lsstcal_dask.simulate.stars import Stars
from lsstcal_dask.simulate.weather import weather

CAMERA = load_camera("mini1")
DETECTOR = CAMERA.detectors[0]
MOONLIT = np.datetime64("2026-07-02T06:00:00", "ms")
# 128 pixels in a square hold few of what is rare in four thousand
CROWDED = Settings(
    hot_pixels=HotPixels(density=1e-3),
    blinking_pixels=BlinkingPixels(density=1e-2),
    bad_pixels=BadPixels(cold=1e-3, traps=1e-3),
    dust=Dust(window_motes=3000),
    clouds=Clouds(photometric=0.0),
    cosmic_rays=CosmicRays(rate=30.0),
    stars=Stars(density_scale=5.0),
    persistence=Persistence(on=True, other=1e-3),
)
EXPOSURES = {
    "bias": Exposure("B", 1, "bias", MOONLIT, 0.0, 0.0),
    "dark": Exposure("D", 2, "dark", MOONLIT, 0.0, 3000.0),
    "fe55": Exposure("X", 3, "fe55", MOONLIT, 10.0, 10.0, source=XRays(1e-2)),
    "flat": Exposure("F", 4, "flat", MOONLIT, 10.0, 10.0, "z", Lamp(5e4, 930.0)),
    "full": Exposure("G", 5, "flat", MOONLIT, 100.0, 100.0, "none", Lamp(1e4, 600.0)),
    "cbp": Exposure(
        "C", 6, "cbp", MOONLIT, 10.0, 10.0, "r", Projection("single", 600.0, 1.0, 0, 0, 0, (3.0, 0.0), 1e6)
    ),
    "sinusoid": Exposure(
        "W", 8, "sinusoid", MOONLIT, 10.0, 10.0, source=Sinusoid(1e3, 600.0, 1.0, 4.0, 90.0, 30.0, (3.0, 0.0))
    ),
    "science": Exposure("S", 7, "science", MOONLIT, 30.0, 30.0, "r", Pointing(50.0, -30.0, 70.0, 30.0)),
}
BRIGHT = Exposure("H", 8, "flat", MOONLIT, 10.0, 10.0, "none", Lamp(2e4, 600.0))
EXPOSURES["after"] = Exposure("A", 9, "dark", MOONLIT + np.timedelta64(15, "s"), 10.0, 10.0, previous=BRIGHT)
SEEN_IN = {
    **dict.fromkeys(("bias_structure", "overscan_drift", "read_noise"), "bias"),
    **dict.fromkeys(("deferred", "temperature"), "flat"),
    "persistence": "after",
    **dict.fromkeys(("gain", "nonlinearity", "crosstalk", "bad_pixels", "brighter_fatter", "shot_noise"), "flat"),
    **dict.fromkeys(("tree_rings", "edge_distortion", "pixel_jitter"), "flat"),
    **dict.fromkeys(("quantum_efficiency", "fringing", "mirrors", "vignetting", "filters", "dust"), "flat"),
    **dict.fromkeys(("ghosts", "scatter", "screen", "laser", "lamp_drift"), "flat"),
    **dict.fromkeys(("dark_current", "hot_pixels", "blinking_pixels", "cosmic_rays"), "dark"),
    **dict.fromkeys(("saturation", "serial_clamp", "digitisation"), "full"),
    "xrays": "fe55",
    "projector": "cbp",
    "sinusoids": "sinusoid",
    **dict.fromkeys(("atmosphere", "clouds", "airglow", "moon", "stars", "psf"), "science"),
}
TABLES = ("photodiode", "spectrograph", "weather", "defect_survey")


def counts(settings, kind):
    return next(frames(Observatory(3, CAMERA, settings), EXPOSURES[kind], [DETECTOR])).counts


def base(name):
    """All effects; what pixels let through fills no register, and what a register lets through no converter."""
    full = {"serial_clamp": ["saturation"], "digitisation": ["saturation", "serial_clamp"]}
    return CROWDED.without(full.get(name, []))


@cache
def with_all(settings, kind):
    return counts(settings, kind)


def test_every_effect_is_accounted_for():
    assert {*SEEN_IN, *TABLES} == set(Settings.model_fields)


@pytest.mark.parametrize("name", SEEN_IN)
def test_switching_an_effect_off_changes_the_counts(name):
    kind = SEEN_IN[name]
    without = counts(base(name).without([name]), kind)
    assert not np.array_equal(without, with_all(base(name), kind))


@pytest.mark.parametrize("name", TABLES)
def test_switching_an_effect_off_changes_what_is_delivered(name):
    wavelength = np.arange(320.0, 1090.0, 0.2)

    def delivered(s):
        if name == "photodiode":
            return header(Observatory(3, CAMERA, s), EXPOSURES["flat"])["photodiode"]
        if name == "spectrograph":
            flat = np.full(wavelength.size, 1e4)
            return float(observe(3, s.spectrograph, 7, wavelength, flat, 30.0, flat)["flux"].sum())
        if name == "defect_survey":
            made = deliveries("calibration-day", [])["defects"](Observatory(3, CAMERA, s))
            return [tuple(row) for row in made]
        return float(weather(3, s.weather, s.atmosphere, np.array([MOONLIT]))["pressure"][0])

    assert delivered(CROWDED) != delivered(CROWDED.without([name]))


@pytest.mark.parametrize("kind", EXPOSURES)
def test_without_any_effect_counts_are_what_a_hand_calculates(kind):
    nothing = Settings().only([])
    found = counts(nothing, kind)
    source, seconds = EXPOSURES[kind].source, EXPOSURES[kind].exposure_time
    light = np.full(DETECTOR.shape, source.rate * seconds if isinstance(source, Lamp) else 0.0)
    if kind == "sinusoid":  # a quarter of a turn from row to row; the axis lies between rows 63 and 64
        phase = np.pi / 2 * (np.arange(128) - 63.5) + np.pi / 6
        light += (1e4 * (1 + np.sinc(1 / 4) * np.cos(phase)))[:, None]
    for i, amplifier in enumerate(DETECTOR.amplifiers):
        level = channel(3, nothing.electronics, CAMERA, DETECTOR, i).pedestal
        wanted = np.full(CAMERA.raw_shape, np.rint(level), np.int32)
        (x, y), (ny, nx) = amplifier.position, amplifier.data.shape
        own = light[y : y + ny, x : x + nx][:: -1 if amplifier.flip_y else 1, :: -1 if amplifier.flip_x else 1]
        wanted[amplifier.data.slices] = np.rint(level + own)  # one electron, one adu
        mine = found[CAMERA.amplifier_names.index(amplifier.name)]
        if kind == "cbp":
            signal = (mine - level)[amplifier.data.slices]
            quarter = source.rate * seconds / 4  # the spot lies on the corner that the four share
            assert signal.sum() == pytest.approx(quarter, abs=0.5 * signal.size**0.5 + 1e-3 * quarter)
        else:
            np.testing.assert_array_equal(mine, wanted)


def test_only_keeps_those_effects_and_without_drops_them():
    on = {name for name in Settings.model_fields if getattr(Settings().only(["gain", "stars"]), name).on}
    assert on == {"gain", "stars"}
    off = {name for name in Settings.model_fields if not getattr(Settings().without(["moon"]), name).on}
    assert off == {"moon", "persistence"}  # which is off unless it is asked for
    assert Settings().only(["persistence"]).persistence.on
    kept = Settings(stars=Stars(density=5.0)).without(["stars"])
    assert kept.stars == Stars(density=5.0, on=False)
    assert Settings().without(iter(["moon"])) == Settings().without(["moon"])


@pytest.mark.parametrize("method", [Settings.only, Settings.without])
def test_unknown_effects_are_refused_by_name(method):
    with pytest.raises(WrongUse, match=r"no effect 'brighter_fater': use .*brighter_fatter"):
        method(Settings(), ["gain", "brighter_fater"])


def test_settings_of_no_effect_and_wrong_values_are_refused():
    with pytest.raises(ValidationError, match="extra"):
        Settings(gains={})
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Settings(gain={"scatter": -1.0})
    with pytest.raises(ValidationError, match="frozen"):
        Settings().gain = Settings().gain


def test_every_field_is_an_effect_and_electronics_take_theirs():
    settings = Settings().without(["gain"])
    assert all(isinstance(getattr(settings, name), Effect) for name in Settings.model_fields)
    assert settings.electronics.gain is settings.gain
    assert settings.electronics.crosstalk is settings.crosstalk
    assert hash(settings) == hash(Settings().without(["gain"])) != hash(Settings())
