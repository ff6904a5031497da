"""Closed loops: every target of the specification, measured on the virtual observatory against its truth.

Each loop is a module of this package with ``SEEDS``, how many it takes to tell, and ``measure(seeds)``, which gives a
`Target` for each line of its table. `registry.LOOPS` names them; ``lsstcal verify STORE --closed-loop NAME`` runs them.
"""

from lsstcal_dask.pipeline.closed.registry import LOOPS, chosen, run_loops
from lsstcal_dask.pipeline.closed.rows import keep, kept, print_targets
from lsstcal_dask.pipeline.closed.target import Target, from_json, verdict_of

__all__ = ["LOOPS", "Target", "chosen", "from_json", "keep", "kept", "print_targets", "run_loops", "verdict_of"]
