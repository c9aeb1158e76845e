"""Probes and the difference of logits: what decides whether an exported file is kept."""

import numpy as np
import pytest
import torch
from conftest import random_sam

from sam_lora.errors import UserError
from sam_lora.export import parity
from sam_lora.model.encode import frame_mask


@pytest.fixture(scope="module")
def sam():
    return random_sam("vit_mini", 128)


def test_probes_are_landscape_and_portrait_and_have_every_kind_of_prompt(sam):
    probes = list(parity.make_probes(sam, 4, seed=3))
    for number, probe in enumerate(probes):
        height, width = probe.original_size
        assert (height < width) == (number % 2 == 0)
        h, w = probe.image.shape[:2]
        assert max(h, w) == 128 and abs(h / w - height / width) < 0.02
        assert [prompts.point_labels[0].tolist() for prompts in probe.prompts] == [
            [1], [1, 1, 0, 1, 0], [], [1, 0], [1, 1, 1]]
        assert [prompts.boxes is not None for prompts in probe.prompts] == [False, False, True, True, False]
        assert [mask is not None for mask in probe.mask_inputs] == [False, False, False, False, True]
        for prompts in probe.prompts:
            assert ((prompts.point_coords >= 0) & (prompts.point_coords <= torch.tensor([w, h]))).all()
        padding = ~frame_mask(torch.tensor([[h, w]]), 128)
        assert (probe.frame[padding.expand_as(probe.frame)] == 0).all()
    again = list(parity.make_probes(sam, 4, seed=3))
    assert all(np.array_equal(one.image, other.image) for one, other in zip(probes, again))
    assert not np.array_equal(probes[0].image, next(parity.make_probes(sam, 1, seed=4)).image)


def test_sam_predictor_and_ours_agree_on_every_prompt(sam):
    for probe in parity.make_probes(sam, 2):
        ours = parity.our_logits(sam, probe)
        assert ours.shape == (5, 4, 32, 32)
        assert parity.largest_difference(parity.predictor_logits(sam, probe), ours) < 1e-5
        assert float((ours[0] - ours[1]).abs().max()) > 1e-3  # prompts matter


@pytest.mark.parametrize(("found", "kept"), [
    pytest.param([1.0, 2.00005], True, id="within the tolerance"),
    pytest.param([1.0, 2.0002], False, id="beyond it"),
    pytest.param([1.0, float("nan")], False, id="not a number"),
    pytest.param([[1.0, 2.0]], False, id="another shape that would broadcast"),
])
def test_what_is_kept(found, kept):
    difference = parity.largest_difference(torch.tensor(found), torch.tensor([1.0, 2.0]))
    if kept:
        parity.check_difference(difference, "a.onnx", "b.ckpt")
    else:
        with pytest.raises(UserError, match=r"a\.onnx: not kept, .* logits differ by .* from those of b\.ckpt"):
            parity.check_difference(difference, "a.onnx", "b.ckpt")


def test_a_reference_compares_on_every_probe(sam):
    reference = parity.Reference.of(sam, "b.ckpt")
    assert len(reference.probes) == 2
    assert reference.compare(lambda probe: parity.our_logits(sam, probe), "a.onnx") < 1e-5
    second = reference.probes[1]
    with pytest.raises(UserError, match=r"a\.onnx: not kept"):
        reference.compare(lambda probe: parity.our_logits(sam, probe) + (probe is second), "a.onnx")


def test_the_largest_difference_does_not_hide_one_that_is_not_a_number():
    assert np.isnan(parity.largest([0.1, float("nan"), 0.2])) and parity.largest(iter([0.1, 0.3])) == 0.3


def test_large_logits_may_differ_by_their_share():
    assert parity.allowed_difference([torch.tensor([0.5]), torch.tensor([-30.0])]) == pytest.approx(30e-4)
    assert parity.allowed_difference([torch.tensor([0.1])]) == pytest.approx(1e-4)
