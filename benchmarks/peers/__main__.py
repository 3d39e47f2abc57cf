"""Runs one trainer: `python -m benchmarks.peers MODULE JOB`, with a module that has `train`, and a job as JSON."""

import importlib
import json
import os
import sys

# Libraries print what they like, some when they are imported: the pipe is taken from them first.
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)

from benchmarks.peers.participant import Job, Participant  # noqa: E402

module = importlib.import_module(sys.argv[1])
job = json.loads(sys.argv[2])
Participant(Job(**job | {"widths": tuple(job["widths"])}), answers).run(module.train)
