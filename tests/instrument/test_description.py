"""Cameras: the shipped ones, and every way a description can be wrong."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import yaml

from lsstcal_dask.errors import CalibrationError, InconsistentGeometry
from lsstcal_dask.instrument import Box, camera_names, from_mapping, load_camera, to_mapping

MINE = """
name: mine
file_format: taps
dtype: uint16
plate_scale: 10.0
temperature: 200.0
amplifiers: [A, B]
types:
  chip:
    vendor: me
    pixel_mm: 0.01
    raw_shape: [4, 8]
    data: [2, 6, 0, 3]
    overscan: [6, 8, 0, 3]
    gain: 2.0
    read_noise: 5.0
    rows:
      - {names: [A, B], flip_x: true}
headers: {exposure: "{stem}", detector: D0, time: DATE, exposure_time: EXPTIME}
detectors:
  D0: {id: 0, type: chip, center: [0.0, 0.0]}
  D1: {id: 1, type: chip, center: [1.0, 0.0]}
"""


@pytest.fixture
def written(tmp_path):
    """Write a description; a new path each time, as `load_camera` remembers."""

    def write(text):
        path = tmp_path / f"camera{len(list(tmp_path.iterdir()))}.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def changed(written):
    def change(edit):
        description = yaml.safe_load(MINE)
        edit(description)
        return written(yaml.safe_dump(description))

    return change


def test_shipped():
    assert set(camera_names()) == {"esis", "latiss", "lsstcam", "mini1", "mini9", "ohp", "raft"}
    assert load_camera("mini9") is load_camera("mini9")


@pytest.mark.parametrize("name", camera_names())
def test_frozen_as_json(name):
    camera = load_camera(name)
    thawed = from_mapping(json.loads(json.dumps(to_mapping(camera))))
    assert thawed == camera
    assert hash(thawed) == hash(camera)


def test_frozen_keeps_changed_amplifiers():
    camera = load_camera("mini9")
    first, *others = camera.detectors
    louder = replace(first, amplifiers=(replace(first.amplifiers[0], gain=9.0), *first.amplifiers[1:]))
    camera = replace(camera, detectors=(louder, *others))
    assert from_mapping(to_mapping(camera)) == camera


def test_thaw_refuses():
    with pytest.raises(CalibrationError, match=r"not a frozen camera .*layouts.* to_mapping"):
        from_mapping({"name": "x"})


def test_lsstcam():
    camera = load_camera("lsstcam")
    science = [d for d in camera.detectors if d.id <= 188]
    assert Counter(d.vendor for d in science) == {"e2v": 117, "ITL": 72}
    assert sorted(d.id for d in camera.detectors) == list(range(205))
    assert (camera.raw_shape, camera.image_shape, camera.dtype) == ((2048, 576), (2002, 512), "int32")
    assert camera.amplifier_names[:2] + camera.amplifier_names[8:10] == ("C10", "C11", "C07", "C06")
    e2v, itl = camera.detector("R22_S11"), camera.detector("R01_S00")
    assert (e2v.id, e2v.serial, e2v.center_mm, e2v.shape) == (94, "E2V-CCD250-382", (0.0, 0.0), (4004, 4096))
    assert (itl.vendor, itl.center_mm, itl.shape) == ("ITL", (-169.25, -296.25), (4000, 4072))
    amps = {a.name: a for a in itl.amplifiers}
    assert amps["C10"].hdu == "Segment10"
    assert (amps["C11"].position, amps["C11"].flip_x, amps["C11"].flip_y) == ((509, 2000), True, True)
    assert (amps["C07"].position, amps["C07"].flip_x, amps["C07"].flip_y) == ((7 * 509, 0), True, False)
    assert not e2v.amplifiers[0].flip_x  # C00 of an e2v
    assert amps["C07"].data == Box(3, 512, 0, 2000)
    with pytest.raises(KeyError):
        camera.detector("R99_S99")


def test_a_raft_is_one_of_lsstcam():
    raft, whole = load_camera("raft"), load_camera("lsstcam")
    assert len(raft.detectors) == 9
    assert {d.vendor for d in raft.detectors} == {"e2v"}
    assert raft.detectors == tuple(d for d in whole.detectors if d.name.startswith("R22"))
    own = {"name", "detectors"}
    rest = ({k: v for k, v in vars(camera).items() if k not in own} for camera in (raft, whole))
    assert next(rest) == next(rest)


def test_corner_rafts():
    """By hand: R44 is not turned; R04 is R44 turned by 270 degrees, (x, y) -> (y, -x)."""
    camera = load_camera("lsstcam")
    sw0 = camera.detector("R44_SW0")
    assert sw0.center_mm == (254.0 - 42.25 + 2.5, 254.0 - 52.8125 + 1.4375)
    assert sw0.shape == (2000, 4072)
    assert [a.name for a in sw0.amplifiers] == ["C17", "C16", "C15", "C14", "C13", "C12", "C11", "C10"]
    for slot, yaw in (("SG0", 270), ("SG1", 0), ("SW0", 0), ("SW1", 180)):
        x, y = camera.detector(f"R44_{slot}").center_mm
        for raft, turn, place in (("R04", 270, (y, -x)), ("R00", 180, (-x, -y)), ("R40", 90, (-y, x))):
            turned = camera.detector(f"{raft}_{slot}")
            assert turned.center_mm == pytest.approx(place)
            assert turned.yaw_deg == (yaw + turn) % 360
    inner = [np.hypot(*camera.detector(f"{r}_SW0").center_mm) for r in ("R00", "R04", "R40", "R44")]
    guide = [np.hypot(*d.center_mm) for d in camera.detectors if "SG" in d.name]
    assert max(inner) < min(guide) < 350


def test_own_camera(written):
    camera = load_camera(written(MINE))
    first, second = camera.detectors[0].amplifiers
    assert (first.tap, second.tap) == (Box(0, 8, 0, 4), Box(8, 16, 0, 4))
    assert second.position == (4, 0)
    assert first.parallel_overscan == Box(0, 0, 0, 0)
    assert camera.detectors[0].shape == (3, 8)
    assert camera.radial == (0.0, 1.0)


def test_unknown_camera():
    with pytest.raises(CalibrationError, match=r"no camera 'nikon'.* shipped cameras .*lsstcam.*mini1"):
        load_camera("nikon")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: [", "not valid YAML at line 1"),
        ("just text", "see the schema"),
        (MINE.replace("gain: 2.0", "gain: -2.0"), "types.chip.gain: .*greater than 0"),
        (MINE.replace("gain:", "gian:"), "types.chip.gain: .*required"),
        (MINE.replace("uint16", "float32"), "dtype: .*uint16 or int32"),
    ],
)
def test_bad_file(written, text, told):
    path = written(text)
    with pytest.raises(CalibrationError, match=told) as caught:
        load_camera(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def amps(description, *rows):
    description["types"]["chip"].update(rows=[], amplifiers=list(rows))


A = {"name": "A", "position": [0, 0], "tap": [0, 8, 0, 4]}
B = {"name": "B", "position": [4, 0], "tap": [8, 16, 0, 4]}


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda d: d["types"]["chip"].update(data=[2, 9, 0, 3]), "'chip', amplifier A: its data box leaves"),
        (
            lambda d: d["types"]["chip"].update(overscan=[5, 8, 0, 3]),
            "A: its data and overscan boxes overlap",
        ),
        (
            lambda d: d["types"]["chip"].update(parallel_overscan=[2, 6, 2, 4]),
            "data and parallel_overscan boxes",
        ),
        (lambda d: d["types"]["chip"].update(data=[2, 2, 0, 3]), "A: its data box is empty"),
        (lambda d: d["types"]["chip"].update(shape=[3, 7]), "amplifier B: its image leaves the CCD"),
        (lambda d: d["types"]["chip"].update(rows=[]), "'chip': it has no amplifiers"),
        (lambda d: d.update(amplifiers=["A"]), "amplifier B: not in the camera's list"),
        (lambda d: amps(d, A, {**B, "position": [3, 0]}), "amplifiers A and B: their images overlap"),
        (lambda d: amps(d, A, {**B, "tap": [7, 15, 0, 4]}), "amplifiers A and B: their taps overlap"),
        (lambda d: amps(d, A, {**B, "tap": [8, 15, 0, 4]}), "amplifier B: its tap has not the size"),
        (lambda d: amps(d, A, {**B, "name": "A"}), "amplifier A: it is described twice"),
        (lambda d: d.update(file_format="amplifiers"), "amplifiers A and B: both are in extension ''"),
        (
            lambda d: d["detectors"]["D1"].update(type="disc"),
            "detector D1: no detector type 'disc': use one of chip",
        ),
        (lambda d: d["detectors"]["D1"].update(id=0), "detectors D0 and D1 both have id 0"),
        (lambda d: d["detectors"]["D1"].update(center=[0.07, 0.0]), "D0 and D1 overlap on the focal plane"),
        (lambda d: d["detectors"]["D1"].update(center=[0.05, 0.0], yaw=90.0), "D0 and D1 overlap on"),
    ],
)
def test_impossible_geometry(changed, edit, told):
    path = changed(edit)
    with pytest.raises(InconsistentGeometry, match=told) as caught:
        load_camera(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_turned_ccds_fit_closer(changed):
    """Two CCDs of 80 x 30 um: 56 um apart they fit once one is turned upright (40 + 15 um)."""
    camera = load_camera(changed(lambda d: d["detectors"]["D1"].update(center=[0.056, 0.0], yaw=90.0)))
    assert camera.detectors[1].yaw_deg == 90
