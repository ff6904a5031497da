"""The same results, errors and silence on threads and on processes; workers that die on the way."""

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask
import pytest

from lsstcal_dask import compute
from lsstcal_dask.compute import cluster
from lsstcal_dask.errors import CalibrationError

DETECTORS = [f"R{i:03d}" for i in range(189)]


@pytest.fixture(scope="module")
def local():
    with cluster("local", 2, memory_limit="1GB") as opened:
        yield opened


@pytest.fixture(params=["threads", "local"])
def opened(request):
    if request.param == "local":
        yield request.getfixturevalue("local")
        return
    with cluster("threads", 2) as threads:
        yield threads


def _add(number, shared):
    if number < 0:
        raise ValueError(f"negative: {number}")
    return number + shared["offset"]


def _tasks(numbers):
    shared = dask.delayed({"offset": 100})
    return [dask.delayed(_add)(number, shared) for number in numbers]


def _die_once(marker):
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def _die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def _environment():
    """Environment as the process was started with it, which is what the allocator read."""
    started = dict(line.split("=", 1) for line in Path("/proc/self/environ").read_text().split("\0") if "=" in line)
    return started, dict(os.environ), dask.config.get("distributed.worker.memory")


def _page_faults():
    """Page faults of filling buffers of an amplifier's size, once the first has grown the heap."""
    import resource

    import numpy as np

    def fill():
        buffer = np.empty(8_000_000, np.float32)
        buffer[:] = 1

    fill()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        fill()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_focal_plane_completes_with_its_labels(opened, capfd):
    start = time.perf_counter()
    found = dict(opened.run(_tasks(range(189)), labels=DETECTORS))
    # 2 ms of scheduler per task on distributed; the rest is slack for a loaded machine.
    assert time.perf_counter() - start < 15
    assert found == {name: 100 + i for i, name in enumerate(DETECTORS)}
    assert capfd.readouterr() == ("", "")


def test_failing_task_yields_its_exception_beside_the_results_of_the_others(opened, capfd):
    found = dict(opened.run(_tasks([1, -1, 2]), labels=["a", "b", "c"]))
    error = found.pop("b")
    assert isinstance(error, ValueError)
    assert str(error) == "negative: -1"
    assert found == {"a": 101, "c": 102}
    assert capfd.readouterr() == ("", "")


def test_no_tasks_and_equal_tasks(opened):
    assert list(opened.run([], labels=[])) == []
    task = dask.delayed(_add, pure=True)(1, {"offset": 1})
    assert sorted(opened.run([task, task], labels=["a", "b"])) == [("a", 2), ("b", 2)]


def test_labels_must_match(opened):
    with pytest.raises(CalibrationError, match="3 tasks with 1 labels"):
        next(opened.run(_tasks([1, 2, 3]), labels=["a"]))


def test_nothing_runs_before_the_first_next_nor_after_closing(opened, tmp_path):
    tasks = [dask.delayed(_slow_touch)(str(tmp_path / str(i))) for i in range(20)]
    outcomes = opened.run(tasks, labels=range(20))
    time.sleep(0.3)
    assert not list(tmp_path.iterdir())
    next(outcomes)
    outcomes.close()
    time.sleep(0.5)
    ran = len(list(tmp_path.iterdir()))
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) == ran < 20


def _slow_touch(path):
    time.sleep(0.1)
    Path(path).touch()


def test_progress_bar_goes_to_stderr_only(opened, capfd):
    list(opened.run(_tasks([1, 2]), labels="ab", describe="master bias", progress=True))
    out, err = capfd.readouterr()
    assert out == ""
    assert "master bias" in err
    assert "2/2" in err


def test_threads_are_no_more_than_asked_for():
    import threading

    with cluster("threads", 2) as opened:
        names = {o for _, o in opened.run([dask.delayed(_thread_name)() for _ in range(20)], labels=range(20))}
        assert dask.config.get("num_workers") == 2
    assert len(names) <= 2
    assert threading.current_thread().name not in names


def _thread_name():
    import threading

    time.sleep(0.01)
    return threading.current_thread().name


def test_warm_calls_every_function(opened, tmp_path):
    marks = [tmp_path / "a", tmp_path / "b"]
    opened.warm([mark.touch for mark in marks])
    assert all(mark.exists() for mark in marks)


