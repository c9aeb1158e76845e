"""The common part of both inference scripts: score a table, or predict photos without ground truth."""

import dataclasses
from datetime import timedelta
from pathlib import Path

from sam_lora import workers
from sam_lora.model import processes
from sam_lora.model.meta import Sam
from sam_lora.ranks import ALONE
from sam_lora.results import annotate, evaluation, find_photos, find_scores
from sam_lora.results.requests import (
    Candidate,
    Destination,
    FindPhotos,
    FindTable,
    PhotoFolder,
    Request,
    Runtime,
    SampleTable,
    SinglePhoto,
)

LOST_PEER = ("another process of this run has ended or was killed, so this one stops too; no results were written: "
             "start it again")
PATIENCE = timedelta(days=1)   # how long processes wait for the slowest; that one has died is noticed at once


def infer(candidate: Candidate, request: Request, destination: Destination, runtime: Runtime) -> None:
    """Carry out the request on the runtime's device, together with the other processes of the run. Raises UserError."""
    workers.keep_freed_memory()
    single = isinstance(request, SinglePhoto) or (isinstance(request, FindPhotos) and request.image is not None)
    if single:   # encoded once: nothing to share
        if not runtime.ranks.first:
            return
        runtime = dataclasses.replace(runtime, ranks=ALONE)
    ranks = runtime.ranks

    def load(kinds: set[tuple[int, bool]]) -> Sam:
        with processes.one_first(ranks):   # one downloads, the others find the file
            return load_anywhere(kinds).to(runtime.device)

    load_anywhere, candidate = candidate.load, dataclasses.replace(candidate, load=load)
    with processes.joined(ranks, "gloo", LOST_PEER, PATIENCE):
        if single:
            predict = annotate.predict_image if isinstance(request, SinglePhoto) else find_photos.find_in_photo
            predict(candidate, request, destination, runtime)
            return
        flags = {"model": candidate.name, "request": request, "destination": destination,
                 "batch_size": runtime.batch_size, "precision": runtime.precision}
        tables = [getattr(request, name, None) for name in ("prompts_csv", "test_csv", "compare_to")]
        # one that is not there is reported by the first process, when it is read
        processes.check_agreement(ranks, flags, [path for path in tables if path and Path(path).is_file()])
        carry_out = {PhotoFolder: annotate.predict_folder, FindPhotos: find_photos.find_in_folder,
                     FindTable: find_scores.find_in_table, SampleTable: evaluation.evaluate_table}[type(request)]
        carry_out(candidate, request, destination, runtime)
