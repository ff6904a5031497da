"""Raw frames: the same frame back from every camera's format, real files, and every way to be wrong."""

import gzip
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from lsstcal_dask.errors import CalibrationError, InconsistentGeometry, UnitsError
from lsstcal_dask.instrument import Frame, load_camera, read_frame, read_header, write_frame
from lsstcal_dask.instrument.blocks import split_blocks

MINI1, MINI9, ESIS, OHP = (load_camera(n) for n in ("mini1", "mini9", "esis", "ohp"))
HEADER = {
    "exposure_type": "flat",
    "time": "2025-11-03T02:10:05.250000",
    "exposure_time": 30.0,
    "dark_time": 31.25,
    "filter": "r",
    "wavelength": 621.5,
    "photodiode": 1.2345678901234567e-07,
}
KEYS = list(HEADER)


def make(camera=MINI1, detector=None, exposure="E1", seed=0, **header):
    rng = np.random.default_rng(seed)
    found = camera.detector(detector) if detector else camera.detectors[0]
    counts = np.zeros((len(camera.amplifier_names), *camera.raw_shape), camera.dtype)
    for i, name in enumerate(camera.amplifier_names):
        for a in found.amplifiers:
            if a.name == name:
                ny, nx = a.raw_shape
                counts[i, :ny, :nx] = np.rint(25000 + 40 * rng.standard_normal((ny, nx)))
    has = {a.name for a in found.amplifiers}
    present = tuple(a for a in camera.amplifier_names if a in has)
    return Frame(exposure, found.name, {**HEADER, **header}, {}, counts, present)


def same(a, b, cards=True):
    assert (a.exposure, a.detector, a.present) == (b.exposure, b.detector, b.present)
    assert list(a.header) == list(b.header) == KEYS
    np.testing.assert_equal(a.header, b.header)
    assert a.counts.dtype == b.counts.dtype
    np.testing.assert_array_equal(a.counts, b.counts)
    if cards:
        np.testing.assert_equal(a.cards, b.cards)


@pytest.fixture
def edited(tmp_path):
    """Bytes of a written frame after ``edit`` changed its HDUs."""

    def make_bytes(edit, camera=MINI1, **kwargs):
        path = tmp_path / "f.fits"
        write_frame(path, camera, make(camera, **kwargs))
        with fits.open(path) as opened:
            plain = [fits.PrimaryHDU(opened[0].data, opened[0].header)]
            plain += [
                fits.ImageHDU(u.data, fits.Header([("EXTNAME", u.name), ("DATASEC", u.header["DATASEC"])]))
                for u in opened[1:]
            ]
            for unit in plain[1:]:
                unit.header["EXTNAME"] = unit.header["EXTNAME"].replace("SEGMENT", "Segment")
            plain = edit(plain) or plain
            buffer = BytesIO()
            fits.HDUList(plain).writeto(buffer)
        return buffer.getvalue()

    return make_bytes


durations = st.integers(0, 10**6).map(lambda ms: ms / 1000)
words = st.text("abcdefgRS_0123456789'", min_size=1, max_size=30).filter(lambda s: s != "none")


@settings(max_examples=15, deadline=None)
@given(
    camera=st.sampled_from([MINI1, MINI9, ESIS, OHP]),
    which=st.integers(0, 8),
    number=st.integers(0, 99999),
    seed=st.integers(0, 9),
    header=st.fixed_dictionaries(
        {
            "exposure_type": st.sampled_from(["bias", "dark", "flat", "science"]),
            "exposure_time": durations,
            "dark_time": durations,
            "filter": st.just("none") | words,
            "wavelength": st.just(math.nan) | st.floats(300, 1200),
            "photodiode": st.just(math.nan) | st.floats(1e-12, 1e-3),
            "time": st.datetimes().filter(lambda t: t.year > 1900).map(lambda t: t.isoformat(timespec="microseconds")),
        }
    ),
    suffix=st.sampled_from([".fits", ".fits.gz"]),
)
def test_round_trip(tmp_path_factory, camera, which, number, seed, header, suffix):
    detector = camera.detectors[which % len(camera.detectors)].name
    exposure = f"{detector}_{number:05d}" if camera is ESIS else f"MC_C_{number:06d}"
    frame = make(camera, detector, exposure, seed, **header)
    path = tmp_path_factory.mktemp("rt") / (exposure + suffix)
    write_frame(path, camera, frame)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file is left
    first = read_frame(path, camera)
    same(first, frame, cards=False)
    write_frame(path, camera, first)
    second = read_frame(path.read_bytes(), camera, name=path.name)
    same(second, first)
    head = read_header(path, camera)
    np.testing.assert_equal((head.header, head.cards), (first.header, first.cards))


