"""Pictures of curves and of the crosstalk matrix, and of products of which only those can be drawn."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from making import observatory
from matplotlib import image as png
from matplotlib.figure import Figure

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.pipeline.exchange import EXCHANGED, import_inputs
from lsstcal_dask.pipeline.pictures import show_picture
from lsstcal_dask.pipeline.store import create_store
from lsstcal_dask.simulate.deliveries import deliveries
from lsstcal_dask.storage.tables import write_table
from lsstcal_dask.variables import MASK_BITS
from lsstcal_dask.verify.charts import curves_picture, matrix_picture
from lsstcal_dask.verify.display import picture

NAMES = ["C00", "C01"]


@pytest.fixture
def axes(monkeypatch):
    """The axes of every figure that is saved, in order."""
    found = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: found.append(figure.axes[0]))
    return found


@pytest.fixture(scope="module")
def imported(tmp_path_factory, threads):
    store = create_store(tmp_path_factory.mktemp("charts") / "s", "mini1")
    for name, make in deliveries("calibration-day", ()).items():
        if name in EXCHANGED:
            write_table(store.url, f"inputs/{name}", make(observatory("mini1")))
    assert not [error for _, one in import_inputs(store, threads) for error in one.errors]
    return store


def choice(**own):
    keys = ("variable", "version", "detector", "amplifier", "wavelength")
    return {**dict.fromkeys(keys), "raw": False, **own}


def test_matrix_by_hand(axes):
    """Grey where unmeasured, colours to the 99th percentile of what is there, either sign alike."""
    values = np.array([[[np.nan, 1e-4], [-2e-4, np.nan]]])
    sources = ["R/C00", "R/C01"]
    coords = {"detector": ["R"], "amplifier": NAMES, "source": sources}
    matrix = xr.DataArray(values, dims=("detector", "amplifier", "source"), coords=coords, name="crosstalk")
    matrix_picture(matrix, "x.png", "m")
    (image,) = axes[0].images
    np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), values[0])
    assert image.get_clim() == pytest.approx((-1.99e-4, 1.99e-4))
    assert [label.get_text() for label in axes[0].get_xticklabels()] == sources
    assert "2 couplings other than zero, 50% unmeasured" in axes[0].get_title()


def test_curves_by_hand(axes):
    dims, coords = ("detector", "amplifier", "node"), {"detector": ["R"], "amplifier": NAMES}
    level = xr.DataArray([[[0.0, 1e4, 5e4], [np.nan] * 3]], dims=dims, coords=coords)
    correction = xr.DataArray([[[0.0, 10.0, 200.0], [np.nan] * 3]], dims=dims, coords=coords)
    curves_picture(level, correction, "x.png", "curves")
    line = axes[0].lines[0]
    np.testing.assert_allclose(line.get_xydata(), [[1e4, 0.1], [5e4, 0.4]])
    assert "1 of 2 amplifiers" in axes[0].get_title()


@pytest.mark.parametrize("what", ["crosstalk", "linearity", "saturation", "defects", "gain"])
def test_every_product_has_a_picture(imported, tmp_path, what):
    path = show_picture(imported, what, tmp_path / f"{what}.png", choice())
    coloured = np.ptp(png.imread(path)[..., :3], axis=-1) > 0.1
    assert coloured.mean() > (0.01 if what in ("crosstalk", "saturation", "gain") else 0.001)  # lines and legends
    assert show_picture(imported, what, tmp_path / "d.png", choice(detector="R22_S11")).is_file()


@pytest.mark.parametrize("bin_of", ["mini1", "raft"])
def test_flags_have_a_colour_each(axes, bin_of):
    """Names, not numbers of bits: the highest of a pixel is shown, and a single pixel is seen however binned."""
    camera = load_camera(bin_of)
    name = camera.detectors[0].name
    mask = np.zeros((1, len(camera.amplifier_names), *camera.image_shape), np.uint16)
    mask[0, 0, 3, 4] = MASK_BITS["BAD"] | MASK_BITS["SATURATED"]
    mask[0, 0, 30, 40] = MASK_BITS["SUSPECT"]
    coords = {"detector": [name], "amplifier": list(camera.amplifier_names)}
    picture(
        xr.DataArray(mask, dims=("detector", "amplifier", "y", "x"), coords=coords, name="mask"),
        camera,
        "x.png",
        title="m",
    )
    (image,) = axes[0].images
    shown = np.ma.filled(image.get_array().astype(float), np.nan)
    places = [list(MASK_BITS).index(bit) + 1 for bit in ("SUSPECT", "SATURATED")]
    assert sorted(shown[shown > 0]) == places
    assert len({image.cmap(image.norm(place)) for place in (0, *places)}) == 3
    legend = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert legend[places[1]] == "saturated"


def test_a_variable_without_a_value_says_so(imported, axes):
    show_picture(imported, "saturation", Path("x.png"), choice(variable="well_serial"))
    assert "nothing was measured" in [text.get_text() for text in axes[0].texts]


def test_what_is_not_there_is_named(imported, tmp_path):
    with pytest.raises(CalibrationError, match="choose --variable from crosstalk, crosstalk_error"):
        show_picture(imported, "crosstalk", None, choice(variable="gain"))
    with pytest.raises(CalibrationError, match="no detector R99"):
        show_picture(imported, "crosstalk", None, choice(detector="R99"))
    with pytest.raises(CalibrationError, match="R22_S11 has no amplifier C77"):
        show_picture(imported, "linearity", None, choice(detector="R22_S11", amplifier="C77"))
    with pytest.raises(CalibrationError, match="cannot write a picture there"):
        show_picture(imported, "crosstalk", tmp_path / "none" / "x.png", choice())
