"""The common part of both inference scripts: score a table, or predict photos without ground truth."""

import dataclasses

from sam_lora import workers
from sam_lora.model.meta import Sam
from sam_lora.model.precision import multiply_faster
from sam_lora.results import annotate, evaluation
from sam_lora.results.requests import Candidate, Destination, PhotoFolder, Runtime, SampleTable, SinglePhoto


def infer(candidate: Candidate, request: SampleTable | SinglePhoto | PhotoFolder, destination: Destination,
          runtime: Runtime) -> None:
    """Carry out the request on the runtime's device. Raises UserError."""
    workers.keep_freed_memory()
    if runtime.device.type == "cpu":
        multiply_faster()

    def load() -> Sam:
        return load_anywhere().to(runtime.device)

    load_anywhere, candidate = candidate.load, dataclasses.replace(candidate, load=load)
    if isinstance(request, SinglePhoto):
        annotate.predict_image(candidate, request, destination)
    elif isinstance(request, PhotoFolder):
        annotate.predict_folder(candidate, request, destination, runtime)
    else:
        evaluation.evaluate_table(candidate, request, destination, runtime)
