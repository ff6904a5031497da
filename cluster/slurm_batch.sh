#!/usr/bin/env bash
# A whole run in one Slurm job: scheduler, workers and lsstcal live and die together, and nothing
# waits on a login node. Fill in account and partition, then
#   sbatch --ntasks=32 slurm_batch.sh build STORE
# Whatever follows the script's name is given to lsstcal. Submitted again, a build resumes.
#SBATCH --job-name=lsstcal
#SBATCH --account=MY_ACCOUNT
#SBATCH --partition=MY_PARTITION
#SBATCH --ntasks=16
#SBATCH --cpus-per-task=1
#SBATCH --mem-per-cpu=4G
#SBATCH --time=04:00:00
#SBATCH --output=lsstcal-%j.log
set -euo pipefail

if [ "$#" -eq 0 ]; then
    echo "usage: sbatch slurm_batch.sh LSSTCAL-COMMAND STORE [OPTIONS]" >&2
    exit 2
fi

# source /path/to/venv/bin/activate

file="$PWD/scheduler-${SLURM_JOB_ID:?this script is for sbatch}.json"

# The settings that `lsstcal_dask.compute` gives the workers it starts itself; reasons are there.
export MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_ARENA_MAX=1
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1
export DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON="{'MALLOC_TRIM_THRESHOLD_':'4294967296'}"
export DASK_DISTRIBUTED__WORKER__MEMORY__TARGET=False
export DASK_DISTRIBUTED__WORKER__MEMORY__SPILL=False
export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False
export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False
export DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION=1.0
export DASK_DISTRIBUTED__SCHEDULER__ROOTISH_TASKGROUP=1000
export DASK_DISTRIBUTED__SCHEDULER__ROOTISH_TASKGROUP_DEPENDENCIES=1000
export DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="10 minutes"
export DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT="5 minutes"
# A failed task is told by lsstcal; the nanny complains of workers that leave at the end.
export DASK_LOGGING="{'distributed':'error','distributed.worker':'critical','distributed.nanny':'critical'}"

scheduler=''
cleanup() {
    # The scheduler closes the workers, and srun ends with them.
    kill "$scheduler" 2>/dev/null || true
    wait || true
    rm -f "$file"
}
trap cleanup EXIT
trap 'exit 143' TERM INT

# The scheduler and lsstcal itself share the first node with its workers; both are nearly idle.
python -m distributed.cli.dask_scheduler --port 0 --no-dashboard --scheduler-file "$file" &
scheduler=$!
limit="$(( ${SLURM_MEM_PER_CPU:-4096} * ${SLURM_CPUS_PER_TASK:-1} ))MiB"
srun --kill-on-bad-exit=0 python -m distributed.cli.dask_worker --scheduler-file "$file" \
    --nthreads 1 --memory-limit "$limit" --nanny --no-dashboard --death-timeout 300 \
    --local-directory "${TMPDIR:-/tmp}" &

lsstcal "$@" --scheduler "$file" --workers "${SLURM_NTASKS:-1}"
