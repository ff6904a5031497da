"""Pictures, read back from what matplotlib was given and from the file itself."""

import numpy as np
import pytest
import xarray as xr
from matplotlib import image as png
from matplotlib.figure import Figure

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.instrument.geometry import amplifier_to_ccd, ccd_to_focal
from lsstcal_dask.verify.display import picture, robust_limits

BRIGHT = 1e4


@pytest.fixture
def axes(monkeypatch):
    """The axes of every figure that is saved, in order."""
    found = []
    save = Figure.savefig

    def keep(figure, *args, **kwargs):
        found.append(figure.axes[0])
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return found


def noise_image(camera, detectors=None, seed=0):
    names = detectors or [d.name for d in camera.detectors]
    shape = (len(names), len(camera.amplifier_names), *camera.image_shape)
    return xr.DataArray(
        np.random.default_rng(seed).normal(100, 1, shape).astype(np.float32),
        dims=("detector", "amplifier", "y", "x"),
        coords={"detector": names, "amplifier": list(camera.amplifier_names)},
        name="image",
        attrs={"units": "adu", "long_name": "pixel values"},
    )


def shown(axes):
    """Pixels of the picture and the (x, y) of their centres in units of its axes."""
    image = axes.images[0]
    values = np.ma.filled(image.get_array().astype(float), np.nan)
    left, right, bottom, top = image.get_extent()
    ny, nx = values.shape
    x = left + (np.arange(nx) + 0.5) * (right - left) / nx
    y = bottom + (np.arange(ny) + 0.5) * (top - bottom) / ny
    assert image.origin == "lower"
    return values, x, y


def brightest(axes):
    values, x, y = shown(axes)
    i, j = np.unravel_index(np.nanargmax(values), values.shape)
    return x[j], y[i], values[i, j]


def test_limits_ignore_wild_pixels_and_nan():
    values = np.random.default_rng(1).normal(100, 1, 100_000)
    clean = robust_limits(values)
    values[:100] = 1e9
    values[100:200] = np.nan
    assert np.allclose(robust_limits(values), clean, atol=0.5)
    assert 95 < clean[0] < 98 < 102 < clean[1] < 105


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], (0, 1)), ([np.nan, np.nan], (0, 1)), ([5.0, 5.0], (4.5, 5.5)), ([1e4] * 3, (9990, 10010))],
)
def test_limits_of_what_has_no_spread(values, expected):
    assert robust_limits(np.array(values)) == expected


@pytest.mark.parametrize("camera_name", ["mini1", "mini9"])
def test_a_bright_pixel_of_a_ccd_is_where_the_geometry_says(axes, tmp_path, camera_name):
    camera = load_camera(camera_name)
    for detector in camera.detectors[:2]:
        for amplifier in detector.amplifiers[:: len(detector.amplifiers) - 1]:
            data = noise_image(camera)
            x, y = 3, 7
            data.loc[detector.name, amplifier.name][y, x] = BRIGHT
            picture(data, camera, tmp_path / "a.png", title="t", detector=detector.name)
            expected = amplifier_to_ccd(amplifier, x, y)
            found = brightest(axes[-1])
            assert found[2] == BRIGHT
            assert np.allclose(np.subtract(found[:2], 0.5), expected)  # the extent counts from pixel edges


def test_a_bright_pixel_of_the_focal_plane_is_at_its_millimetres(axes, tmp_path):
    camera = load_camera("mini9")
    for detector in (camera.detectors[0], camera.detectors[-1], camera.detector("R22_S12")):
        amplifier = detector.amplifiers[-1]
        data = noise_image(camera)
        x, y = 10, 30
        data.loc[detector.name, amplifier.name][y, x] = BRIGHT
        picture(data, camera, tmp_path / "a.png", title="t")
        expected = ccd_to_focal(detector, *amplifier_to_ccd(amplifier, x, y))
        found = brightest(axes[-1])
        pixel = abs(np.diff(shown(axes[-1])[1][:2])[0])
        assert np.allclose(found[:2], expected, atol=1.1 * pixel)  # CCDs are placed to the nearest pixel


