"""Gain history of a store, optional products, and photon transfer built by the pipeline."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from lsstcal_dask import cli
from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.mapping import Output
from lsstcal_dask.pipeline.build import Validity, build
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.history import gain_history, muon_history
from lsstcal_dask.pipeline.store import create_store, open_store
from lsstcal_dask.products.continuity import ContinuityConfig
from lsstcal_dask.products.gain import GainConfig
from lsstcal_dask.storage.products import (
    Pointer,
    Template,
    create_template,
    list_products,
    open_product,
    publish,
    write_detector,
)


@pytest.fixture(scope="module")
def store(ingested, tmp_path_factory, threads):
    folder = tmp_path_factory.mktemp("history") / "s"
    shutil.copytree(ingested.url, folder)
    found = open_store(folder)
    for day, method in (("2026-07-02", "variance"), ("2026-07-03", "extrapolated")):
        validity = Validity(f"{day}T00:00:00", "")
        ((_, one),) = build(found, ["gain"], Config(gain=GainConfig(pairs=method)), threads, validity=validity)
        assert not one.errors
    return found


def test_optional_products_are_a_note_unless_asked_for(store, threads, tmp_path):
    shutil.copytree(store.url, tmp_path / "s")
    store = open_store(tmp_path / "s")
    found = dict(build(store, [], Config(), threads))
    for name, why in (("ptc", "3 levels, at least 6"), ("continuity", "6 flats, at least 8")):
        assert why in found[name].note
        assert found[name].errors == []
        ((_, asked),) = build(store, [name], Config(), threads)
        assert why in asked.errors[0]


def test_two_epochs_differ_by_what_they_differ(store):
    """Each amplifier whose two gains differ by more than the threshold, and no other, with the epoch of the second."""
    first, second = (
        open_product(store.url, "gain", p.version).isel(detector=0).load()
        for p in sorted(list_products(store.url, "gain"), key=lambda p: p.valid_from)
        if p.valid_from > "2026-07-02"
    )
    size = (second["gain"] / first["gain"] - 1).values
    sigma = size / (np.hypot(first["gain_error"], second["gain_error"]) / first["gain"]).values
    threshold = float(np.median(np.abs(sigma)))
    expected = {str(a) for a, s in zip(first["amplifier"].values, sigma, strict=True) if abs(s) >= threshold}
    found = gain_history(store, threshold=threshold)
    assert {c.amplifier for c in found} == expected
    for change in found:
        place = first["amplifier"].values.tolist().index(change.amplifier)
        assert (change.kind, change.since) == ("jump", "2026-07-03T00:00:00")
        assert (change.size, change.sigma) == pytest.approx((size[place], sigma[place]))
    assert gain_history(store, threshold=1e3) == []


def test_one_epoch_is_no_history(ingested):
    with pytest.raises(InsufficientInputs, match="gain: 0 epochs are published"):
        gain_history(ingested)


def test_continuity_is_built_when_there_are_flats_enough(store, threads):
    config = Config(continuity=ContinuityConfig(minimum=6))
    ((_, one),) = build(store, ["continuity"], config, threads)
    assert one.errors == []
    product = open_product(store.url, "continuity", one.pointer.version).load()
    value = product["gain_relative"].values[0]
    assert np.prod(value) == pytest.approx(1, abs=1e-9)
    assert (product["gain_relative_error"].values < 5e-3).all()


def put(store, product, variable, day, value, error, origin="remeasured"):
    """Publish an epoch of a product of one variable, the same for all amplifiers but for ``value`` (amplifier,)."""
    (detector,), names = store.camera.detectors, list(store.camera.amplifier_names)
    outputs = {name: Output("float64", "electron/adu") for name in (variable, f"{variable}_error")}
    coords = {"detector": (("detector",), [detector.name]), "amplifier": (("amplifier",), names)}
    version = f"v{day}"
    create_template(store.url, product, version, Template(outputs, {"detector": 1, "amplifier": len(names)}, coords))
    results = (
        (name, xr.Dataset({variable: ((), v), f"{variable}_error": ((), error)}))
        for name, v in zip(names, value, strict=True)
    )
    marker = write_detector(store.url, product, version, (0, detector.name), results)
    start = str(np.datetime64("2026-07-01T12:00:00") + np.timedelta64(day, "D"))
    made = Pointer(product, start, {}, {}, {}, {}, [], "", version, {detector.name: marker["hash"]}, created=start)
    assert publish(store.url, replace(made, origin=origin))


@pytest.fixture(scope="module")
def jumped(tmp_path_factory):
    """Twenty epochs of gains, known to 0.1 % each; 0.3 % in one amplifier from the tenth on.

    Of muons two, each known to 1 % in an amplifier, with 5 % between them.
    """
    random = np.random.default_rng(1)
    store = create_store(tmp_path_factory.mktemp("jumped") / "s", "mini1")
    truth = np.array([1.5, 1.6, 1.4, 1.5])
    for day in range(20):
        gain = truth * np.where(np.arange(4) == 2, 1.003 if day >= 10 else 1.0, 1.0)
        put(store, "gain", "gain", day, gain * (1 + 1e-3 * random.standard_normal(4)), 1.5e-3)
    for day in (0, 5):
        gain = truth * (1.05 if day else 1.0)
        put(store, "muons", "gain_muons", day, gain * (1 + 0.01 * random.standard_normal(4)), 0.015)
    return store


def test_a_jump_of_three_per_mille_is_found_in_gains_and_one_of_five_per_cent_by_muons(jumped):
    (change,) = gain_history(jumped)
    name = jumped.camera.amplifier_names[2]
    assert (change.kind, change.amplifier, change.since) == ("jump", name, "2026-07-11T12:00:00")
    assert change.sigma > 5
    assert change.size == pytest.approx(0.003, abs=4 * change.error)
    (check,) = muon_history(jumped)
    assert check.verdict == "fail"
    assert check.error == pytest.approx(0.01 / np.sqrt(4) * np.sqrt(2), rel=0.1)
    assert check.size == pytest.approx(0.05, abs=4 * check.error)
    (change,) = check.changes
    assert (change.kind, change.amplifier, change.since) == ("jump", "", "2026-07-06T12:00:00")
    assert change.sigma > 5
    (check,) = muon_history(jumped, threshold=100)
    assert check.verdict == "pass"


def test_what_a_team_delivered_is_no_epoch_of_what_was_measured(tmp_path):
    """Gains that are 3 % off those measured, valid from later on; alone they have a history of their own."""
    store, gain = create_store(tmp_path / "s", "mini1"), np.array([1.5, 1.6, 1.4, 1.5])
    for day in (3, 4):
        put(store, "gain", "gain", day, gain * (1.03 if day == 4 else 1), 1e-3, "camera_team")
    assert len(gain_history(store)) == 4
    for day in (0, 1):
        put(store, "gain", "gain", day, gain, 1e-3)
    assert gain_history(store) == []


def test_the_command_tells_both(jumped, ingested):
    def run(*arguments):
        return CliRunner().invoke(cli.app, ["history", *map(str, arguments)])

    told = run(jumped.url, "--json")
    assert "1 changes of gain of 5 sigma" in told.stderr
    assert "over 2 epochs, changed since 2026-07-06T12:00:00: fail" in told.stderr
    found = json.loads(told.stdout)
    assert (len(found["changes"]), found["muons"][0]["verdict"]) == (1, "fail")
    assert "changes of" not in run(jumped.url, "--product", "muons").stderr
    assert "muons: 0 epochs are published" in str(run(ingested.url, "--product", "muons").exception)
