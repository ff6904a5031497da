"""Raw files of simulated cameras for the tests."""

from pathlib import Path

from lsstcal_dask.instrument import load_camera, write_frame
from lsstcal_dask.simulate.simple import Plan, simulate_frame

SEED = 7


def small_plans() -> list[Plan]:
    kinds = [("bias", 0.0, 0.0)] * 5 + [("dark", 300.0, 0.0)] * 4
    kinds += [("flat", t, t * 1e4) for t in (1.5, 1.5, 3.0, 3.0, 4.5, 4.5)] + [("science", 30.0, 500.0)]
    return [Plan(i + 1, *row) for i, row in enumerate(kinds)]


def make_files(folder: Path, camera_name: str, plans, detectors=None, seed=SEED) -> list[str]:
    camera = load_camera(camera_name)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for plan in plans:
        for detector in camera.detectors:
            if detectors is None or detector.name in detectors:
                path = folder / f"{plan.name}_{detector.name}.fits"
                write_frame(path, camera, simulate_frame(seed, plan, camera, detector))
                paths.append(str(path))
    return paths
