"""Gain history of a store, optional products, and photon transfer built by the pipeline."""

import shutil

import numpy as np
import pytest

from lsstcal_dask.errors import InsufficientInputs
from lsstcal_dask.pipeline.build import Validity, build
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.history import gain_history
from lsstcal_dask.pipeline.store import open_store
from lsstcal_dask.products.continuity import ContinuityConfig
from lsstcal_dask.products.gain import GainConfig
from lsstcal_dask.storage.products import list_products, open_product


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
