"""finder_loss.py."""

import pytest
import torch

from sam_lora.model.finder import Finder, Map, cell_centres
from sam_lora.model.finder_targets import NOTHING, UNDECIDED, Cells
from sam_lora.training.finder_loss import box_overlaps, finder_loss

GRID, CELL = 8, 8


def cells(*objects, classes=None) -> Cells:
    """`objects`: (rows, columns, box) of each."""
    labels = torch.full((GRID, GRID), NOTHING, dtype=torch.int8)
    boxes = torch.zeros(4, GRID, GRID)
    for number, (rows, columns, box) in enumerate(objects):
        labels[rows, columns] = (classes or range(len(objects)))[number]
        boxes[:, rows, columns] = torch.tensor(box, dtype=torch.float32)[:, None, None]
    valid = torch.ones(GRID, GRID, dtype=torch.bool)
    return Cells(labels[None], boxes[None], valid[None])


def perfect(truth: Cells, num_classes: int = 2) -> Map:
    positive = truth.classes >= 0
    x, y = cell_centres(GRID, GRID, CELL)
    anywhere = torch.stack([x, y, x + 1, y + 1])[None]
    boxes = torch.where(positive[:, None], truth.boxes, anywhere)
    classes = torch.nn.functional.one_hot(truth.classes.clamp(min=0).long(), num_classes).movedim(-1, 1) * 40.0
    return Map(positive * 40.0 - 20.0, classes, boxes)


TRUTH = cells((slice(2, 4), slice(2, 4), (10, 10, 40, 40)), (slice(6, 7), slice(6, 7), (45, 45, 60, 60)))


def test_overlaps_of_boxes():
    iou, giou = box_overlaps(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]]),
                             torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 0, 30, 10]]))
    assert torch.allclose(iou, torch.tensor([1, 1 / 3, 0]))
    assert torch.allclose(giou, torch.tensor([1, 1 / 3, -1 / 3]))


def test_the_truth_costs_nothing():
    assert finder_loss(perfect(TRUTH), TRUTH).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("spoil", ["objectness", "classes", "boxes"])
def test_each_error_costs(spoil):
    found = perfect(TRUTH)
    if spoil == "objectness":
        found.objectness = -found.objectness
    elif spoil == "classes":
        found.classes = found.classes.flip(1)
    else:
        found.boxes = found.boxes + 6
    assert finder_loss(found, TRUTH).item() > 0.1


def test_undecided_cells_and_padding_do_not_count():
    found = perfect(TRUTH)
    found.objectness[0, 0, 0] = 20.0
    assert finder_loss(found, TRUTH).item() > 0.1
    truth = cells((slice(2, 4), slice(2, 4), (10, 10, 40, 40)), (slice(6, 7), slice(6, 7), (45, 45, 60, 60)))
    truth.classes[0, 0, 0] = UNDECIDED
    assert finder_loss(found, truth).item() == pytest.approx(0, abs=1e-4)
    truth.classes[0, 0, 0], truth.valid[0, 0, 0] = NOTHING, False
    assert finder_loss(found, truth).item() == pytest.approx(0, abs=1e-4)


def test_an_empty_photo_teaches_silence():
    empty = cells()
    loud, silent = perfect(TRUTH), perfect(empty)
    assert finder_loss(silent, empty).item() == pytest.approx(0, abs=1e-4)
    assert finder_loss(loud, empty).item() > 0.1


def test_every_weight_learns():
    torch.manual_seed(0)
    finder = Finder(16, ["disc", "bar"])
    finder_loss(finder(torch.randn(1, 16, GRID // 2, GRID // 2), CELL), TRUTH).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in finder.parameters())