def test_wavefront_sensor(tmp_path):
    """Half the amplifiers: the others are zero and not present."""
    camera = load_camera("lsstcam")
    frame = make(camera, "R44_SW1", "MC_O_20251103_000001")
    assert frame.present == camera.amplifier_names[:8]
    path = tmp_path / "f.fits"
    write_frame(path, camera, frame)
    same(read_frame(path, camera), frame, cards=False)
    assert len(fits.info(path, output=False)) == 9


def test_frame_has_lsst_layout(tmp_path):
    write_frame(tmp_path / "f.fits", MINI1, make())
    with fits.open(tmp_path / "f.fits") as opened:
        assert opened[0].data is None
        assert {u.header["DATASEC"] for u in opened[1:]} == {"[5:68,1:64]"}
        assert opened[1].compression_type == "RICE_1"
    with fits.open(tmp_path / "f.fits", disable_image_compression=True) as tables:
        names = [u.header["EXTNAME"] for u in tables[1:]]
    assert names == ["Segment00", "Segment01", "Segment10", "Segment11"]


@pytest.mark.parametrize("dtype", ["int32", "uint16"])
def test_plain_files_are_what_astropy_would_write(tmp_path, dtype):
    frame, own = make(), replace(MINI1, dtype=dtype)
    path = tmp_path / "frame.fits"
    write_frame(path, own, replace(frame, counts=frame.counts.astype(dtype)), compress=False)
    with fits.open(path) as opened:
        opened.verify("exception")
        units = [fits.PrimaryHDU(header=opened[0].header)]
        for amplifier in MINI1.detectors[0].amplifiers:
            ny, nx = amplifier.raw_shape
            place = MINI1.amplifier_names.index(amplifier.name)
            unit = fits.ImageHDU(frame.counts[place, :ny, :nx].astype(dtype), name=amplifier.hdu)
            unit.header["EXTNAME"] = amplifier.hdu
            unit.header["DATASEC"] = opened[amplifier.hdu].header["DATASEC"]
            units.append(unit)
        fits.HDUList(units).writeto(tmp_path / "astropy.fits")
    assert path.read_bytes() == (tmp_path / "astropy.fits").read_bytes()


def test_threads_agree(tmp_path):
    path = tmp_path / "f.fits"
    frame = make(MINI9)
    write_frame(path, MINI9, frame)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: read_frame(path, MINI9), range(8)):
            same(got, frame, cards=False)


def test_taps_are_turned(tmp_path):
    """The corners of the file are the pixels read first."""
    frame = make(ESIS, exposure="ESIS1_00007")
    frame.counts[:, 0, 0] = [1, 2, 3, 4]
    path = tmp_path / "f.fits"
    write_frame(path, ESIS, frame)
    image = fits.getdata(path)
    assert (image[0, 0], image[0, -1], image[-1, 0], image[-1, -1]) == (1, 2, 3, 4)


