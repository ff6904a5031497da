"""Where tasks run: threads of this process, processes of this machine, or a cluster.

`cluster` opens the workers and gives a `Compute`; `Compute.run` yields results as
they complete and behaves alike on every scheduler. The settings below are those
that decide speed and survival; each has its reason beside it.
"""

import asyncio
import importlib
import importlib.util
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from itertools import islice
from pathlib import Path
from typing import Any, Final

import dask
from dask.delayed import Delayed
from dask.system import CPU_COUNT

from lsstcal_dask.errors import CalibrationError, WorkerLost, WrongUse

__all__ = ["Compute", "cluster"]

_QUEUES: Final = ("slurm", "pbs", "sge", "htcondor", "lsf")
_ADDRESSES: Final = ("tcp://", "tls://")
_ANY_PORT: Final = ":0"  # of the dashboard: Dask's 8787 may be another user's, which would be a warning
_CONNECT_SECONDS = 15.0
_WORKER_SECONDS = 300.0

_WORKER_ENVIRONMENT: Final = {
    # Freed buffers of an amplifier's size stay in the process: given back to the system, as the
    # nanny's own 64 kiB asks for, each one page-faults again and reading becomes several times slower.
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_ARENA_MAX": "1",
    # One task, one core: libraries that start their own threads fight with the other workers.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_NUMBA: Final = {"NUMBA_NUM_THREADS": "1"}  # in workers alone: where this changes, Numba that runs compiles no more
# The exception of a failed task comes back to the caller, so the worker need not print it as well.
_WORKER_LOGGING: Final = {"DASK_LOGGING": "{'distributed': 'error', 'distributed.worker': 'critical'}"}
_LEFT_BY_NANNY: Final = ("PYTHONHASHSEED", "__DASK_PARENT_PID")

_WORKER_CONFIG: Final = {
    "distributed.worker.multiprocessing-method": "spawn",
    # Results are small records, so there is nothing to spill. A worker keeps the memory its largest
    # task needed (see the allocator), so a worker that paused would never resume.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    "distributed.worker.profile.enabled": False,  # samples every 10 ms what nobody reads
}
_SCHEDULER_CONFIG: Final = {
    # One task at a time on a worker, the rest wait at the scheduler: when a worker dies, only the
    # task that ran there is suspect. Holds for any number of shared inputs.
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.rootish-taskgroup": 1000,
    "distributed.scheduler.rootish-taskgroup-dependencies": 1000,
    "distributed.scheduler.worker-ttl": "10 minutes",  # compiling can hold heartbeats up for minutes
}
_LOCAL_CONFIG: Final = {
    "distributed.worker.preload": [__name__],  # `dask_setup`, below
    "distributed.scheduler.allowed-failures": 2,
    "distributed.scheduler.no-workers-timeout": "2 minutes",  # else for ever; a nanny starts another in seconds
}
_QUEUE_CONFIG: Final = {
    "distributed.scheduler.allowed-failures": 5,  # nodes also die of reasons that are not the task's
    "distributed.scheduler.no-workers-timeout": "24 hours",  # jobs may wait in the queue most of a day
    "distributed.deploy.lost-worker-timeout": "1s",  # a job that ended is replaced at once
}

Outcomes = Generator[tuple[Any, Any], None, None]


@dataclass(frozen=True)
class Compute:
    """Open workers; made by `cluster`, valid inside its ``with`` block."""

    scheduler: str
    workers: int
    client: Any = None
    memory_limit: str = ""

    def run(
        self, tasks: Sequence[Delayed], *, labels: Sequence[Hashable], describe: str = "", progress: bool | None = None
    ) -> Outcomes:
        """Yield ``(label, result)`` as tasks complete; of a failed task ``(label, exception)``.

        A failure does not stop the others. Nothing starts before the first
        ``next``; closing the generator, or Ctrl-C, cancels what has not started.
        A result is dropped here once it is yielded, so it should be a small record.

        Parameters
        ----------
        tasks : what one worker does at a time. Inputs they share must be one ``dask.delayed``
            literal that all refer to: it then travels once.
        labels : one per task, such as the name of a detector.
        describe : text of the progress bar.
        progress : bar on stderr; None shows it on a terminal only.

        Raises
        ------
        CalibrationError
            The numbers of tasks and labels differ.
        """
        if len(tasks) != len(labels):
            raise CalibrationError(f"{len(tasks)} tasks with {len(labels)} labels: give each task its label")
        if self.client is None:
            outcomes = _run_threads(tasks, labels, self.workers)
        else:
            outcomes = _run_distributed(self.client, tasks, labels, self.memory_limit)
        shown = sys.stderr.isatty() if progress is None else progress
        with _bar(describe, len(tasks), shown) as advance:
            try:
                for outcome in outcomes:
                    yield outcome
                    advance()
            finally:
                outcomes.close()

    def warm(self, functions: Iterable[Callable[[], object]]) -> None:
        """Call ``functions`` in every present worker, to compile Numba kernels ahead of the first task."""
        calls = tuple(functions)
        if self.client is None:
            for call in calls:
                call()
        else:
            self.client.run(_call_all, calls)


@contextmanager
def cluster(
    scheduler: str = "threads",
    workers: int | None = None,
    *,
    memory_limit: str | int | None = None,
    site: Mapping[str, Any] | None = None,
) -> Iterator[Compute]:
    """Open the workers that ``scheduler`` names and close them at the end of the block.

    Inside the block plain ``.compute()`` calls run there too.

    Parameters
    ----------
    scheduler : ``threads`` of this process; ``local`` processes, one thread each; ``slurm``, ``pbs``,
        ``sge``, ``htcondor`` or ``lsf`` jobs, set up by the user's dask-jobqueue YAML; the address
        of a running scheduler, ``tcp://host:port`` or ``tls://...``; a scheduler file, ``*.json``.
    workers : how many; all cores, or one job of a queue, by default. Of a running scheduler, how
        many to wait for.
    memory_limit : of each ``local`` worker, as ``"4GB"``; by default an equal share of the memory.
    site : settings of a job as dask-jobqueue names them (``queue``, ``walltime``, ...); they
        override the YAML.

    Raises
    ------
    CalibrationError
        Unknown scheduler, one that cannot be reached or started, dask-jobqueue
        missing, a setting that this scheduler does not take.
    """
    _check(scheduler, workers, memory_limit, site or {})
    count = workers or CPU_COUNT
    if scheduler == "threads":
        with dask.config.set(scheduler="threads", num_workers=count):
            yield Compute(scheduler, count)
        return
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        # The client sets the scheduler for all of Dask; a worker lost on the way can make it forget to unset it.
        stack.enter_context(dask.config.set(scheduler=None))
        if scheduler == "local":
            yield _open_local(stack, count, memory_limit)
        elif scheduler in _QUEUES:
            yield _open_queue(stack, scheduler, workers, dict(site or {}))
        else:
            yield _open_running(stack, scheduler, workers or 1)


def _check(scheduler: str, workers: int | None, memory_limit: str | int | None, site: Mapping) -> None:
    known = ["threads", "local", *_QUEUES]
    if scheduler not in known and not scheduler.startswith(_ADDRESSES) and not scheduler.endswith(".json"):
        raise WrongUse(f"scheduler {scheduler!r} is unknown: use {', '.join(known)}, tcp://host:port or a file.json")
    if workers is not None and workers < 1:
        raise WrongUse(f"workers = {workers}: give at least 1, or leave it out to use every core")
    if memory_limit is not None and scheduler != "local":
        raise WrongUse(f"memory_limit is for scheduler 'local', not {scheduler!r}: set `memory` in the site file")
    if site and scheduler not in _QUEUES:
        raise WrongUse(f"site settings are for {', '.join(_QUEUES)}, not for scheduler {scheduler!r}")


def _open_local(stack: ExitStack, workers: int, memory_limit: str | int | None) -> Compute:
    from dask.utils import format_bytes  # noqa: PLC0415
    from distributed import LocalCluster  # noqa: PLC0415

    spawned = {**_WORKER_ENVIRONMENT, **_WORKER_LOGGING}
    stack.enter_context(_environment(spawned))
    stack.enter_context(_unimported_main())
    config = {**_WORKER_CONFIG, **_SCHEDULER_CONFIG, **_LOCAL_CONFIG}
    stack.enter_context(dask.config.set({**config, "distributed.nanny.pre-spawn-environ": spawned}))
    try:
        opened = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit="auto" if memory_limit is None else memory_limit,
            dashboard_address=_ANY_PORT,
            silence_logs=logging.ERROR,
        )
    except (ValueError, OSError, RuntimeError, TimeoutError) as error:
        raise CalibrationError(
            f"scheduler 'local' did not start {workers} workers ({_line(error)}): use --scheduler threads"
        ) from error
    stack.enter_context(opened)
    limit = next(iter(opened.scheduler_info["workers"].values()))["memory_limit"]
    return Compute("local", workers, _client(stack, opened, "local"), format_bytes(limit))


