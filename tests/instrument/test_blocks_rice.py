"""FITS headers and Rice tiles, against astropy as an independent implementation."""

from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from lsstcal_dask.instrument.blocks import split_blocks
from lsstcal_dask.instrument.rice import decode_rice, is_plain_rice


def file_bytes(*units):
    buffer = BytesIO()
    fits.HDUList(list(units)).writeto(buffer)
    return buffer.getvalue()


printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=150).map(str.rstrip)
values = st.booleans() | st.integers(-(10**15), 10**15) | st.floats(-1e30, 1e30) | printable


@given(st.lists(values, max_size=12))
def test_cards_equal_astropy(found):
    header = fits.Header([(f"KEY{i}", v) for i, v in enumerate(found)])
    unit = split_blocks(file_bytes(fits.PrimaryHDU(header=header)), "f")[0]
    assert {k: v for k, v in unit.cards.items() if k.startswith("KEY")} == {
        f"KEY{i}": fits.Header.fromstring(header.tostring())[f"KEY{i}"] for i in range(len(found))
    }


def test_cards_by_hand():
    lines = [
        "SIMPLE  =                    T / 'quoted' / comment",
        "BITPIX  =                    8",
        "NAXIS   =                    0",
        "HIERARCH MONOCH-WAVELENG=       675.004 / nm",
        "        ---- Checksums ----",
        "COMMENT = not a value",
        "BLANKED =",
        "POWER   = 1.5D3",
        "ODD     = 2026-01-01",
        "NAME    = 'it''s'  / comment",
        "NAME    = 'second'",
        "END",
    ]
    unit = split_blocks("".join(f"{line:80}" for line in lines).encode().ljust(2880), "f")[0]
    expected = {
        "MONOCH-WAVELENG": 675.004,
        "BLANKED": None,
        "POWER": 1500.0,
        "ODD": "2026-01-01",
        "NAME": "it's",
    }
    assert {k: unit.cards[k] for k in expected} == expected
    assert (unit.start, unit.size, unit.name) == (2880, 0, "")


images = st.tuples(
    st.sampled_from([np.uint8, np.int16, np.int32]),
    st.integers(1, 6),
    st.integers(1, 100),
    st.sampled_from([0.0, 0.4, 4.0, 1000.0, 1e9]),
    st.integers(0, 2**31),
)


@settings(max_examples=80, deadline=None)
@given(images)
def test_decodes_what_astropy_codes(case):
    """Noise from none to more than the type holds: runs of zeros, coded differences and verbatim blocks."""
    kind, ny, nx, sigma, seed = case
    info = np.iinfo(kind)
    noise = np.random.default_rng(seed).normal(info.max / 2, sigma, (ny, nx))
    data = np.clip(np.rint(noise), info.min, info.max).astype(kind)
    unit = fits.CompImageHDU(data, compression_type="RICE_1", tile_shape=(1, nx))
    blob = file_bytes(fits.PrimaryHDU(), unit)
    found = split_blocks(blob, "f")[1]
    assert is_plain_rice(found.cards)
    decoded = decode_rice(memoryview(blob)[found.start : found.start + found.size], found.cards)
    np.testing.assert_array_equal(decoded.astype(np.int64), data)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_damage_never_crashes(data):
    """Flipped bytes give other pixels or a ValueError, never a read beyond the end."""
    image = np.random.default_rng(0).normal(1000, 30, (8, 64)).astype(np.int32)
    blob = bytearray(file_bytes(fits.PrimaryHDU(), fits.CompImageHDU(image, compression_type="RICE_1")))
    found = split_blocks(bytes(blob), "f")[1]
    for _ in range(4):
        blob[found.start + data.draw(st.integers(0, found.size - 1))] = data.draw(st.integers(0, 255))
    damaged = memoryview(bytes(blob))[found.start : found.start + found.size]
    with suppress(ValueError):
        assert decode_rice(damaged, found.cards).shape == image.shape


@pytest.mark.parametrize(
    ("keyword", "value"), [("ZCMPTYPE", "GZIP_1"), ("ZTILE2", 4), ("TFIELDS", 3), ("ZBITPIX", -32)]
)
def test_leaves_the_rest_to_astropy(keyword, value):
    unit = fits.CompImageHDU(np.zeros((4, 8), np.int32), compression_type="RICE_1")
    cards = split_blocks(file_bytes(fits.PrimaryHDU(), unit), "f")[1].cards
    assert is_plain_rice(cards)
    assert not is_plain_rice({**cards, keyword: value})
