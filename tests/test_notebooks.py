"""The notebooks run from top to bottom, and what they show makes sense."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
SMALL = {"camera_name": "mini1", "biases": 4, "pairs": 2, "workers": 1}

jupytext = pytest.importorskip("jupytext", reason='pip install "lsstcal_dask[test]"')
nbclient = pytest.importorskip("nbclient", reason='pip install "lsstcal_dask[test]"')
pytest.importorskip("ipykernel", reason='pip install "lsstcal_dask[test]"')


def execute(path, parameters):
    """The notebook after a run in which the tagged cell was followed by other parameters."""
    notebook = jupytext.read(path)
    tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    lines = [f"{name} = {value!r}" for name, value in parameters.items()]
    for line in lines:
        assert re.search(rf"^{line.split()[0]} = ", notebook.cells[tagged[0]].source, re.MULTILINE), line
    notebook.cells[tagged[0]].source += "\n" + "\n".join(lines)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(path.parent))
    return notebook


def outputs(notebook, kind):
    """Outputs of a MIME type, in order."""
    return [
        output.data[kind]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if kind in output.get("data", {})
    ]


def printed(notebook, stream="stdout"):
    return "".join(
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream" and output.name == stream
    )


@pytest.mark.filterwarnings("ignore:Proactor event loop:RuntimeWarning")
def test_quick_start(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    path = FOLDER / "quick_start.py"
    notebook = execute(path, {**SMALL, "folder": str(tmp_path / "run")})
    text = printed(notebook)
    assert "8 files of mini1 with 1 CCDs" in text
    assert "8 frames ingested, 0 refused" in text
    assert "bias PASS" in text
    assert "gain PASS" in text
    assert "dark skipped: dark: no exposures of type dark" in text
    assert "'bias': '" in text  # what the gains were made from
    figures = outputs(notebook, "image/png")
    assert len(figures) == 3
    assert all(len(figure) > 10_000 for figure in figures)
    reprs = "".join(outputs(notebook, "text/html"))
    assert "(1, 1, 1, 70, 80)" in reprs  # the chunk of the focal plane is one raw amplifier
    assert "read_noise_electron" in reprs
    found = re.search(r"(\d+) gains: mean pull ([+-][\d.]+), rms ([\d.]+)", text)
    count, mean, rms = int(found[1]), float(found[2]), float(found[3])
    assert count == 4
    assert abs(mean) < 4 / count**0.5
    assert rms < 2.5  # chi2 of 4 degrees of freedom above 25 in 5e-5 of all cases
    assert "Warning" not in printed(notebook, "stderr")


@pytest.mark.filterwarnings("ignore:Proactor event loop:RuntimeWarning")
def test_flat_cubes(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    small = {"camera_name": "mini1", "step": 10.0, "workers": 1, "folder": str(tmp_path / "run")}
    notebook = execute(FOLDER / "flat_cubes.py", small)
    text = printed(notebook)
    assert "20 wavelengths, 20 slices of a CCD" in text
    differ, known = (float(n) for n in re.search(r"differ by ([\d.]+) % rms; .* known to ([\d.]+) %", text).groups())
    # 15 slices of two flats of 40000 electrons each, of unlike weight: at most as if ten of them were alike
    assert 100 / (30 * 40_000) ** 0.5 < known < 100 / (16 * 40_000) ** 0.5
    assert 0 < differ < 5
    assert len(outputs(notebook, "image/png")) == 3
    assert "Warning" not in printed(notebook, "stderr")


def test_notebooks_are_kept_as_text_without_outputs():
    assert not [path for path in FOLDER.iterdir() if path.suffix not in {".py", ".md"} and path.is_file()]
    for path in FOLDER.glob("*.py"):
        assert "# %%" in path.read_text()
        assert not re.search(r"^(from|import) .*\._", path.read_text(), re.MULTILINE), "private names"