def test_missing_detectors_are_drawn_as_missing(axes, tmp_path):
    camera = load_camera("mini9")
    gone = camera.detector("R22_S01")
    path = picture(
        noise_image(camera, [d.name for d in camera.detectors if d is not gone]), camera, tmp_path / "a.png", title="t"
    )
    values, x, y = shown(axes[-1])

    def at(position):
        return values[np.abs(y - position[1]).argmin(), np.abs(x - position[0]).argmin()]

    assert np.isnan(at(gone.center_mm))
    assert np.isfinite(at(camera.detector("R22_S11").center_mm))
    assert "8 of 9 CCDs" in axes[-1].get_title()
    assert gone.name in [text.get_text() for text in axes[-1].texts]
    grey = np.isclose(png.imread(path)[..., :3], 0xD9 / 255, atol=0.01).all(axis=-1)
    assert grey.mean() > 0.03  # a ninth of a focal plane that fills about half of the picture


def test_values_of_amplifiers_fill_their_areas(axes, tmp_path):
    camera = load_camera("mini1")
    (detector,) = camera.detectors
    values = np.arange(4.0)[None]
    data = xr.DataArray(
        values,
        dims=("detector", "amplifier"),
        coords={"detector": [detector.name], "amplifier": list(camera.amplifier_names)},
        name="gain",
        attrs={"units": "electron/adu"},
    )
    picture(data, camera, tmp_path / "a.png", title="t", detector=detector.name)
    ccd, x, y = shown(axes[-1])
    for i, name in enumerate(camera.amplifier_names):
        amplifier = next(a for a in detector.amplifiers if a.name == name)
        (x0, y0), (ny, nx) = amplifier.position, amplifier.data.shape
        inside = np.ix_((y > y0) & (y < y0 + ny), (x > x0) & (x < x0 + nx))
        assert (ccd[inside] == i).all()
    labels = {text.get_text(): text.get_position() for text in axes[-1].texts}
    assert set(labels) == set(camera.amplifier_names)
    with pytest.raises(CalibrationError, match="one value for each amplifier: show it without --amplifier"):
        picture(data, camera, tmp_path / "b.png", title="t", detector=detector.name, amplifier="C00")


def test_an_amplifier_is_shown_as_it_is_read(axes, tmp_path):
    camera = load_camera("mini1")
    (detector,) = camera.detectors
    data = noise_image(camera)
    data.loc[detector.name, "C10"][2, 5] = BRIGHT
    picture(data, camera, tmp_path / "a.png", title="t", detector=detector.name, amplifier="C10")
    assert brightest(axes[-1]) == (5, 2, BRIGHT)
    assert "readout orientation" in axes[-1].get_title()


def test_the_picture_says_what_it_shows(axes, tmp_path):
    camera = load_camera("mini1")
    data = noise_image(camera)
    path = picture(data, camera, tmp_path / "a.png", title="bias 0123")
    assert path == tmp_path / "a.png"
    assert axes[-1].get_title().startswith("bias 0123\nmini1, 1 of 1 CCDs")
    assert "median 99.99" in axes[-1].get_xlabel()
    assert axes[-1].figure.axes[1].get_ylabel() == "pixel values [adu]"
    assert axes[-1].images[0].get_clim() == robust_limits(shown(axes[-1])[0])
    pixels = png.imread(path)[..., :3]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_nothing_but_nan_is_still_a_picture(tmp_path):
    camera = load_camera("mini1")
    data = noise_image(camera) * np.nan
    assert picture(data, camera, tmp_path / "a.png", title="t").stat().st_size > 1000


def test_unknown_places_are_named(tmp_path):
    camera = load_camera("mini1")
    data = noise_image(camera)
    with pytest.raises(CalibrationError, match=r"bias has no detector R99: it has R22_S11"):
        picture(data, camera, tmp_path / "a.png", title="bias", detector="R99")
    with pytest.raises(CalibrationError, match="R22_S11 has no amplifier C99: it has C00"):
        picture(data, camera, tmp_path / "a.png", title="bias", detector="R22_S11", amplifier="C99")
    assert not list(tmp_path.iterdir())
