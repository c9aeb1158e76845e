"""Corrective clicks for training: in the error, in its thick parts, the same for the same draw."""

import pytest
import torch

from sam_lora.training.corrections import WINDOW, _count_nearby, corrective_clicks

SIZE = (40, 60)


def blank(count: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits that say background everywhere, no object, an image that fills all but the last columns and rows."""
    valid = torch.zeros(count, *SIZE)
    valid[:, :30, :50] = 1
    return torch.full((count, *SIZE), -5.0), torch.zeros(count, *SIZE), valid


def clicks(logits, target, valid, number: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Many clicks for one mask, by evenly spread draws."""
    draws = (torch.arange(number) + 0.5) / number
    return corrective_clicks(*(x.expand(number, -1, -1) for x in (logits, target, valid)), draws)


def test_clicks_lie_where_the_mask_is_wrong_with_the_label_of_what_is_right():
    logits, target, valid = blank()
    target[:, 5:15, 5:25] = 0.8     # missed
    logits[:, 20:28, 30:48] = 5.0   # spilled
    target[:, 20:28, 30:40] = 0.5   # of which half is right
    coords, labels = clicks(logits, target, valid)
    assert coords.dtype == torch.float32 and coords.shape == (200, 2) and labels.shape == (200,)
    missed = 0
    for (x, y), label in zip(coords.int().tolist(), labels.tolist()):
        assert (label == 1 and 5 <= x < 25 and 5 <= y < 15) or (label == 0 and 40 <= x < 48 and 20 <= y < 28)
        missed += label
    assert 100 < missed < 190


def test_thick_errors_are_clicked_rather_than_thin_ones():
    logits, target, valid = blank()
    target[:, 2, 0:50] = 1          # 50 pixels in a line
    target[:, 15:22, 10:17] = 1     # 49 in a square
    coords, _ = clicks(logits, target, valid)
    assert 0.75 < (coords[:, 1] > 10).float().mean() < 1


def test_nothing_wrong_gives_a_click_in_the_object_and_without_an_object_one_on_the_image():
    logits, target, valid = blank(2)
    target[0, 5:15, 5:25] = 1
    logits[0, 5:15, 5:25] = 5.0
    logits[:, 35:], target[:, 35:] = 5.0, 0.0   # on the padding nothing is wrong
    coords, labels = corrective_clicks(logits, target, valid, torch.tensor([0.3, 0.9]))
    (x, y), (u, v) = coords.int().tolist()
    assert labels.tolist() == [1, 0] and 5 <= x < 25 and 5 <= y < 15
    assert u < 50 and v < 30


@pytest.mark.parametrize("draw", [0.0, 0.5, 1 - 2**-24])
def test_the_draw_alone_decides_and_every_draw_is_a_wrong_pixel(draw):
    logits, target, valid = blank(3)
    target[:, 5:15, 5:25] = 1
    draws = torch.full((3,), draw)
    coords, labels = corrective_clicks(logits, target, valid, draws)
    assert (coords == coords[0]).all() and (labels == 1).all()
    assert target[0, int(coords[0, 1]), int(coords[0, 0])] == 1
    alone, _ = corrective_clicks(logits[:1], target[:1], valid[:1], draws[:1])
    assert torch.equal(alone, coords[:1])


def test_the_window_counts_what_is_set_around_each_pixel():
    mask = torch.rand(2, 20, 33, generator=torch.Generator().manual_seed(0)) > 0.7
    reach = WINDOW // 2
    padded = torch.nn.functional.pad(mask.int(), (reach,) * 4)
    expected = padded.unfold(1, WINDOW, 1).unfold(2, WINDOW, 1).sum(dim=(3, 4))
    assert torch.equal(_count_nearby(mask), expected.int())