def test_worker_killed_once_does_not_change_the_result(local, tmp_path):
    tasks = [*_tasks([1, 2, 3]), dask.delayed(_die_once)(str(tmp_path / "died"))]
    found = dict(local.run(tasks, labels=[1, 2, 3, "killed"]))
    assert (tmp_path / "died").exists()
    assert found == {1: 101, 2: 102, 3: 103, "killed": "alive"}


def test_worker_killed_for_ever_names_the_task_and_spares_the_others(local, capfd):
    shared = [dask.delayed(f"literal {i}") for i in range(7)]  # more inputs than Dask's own queueing allows
    tasks = [*_tasks(range(6)), dask.delayed(_die)(shared)]
    found = dict(local.run(tasks, labels=[0, 1, 2, 3, 4, 5, "R22_S11"]))
    error = found.pop("R22_S11")
    assert isinstance(error, CalibrationError)
    assert str(error).startswith("R22_S11: its worker died 3 times")
    assert "memory (each has 0.93 GiB)" in str(error)
    assert "\n" not in str(error)
    assert found == {i: 100 + i for i in range(6)}
    assert capfd.readouterr() == ("", "")


def test_worker_has_our_allocator_threads_and_memory_settings(local):
    [(_, (started, now, memory))] = local.run([dask.delayed(_environment)()], labels=["a"])
    for environment in (started, now):
        assert environment["MALLOC_TRIM_THRESHOLD_"] == str(4 << 30)
        assert environment["MALLOC_MMAP_THRESHOLD_"] == str(1 << 30)
        assert environment["MALLOC_ARENA_MAX"] == "1"
        for library in ("OMP", "MKL", "OPENBLAS"):
            assert environment[f"{library}_NUM_THREADS"] == "1"
    assert now["NUMBA_NUM_THREADS"] == "1"
    assert [memory[name] for name in ("pause", "spill", "target")] == [False] * 3
    assert memory["terminate"] == 0.95


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are those of glibc")
def test_freed_buffers_are_not_faulted_in_again(local):
    [(_, faults)] = local.run([dask.delayed(_page_faults)()], labels=["a"])
    # 20 buffers of 32 MB are 156,000 pages of 4 kB, or 300 of 2 MB, when each is mapped afresh.
    assert faults < 150


def test_environment_and_main_come_back():
    before, spec = dict(os.environ), sys.modules["__main__"].__spec__
    settings = dask.config.get("distributed.worker.memory.pause", None)
    with cluster("local", 1):
        assert os.environ["MALLOC_ARENA_MAX"] == "1"
    assert dict(os.environ) == before
    assert sys.modules["__main__"].__spec__ is spec
    assert dask.config.get("distributed.worker.memory.pause", None) == settings


