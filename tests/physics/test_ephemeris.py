"""Altitudes of sun and moon, against what holds by geometry and against the simulator's other formulae."""

import numpy as np
import pytest

from lsstcal_dask.physics.ephemeris import RUBIN, altitudes
from lsstcal_dask.simulate.moon import place


def test_the_sun_culminates_as_high_as_the_season_says():
    day = np.datetime64("2026-06-21") + np.arange(1440).astype("timedelta64[m]")
    sun, _ = altitudes(day)
    assert sun.max() == pytest.approx(90 + RUBIN[0] - 23.44, abs=0.05)
    noon = np.argmax(sun) / 60
    assert noon == pytest.approx(12 - RUBIN[1] / 15, abs=0.05)  # the sun is two minutes late
    assert sun.min() == pytest.approx(-90 + abs(RUBIN[0] + 23.44), abs=0.05)


def test_moon_and_sun_meet_in_an_eclipse():
    """That of 2 July 2019 was total over the observatories of Chile at 20:39 UTC, 13 deg above the horizon."""
    sun, moon = altitudes(np.array(["2019-07-02T20:39"], "datetime64[m]"))
    assert moon[0] == pytest.approx(sun[0], abs=0.2)
    assert sun[0] == pytest.approx(13, abs=0.5)


def test_the_moon_is_where_other_formulae_have_it():
    """These are good to 0.3 deg and leave out the parallax of a degree."""
    times = np.datetime64("2026-07-01") + (np.arange(300) * 2.3 * 60).astype("timedelta64[m]")
    _, moon = altitudes(times)
    assert np.abs(moon - [place(t)[0] for t in times]).max() < 1.4
