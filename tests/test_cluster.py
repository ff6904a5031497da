"""The site files and batch scripts, as text: what each queue would be given, and that a shell takes it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import dask
import pytest
import yaml

from lsstcal_dask import compute
from lsstcal_dask.errors import CalibrationError

pytest.importorskip("dask_jobqueue")

FOLDER = Path(__file__).parents[1] / "cluster"
SCRIPTS = [*sorted(FOLDER.glob("*.sh")), FOLDER.parent / ".ci" / "run"]
SITES = {
    "slurm": {"account": "astro", "queue": "long"},
    "pbs": {"account": "astro", "queue": "long"},
    "sge": {"project": "astro", "queue": "long"},
    "htcondor": {},
}
EXPECTED = {
    "slurm": ["#SBATCH -A astro", "#SBATCH -p long", "#SBATCH --cpus-per-task=8", "#SBATCH -t 04:00:00"],
    "pbs": [
        "#PBS -A astro",
        "#PBS -q long",
        "#PBS -l select=1:ncpus=8:mem=32GB",
        "#PBS -l walltime=04:00:00",
    ],
    "sge": ["#$ -P astro", "#$ -q long", "#$ -l h_vmem=4G", "#$ -pe smp 8", "#$ -l h_rt=04:00:00"],
    "htcondor": ["RequestCpus = MY.DaskWorkerCores", "MY.DaskWorkerCores = 1", "getenv = true"],
    "lsf": ["#BSUB -q long", "#BSUB -W 04:00"],
}
LSF = {
    "cores": 8,
    "processes": 8,
    "memory": "32GB",
    "queue": "long",
    "walltime": "04:00",
    "lsf_units": "mb",
    "worker_extra_args": ["--lifetime", "210m", "--lifetime-stagger", "25m"],
}


def _site_file(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def _job_script(name, site):
    """Job script of a queue set up by our YAML (LSF has none: by keywords)."""
    ours = _site_file(name)["jobqueue"][name] if name != "lsf" else {}
    defaults = dask.config.get(f"jobqueue.{name}", {})
    with (
        dask.config.set({f"jobqueue.{name}": {**defaults, **ours}}),
        compute._queue_cluster(name, dict(site)) as opened,
    ):
        return opened.job_script()


@pytest.fixture(scope="module")
def scripts():
    return {name: _job_script(name, site) for name, site in {**SITES, "lsf": LSF}.items()}


@pytest.mark.parametrize("name", EXPECTED)
def test_job_script_asks_for_the_resources_of_the_site_file(scripts, name):
    for line in EXPECTED[name]:
        assert line in scripts[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_workers_are_single_threaded_and_leave_before_the_wall_time(scripts, name):
    assert "--nthreads 1 --memory-limit 3.73GiB" in scripts[name]
    assert "--nanny" in scripts[name]
    assert "--lifetime 210m --lifetime-stagger 25m" in scripts[name]
    assert name == "htcondor" or "--nworkers 8" in scripts[name]


def test_lifetime_and_stagger_end_before_the_wall_time():
    for name in ("slurm", "pbs", "sge"):
        site = _site_file(name)["jobqueue"][name]
        hours, minutes, _ = (int(part) for part in site["walltime"].split(":"))
        _, lifetime, _, stagger = site["worker-extra-args"]
        assert int(lifetime[:-1]) + int(stagger[:-1]) < 60 * hours + minutes


def _shell_lines(name, script):
    """What a shell runs before the worker starts, whatever the queue's wrapping."""
    if name != "htcondor":
        return "\n".join(line for line in script.splitlines() if line.startswith("export "))
    # condor_submit: the list is in double quotes, one inside is doubled; single quotes hold an argument.
    arguments = re.search(r'^Arguments = "(.*)"$', script, re.MULTILINE)[1].replace('""', '"')
    command = re.fullmatch(r"-c '(.*)'", arguments)[1].replace("''", "'")
    return command[: command.index(f"; {sys.executable}")]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_shell_gives_the_worker_our_settings(scripts, name):
    code = (
        "import json, os, distributed, dask; "
        "print(json.dumps([dict(os.environ), dask.config.get('distributed.nanny.pre-spawn-environ'), "
        "dask.config.get('distributed.worker.memory')]))"
    )
    command = f"{_shell_lines(name, scripts[name])}\n{sys.executable} -c {json.dumps(code)}"
    found = subprocess.run(["bash", "-euc", command], capture_output=True, text=True, check=True)
    environment, nanny, memory = json.loads(found.stdout)
    assert environment["MALLOC_TRIM_THRESHOLD_"] == str(4 << 30)
    assert nanny == compute._WORKER_ENVIRONMENT
    assert memory["pause"] is False


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - {"htcondor"}))
def test_job_scripts_are_valid_shell(scripts, name):
    subprocess.run(["bash", "-n"], input=scripts[name], text=True, check=True)


def test_a_site_prologue_stays_before_ours():
    script = _job_script("slurm", {**SITES["slurm"], "job_script_prologue": ["source env/bin/activate"]})
    assert script.index("source env/bin/activate") < script.index("export MALLOC_TRIM")


@pytest.mark.parametrize("name", ["slurm", "pbs", "sge"])
def test_a_site_file_not_filled_in_is_refused(name):
    with pytest.raises(CalibrationError, match=rf"MY_QUEUE|MY_PARTITION.*cluster/{name}.yaml"):
        _job_script(name, {})


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_shell(script):
    assert script.stat().st_mode & 0o111, f"{script} is not executable"
    assert "set -euo pipefail" in script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(script)], check=True)


def test_batch_script_gives_workers_the_settings_of_compute():
    text = (FOLDER / "slurm_batch.sh").read_text()
    for name, value in compute._WORKER_ENVIRONMENT.items():
        assert f"{name}={value}" in text
    for key, value in {**compute._WORKER_CONFIG, **compute._SCHEDULER_CONFIG}.items():
        name = f"DASK_{key.replace('.', '__').replace('-', '_').upper()}"
        if "multiprocessing" not in key and "terminate" not in key:  # Dask's own defaults
            assert re.search(rf'{name}="?{re.escape(str(value))}"?$', text, re.MULTILINE), name
    assert "--scheduler" in text


def test_batch_script_without_a_command_explains_itself():
    command = ["bash", str(FOLDER / "slurm_batch.sh")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr.startswith("usage: sbatch slurm_batch.sh")
