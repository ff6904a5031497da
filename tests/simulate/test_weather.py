import numpy as np
import pytest

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.simulate.atmosphere import Atmosphere, air
from lsstcal_dask.simulate.weather import Weather, weather

NIGHT = np.datetime64("2026-07-02T03:00")
TIMES = NIGHT + np.arange(0, 600, 2).astype("timedelta64[m]")
ATMOSPHERE = Atmosphere()


@pytest.fixture(scope="module")
def readings():
    return weather(1, Weather(), ATMOSPHERE, TIMES)


@pytest.fixture(scope="module")
def truth():
    return weather(1, Weather(on=False), ATMOSPHERE, TIMES)


def test_without_errors_the_truth_is_reported(truth):
    states = [air(1, ATMOSPHERE, time) for time in TIMES]
    assert np.array_equal(truth["pressure"], [s.pressure for s in states])
    assert np.array_equal(truth["ozone"], [s.ozone for s in states])
    for name in ("pressure", "ozone", "temperature", "wind_speed", "wind_direction"):
        assert not np.any(truth[f"{name}_error"])


def test_readings_carry_units(readings):
    units = {name: str(readings[name].unit) for name in readings.colnames}
    assert units["pressure"] == units["pressure_error"] == "hPa"
    assert units["ozone"] == "DU"
    assert units["temperature"] == "deg_C"
    assert units["wind_speed"] == "m / s"


def test_the_barometer_has_its_noise_and_offset(readings, truth):
    noise = np.array(readings["pressure"] - truth["pressure"])
    n = len(noise)
    assert abs(noise.std() / 0.3 - 1) < 4 / np.sqrt(2 * n)
    perfect = Weather(pressure_error=0.0)  # but for the offset, and in a vacuum
    offsets = [weather(s, perfect, Atmosphere(on=False), NIGHT)["pressure"][0] for s in range(150)]
    assert abs(np.std(offsets) / 0.2 - 1) < 4 / np.sqrt(300)
    assert abs(noise.mean() - offsets[1]) < 4 * 0.3 / np.sqrt(n)
    assert np.allclose(readings["pressure_error"], np.hypot(0.3, 0.2))


def test_thermometer_and_wind_vane_have_their_noise(readings, truth):
    n = len(TIMES)
    assert abs(np.std(readings["temperature"] - truth["temperature"]) / 0.2 - 1) < 4 / np.sqrt(2 * n)

    def towards(table):
        angle = np.deg2rad(np.array(table["wind_direction"]))
        return -np.array(table["wind_speed"]) * np.array([np.sin(angle), np.cos(angle)])

    assert abs(np.std(towards(readings) - towards(truth)) / 0.3 - 1) < 4 / np.sqrt(4 * n)


def test_the_climate_has_its_means():
    days = NIGHT + np.arange(0, 24 * 400, 24).astype("timedelta64[h]")
    table = weather(2, Weather(on=False, temperature_hours=3.0), ATMOSPHERE, days)
    n = len(days)
    at_night = 10 + 3 * np.cos(2 * np.pi * (3 - 19) / 24)
    assert abs(np.mean(table["temperature"]) - at_night) < 4 * 3 / np.sqrt(n)
    angle = np.deg2rad(np.array(table["wind_direction"]))
    east = -np.array(table["wind_speed"]) * np.sin(angle)
    assert abs(east.mean() + 4) < 4 * 3 / np.sqrt(n)
    assert abs(east.std() / 3 - 1) < 4 / np.sqrt(2 * n)


def test_ozone_is_seen_once_a_day():
    times = np.datetime64("2026-07-02T17:00") + np.arange(0, 49).astype("timedelta64[h]")
    table = weather(1, Weather(), ATMOSPHERE, times)
    passages = np.unique(np.array(table["ozone_time"]))
    expected = np.array(["2026-07-01T18:00", "2026-07-02T18:00", "2026-07-03T18:00"], "datetime64[us]")
    assert np.array_equal(passages, expected)
    assert len(np.unique(np.array(table["ozone"]))) == 3
    assert np.all(np.array(table["ozone_time"]) <= times)
    nights = NIGHT + np.arange(0, 24 * 300, 24).astype("timedelta64[h]")
    errors = [
        row - air(1, ATMOSPHERE, t).ozone
        for row, t in zip(weather(1, Weather(), ATMOSPHERE, nights)["ozone"], nights, strict=True)
    ]
    assert abs(np.std(errors) / 5 - 1) < 4 / np.sqrt(600)


def test_a_reading_depends_on_its_own_time_only(readings):
    again = weather(1, Weather(), ATMOSPHERE, TIMES[::-1][:7])
    for name in readings.colnames:
        assert np.array_equal(np.array(again[name]), np.array(readings[name])[::-1][:7]), name
    other = weather(2, Weather(), ATMOSPHERE, TIMES[:7])
    assert np.all(np.array(other["pressure"]) != np.array(readings["pressure"])[:7])


def test_no_times_give_no_rows():
    assert len(weather(1, Weather(), ATMOSPHERE, np.array([], "datetime64[us]"))) == 0


def test_a_time_before_1970_is_refused():
    with pytest.raises(WrongUse, match="use a time after 1970"):
        weather(1, Weather(), ATMOSPHERE, np.datetime64("1950-01-01"))
