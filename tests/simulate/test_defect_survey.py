"""The delivered list of defects: what is left out, put in and merged, each by hand or by its statistics."""

import numpy as np
import pytest
from pydantic import ValidationError

from lsstcal_dask.instrument import load_camera
from lsstcal_dask.simulate.defect_survey import DefectSurvey, listed
from lsstcal_dask.simulate.defects import DEFECT, BadPixels, defect_list

DETECTOR = load_camera("mini1").detectors[0]
EXACT = DefectSurvey(missed=0, false=0, gap=0)
MANY = BadPixels(cold=2e-3, dark_columns=0.02, bright_columns=0.03, traps=1e-3)


def defects(*rows):
    return np.array(list(rows), DEFECT)


def boxes(found):
    return [tuple(row)[:5] for row in found.tolist()]


def test_weak_defects_are_not_seen():
    strong = defects(
        (1, 2, 1, 1, "cold", 0.79),
        (10, 0, 1, 64, "dark column", 0.3),
        (30, 0, 1, 64, "bright column", 5.0),
        (4, 4, 1, 1, "trap", 200.0),
    )
    weak = defects(
        (3, 2, 1, 1, "cold", 0.81),
        (20, 0, 1, 64, "dark column", 0.9),
        (40, 0, 1, 64, "bright column", 4.9),
        (5, 4, 1, 1, "trap", 199.0),
    )
    found = listed(1, EXACT, DETECTOR, np.concatenate([strong, weak]))
    assert found.tolist() == strong.tolist()
    lower = EXACT.model_copy(update={"dim": 0.85, "bright": 4.0, "trap": 100.0})
    assert len(listed(1, lower, DETECTOR, np.concatenate([strong, weak]))) == 7  # the column of 0.9 is left


def test_columns_near_each_other_are_one_box():
    found = defects(
        (10, 20, 1, 44, "bright column", 50.0),
        (13, 0, 1, 64, "bright column", 9.0),  # two good columns between them
        (17, 0, 1, 64, "bright column", 9.0),  # three
        (11, 64, 1, 64, "bright column", 9.0),  # the other half of the CCD
        (12, 0, 1, 64, "dark column", 0.1),  # another kind
    )
    merged = listed(1, EXACT.model_copy(update={"gap": 2}), DETECTOR, found)
    assert boxes(merged) == [
        (12, 0, 1, 64, "dark column"),
        (10, 0, 4, 64, "bright column"),
        (11, 64, 1, 64, "bright column"),
        (17, 0, 1, 64, "bright column"),
    ]
    assert sorted(boxes(listed(1, EXACT, DETECTOR, found))) == sorted(boxes(found))


def test_as_many_are_missed_and_added_as_was_set():
    settings, n = DefectSurvey(missed=0.2, false=5e-4, gap=0), 60
    points = MANY.model_copy(update={"dark_columns": 0.0, "bright_columns": 0.0})  # neighbours would merge
    true = [defect_list(seed, points, DETECTOR) for seed in range(n)]
    seen = [listed(seed, EXACT, DETECTOR, one) for seed, one in enumerate(true)]
    told = [listed(seed, settings, DETECTOR, one) for seed, one in enumerate(true)]
    false = [np.isnan(one["value"]) for one in told]
    count, real = sum(map(len, seen)), sum(int((~one).sum()) for one in false)
    assert abs(real - 0.8 * count) < 4 * np.sqrt(0.16 * count)
    added, mean = sum(int(one.sum()) for one in false), n * 5e-4 * 128 * 128
    assert abs(added - mean) < 4 * np.sqrt(mean)
    for one, wrong, all_of in zip(told, false, true, strict=True):
        assert set(boxes(one[~wrong])) <= set(boxes(all_of))
        assert set(one["kind"][wrong]) <= {"cold"}
        assert (one["x0"][wrong] < 128).all()
        assert (one["y0"][wrong] < 128).all()


def test_the_same_list_again_another_elsewhere_and_the_truth_when_switched_off():
    true = defect_list(2, MANY, DETECTOR)
    settings = DefectSurvey(missed=0.3)
    first, again, other = (listed(seed, settings, DETECTOR, true) for seed in (2, 2, 3))
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert listed(2, DefectSurvey(on=False), DETECTOR, true) is true
    assert len(listed(2, settings, DETECTOR, true[:0])) <= 1


def test_numbers_that_cannot_be_are_refused():
    for wrong in ({"missed": 1.5}, {"false": -1.0}, {"gap": -1}, {"dim": 2.0}, {"thresh": 1.0}):
        with pytest.raises(ValidationError):
            DefectSurvey(**wrong)
