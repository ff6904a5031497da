import numpy as np
import pytest

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate import truth
from lsstcal_dask.simulate.dark import DarkCurrent, HotPixels, warming
from lsstcal_dask.simulate.exposure import Exposure, Lamp
from lsstcal_dask.simulate.frames import charge, frames
from lsstcal_dask.simulate.observatory import Observatory
from lsstcal_dask.simulate.settings import Settings
from lsstcal_dask.simulate.temperature import Temperature, ccd_temperature, thermometer

TIME = np.datetime64("2026-07-02T06:00:00", "ms")
CAMERA = load_camera("mini9")
ONE, OTHER = CAMERA.detectors[:2]
STILL = Temperature(day=0, camera=0, ccd=0, jump=0, error=0)
WARM = STILL.model_copy(update={"offset": 5.0})


def at(settings, detector=ONE, time=TIME, seed=1):
    return ccd_temperature(seed, settings, CAMERA, detector, time)


def test_a_set_point_is_held_exactly_when_nothing_disturbs_it():
    assert at(STILL) == CAMERA.temperature == at(Temperature(on=False))
    assert at(WARM) == CAMERA.temperature + 5.0


def test_by_default_it_wanders_by_a_tenth_of_a_kelvin():
    n = 400
    seen = np.array([[at(Temperature(), d, seed=s) for d in (ONE, OTHER)] for s in range(n)]) - CAMERA.temperature
    day = 0.05 * np.cos(2 * np.pi * (6 - 19) / 24)
    variance = 0.07**2 + 0.04**2 + 0.05**2
    assert abs(seen[:, 0].mean() - day) < 4.5 * np.sqrt(variance / n)
    assert np.var(seen[:, 0]) == pytest.approx(variance, rel=4.5 * np.sqrt(2 / n))
    apart = seen[:, 0] - seen[:, 1]  # only what each CCD does by itself
    assert np.var(apart) == pytest.approx(2 * 0.04**2, rel=4.5 * np.sqrt(2 / n))
    assert np.hypot(np.sqrt(variance), 0.05 / np.sqrt(2)) == pytest.approx(0.1, abs=0.005)


def test_it_is_slow_and_jumps_when_a_period_ends():
    minute = np.timedelta64(1, "m")
    slow = Temperature(jump=0)
    changes = np.diff([at(slow, time=TIME + i * minute) for i in range(200)])
    # an Ornstein-Uhlenbeck process changes by sigma sqrt(2 dt / tau) in a short time
    step = np.hypot(0.07 * np.sqrt(2 / 60 / 24), 0.04 * np.sqrt(2 / 60 / 6))
    assert 0 < np.abs(changes).max() < 5 * step
    jumping = STILL.model_copy(update={"jump": 1.0, "jump_days": 1.0})
    days = TIME + np.arange(50) * np.timedelta64(1, "D")
    levels = [at(jumping, time=t) for t in days]
    assert len(set(levels)) == 50
    assert [at(jumping, time=t + 60 * minute) for t in days] == levels
    with pytest.raises(WrongUse, match="after 1970"):
        at(slow, time=np.datetime64("1960-01-01"))


def flat(settings, detector=ONE):
    site = Observatory(1, CAMERA, settings.only(["gain", "digitisation", "temperature"]))
    exposure = Exposure("F", 1, "flat", TIME, 10.0, 10.0, source=Lamp(1e4, 600.0))
    frame = next(frames(site, exposure, [detector]))
    return frame, site


def test_five_kelvin_change_the_gain_as_a_hand_calculates():
    """1e5 electrons: counts above the pedestal are electrons / (gain x (1 + 6.5e-4 x 5))."""
    (cold, site), (warm, _) = flat(Settings(temperature=STILL)), flat(Settings(temperature=WARM))
    for amplifier in ONE.amplifiers:
        where = (CAMERA.amplifier_names.index(amplifier.name), *amplifier.data.slices)
        own = {"detector": ONE.name, "amplifier": amplifier.name}
        gain, level = (truth.at(site, name, **own) for name in ("gain", "pedestal"))
        for frame, factor in ((cold, 1.0), (warm, 1.00325)):
            signal = frame.counts[where] - level
            np.testing.assert_allclose(signal, 1e5 / (gain * factor), atol=0.51)
        assert (cold.counts[where] - warm.counts[where]).min() > 100


def test_five_kelvin_change_every_dark_rate_as_a_hand_calculates():
    """2**(5 / 3) = 3.1748, whatever the kind of pixel and while rows wait."""
    quiet = Settings(hot_pixels=HotPixels(density=1e-2)).only(
        ["dark_current", "hot_pixels", "blinking_pixels", "temperature"]
    )
    sites = [Observatory(1, CAMERA, quiet.model_copy(update={"temperature": t})) for t in (STILL, WARM)]
    for seconds in (300.0, 0.0):  # of a bias, rows that wait are what there is
        cold, warm = (charge(site, Exposure("D", 1, "dark", TIME, 0.0, seconds), ONE) for site in sites)
        np.testing.assert_allclose(warm, 3.1748021 * cold, rtol=1e-6)
        assert cold.max() > 10 * np.median(cold) > 0


def test_doubling_is_what_generation_in_silicon_does_near_173_kelvin():
    """T**1.5 exp(-E_g / 2kT), E_g = 1.16 eV, over the five kelvin above 173.15: 3.11, and 2**(5/3) is 3.17."""
    law = (178.15 / 173.15) ** 1.5 * np.exp(1.16 / 2 / 8.617333e-5 * (1 / 173.15 - 1 / 178.15))
    assert warming(DarkCurrent(), 5.0) == pytest.approx(law, rel=0.03)


def test_files_tell_what_the_thermometer_reads():
    frame, site = flat(Settings(temperature=WARM))
    assert frame.cards["CCDTEMP"] == -95.0
    noisy = Temperature()
    true = truth.at(site, "temperature", detector=ONE.name, time=TIME)
    assert true == 178.15
    readings = np.array([thermometer(1, noisy, ONE, i, true) for i in range(300)]) + 273.15 - true
    spread = 0.02**2 + 0.01**2 / 12  # two decimals
    assert np.mean(readings**2) == pytest.approx(spread, rel=4.5 * np.sqrt(2 / 300))
    assert thermometer(1, Temperature(on=False), ONE, 1, true) == -95.0