def _open_queue(stack: ExitStack, scheduler: str, workers: int | None, site: dict[str, Any]) -> Compute:
    stack.enter_context(dask.config.set({**_WORKER_CONFIG, **_SCHEDULER_CONFIG, **_QUEUE_CONFIG}))
    opened = stack.enter_context(_queue_cluster(scheduler, site))
    job = opened._dummy_job
    count = workers or job.worker_processes
    # `scale` would never replace a job that was lost.
    opened.adapt(minimum=count, maximum=count)
    return Compute(scheduler, count, _client(stack, opened, scheduler), job.worker_process_memory)


def _queue_cluster(scheduler: str, site: dict[str, Any]) -> Any:
    """Cluster object of dask-jobqueue whose jobs set up their workers as ours."""
    try:
        jobqueue = importlib.import_module("dask_jobqueue")
    except ImportError as error:
        raise CalibrationError(
            f'scheduler {scheduler!r} needs dask-jobqueue: pip install "lsstcal_dask[cluster]"'
        ) from error
    _check_site(scheduler, site)
    yaml_prologue = dask.config.get(f"jobqueue.{scheduler}.job-script-prologue", None) or []
    prologue = [*site.pop("job_script_prologue", yaml_prologue), *_job_exports()]
    options = {
        "dashboard_address": _ANY_PORT,
        **dask.config.get(f"jobqueue.{scheduler}.scheduler-options", {}),
    }
    options |= site.pop("scheduler_options", {})
    try:
        return getattr(jobqueue, {"htcondor": "HTCondor"}.get(scheduler, scheduler.upper()) + "Cluster")(
            job_script_prologue=prologue, scheduler_options=options, silence_logs="error", **site
        )
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise CalibrationError(
            f"scheduler {scheduler!r} did not start ({_line(error)}): check its file in ~/.config/dask/"
        ) from error


