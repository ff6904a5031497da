"""Compressed cubes of a store: flats of maps within the proved error, resumed, published, stale when slices come."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cubes_of_known_response import SLOPE, make_cube, response
from making import run_command as run

from lsstcal_dask.errors import InsufficientInputs, StoreFailure
from lsstcal_dask.physics.spectra import Spectrum
from lsstcal_dask.pipeline.build import Validity
from lsstcal_dask.pipeline.compressed import compress_cube
from lsstcal_dask.pipeline.cubemaps import compressed_of
from lsstcal_dask.pipeline.flatfields import Wanted, make_flat
from lsstcal_dask.pipeline.listing import list_contents
from lsstcal_dask.pipeline.store import open_store
from lsstcal_dask.pipeline.synthesis import Source, synthetic_flats
from lsstcal_dask.products.lowrank import LowRankConfig, compress_amplifier
from lsstcal_dask.products.synthesis import SynthesisConfig
from lsstcal_dask.storage.compressed import list_compressed
from lsstcal_dask.storage.cubelayout import list_pointers
from lsstcal_dask.storage.cubes import read_cube
from lsstcal_dask.storage.cubewriting import publish_cube
from lsstcal_dask.storage.products import finished, open_product

NM = np.arange(600.0, 700.1, 4)
BLUE = Spectrum(np.array([600.0, 700.0]), np.array([3.0, 1.0]), "blue")


def spoil(detector, k, one):
    """A pixel of its own mind, and one that is unusable in one slice."""
    if detector.name == "R22_S11":
        one.value[2, 30, 31] *= 1 + 0.3 * np.sin(k)
        if k == 12:
            one.value[1, 20, 20], one.repeats[1, 20, 20] = np.nan, 0
    return one


@pytest.fixture(scope="module")
def store(tmp_path_factory, threads):
    """Noisy slices of nine CCDs, compressed."""
    made = make_cube(tmp_path_factory.mktemp("compressed") / "s", "mini9", NM, noise=True, change=spoil)
    assert not compress_cube(made, "c", LowRankConfig(), threads).errors
    return made


def flat(store, threads, compressed, kind="photometric_flat"):
    wanted = Wanted(kind, "none", Source(BLUE), "c", compressed=compressed)
    made = make_flat(store, wanted, SynthesisConfig(), threads, Validity())
    assert not made.errors
    return made.pointer


def test_what_is_no_number_is_not_compressed(tmp_path, threads, monkeypatch):
    mine = make_cube(tmp_path / "s", "mini1", NM[::5])
    mask = Path(mine.url, "cubes/c/data/mask/c/0/0/0/0")
    whole = mask.read_bytes()
    mask.unlink()
    found = compress_cube(mine, "c", LowRankConfig(), threads)
    assert found.pointer is None
    assert "R22_S11: its mask cannot be read (it is missing): delete cubes/c/data/mask" in found.errors[0]
    mask.write_bytes(whole)
    monkeypatch.setattr(
        "lsstcal_dask.pipeline.compressed.compress_amplifier",
        lambda *given: replace(low := compress_amplifier(*given), maps=low.maps * np.nan),
    )
    found = compress_cube(mine, "c", LowRankConfig(), threads)
    assert found.pointer is None
    assert "its maps are no numbers: see 'lsstcal ls" in found.errors[0]
    monkeypatch.undo()
    assert compress_cube(mine, "c", LowRankConfig(), threads).pointer.error > 0


def test_flats_of_maps_agree_with_those_of_slices_within_the_proved_error(store, threads):
    whole, short = (flat(store, threads, compressed) for compressed in (False, True))
    assert whole.version != short.version
    a, b = (open_product(store.url, p.name, p.version, chunked=False) for p in (whole, short))
    marks = finished(store.url, short.name, short.version)
    for detector in store.camera.detectors:
        for amplifier in detector.amplifiers:
            told = marks[detector.name]["summary"][amplifier.name]
            one, other = (p.sel(detector=detector.name, amplifier=amplifier.name) for p in (a, b))
            away = one["image"].values.astype(float) - other["image"].values
            np.testing.assert_array_equal(np.isnan(one["image"]), np.isnan(other["image"]))
            away = away[np.isfinite(away)]
            rounding = 26 * 2.0**-24  # of the sum over the slices
            assert np.abs(away).max() <= told["compression_error"] + rounding
            # noise of 24 directions of 26, of 2048 pixels or more; a twentieth for what the sample's maps are not
            assert np.std(away) == pytest.approx(told["compression_rms"], rel=4 / np.sqrt(2 * 2048) + 0.05)
            # noise that runs from slice to slice is at most half of all of it, 5 sigma in one of 8192 pixels
            assert detector.name == "R22_S11" or told["compression_error"] < 2.5 * np.sqrt(SLOPE / 0.6 / 26)
            np.testing.assert_array_equal(one["mask"], other["mask"])
            np.testing.assert_allclose(other["variance"], one["variance"], rtol=0.03)
    assert any("of the compressed form" in remark and remark.startswith("note: ") for remark in short.remarks)
    assert short.inputs["compressed"] == list_compressed(store.url, "c")[-1].version
    assert "compressed" not in whole.inputs


def test_flats_in_python_are_those_that_are_published(store, threads):
    for compressed in (False, True):
        lazy = synthetic_flats(store, "c", [Source(BLUE)], compressed=compressed)
        pointer = flat(store, threads, compressed)
        published = open_product(store.url, pointer.name, pointer.version, chunked=False)
        for variable in ("image", "variance", "mask"):
            own = lazy[variable].isel(spectrum=0).sel(detector="R22_S11").values
            np.testing.assert_array_equal(own, published[variable].sel(detector="R22_S11").values)
    assert lazy.attrs["compressed"] == list_compressed(store.url, "c")[-1].version


def test_the_flat_of_maps_has_no_more_noise_than_its_variance_says(store, threads, tmp_path):
    quiet = make_cube(tmp_path / "q", "mini9", NM, form="f4", only=[0])
    truth, noisy = flat(quiet, threads, False), flat(store, threads, True)
    name = store.camera.detectors[0].name
    a, b = (
        open_product(s.url, p.name, p.version, chunked=False).sel(detector=name)
        for s, p in ((quiet, truth), (store, noisy))
    )
    pull = (b["image"] - a["image"]).values / np.sqrt(b["variance"].values)
    assert 0.3 < np.nanstd(pull) < 1.0  # maps leave some of the noise out, whose share the variance keeps
    assert abs(np.nanmean(pull)) < 0.05


def test_it_says_rank_and_error_and_is_smaller_than_the_cube(store):
    import zarr

    pointer = list_compressed(store.url, "c")[-1]
    assert pointer.rank <= 4  # gray and tilt; the odd pixel is in the list
    assert 3 < pointer.error / np.sqrt(SLOPE / response(600)) < 7  # sigma: six of a pixel's own, or what is left
    for det, own in pointer.detectors.items():
        group = zarr.open_group(Path(store.url, "cubes/c/compressed", pointer.version, "data", det), mode="r")
        assert dict(group.attrs)["rank"] == own["rank"]
        assert dict(group.attrs)["error"] == own["error"]
    sizes = [
        sum(p.stat().st_size for p in Path(store.url, "cubes/c", part).rglob("*") if p.is_file())
        for part in ("data/codes", f"compressed/{pointer.version}")
    ]
    assert sizes[1] < sizes[0] / 2


def copied(store, tmp_path):
    shutil.copytree(store.url, tmp_path / "s")
    return open_store(tmp_path / "s")


def content(store, version):
    root = Path(store.url, "cubes/c/compressed", version)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_run_that_was_killed_makes_what_is_missing_and_ends_in_the_same_bytes(store, threads, tmp_path):
    mine = copied(store, tmp_path)
    (pointer,) = list_compressed(mine.url, "c")
    before = content(mine, pointer.version)
    root = Path(mine.url, "cubes/c/compressed")
    (root / "published" / f"{pointer.version}.json").unlink()
    (root / pointer.version / "done" / "R22_S11.json").unlink()
    some = root / pointer.version / "data" / "R22_S11" / mine.camera.amplifier_names[0] / "maps" / "c" / "0" / "0" / "0"
    some.unlink()
    with pytest.raises(InsufficientInputs, match="has no compressed form"):
        compressed_of(mine, read_cube(mine.url, "c"))
    made = compress_cube(mine, "c", LowRankConfig(), threads)
    assert (made.made, made.errors) == (1, [])
    assert content(mine, pointer.version) == before
    assert compress_cube(mine, "c", LowRankConfig(), threads).made == 0


def test_it_is_stale_when_the_cube_changes(threads, tmp_path):
    mine = make_cube(tmp_path / "s", "mini1", NM)
    compress_cube(mine, "c", LowRankConfig(), threads)
    slots = list_pointers(mine.url, "c")[-1].slots
    publish_cube(mine.url, "c", [*slots[:9], *slots[10:]], {})
    with pytest.raises(InsufficientInputs, match="only of its publication 1, and slices have come since"):
        flat(mine, threads, True)
    (row,) = list_contents(mine)["cubes"]
    assert row["compressed"][-1]["outdated"].startswith("made of publication 1")
    assert compress_cube(mine, "c", LowRankConfig(), threads).pointer.number == 2
    assert not list_contents(mine)["cubes"][0]["compressed"][-1]["outdated"]
    assert flat(mine, threads, True).inputs["cube"] == "c/2"


def test_the_form_that_was_asked_for_last_is_used(threads, tmp_path):
    mine = make_cube(tmp_path / "s", "mini1", NM)
    tight, loose = LowRankConfig(bound=1e-4), LowRankConfig(bound=1e-2)
    asked = [compress_cube(mine, "c", config, threads) for config in (tight, loose, tight, tight)]
    assert [one.made for one in asked] == [1, 1, 0, 0]
    assert asked[0].pointer.version == asked[2].pointer.version != asked[1].pointer.version
    assert asked[3].pointer == asked[2].pointer
    assert compressed_of(mine, read_cube(mine.url, "c"))[0] == asked[2].pointer
    assert flat(mine, threads, True).inputs["compressed"] == asked[2].pointer.version


def test_a_ccd_that_few_maps_do_not_give_is_told_and_made_of_its_slices(threads, tmp_path):
    def shuffle(detector, k, one):
        if detector.name == "R22_S11":
            one.value[...] *= 1 + 0.1 * np.random.default_rng(k).standard_normal(one.value.shape, np.float32)
        return one

    mine = make_cube(tmp_path / "s", "mini9", NM[::5], form="f4", change=shuffle, only=[0, 4])
    made = compress_cube(mine, "c", LowRankConfig(noise=0, rank=3), threads)
    assert list(made.pointer.failed) == ["R22_S11"]
    assert made.pointer.failed["R22_S11"].startswith("R22_S11 ")
    assert "allow more maps" in made.pointer.failed["R22_S11"]
    whole, short = flat(mine, threads, False), flat(mine, threads, True)
    assert any("R22_S11 are not compressed" in remark for remark in short.remarks)
    assert whole.detectors["R22_S11"] == short.detectors["R22_S11"]
    assert "compression_error" not in str(finished(mine.url, short.name, short.version)["R22_S11"])


def test_a_damaged_map_is_told_with_its_remedy(store, threads, tmp_path):
    mine = copied(store, tmp_path)
    (pointer,) = list_compressed(mine.url, "c")
    name = mine.camera.amplifier_names[0]
    path = Path(mine.url, "cubes/c/compressed", pointer.version, "data/R22_S11", name, "maps/c/0/0/0")
    assert list_contents(mine, check=True)["damaged"] == []
    path.write_bytes(path.read_bytes()[:-3] + b"abc")
    (told,) = list_contents(mine, check=True)["damaged"]
    assert told.startswith(f"cube c compressed {pointer.version} R22_S11: delete cubes/c/compressed/published/")
    _, maps = compressed_of(mine, read_cube(mine.url, "c"))
    with pytest.raises(StoreFailure, match=f"cube c R22_S11 {name}: its compressed form cannot be read .* again"):
        maps("R22_S11", 0)


def test_a_ccd_whose_slices_are_missing_warns_of_its_flat(threads, tmp_path):
    def gone(detector, k, one):
        return None if detector.name == "R22_S11" and k in (7, 9) else one

    mine = make_cube(tmp_path / "s", "mini9", NM, change=gone, only=[3, 4])
    made = flat(mine, threads, False)
    first = mine.camera.detector("R22_S11").amplifiers[0].name
    warned = [remark for remark in made.remarks if not remark.startswith("note: ")]
    assert len(warned) == 1
    assert warned[0].startswith(f"R22_S11 {first}: the CCD has no slices at 628.0, 636.0 nm, where ")
    assert made.verdict == "WARN"


def test_the_commands(store, tmp_path, capsys):
    mine = copied(store, tmp_path)
    code, told = run(capsys, "compress", mine.url, "--cube", "c", "--json")
    assert code == 0
    assert '"made": 0' in told.out
    assert "9 CCDs" in told.err
    code, told = run(capsys, "synthesize", mine.url, "dome", "--filter", "none", "--cube", "c", "--compressed")
    assert code == 1
    assert "beyond the cube" in told.err