def set_cards(**cards):
    def edit(units):
        for keyword, value in cards.items():
            if value is None:
                del units[0].header[keyword]
            else:
                units[0].header[keyword.replace("__", "-")] = value

    return edit


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ({"DARKTIME": None}, {"dark_time": 30.0}),
        ({"PDCHARGE": None, "MONDIODE": -13.5}, {"photodiode": 13.5e-9 * 30}),
        ({"PDCHARGE": None}, {"photodiode": math.nan}),
        ({"PDCHARGE": "broken"}, {"photodiode": math.nan}),
        ({"FILTER": None, "MONOWL": None}, {"filter": "none", "wavelength": math.nan}),
        ({"MONOWL": 0.0}, {"wavelength": math.nan}),
        ({"MONOWL": None, "HIERARCH MONOCH__WAVELENG": 675.004}, {"wavelength": 675.004}),
        ({"DATE-OBS": None, "MJD-OBS": 59561.25}, {"time": "2021-12-13T06:00:00.000000"}),
        ({"DATE-OBS": "2021-12-13T06:00:00.5Z"}, {"time": "2021-12-13T06:00:00.500000"}),
        ({"IMGTYPE": "UNKNOWN", "TESTTYPE": "sflat_500"}, {"exposure_type": "flat"}),
        ({"CCDGAIN": 99.0, "CCDNOISE": 99.0}, {}),
    ],
)
def test_header_rules(edited, cards, expected):
    found = read_header(edited(set_cards(**cards)), MINI1).header
    np.testing.assert_equal(found, {**HEADER, **expected})


def test_type_given_by_the_user(edited):
    data = edited(set_cards(IMGTYPE="NEWTYPE"))
    assert read_frame(data, MINI1, exposure_type="cbp").header["exposure_type"] == "cbp"


@pytest.mark.parametrize(
    ("cards", "error", "told"),
    [
        ({"OBSID": None}, CalibrationError, "f.fits: no card OBSID"),
        ({"RAFTBAY": None}, CalibrationError, "f.fits: exposure E1: no card RAFTBAY"),
        ({"RAFTBAY": "R99"}, InconsistentGeometry, "detector R99_S11: camera mini1 has no such detector"),
        ({"EXPTIME": None}, UnitsError, r"no exposure time \(card EXPTIME\)"),
        ({"EXPTIME": "NaN"}, UnitsError, "exposure time .* not a time in seconds"),
        ({"EXPTIME": -1.0}, UnitsError, r"exposure time .*\[-1.0\]"),
        ({"DARKTIME": -1.0}, UnitsError, "dark time .* not a time"),
        ({"IMGTYPE": "HOLIDAY"}, CalibrationError, "the type of exposure 'HOLIDAY' is unknown: pass --type"),
        ({"IMGTYPE": None}, CalibrationError, "the type of exposure is not in the header: pass --type"),
        ({"DATE-OBS": None}, CalibrationError, "no time of observation .card DATE-OBS or MJD-OBS"),
        ({"DATE-OBS": "yesterday"}, CalibrationError, "time of observation .* 'yesterday'"),
        ({"DATE-OBS": "NaT"}, CalibrationError, "time of observation .* 'NaT'"),
    ],
)
def test_bad_headers(edited, cards, error, told):
    with pytest.raises(error, match=told) as caught:
        read_frame(edited(set_cards(**cards)), MINI1, name="f.fits")
    message = str(caught.value)
    assert message.startswith("f.fits")
    assert "\n" not in message
    if "OBSID" not in cards:
        assert "exposure E1" in message


def pixels(change):
    """Replace the pixels of Segment01."""

    def edit(units):
        unit = next(u for u in units if u.name == "SEGMENT01" or u.header.get("EXTNAME") == "Segment01")
        unit.data = change(unit.data)

    return edit


def set_pixel(value):
    def change(data):
        data = data.astype(np.float32)
        data[3, 4] = value
        return data

    return change


def extension(edit_one):
    def edit(units):
        edit_one(next(u for u in units if u.header.get("EXTNAME") == "Segment01").header)

    return edit