def _check_site(scheduler: str, site: Mapping[str, Any]) -> None:
    """Refuse a site without the size of a job, or with the placeholders of our site files."""
    settings = {**dask.config.get(f"jobqueue.{scheduler}", {}), **site}
    required = ("cores", "memory", *(["disk"] if scheduler == "htcondor" else []))
    missing = [name for name in required if settings.get(name) is None]
    missing += [f"{name} (now {value})" for name, value in settings.items() if str(value).startswith("MY_")]
    if missing:
        raise CalibrationError(
            f"scheduler {scheduler!r} lacks {', '.join(missing)} of a job: copy a site file "
            f"such as cluster/{scheduler}.yaml into ~/.config/dask/ and fill it in"
        )


def _job_exports() -> list[str]:
    """Shell lines that give a job the settings a local worker gets from this process."""
    config = {**_WORKER_CONFIG, "distributed.nanny.pre-spawn-environ": _WORKER_ENVIRONMENT}
    names = [f"DASK_{key.replace('.', '__').replace('-', '_').upper()}" for key in config]
    values = {**_WORKER_ENVIRONMENT, **_NUMBA, **dict(zip(names, config.values(), strict=True))}
    # The shell and condor_submit both read these lines: no spaces, and the value in double quotes.
    return [f'export {name}="{str(value).replace(" ", "")}"' for name, value in values.items()]


