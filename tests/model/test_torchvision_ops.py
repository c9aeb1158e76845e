"""torchvision's nms, where torchvision has none."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_lora.model import meta  # noqa: F401  # mends torchvision
from sam_lora.model.torchvision_ops import nms


def nms_by_hand(boxes: list, scores: list, threshold: float) -> list[int]:
    """Best box first; drop what overlaps a kept one too much."""
    def iou(a, b):
        width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
        area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
        return width * height / area
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


BOX = st.tuples(st.integers(0, 12), st.integers(0, 20), st.integers(1, 12), st.integers(1, 9)).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3]))


@given(st.lists(st.tuples(BOX, st.integers(0, 8)), max_size=12), st.sampled_from([0.0, 0.3, 0.5, 0.9]))
@settings(max_examples=100, deadline=None)
def test_nms_keeps_what_greedy_suppression_keeps(scored_boxes, threshold):
    boxes, scores = [box for box, _ in scored_boxes], [score / 8 for _, score in scored_boxes]
    kept = nms(torch.tensor(boxes, dtype=torch.float).reshape(-1, 4), torch.tensor(scores), threshold)
    assert kept.dtype == torch.long and kept.tolist() == nms_by_hand(boxes, scores, threshold)


def test_torchvision_s_own_call_reaches_an_nms():
    from torchvision.ops import nms as torchvision_nms
    boxes = torch.tensor([[0.0, 0, 10, 20], [0, 0, 10, 19], [30, 0, 40, 20]])
    assert torchvision_nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist() == [1, 2]