_OPEN = """
import numba
from lsstcal_dask.compute import cluster

@numba.njit
def double(x):
    return 2 * x

if __name__ == "__main__":
    numba.set_num_threads(2)  # its threads run
    with cluster("local", 1) as opened:
        assert double(2) == 4
        [(_, threads)] = opened.run([dask.delayed(numba.get_num_threads)()], labels=["a"])
        assert threads == 1
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two threads of Numba")
def test_kernels_compile_in_a_notebook_beside_local_workers(tmp_path):
    script = tmp_path / "s.py"
    script.write_text("import dask\n" + _OPEN)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_running_scheduler_by_address_and_by_file(local, tmp_path):
    file = tmp_path / "scheduler.json"
    address = local.client.scheduler.address
    file.write_text(json.dumps({"type": "Scheduler", "address": address}))
    for scheduler in (address, str(file)):
        with cluster(scheduler, 2) as opened:
            assert opened.workers == 2
            assert dict(opened.run(_tasks([1]), labels=["a"])) == {"a": 101}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheduler": "cloud"}, "scheduler 'cloud' is unknown: use threads, local, slurm"),
        ({"workers": 0}, "workers = 0: give at least 1"),
        ({"scheduler": "threads", "memory_limit": "1GB"}, "memory_limit is for scheduler 'local'"),
        ({"scheduler": "local", "site": {"queue": "q"}}, "site settings are for slurm"),
        (
            {"scheduler": "local", "workers": 1, "memory_limit": "1 potato"},
            "did not start 1 workers .*: use --sch",
        ),
        ({"scheduler": "tcp://127.0.0.1:9"}, "no scheduler answers there .*: check the address"),
        ({"scheduler": "tcp://nonsense"}, "no scheduler answers there .*: check the address"),
        ({"scheduler": "absent.json"}, r"absent.json: no such file: start `dask scheduler"),
        ({"scheduler": "slurm"}, "scheduler 'slurm' lacks cores, memory of a job: .*cluster/slurm.yaml"),
        (
            {"scheduler": "slurm", "site": {"cores": 1, "memory": "1GB", "queue": "MY_QUEUE"}},
            "lacks queue .now MY",
        ),
    ],
)
def test_wrong_use_is_one_line_with_its_remedy(arguments, message, monkeypatch):
    monkeypatch.setattr(compute, "_CONNECT_SECONDS", 0.5)
    with pytest.raises(CalibrationError, match=message) as caught, cluster(**arguments):
        pass
    assert "\n" not in str(caught.value)


def test_a_client_without_scheduler_is_gone_at_once(monkeypatch):
    """Collected while the next client starts it would wait for ever for a lock that this holds."""
    from distributed import Client

    def clients():
        # type(), for isinstance() asks a proxy of something dead what it is
        return {id(found) for found in gc.get_objects() if issubclass(type(found), Client)}

    monkeypatch.setattr(compute, "_CONNECT_SECONDS", 0.5)
    before = clients()
    with pytest.raises(CalibrationError), cluster("tcp://127.0.0.1:9"):
        pass
    assert clients() <= before


def test_a_file_that_is_no_schedulers_is_named(tmp_path):
    (tmp_path / "other.json").write_text("[]")
    with (
        pytest.raises(CalibrationError, match=r"other\.json: is no file of a scheduler: start"),
        cluster(str(tmp_path / "other.json")),
    ):
        pass


def test_too_few_workers_is_told(local, monkeypatch):
    monkeypatch.setattr(compute, "_WORKER_SECONDS", 0.5)
    with (
        pytest.raises(CalibrationError, match="fewer than 9 workers joined"),
        cluster(local.client.scheduler.address, 9),
    ):
        pass


def test_missing_dask_jobqueue_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(CalibrationError, match=r'pip install "lsstcal_dask\[cluster\]"'), cluster("slurm"):
        pass


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (type("NoWorkerError", (Exception,), {})(), "no worker was left"),
        (ConnectionAbortedError(), "connection to the scheduler was lost"),
    ],
)
def test_errors_of_the_cluster_name_the_label(outcome, message):
    found = compute._explain(outcome, "R22_S11", "")
    assert isinstance(found, CalibrationError)
    assert str(found).startswith("R22_S11: ")
    assert message in str(found)


_SCRIPT = """
import time
import dask
from lsstcal_dask.compute import cluster

def work(seconds):
    time.sleep(seconds)
    return seconds

with cluster({scheduler!r}, 2) as opened:
    for outcome in opened.run([dask.delayed(work)(t) for t in {seconds}], labels="abcdef"):
        print(*outcome, flush=True)
"""


def _script(tmp_path, scheduler, seconds):
    path = tmp_path / "script.py"
    path.write_text(_SCRIPT.format(scheduler=scheduler, seconds=seconds))
    command = [sys.executable, "-W", "error", str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_script_without_a_main_guard_runs_once_and_quietly(tmp_path):
    out, err = _script(tmp_path, "local", [0, 0, 0, 0, 0, 0]).communicate(timeout=60)
    assert sorted(out.splitlines()) == [f"{label} 0" for label in "abcdef"]
    assert err == ""


@pytest.mark.parametrize("scheduler", ["threads", "local"])
def test_ctrl_c_cancels_what_has_not_started(tmp_path, scheduler):
    with _script(tmp_path, scheduler, [0, 1, 1, 1, 30, 30]) as process:
        process.stdout.readline()
        start = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert time.monotonic() - start < 20
    # A signal that finds the loop of distributed between two calls is logged there as well.
    assert err.count("Traceback") - err.count("tornado.application - ERROR") == 1
    assert err.strip().endswith("KeyboardInterrupt")


def test_importing_compute_is_cheap():
    code = "import sys, lsstcal_dask.compute; print('distributed' in sys.modules, 'rich' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
    assert importlib.import_module("lsstcal_dask.compute").__all__ == ["Compute", "cluster"]
