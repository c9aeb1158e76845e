"""The common part of both inference scripts: score a table, or predict photos without ground truth."""

import dataclasses
from datetime import timedelta
from pathlib import Path

from sam_lora import workers
from sam_lora.model import processes
from sam_lora.model.meta import Sam
from sam_lora.ranks import ALONE
from sam_lora.results import annotate, evaluation
from sam_lora.results.requests import Candidate, Destination, PhotoFolder, Runtime, SampleTable, SinglePhoto

LOST_PEER = ("another process of this run has ended or was killed, so this one stops too; no results were written: "
             "start it again")
PATIENCE = timedelta(days=1)   # how long processes wait for the slowest; that one has died is noticed at once


def infer(candidate: Candidate, request: SampleTable | SinglePhoto | PhotoFolder, destination: Destination,
          runtime: Runtime) -> None:
    """Carry out the request on the runtime's device, together with the other processes of the run. Raises UserError."""
    workers.keep_freed_memory()
    if isinstance(request, SinglePhoto):   # encoded once: nothing to share
        if not runtime.ranks.first:
            return
        runtime = dataclasses.replace(runtime, ranks=ALONE)
    ranks = runtime.ranks

    def load(kinds: set[tuple[int, bool]]) -> Sam:
        with processes.one_first(ranks):   # one downloads, the others find the file
            return load_anywhere(kinds).to(runtime.device)

    load_anywhere, candidate = candidate.load, dataclasses.replace(candidate, load=load)
    with processes.joined(ranks, "gloo", LOST_PEER, PATIENCE):
        if isinstance(request, SinglePhoto):
            annotate.predict_image(candidate, request, destination, runtime)
            return
        flags = {"model": candidate.name, "request": request, "destination": destination,
                 "batch_size": runtime.batch_size, "precision": runtime.precision}
        tables = [request.prompts_csv] if isinstance(request, PhotoFolder) else [request.test_csv, request.compare_to]
        # one that is not there is reported by the first process, when it is read
        processes.check_agreement(ranks, flags, [path for path in tables if path and Path(path).is_file()])
        if isinstance(request, PhotoFolder):
            annotate.predict_folder(candidate, request, destination, runtime)
        else:
            evaluation.evaluate_table(candidate, request, destination, runtime)