@pytest.mark.parametrize(
    ("edit", "error", "told"),
    [
        (
            lambda u: u[:2] + u[3:],
            InconsistentGeometry,
            r"amplifier C01: 1 of 4 amplifiers are missing \(C01\)",
        ),
        (lambda u: [*u, u[1]], InconsistentGeometry, "image extension 'Segment00' is there twice"),
        (
            lambda u: [*u, fits.ImageHDU(np.zeros((2, 2)), name="Q")],
            InconsistentGeometry,
            "image extension 'Q' is none of Segment00",
        ),
        (
            pixels(lambda d: d[1:]),
            InconsistentGeometry,
            r"amplifier C01: its image is \(ny, nx\) = \(69, 80\)",
        ),
        (
            extension(lambda h: h.set("DATASEC", "[4:512,1:2000]")),
            InconsistentGeometry,
            r"C01: DATASEC \[4:512,1:2000\] is not the \[5:68,1:64\] of an amplifier of a e2v",
        ),
        (extension(lambda h: h.set("DATASEC", "all")), InconsistentGeometry, "C01: DATASEC all is not"),
        (pixels(set_pixel(np.nan)), UnitsError, "amplifier C01: pixels are NaN or infinite"),
        (pixels(set_pixel(0.5)), UnitsError, "amplifier C01: pixels are not whole numbers"),
        (pixels(set_pixel(2.0**40)), UnitsError, r"amplifier C01: counts from \d.* do not fit int32"),
    ],
)
def test_bad_amplifiers(edited, edit, error, told):
    with pytest.raises(error, match=told) as caught:
        read_frame(edited(edit), MINI1, name="f.fits")
    assert str(caught.value).startswith("f.fits: exposure E1, detector R22_S11")


def test_no_datasec_is_fine(edited):
    same(read_frame(edited(extension(lambda h: h.remove("DATASEC"))), MINI1), make(), cards=False)


def test_uint16_without_bzero(edited):
    """Counts of a 16-bit converter stored without BZERO come back negative."""
    kwargs = {"camera": ESIS, "exposure": "ESIS1_00007"}

    def wrap(units):
        units[0].data = (units[0].data.astype(np.int32) + 20000).astype(np.uint16).view(np.int16)

    with pytest.raises(UnitsError, match=r"f.fits: .*ESIS1, amplifier LL: counts from -\d+ .* is BZERO missing"):
        read_frame(edited(wrap, **kwargs), ESIS, name="f.fits")


def test_taps_refused(edited, tmp_path):
    kwargs = {"camera": ESIS, "exposure": "ESIS1_00007"}

    def crop(units):
        units[0].data = units[0].data[1:]

    def drop(units):
        units[0].data = None

    with pytest.raises(InconsistentGeometry, match=r"ESIS1: its image is .*\(1039, 2152\)"):
        read_frame(edited(crop, **kwargs), ESIS)
    with pytest.raises(InconsistentGeometry, match="ESIS1: no image in the file"):
        read_frame(edited(drop, **kwargs), ESIS)
    no_number = edited(set_cards(IMG_ISN="x"), **kwargs)
    with pytest.raises(CalibrationError, match="card IMG_ISN = 'x' is not a number"):
        read_frame(no_number, ESIS)


def test_ohp_like(edited):
    """A leading axis of one and float pixels that hold whole numbers."""

    def cube(units):
        units[0].data = units[0].data[None].astype(np.float32)

    frame = make(OHP, exposure="flat_1", exposure_type="flat")
    with pytest.raises(CalibrationError, match="takes the exposure from the file name: name it flat_1"):
        edited(cube, camera=OHP, exposure="flat_1")
    buffer = BytesIO()
    fits.PrimaryHDU(
        frame.counts.astype(np.float32), fits.Header([("EXPOSURE", 30.0), ("DATE", "2025-11-03T02:10:05.25")])
    ).writeto(buffer)
    data = read_frame(buffer.getvalue(), OHP, name="x/flat_1.fits.gz")
    assert (data.exposure, data.detector, data.header["exposure_type"]) == ("flat_1", "CCD", "flat")
    np.testing.assert_array_equal(data.counts, frame.counts)


@pytest.mark.parametrize("algorithm", ["GZIP_1", "GZIP_2", "HCOMPRESS_1", "NOCOMPRESS"])
def test_other_compressions(edited, algorithm):
    def compress(units):
        return units[:1] + [
            fits.CompImageHDU(
                u.data, u.header, name=u.header["EXTNAME"], compression_type=algorithm, tile_shape=(8, 16)
            )
            for u in units[1:]
        ]

    def lower(data):
        return data.replace(b"'SEGMENT", b"'Segment")

    same(read_frame(lower(edited(compress)), MINI1), make(), cards=False)


