"""The shape of the package: imports point down, modules stay small, importing is cheap."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "lsstcal_dask"
ROOT = Path(__file__).parents[1] / PACKAGE

# Each room sees itself and those before it.
TOWER = (
    "errors",
    "variables",
    "mapping",
    "statistics",
    "instrument",
    "physics",
    "isr",
    "photometry",
    "products",
    "verify",
    "pipeline",
    "cli",
)
SIDE_ROOMS = {
    "storage": {"errors", "variables", "mapping", "instrument"},
    "compute": {"errors"},
    "simulate": {"errors", "variables", "instrument", "physics.units"},
}
SEE_SIDE_ROOMS = {"pipeline", "cli"}
SEE_SIMULATE = ("cli", "pipeline", "pipeline.demo", "pipeline.observatory", "demo")
CLOSED_LOOPS = "pipeline.closed."  # its modules see simulate
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 60


def _modules(root: Path) -> Iterator[tuple[str, Path, ast.Module]]:
    """Dotted name inside the package, path and tree of every module."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        yield name, path, ast.parse(path.read_text(), filename=str(path))


def _imported(name: str, path: Path, tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Dotted names inside the package that a module imports anywhere, with their lines."""
    package = [PACKAGE, *name.split(".")] if name else [PACKAGE]
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        for dotted in found:
            if dotted.startswith(f"{PACKAGE}."):
                yield dotted.removeprefix(f"{PACKAGE}."), node.lineno


def _allowed(name: str, target: str) -> bool:
    """Whether module ``name`` may import ``target``."""
    room, seen = (dotted.partition(".")[0] for dotted in (name, target))
    room = "pipeline" if room == "demo" else room
    if room in ("", seen):
        return seen != "simulate" or room == seen
    if seen == "simulate":
        return name in SEE_SIMULATE or name.startswith(CLOSED_LOOPS)
    if room in SIDE_ROOMS:
        return any(f"{target}.".startswith(f"{allowed}.") for allowed in SIDE_ROOMS[room])
    if seen in SIDE_ROOMS:
        return room in SEE_SIDE_ROOMS
    return room in TOWER and seen in TOWER and TOWER.index(seen) < TOWER.index(room)


def import_breaches(root: Path) -> list[str]:
    """Imports that point up, and modules that belong to no room."""
    known = {"", "demo", "__main__", *TOWER, *SIDE_ROOMS}
    found = []
    for name, path, tree in _modules(root):
        if name.split(".")[0] not in known:
            found.append(f"{name}: no such room in the architecture")
        elif name != "__main__":
            found += [
                f"{name}:{line} imports {target}"
                for target, line in _imported(name, path, tree)
                if not _allowed(name, target)
            ]
    return found


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[ast.get_docstring(function) is not None :]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def _assigned(tree: ast.Module) -> list[str]:
    found = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    targets = [target for node in found for target in getattr(node, "targets", [getattr(node, "target", None)])]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _public(tree: ast.Module) -> list[str]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    names = [node.name for node in tree.body if isinstance(node, kinds)] + _assigned(tree)
    return [name for name in names if not name.startswith("_")]


def style_breaches(root: Path) -> list[str]:
    """Star imports, missing docstrings and ``__all__``, and modules or functions that grew too long."""
    found = []
    for name, path, tree in _modules(root):
        lines = len(path.read_text().splitlines())
        if not ast.get_docstring(tree):
            found.append(f"{name}: no docstring")
        if lines > MAX_MODULE_LINES:
            found.append(f"{name}: {lines} lines")
        if _public(tree) and "__all__" not in _assigned(tree):
            found.append(f"{name}: no __all__")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                found.append(f"{name}:{node.lineno} star import")
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = _body_lines(node)
                found += [f"{name}.{node.name}: {length} lines"] * (length > MAX_FUNCTION_LINES)
    return found


def test_imports_point_down():
    assert import_breaches(ROOT) == []


def test_modules_keep_the_style():
    assert style_breaches(ROOT) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("isr/dark.py", "from lsstcal_dask.products import dark"),
        ("isr/dark.py", "from ..products import dark"),
        ("isr/dark.py", "def f():\n    import lsstcal_dask.products.dark"),
        ("isr/__init__.py", "from ..products import dark"),
        ("products/dark.py", "from lsstcal_dask.simulate import truth"),
        ("products/dark.py", "from lsstcal_dask.storage import write"),
        ("pipeline/build.py", "from lsstcal_dask import simulate"),
        ("pipeline/closed/__init__.py", "from lsstcal_dask import simulate"),
        ("pipeline/closed_loops.py", "from lsstcal_dask import simulate"),
        ("__init__.py", "from lsstcal_dask import simulate"),
        ("simulate/sky.py", "from lsstcal_dask.physics import seds"),
        ("simulate/sky.py", "from lsstcal_dask.isr.crosstalk import apply"),
        ("storage/raw.py", "from lsstcal_dask.statistics import median"),
        ("compute.py", "from lsstcal_dask.variables import DIMS"),
        ("errors.py", "from lsstcal_dask.variables import DIMS"),
        ("mapping.py", "from lsstcal_dask.statistics import median"),
        ("attic.py", "import numpy"),
    ],
)
def test_a_breach_is_found(tmp_path, module, source):
    _write(tmp_path, module, source)
    assert len(import_breaches(tmp_path)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("products/dark.py", "from lsstcal_dask.isr.sequence import ORDER\nfrom lsstcal_dask import mapping"),
        ("products/dark.py", "from . import bias\nfrom .bias import build"),
        ("variables.py", "from lsstcal_dask.errors import UnitsError"),
        ("pipeline/demo.py", "from lsstcal_dask.simulate import visit"),
        ("pipeline/closed/bias.py", "from lsstcal_dask.simulate import visit"),
        ("pipeline.py", "from lsstcal_dask import compute, storage, simulate"),
        ("cli.py", "def f():\n    from lsstcal_dask.simulate import visit"),
        ("simulate/sky.py", "from lsstcal_dask.physics.units import nm\nfrom ..physics import units"),
        ("storage/raw.py", "from lsstcal_dask.instrument.camera import Camera"),
        ("__init__.py", "from lsstcal_dask.pipeline import build"),
    ],
)
def test_an_allowed_import_is_not_a_breach(tmp_path, module, source):
    _write(tmp_path, module, source)
    assert import_breaches(tmp_path) == []


@pytest.mark.parametrize(
    ("source", "breach"),
    [
        ("'''Text.'''\nfrom os import *", "isr.dark:2 star import"),
        ("X = 1", "isr.dark: no docstring"),
        ("'''Text.'''\n__all__ = ['f']\ndef f():\n" + "    g()\n" * 61, "isr.dark.f: 61 lines"),
        ("'''Text.'''\n" + "\n" * 500, "isr.dark: 501 lines"),
        ("'''Text.'''\ndef f(): ...", "isr.dark: no __all__"),
    ],
)
def test_a_breach_of_style_is_found(tmp_path, source, breach):
    _write(tmp_path, "isr/dark.py", source)
    assert breach in style_breaches(tmp_path)


def _write(root: Path, module: str, source: str) -> None:
    path = root / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)


_IMPORT = """
import importlib, sys
from numba.core import event
with event.install_recorder("numba:compile") as record:
    importlib.import_module({module!r})
heavy = sorted({{"distributed", "matplotlib", "dask_jobqueue"}} & set(sys.modules))
print(len(record.buffer), heavy)
"""


def _import(module: str, *path: str) -> str:
    code = f"import sys; sys.path[:0] = {list(path)!r}\n" + _IMPORT.format(module=module)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return found.stdout.strip()


@pytest.mark.parametrize("module", [PACKAGE, f"{PACKAGE}.compute", f"{PACKAGE}.cli"])
def test_import_compiles_nothing_and_leaves_heavy_packages_alone(module):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} does not exist yet")
    assert _import(module) == "0 []"


def test_a_costly_import_is_found(tmp_path):
    _write(tmp_path, "costly.py", "import distributed, numba\n@numba.njit('f8(f8)')\ndef f(x): return x + 1")
    compiled, heavy = _import("costly", str(tmp_path)).split(" ", 1)
    assert int(compiled) > 0
    assert heavy == "['distributed']"