def _open_running(stack: ExitStack, scheduler: str, workers: int) -> Compute:
    address = _address(Path(scheduler)) if scheduler.endswith(".json") else scheduler
    client = _client(stack, address, scheduler)
    try:
        client.wait_for_workers(workers, timeout=_WORKER_SECONDS)
    except TimeoutError as error:
        raise CalibrationError(
            f"{scheduler}: fewer than {workers} workers joined in {_WORKER_SECONDS:.0f} s: start them, "
            "or ask for fewer with --workers"
        ) from error
    found = client.scheduler_info(n_workers=-1)["workers"]
    return Compute(scheduler, sum(worker["nthreads"] for worker in found.values()), client)


def _address(path: Path) -> str:
    """What a scheduler wrote into its file, for which we wait a while."""
    end = time.monotonic() + _CONNECT_SECONDS
    while not path.is_file() and time.monotonic() < end:
        time.sleep(0.1)
    try:
        return str(json.loads(path.read_text())["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = "is no file of a scheduler" if path.is_file() else "no such file"
        raise CalibrationError(f"{path}: {why}: start `dask scheduler --scheduler-file {path}`") from error


async def _knock(address: str) -> None:
    """Reach a scheduler, or raise: a client that fails while it is made lingers, and may later lock up another."""
    from distributed.comm import connect  # noqa: PLC0415

    await (await connect(address, timeout=_CONNECT_SECONDS)).close()


def _client(stack: ExitStack, address: Any, name: str) -> Any:
    from distributed import Client  # noqa: PLC0415

    try:
        if isinstance(address, str):
            with ThreadPoolExecutor(1) as thread:  # a notebook has a loop running in its own
                thread.submit(asyncio.run, _knock(address)).result()
        client = Client(address, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError, TimeoutError, RuntimeError) as error:
        raise CalibrationError(
            f"{name}: no scheduler answers there ({_line(error)}): check the address and that it is running"
        ) from error
    return stack.enter_context(client)


def _line(error: BaseException) -> str:
    """First line of an error's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment that processes started inside the block inherit; what it was before comes back after."""
    before = {name: os.environ.get(name) for name in (*values, *_LEFT_BY_NANNY)}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _unimported_main() -> Iterator[None]:
    """Keep worker processes from running the user's script again.

    A spawned process imports the main script unless its spec says ``__main__``, so a script without ``if __name__ ==
    "__main__"`` would start clusters in its workers. Nothing there is needed: functions of a script travel by value.
    """
    main = sys.modules["__main__"]
    before = getattr(main, "__spec__", None)
    main.__spec__ = ModuleSpec("__main__", None)
    try:
        yield
    finally:
        main.__spec__ = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Let distributed log errors only."""
    importlib.import_module("distributed")  # its import sets the level that is changed here
    logger, scheduler = logging.getLogger("distributed"), logging.getLogger("distributed.scheduler")
    before = logger.level
    logger.setLevel(logging.ERROR)
    scheduler.addFilter(_is_news)
    try:
        yield
    finally:
        logger.setLevel(before)
        scheduler.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Drop the death of a worker, which `_explain` tells with the task's label."""
    return "workers died" not in str(record.msg)


def dask_setup(worker: Any) -> None:
    """Leave Ctrl-C to the parent, which closes its workers, and cores to the others (a preload of local workers)."""
    del worker
    os.environ.update(_NUMBA)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run_threads(tasks: Sequence[Delayed], labels: Sequence[Hashable], workers: int) -> Outcomes:
    """Outcomes of tasks run by ``workers`` threads, two tasks per thread taken up at a time."""
    pairs = zip(tasks, labels, strict=True)
    with ThreadPoolExecutor(workers, "lsstcal", _single_threaded) as pool, _blas_limit():
        waiting: dict[Future, Hashable] = {}
        try:
            while True:
                for task, label in islice(pairs, 2 * workers - len(waiting)):
                    waiting[pool.submit(task.compute, scheduler="synchronous")] = label
                if not waiting:
                    return
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    label, error = waiting.pop(future), future.exception()
                    yield label, future.result() if error is None else error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _single_threaded() -> None:
    """Make parallel Numba kernels of this thread use one core, if Numba is in use at all."""
    if "numba" in sys.modules:
        sys.modules["numba"].set_num_threads(1)


def _blas_limit() -> AbstractContextManager:
    """BLAS libraries of this process on one thread, where threadpoolctl can tell them so."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return nullcontext()
    return importlib.import_module("threadpoolctl").threadpool_limits(1)


def _run_distributed(client: Any, tasks: Sequence[Delayed], labels: Sequence[Hashable], memory: str) -> Outcomes:
    """Outcomes of tasks run by a cluster; one graph is sent, so shared inputs travel once."""
    from distributed import as_completed  # noqa: PLC0415

    if not tasks:
        return
    futures = client.compute(list(tasks))
    waiting: dict[Hashable, list[Hashable]] = {}
    for future, label in zip(futures, labels, strict=True):
        waiting.setdefault(future.key, []).append(label)
    completed = as_completed({future.key: future for future in futures}.values())
    del futures, future
    try:
        for future in completed:
            outcome = _outcome(future)
            for label in waiting.pop(future.key):
                yield label, _explain(outcome, label, memory)
            future.release()
    finally:
        pending = list(completed.futures)
        if pending:
            with suppress(OSError, TimeoutError):
                client.cancel(pending, force=True)


def _outcome(future: Any) -> Any:
    """Take the result of a finished future, or its exception."""
    if future.status == "finished":
        try:
            return future.result()
        except Exception as error:
            return error
    return future.exception() if future.status == "error" else ConnectionAbortedError()


def _explain(outcome: Any, label: Hashable, memory: str) -> Any:
    """Replace the errors of a cluster by one that names the task and the remedy."""
    kind = type(outcome).__name__ if isinstance(outcome, Exception) else ""
    if kind == "KilledWorker":
        limit = f" (each has {memory})" if memory else ""
        return WorkerLost(
            f"{label}: its worker died {outcome.allowed_failures + 1} times, most likely for lack of memory: "
            f"give workers more memory{limit} or use fewer --workers"
        )
    if kind in {"NoWorkerError", "NoValidWorkerError"}:
        return WorkerLost(f"{label}: no worker was left: look at the workers' logs, then run again")
    if kind == "ConnectionAbortedError":
        return WorkerLost(f"{label}: the connection to the scheduler was lost: run again to resume")
    return outcome


async def _call_all(functions: tuple[Callable[[], object], ...]) -> None:
    """Call ``functions`` in a thread, so that the worker's heartbeat goes on."""
    for function in functions:
        await asyncio.to_thread(function)


@contextmanager
def _bar(describe: str, total: int, shown: bool) -> Iterator[Callable[[], None]]:
    """Progress bar on stderr; gives the function that advances it."""
    if not shown:
        yield lambda: None
        return
    from rich import console, progress  # noqa: PLC0415

    columns = (*progress.Progress.get_default_columns(), progress.MofNCompleteColumn())
    stderr = console.Console(stderr=True, force_jupyter=False)
    # Redirection would send what the caller prints on stdout to stderr.
    with progress.Progress(*columns, console=stderr, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task(describe, total=total)
        yield lambda: bar.advance(task)