def test_files_that_are_none(tmp_path):
    path = tmp_path / "f.fits"
    write_frame(path, MINI1, make())
    whole = path.read_bytes()
    zipped = gzip.compress(whole)
    with pytest.raises(CalibrationError, match=r"gone\.fits: cannot be read .*check the path"):
        read_frame(tmp_path / "gone.fits", MINI1)
    for blob, told in [
        (b"", "not a FITS file"),
        (b"hello", "not a FITS file"),
        (whole[:1000], "truncated: it ends within a header"),
        (whole[:-6000], r"truncated: \d+ bytes of extension 4 \(Segment11\) are missing"),
        (zipped[:-100], "truncated or damaged gzip file"),
        (zipped[:100] + b"\0" * 50 + zipped[150:], "truncated or damaged gzip file"),
        (
            whole.replace(b"BITPIX  =                    8", b"BITPIX  = 'many'              ", 1),
            "damaged header",
        ),
    ]:
        with pytest.raises(CalibrationError, match=told) as caught:
            read_frame(blob, MINI1, name="f.fits")
        assert str(caught.value).startswith("f.fits: ")


def test_broken_pixels(tmp_path):
    path = tmp_path / "f.fits"
    write_frame(path, MINI1, make())
    blob = bytearray(path.read_bytes())
    unit = split_blocks(bytes(blob), "f")[2]
    blob[unit.start + 16 : unit.start + 20] = b"\x00\xff\xff\xff"  # length of the third row
    with pytest.raises(CalibrationError, match=r"amplifier C01: its pixels cannot be decoded .compressed row 2 is"):
        read_frame(bytes(blob), MINI1)
    blob[unit.start + 16 : unit.start + 20] = b"\x00\x00\x00\x09"
    with pytest.raises(CalibrationError, match=r"amplifier C01: its pixels cannot be decoded .compressed row 2 is"):
        read_frame(bytes(blob), MINI1)


def test_scaled_pixels(edited):
    """BSCALE that is not one gives floats; whole ones are counts."""

    def store(units):
        unit = next(u for u in units if u.header.get("EXTNAME") == "Segment01")
        unit.scale("int32", bscale=2.0, bzero=0)

    frame = read_frame(edited(store), MINI1)
    expected = make().counts[MINI1.amplifier_names.index("C01")]
    np.testing.assert_array_equal(frame.counts[MINI1.amplifier_names.index("C01")], np.rint(expected / 2) * 2)


def test_bad_bzero(edited):
    data = edited(extension(lambda h: h.set("BZERO", 12345678.0)))
    broken = data.replace(b"BZERO   =           12345678.0", b"BZERO   = 'zero'              ")
    with pytest.raises(CalibrationError, match="amplifier C01: BSCALE 1 or BZERO 'zero' is no number"):
        read_frame(broken, MINI1)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (
            {"detector": "R99_S11"},
            InconsistentGeometry,
            "detector R99_S11: camera mini1 has no such detector",
        ),
        (
            {"counts": np.zeros((4, 2, 2), np.int32)},
            InconsistentGeometry,
            r"counts are int32 \(4, 2, 2\), camera mini1",
        ),
        (
            {"header": {**HEADER, "exposure_type": "nap"}},
            CalibrationError,
            "cannot say exposure type 'nap': use one of bias",
        ),
    ],
)
def test_frames_that_cannot_be_written(tmp_path, change, error, told):
    with pytest.raises(error, match=told):
        write_frame(tmp_path / "f.fits", MINI1, replace(make(), **change))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exposure", ["ESIS1-7", "ESIS1_7", "ESIS1_seven"])
def test_exposure_of_another_form(tmp_path, exposure):
    with pytest.raises(CalibrationError, match=f"'{exposure}' does not have the form"):
        write_frame(tmp_path / "f.fits", ESIS, make(ESIS, exposure=exposure))


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f.fits"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_frame(path, MINI1, make())
    assert [p.name for p in tmp_path.iterdir()] == ["f.fits"]
    assert path.read_bytes() == b"old"


