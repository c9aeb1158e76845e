"""torchvision beside a CPU-only torch.

torchvision's wheel on PyPI is built for CUDA. Beside a CPU build of torch its compiled library does not load, and
`import torchvision` fails with "operator torchvision::nms does not exist", because it describes two operators that
nobody has defined. On such a machine, and only there, this module defines the two, with a plain kernel for `nms`
(`SamAutomaticMaskGenerator` calls it). A torchvision that works is not touched.
"""

import importlib
import sys

import torch

_library: torch.library.Library | None = None  # the definitions last as long as this object


def import_torchvision() -> None:
    """Import torchvision, first defining the two operators it needs where they are missing."""
    global _library
    try:
        importlib.import_module("torchvision")
        return
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error) or _library is not None:
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "FRAGMENT")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.impl("nms", nms, "CPU")
    extension = importlib.import_module("torchvision").extension
    extension._has_ops = lambda: True  # torchvision.ops.nms asks before it calls the operator


def loading_code(code: str) -> str:
    """Python that imports torchvision, with what makes it work on a machine like this one, where that takes more."""
    return code if _library is None else f"import sam_lora.sam; {code}"


def nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression: the indices of the boxes kept, best score first.

    `dets` (N, 4) xyxy, `scores` (N,). A box is dropped if its IoU with a better box that is kept exceeds the threshold.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = dets[order].float()
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    kept = []
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        kept.append(i)
        low = torch.maximum(boxes[i, :2], boxes[i + 1:, :2])
        high = torch.minimum(boxes[i, 2:], boxes[i + 1:, 2:])
        overlap = (high - low).clamp(min=0).prod(dim=1)
        iou = overlap / (areas[i] + areas[i + 1:] - overlap)
        alive[i + 1:] &= ~(iou > iou_threshold)
    return order[torch.tensor(kept, dtype=torch.long, device=order.device)]
