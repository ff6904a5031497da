"""Acceptance of a store that was built: verdicts, JSON, report and exit codes, as a person and a script meet them."""

import json
import re
import shutil
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import pytest
from making import truth
from typer.testing import CliRunner

from lsstcal_dask import cli
from lsstcal_dask.errors import CalibrationError, WrongUse
from lsstcal_dask.instrument import load_camera
from lsstcal_dask.pipeline.build import build
from lsstcal_dask.pipeline.calibrate import calibrate
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.store import create_store, open_store
from lsstcal_dask.pipeline.verify import print_acceptance, verify
from lsstcal_dask.storage import objects
from lsstcal_dask.storage.products import list_products
from lsstcal_dask.verify.acceptance import METRICS, Acceptance, as_json
from lsstcal_dask.verify.maps import draw
from lsstcal_dask.verify.metric import Result
from lsstcal_dask.verify.report import report

VOID = {"meta", "img", "br"}
MADE = ["bias", "gain", "dark", "defects"]


def run(*arguments):
    """Exit code, stdout and stderr, as `cli.main` gives them."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    if isinstance(result.exception, CalibrationError):
        code = 2 if isinstance(result.exception, WrongUse) else 1
        return code, result.stdout, f"lsstcal: {result.exception}"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def store(ingested, tmp_path_factory, threads):
    """The small day with its products, and its science frame corrected."""
    folder = tmp_path_factory.mktemp("verify") / "s"
    shutil.copytree(ingested.url, folder)
    opened = open_store(folder)
    assert not [error for _, one in build(opened, MADE, Config(), threads) for error in one.errors]
    assert not [error for _, one in calibrate(opened, [], Config().calibrate, threads) for error in one.errors]
    return opened


@pytest.fixture(scope="module")
def found(store, threads):
    return verify(store, threads)


def test_the_small_day_is_judged(found):
    """What is wrong with it, and nothing else, fails.

    Five biases add sqrt(1 + 1/5) - 1 = 9.5 % to the noise; three pairs of 4096 pixels give the gain to 3 %; and one
    amplifier has a trap, whose charge is read in the overscan of the flats, so that they look noisier than biases.
    """
    by_key = {result.metric.key: result for result in found.results}
    failing = {key for key, result in by_key.items() if result.verdict == "FAIL"}
    assert failing == {"bias: noise it adds", "gain: relative error"}
    np.testing.assert_allclose(by_key["bias: noise it adds"].values, np.sqrt(1.2) - 1, rtol=0.03)
    # a trap of the register makes the overscan of flats noisy: the read noise is that of the bias all the same
    assert any(len(truth("serial_traps", name)) for _, name in by_key["gain: value"].places)
    assert by_key["gain: read noise over bias"].verdict == "PASS"
    assert found.verdict == "FAIL"
    assert by_key["gain: value"].verdict == "PASS"
    assert abs(by_key["calibrated: sky noise over model"].median - 1) < 0.05
    verdicts = [result.verdict for result in found.results]
    assert verdicts == sorted(verdicts, key=["FAIL", "WARN", "PASS"].index)
    assert {result.metric.product for result in found.results} == {"bias", "gain", "dark", "defects", "calibrated"}
    for name in ("ptc", "linearity", "continuity", "saturation", "crosstalk"):
        assert found.not_measured[name] == "not in the store"


def test_what_does_not_suffice_for_the_checks_of_linearity_is_told(found):
    """One visit with a few stars."""
    why = found.not_measured
    assert "exposures of the same stars, at least 4 are needed" in why["calibrated: star flux against sky"]
    assert "stars" in why["calibrated: star size against peak"]


def test_json_keeps_its_shape(store, found):
    code, out, err = run("verify", store.url, "--json")
    assert code == 1
    assert err == ""
    made = json.loads(out)
    assert made == json.loads(json.dumps(as_json(found)))
    assert list(made) == [
        "store",
        "camera",
        "verdict",
        "software",
        "products",
        "metrics",
        "not_measured",
        "closed_loops",
    ]
    for product in made["products"]:
        assert list(product) == [
            "product",
            "version",
            "verdict",
            "created",
            "valid_from",
            "valid_until",
            "outdated",
            "detectors",
            "failed",
            "remarks",
            "exposures",
        ]
    for metric in made["metrics"]:
        assert list(metric) == [
            "product",
            "metric",
            "verdict",
            "prose",
            "unit",
            "limits",
            "aim",
            "limits_in",
            "source",
            "median",
            "minimum",
            "maximum",
            "outside_limits",
            "outside_aim",
            "unmeasured",
            "worst",
            "values",
            "errors",
        ]
        assert metric["verdict"] in ("PASS", "WARN", "FAIL")
        assert len(metric["limits"]) == len(metric["aim"]) == 2
        (values,) = metric["values"].values()
        assert list(values) == [a.name for a in store.camera.detectors[0].amplifiers]


def test_table_names_what_is_wrong(store):
    code, out, _ = run("verify", store.url)
    assert code == 1
    lines = out.splitlines()
    assert len(lines) <= 40
    assert "FAIL (2 FAIL, " in lines[0]
    assert lines[1].split()[:3] == ["verdict", "product", "metric"]
    assert lines[2].split()[0] == "FAIL"
    assert "noise it adds" in lines[2]
    assert re.search(r"R\d\d_S\d\d C\d\d$", lines[2].rstrip())
    assert lines[-1].startswith("not measured: ")


@pytest.mark.parametrize(("product", "code"), [("defects", 0), ("bias", 1), ("calibrated", 0)])
def test_one_product_and_its_exit_code(store, product, code):
    done, out, _ = run("verify", store.url, "--product", product, "--json")
    assert done == code
    made = json.loads(out)
    assert {metric["product"] for metric in made["metrics"]} == {product}
    assert [one["product"] for one in made["products"]] == [product]
    assert not [what for what in made["not_measured"] if not what.startswith(product)]


def test_mistakes_end_in_one_line(store, tmp_path):
    code, out, err = run("verify", store.url, "--product", "nonsense")
    assert (code, out) == (2, "")
    assert err.startswith("lsstcal: there are no metrics of 'nonsense': choose from bias, dark, defects, gain, ")
    code, _, err = run("verify", store.url, "--product", "ptc")
    assert (code, err) == (1, f"lsstcal: {store.url} has no ptc to verify: make some with 'lsstcal build {store.url}'")
    empty = create_store(tmp_path / "empty", "mini1").url
    code, out, err = run("verify", empty)
    assert (code, out) == (1, "")
    assert err == f"lsstcal: {empty} has no products to verify: make some with 'lsstcal build {empty}'"
    code, _, err = run("verify", empty, "--product", "calibrated")
    assert (code, err.endswith(f"has no calibrated to verify: make some with 'lsstcal calibrate {empty}'")) == (1, True)
    code, _, err = run("verify", store.url, "--output", tmp_path / "no" / "r.html")
    assert code == 1
    assert "cannot write a report there (no such folder)" in err
    code, _, err = run("verify", store.url, "--product", "defects", "--output", tmp_path)
    assert code == 1
    assert "cannot write a report there (Is a directory)" in err


def test_damaged_pixels_are_named(store, tmp_path, threads):
    shutil.copytree(store.url, tmp_path / "s")
    (pointer,) = list_products(store.url, "bias")
    chunk = tmp_path / "s" / "products" / "bias" / pointer.version / "data" / "image" / "c" / "0" / "1" / "0" / "0"
    chunk.write_bytes(b"nothing")
    with pytest.raises(CalibrationError, match=r"verify: R\d\d_S\d\d: bias .* its stored pixels cannot be read"):
        verify(open_store(tmp_path / "s"), threads)


def test_outdated_products_warn(store, tmp_path, threads, capsys):
    """A product made from a header that has changed since is judged, where there is no other, and warned of."""
    shutil.copytree(store.url, tmp_path / "s")
    url = str(tmp_path / "s")
    (pointer,) = list_products(url, "defects")
    headers = dict.fromkeys(pointer.inputs["headers"], "changed")
    changed = replace(pointer, inputs={**pointer.inputs, "headers": headers})
    objects.write_json(url, f"products/defects/published/{pointer.version}.json", asdict(changed))
    found = verify(open_store(url), threads, product="defects")
    assert found.verdict == "WARN"
    assert {result.verdict for result in found.results} == {"PASS"}
    print_acceptance(found)
    assert "whose header has changed since: build it again" in capsys.readouterr().out
    assert "build it again" in report(found, open_store(url).camera)


class Page(HTMLParser):
    """Checks that tags close in order; keeps what a page refers to and says."""

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.text, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_report_holds_everything_itself(store, found, tmp_path):
    path = tmp_path / "r.html"
    code, _, err = run("verify", store.url, "--output", path)
    assert code == 1
    assert f"report: {path}" in err
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert all(reference.startswith(("data:image/png;base64,", "#")) for reference in page.references)
    assert "script" not in page.tags
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    assert "url(" not in text
    said = " ".join(page.text)
    for result in found.results:
        assert result.metric.key in said
        assert result.metric.source in said
    assert page.tags.count("img") == len(found.results)
    for product in found.products:
        assert product.version in said
        assert all(remark in said for remark in product.remarks)
    for verdict in ("FAIL", "WARN", "PASS"):
        assert f'class="v {verdict}"' in text
    anchors = set(re.findall(r' id="([^"]+)"', text))
    assert {reference[1:] for reference in page.references if reference[0] == "#"} == anchors


def test_report_escapes_what_it_is_told(store, found):
    remark = "<script>alert('no')</script> & more"
    odd = replace(found, products=(replace(found.products[0], remarks=(remark,)),), results=found.results[:1])
    page = Page(report(odd, store.camera))
    assert "script" not in page.tags
    assert remark in page.text


def test_pictures_draw_amplifiers_where_they_are():
    """One polygon for each amplifier, at its place; grey where unmeasured, outlined where limits or aim are broken."""
    camera = load_camera("mini9")
    metric = next(m for m in METRICS if m.key == "bias: read noise over nominal")
    places = tuple((d.name, a.name) for d in camera.detectors for a in d.amplifiers)
    values = np.linspace(-0.04, 0.04, len(places))
    values[5], values[7], values[9] = 0.3, -0.1, np.nan
    figure = draw(Result(metric, places, values), camera)
    patches = figure.axes[0].collections[0]
    paths = patches.get_paths()
    assert len(paths) == len(places)
    area = sum(np.prod(np.ptp(path.vertices, axis=0)) for path in paths)
    expected = sum(np.prod(a.data.shape) * d.pixel_mm**2 for d in camera.detectors for a in d.amplifiers)
    assert area == pytest.approx(expected)
    shown = np.ma.masked_invalid(patches.get_array())
    assert shown.mask.sum() == 1
    assert patches.get_linewidths()[-1] > patches.get_linewidths()[0]  # what is outlined lies on top
    assert sorted(shown[-2:]) == [-0.1, 0.3]
    red, orange = patches.get_edgecolors()[np.argsort(shown[-2:])[::-1] + len(places) - 2]
    assert red[0] > red[1]
    assert orange[1] > red[1]
    (bars,) = figure.axes[2].patches
    assert bars.get_data().values.sum() == len(places) - 1
    lines = [float(np.atleast_1d(line.get_xdata())[0]) for line in figure.axes[2].lines if len(line.get_xdata())]
    assert lines == [-0.2, 0.2, -0.05, 0.05]


def test_a_long_table_is_cut_at_what_passes(found, capsys):
    many = replace(found, results=found.results * 3)
    ordered = sorted(many.results, key=lambda result: ["FAIL", "WARN", "PASS"].index(result.verdict))
    print_acceptance(replace(many, results=tuple(ordered)))
    out = capsys.readouterr().out
    assert len(out.splitlines()) <= 40
    assert re.search(r"\.\.\. and \d+ more that pass", out)


def test_verdict_of_products_counts():
    nothing = Acceptance("s", "mini1", (), (), {}, {})
    assert nothing.verdict == "PASS"