@pytest.mark.real
def test_real_lsstcam(real_data):
    frame = read_frame(real_data / "lsst_raw" / "30211212000310-R22-S22-det098.fits", load_camera("lsstcam"))
    assert (frame.exposure, frame.detector) == ("MC_C_20211212_000310", "R22_S22")
    assert frame.header["exposure_type"] == "flat"
    assert frame.header["time"] == "2021-12-13T04:58:56.398000"
    assert (frame.header["exposure_time"], frame.header["dark_time"]) == (7.83172, 8.143)
    assert frame.header["filter"] == "SDSSi"
    assert frame.cards["LSST_NUM"] == load_camera("lsstcam").detector("R22_S22").serial


@pytest.mark.real
def test_real_files_of_another_kind(real_data):
    folder, camera = real_data / "lsst_raw", load_camera("lsstcam")
    with pytest.raises(CalibrationError, match=r"RTM-010-S11-det067\.fits: no card OBSID"):
        read_frame(folder / "201807241028453-RTM-010-S11-det067.fits", camera)
    with pytest.raises(UnitsError, match=r"guider_SG0\.fits: .*R04_SG0: no exposure time"):
        read_frame(folder / "guider_SG0.fits", camera)


@pytest.mark.real
def test_real_esis(real_data):
    path = real_data / "msfc_ccd" / "led" / "ESIS1_04803.fit.gz"
    with pytest.raises(CalibrationError, match=r"ESIS1_04803.* type of exposure .* --type"):
        read_frame(path, ESIS)
    frame = read_frame(path, ESIS, exposure_type="flat")
    assert (frame.exposure, frame.detector, frame.header["exposure_time"]) == ("ESIS1_04803", "ESIS1", 1.999)
    lit = np.median(frame.counts, axis=1)  # (tap, column)
    blank, first, last, after = lit[:, 49], lit[:, 50], lit[:, 1073], lit[:, 1075]
    assert (np.abs(blank - lit[:, 10:50].mean(axis=1)) < 1.5).all()
    assert (first > blank + 5000).all()
    assert (last > blank + 5000).all()
    assert (np.abs(after - blank) < 10).all()


@pytest.mark.real
def test_real_ohp(real_data):
    bias = read_frame(real_data / "ohp_spectrograph" / "bias" / "bias_0919_00001.fits.gz", OHP)
    science = read_frame(real_data / "ohp_spectrograph" / "science" / "ksi_cas_0922_00002.fits.gz", OHP)
    assert (bias.exposure, bias.header["exposure_type"], bias.header["exposure_time"]) == (
        "bias_0919_00001",
        "bias",
        1e-5,
    )
    assert (science.header["exposure_type"], science.counts.max(), science.counts.dtype) == (
        "science",
        21121,
        np.uint16,
    )


@pytest.fixture
def written(tmp_path):
    """Bytes of a Rice-compressed frame."""
    write_frame(tmp_path / "w.fits", MINI1, make())
    return (tmp_path / "w.fits").read_bytes()


def test_case_of_extension_names_does_not_count(written):
    shouted = written.replace(b"'Segment", b"'SEGMENT")
    assert shouted != written
    same(read_frame(shouted, MINI1), make(), cards=False)


def test_names_that_differ_in_case_only_are_twice_the_same(written):
    twice = written.replace(b"'Segment01'", b"'SEGMENT00'")
    with pytest.raises(InconsistentGeometry, match=r"^b\.fits: .*'SEGMENT00' is there twice"):
        read_frame(twice, MINI1, name="b.fits")


@pytest.mark.parametrize(("card", "instead"), [(b"'1PB(", b"=?1P("), (b"'RICE_1", b"'RICE_7")])
def test_what_astropy_cannot_decode_is_named(written, card, instead):
    damaged = written.replace(card, instead)
    assert damaged != written
    with pytest.raises(
        CalibrationError, match=r"^b\.fits: exposure E1, detector \S+, amplifier .*copy the file again$"
    ):
        read_frame(damaged, MINI1, name="b.fits")
