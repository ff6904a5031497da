"""Verdicts of targets, the error of what was measured, and how rows are kept, shown and judged."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from lsstcal_dask import cli
from lsstcal_dask.errors import CalibrationError, WrongUse
from lsstcal_dask.pipeline import closed
from lsstcal_dask.pipeline.closed import Target, registry
from lsstcal_dask.pipeline.closed.target import pulls, ratio, rms, share
from lsstcal_dask.pipeline.store import create_store, open_store
from lsstcal_dask.pipeline.verify import verify
from lsstcal_dask.verify.report import report


def target(measured, error=0.0, low=-np.inf, high=1.05, best=np.nan):
    return Target("2.1", "eta", "adu", low, high, measured, error, 10, best)


@pytest.mark.parametrize(
    ("one", "verdict"),
    [
        (target(1.00, 0.01), "pass"),
        (target(1.04, 0.02), "undecided"),
        (target(1.06, 0.02), "undecided"),
        (target(1.08, 0.02), "fail"),
        (target(1.05), "pass"),
        (target(np.nan), "fail"),
        (target(1.0, np.nan), "undecided"),
        (target(0.95, 0.01, 0.9, 1.1), "pass"),
        (target(0.905, 0.01, 0.9, 1.1), "undecided"),
        (target(0.85, 0.01, 0.9, 1.1), "fail"),
        (target(0.0, 0.0, 0.0, 0.0), "pass"),
        (target(1e-9, 0.0, 0.0, 0.0), "fail"),
        (target(1.3, 0.01, best=1.2), "forbidden"),
        (target(1.6, 0.01, best=1.2), "fail"),
        (target(1.3, 0.01, best=1.0), "fail"),
        (target(1.0, 0.01, best=1.0), "pass"),
        (target(1.0, 0.01, high=np.inf), "told"),
    ],
)
def test_two_sided_verdicts(one, verdict):
    assert one.verdict == verdict
    assert closed.from_json(json.loads(json.dumps(one.as_json()))).verdict == verdict


def test_the_worst_verdict_is_that_of_all():
    assert closed.verdict_of([target(1.0), target(1.04, 0.02)]) == "undecided"
    assert closed.verdict_of([target(1.0), target(1.04, 0.02), target(2.0)]) == "fail"
    assert closed.verdict_of([]) == "pass"


def test_errors_from_seed_to_seed():
    """Of Gaussian numbers the error of an rms is 1 / sqrt(2 n) of it; of numbers that a seed shares, n is of seeds.

    400 seeds tell a standard deviation to 3.5 %, 4 sigma of which are allowed.
    """
    random = np.random.default_rng(1)
    independent = random.normal(0, 2, (400, 50))
    value, error = ratio(independent, np.array(2.0))
    assert abs(value - 1) < 4 * error
    assert error == pytest.approx(1 / np.sqrt(2 * independent.size), rel=0.15)
    shared = np.repeat(random.normal(0, 2, (400, 1)), 50, axis=1)
    assert ratio(shared, np.array(2.0))[1] == pytest.approx(1 / np.sqrt(2 * 400), rel=0.3)
    assert ratio(independent[:1], np.array(2.0))[1] == pytest.approx(1 / np.sqrt(2 * 50), rel=0.5)
    assert ratio(np.zeros((3, 4)), np.array(1.0)) == (0, 0)
    assert np.isnan(share(0, 0)[0])
    width, centre = pulls("2.1", "x", random.normal(0.2, 1.2, (40, 50)))
    assert (width.verdict, centre.verdict) == ("fail", "pass")


@pytest.fixture
def loops(monkeypatch):
    """Two loops that are no work: one meets its targets, the other misses one."""

    class Good:
        SEEDS = 7

        @staticmethod
        def measure(seeds):
            return [Target("2.1", "good <thing>", "", -np.inf, 1.05, 1.0, 0.01, seeds)]

    class Bad:
        SEEDS = 3

        @staticmethod
        def measure(seeds):
            return [Target("2.4", "bad thing", "adu", 0.9, 1.0, 0.5, 0.01, seeds)]

    modules = {"good": Good, "bad": Bad}
    monkeypatch.setattr(registry, "LOOPS", tuple(modules))
    monkeypatch.setattr(registry, "import_module", lambda name: modules[name.rpartition(".")[2]])


def run(*arguments):
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


def test_rows_are_kept_and_shown_from_then_on(loops, tmp_path):
    url = create_store(tmp_path / "s", "mini1").url
    code, out, err = run("verify", url, "--closed-loop", "good", "--seeds", 5)
    assert (code, err) == (0, "closed loop good: pass\n")
    assert "1 ± 0.01" in out
    assert "good <thing>" in out
    assert [one.seeds for one in closed.kept(url)["good"]] == [5]
    assert run("verify", url)[0] == 0
    code, out, _ = run("verify", url, "--closed-loop", "all", "--json")
    assert code == 1
    made = json.loads(out)
    assert made["verdict"] == "FAIL"
    rows = made["closed_loops"]
    assert [(row["target"], row["value"], row["verdict"], row["seeds"]) for row in rows["bad"]] == [
        ("0.9 .. 1", "0.5 ± 0.01", "fail", 3)
    ]
    assert rows["good"][0]["seeds"] == 7
    code, out, _ = run("verify", url, "--product", "bias", "--closed-loop", "bad")
    assert code == 1
    assert "bad thing" in out
    assert "good <thing>" not in out
    code, out, _ = run("verify", url, "--output", tmp_path / "r.html")
    assert code == 1
    assert "bad thing (adu)" in out
    page = (tmp_path / "r.html").read_text()
    assert "good &lt;thing&gt;" in page
    assert 'class="v fail"' in page
    assert "0.5 ± 0.01" in page


def test_a_loop_that_is_not_there_or_breaks(loops, tmp_path, threads, monkeypatch):
    store = create_store(tmp_path / "s", "mini1")
    with pytest.raises(WrongUse, match="there is no closed loop 'ugly': choose from good, bad, or all"):
        closed.chosen(["good", "ugly"])
    assert closed.chosen(["bad", "good", "bad"]) == ["good", "bad"]

    def broken(name):
        raise ValueError("no light")

    monkeypatch.setattr(registry, "import_module", broken)
    with pytest.raises(CalibrationError, match="closed loop good: no light"):
        list(closed.run_loops(["good"], 1, threads))
    assert closed.kept(store.url) == {}
    with pytest.raises(CalibrationError, match="has no products to verify"):
        verify(store, threads)


def test_no_loops_no_section(loops, tmp_path, threads):
    store = create_store(tmp_path / "s", "mini1")
    closed.keep(store.url, "good", [target(1.0)])
    found = verify(open_store(store.url), threads)
    assert "Closed loops" in report(found, store.camera)
    assert "Closed loops" not in report(type(found)(**{**vars(found), "closed": {}}), store.camera)


def test_pulls_without_what_was_drawn():
    """Forty draws, whose own width is 11 % off as like as not: what they are off by is taken out."""
    random = np.random.default_rng(3)
    drawn = 1.15 * random.normal(0, 1, 40)
    width, centre = pulls("2.1", "x", drawn + random.normal(0, 0.1, 40), drawn)
    assert width.measured == pytest.approx(np.hypot(1, 0.1), abs=4 * width.error)
    assert width.error < 0.05 < pulls("2.1", "x", drawn)[0].error
    assert centre.measured == pytest.approx(0, abs=4 * centre.error)
    assert centre.error < 0.03


def test_a_seed_without_values_tells_nothing():
    values = np.array([[1.0, 2.0], [np.nan, np.nan], [2.0, 1.5]])
    assert rms(values) == rms(values[[0, 2]])


def test_one_pull_has_no_width():
    """Its mean is told to one; beside what was drawn not even that."""
    width, mean = pulls("2.3", "c", np.array([0.2]))
    assert (width.verdict, mean.error) == ("undecided", 1.0)
    assert {one.verdict for one in pulls("2.3", "c", np.array([0.2]), np.array([0.1]))} == {"undecided"}
