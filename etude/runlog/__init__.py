"""A run folder: plain files that one process writes and any number read.

    runs/NAME/
      run.json                  version of the layout, what the run is, how many steps it plans
      config.toml               its settings, as they were used
      metrics.jsonl             one JSON object a step; step 0 is before training
      rollouts/000012.jsonl.gz  what was sampled in step 12
      doctor.jsonl              what the doctor said
      checkpoints/000012/       all that decides step 13: the last few, and the best
      final/                    the model, when the run has ended

A process may be killed at any moment. Files and folders appear whole, by renaming; a line of `metrics.jsonl`
that was cut is dropped. `RunWriter.resume` goes back to the last checkpoint: what later steps wrote is
removed, and the run repeats them. A lock that the kernel holds keeps a second writer out; it goes with the
process.
"""

from etude.runlog.files import check_room
from etude.runlog.reader import Checkpoint, RunInfo, RunReader, State, best_of, find_runs
from etude.runlog.rows import Row, rollout_of, rollout_row
from etude.runlog.toml import to_toml
from etude.runlog.writer import RunWriter

__all__ = [
    "Checkpoint",
    "Row",
    "RunInfo",
    "RunReader",
    "RunWriter",
    "State",
    "best_of",
    "check_room",
    "find_runs",
    "rollout_of",
    "rollout_row",
    "to_toml",
]
