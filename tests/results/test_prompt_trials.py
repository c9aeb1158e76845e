"""prompt_trials.py: other points in the mask, their scores, the table and the sentence."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import random_sam
from predicted_rows import SIDE, predictions, rows_of_three_images

from sam_lora import contracts
from sam_lora.data import imaging
from sam_lora.data.samples import Sample, read_samples
from sam_lora.model.batches import PromptedImages, make_loader
from sam_lora.results import predict
from sam_lora.results.prompt_trials import PromptTrials, other_points, trials_sentence, trials_table


@pytest.fixture(scope="module")
def mini():
    return random_sam("vit_mini")


@pytest.fixture
def shared_image_samples(crops) -> list[Sample]:
    return rows_of_three_images(crops.test_csv)


def test_trials_score_each_mask_with_other_points_and_encode_no_more(mini, shared_image_samples):
    seen = []
    hook = mini.image_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        found = predictions(mini, shared_image_samples, batch_size=2, trials=PromptTrials(4, seed=0))
    finally:
        hook.remove()
    assert seen == [2, 1]
    plain = predictions(mini, shared_image_samples, batch_size=2)
    for sample, prediction, alone in zip(shared_image_samples, found, plain):
        assert (prediction.mask != alone.mask).mean() < 1e-3 and not alone.trial_ious
        assert len(prediction.trial_ious) == (0 if sample.label is None else 4)   # the box has no label and no points
        assert all(0 <= iou <= 1 for iou in prediction.trial_ious)
    assert len({iou for prediction in found for iou in prediction.trial_ious}) > 8


@pytest.mark.parametrize(("batch_size", "prompts_per_image", "prompts_per_decode"), [
    pytest.param(1, 1, 1, id="all alone"), pytest.param(3, 64, 2, id="decoded in several calls")])
def test_trials_do_not_depend_on_how_rows_travel(mini, shared_image_samples, monkeypatch, batch_size,
                                                 prompts_per_image, prompts_per_decode):
    trials = PromptTrials(3, seed=5)
    expected = predictions(mini, shared_image_samples, batch_size=8, trials=trials)
    monkeypatch.setattr(predict, "PROMPTS_PER_DECODE", prompts_per_decode)
    for ours, theirs in zip(predictions(mini, shared_image_samples, batch_size, prompts_per_image, trials=trials),
                            expected):
        assert list(ours.trial_ious) == pytest.approx(list(theirs.trial_ious), abs=0.02)


def test_trials_equal_sam_predictor_s_with_the_same_points(mini, shared_image_samples):
    from segment_anything import SamPredictor

    from sam_lora.data.clicks import random_points
    from sam_lora.results import metrics
    found = predictions(mini, shared_image_samples[:2], batch_size=2, trials=PromptTrials(3, seed=9))
    predictor = SamPredictor(mini)
    for row, sample in enumerate(shared_image_samples[:2]):
        predictor.set_image(imaging.load_image(sample.image))
        truth = imaging.load_mask(sample.label)
        points = random_points(truth, 3, 3, np.random.default_rng((9, row)))
        expected = [metrics.iou(predictor.predict(drawn.astype(float), np.ones(3), multimask_output=False)[0][0], truth)
                    for drawn in points]
        assert list(found[row].trial_ious) == pytest.approx(expected, abs=0.01)


def batch_of(samples: list[Sample]):
    return next(iter(make_loader(PromptedImages(samples, SIDE, 64, False, True), SIDE, 8, 0, pin_memory=False)))


def test_other_points_are_as_many_in_the_mask_and_leave_the_rest(crops):
    first, second, *_ = read_samples(crops.test_csv)
    rows = [replace(first, points=(*first.points[:2], (1.0, 2.0)), point_labels=(1, 1, 0), box=(1, 2, 40, 30)),
            replace(first, points=((1.0, 2.0),), point_labels=(0,)), second, replace(second, label=None)]
    batch = batch_of(rows)
    drawn = other_points(batch, slice(0, 4), SIDE, PromptTrials(20, seed=3))
    assert len(drawn) == 20
    own = batch.prompts
    for prompts in drawn:
        assert torch.equal(prompts.point_labels, own.point_labels)
        torch.testing.assert_close(prompts.boxes, own.boxes, equal_nan=True)
        assert torch.equal(prompts.point_coords[0, 2], own.point_coords[0, 2])   # a background point
        for row in (1, 3):                                                       # no foreground point; no mask
            assert torch.equal(prompts.point_coords[row], own.point_coords[row])
        for row, points in ((0, 2), (2, 3)):
            mask = batch.masks[row]
            scale = SIDE / max(mask.shape)
            xy = prompts.point_coords[row, :points].numpy() / scale
            np.testing.assert_allclose(xy, xy.round(), atol=0.3)   # pixels of the image
            xy = xy.round().astype(int)
            assert mask[xy[:, 1], xy[:, 0]].all() and len(np.unique(xy, axis=0)) == points
    assert len({tuple(prompts.point_coords[2].ravel().tolist()) for prompts in drawn}) == 20
    part = other_points(batch, slice(2, 4), SIDE, PromptTrials(20, seed=3))
    assert all(torch.equal(whole.point_coords[2:], some.point_coords) for whole, some in zip(drawn, part))


def test_rows_with_the_same_mask_get_points_of_their_own(crops):
    sample = read_samples(crops.test_csv)[0]
    drawn = other_points(batch_of([sample, sample]), slice(0, 2), SIDE, PromptTrials(5, seed=3))
    assert not any(torch.equal(prompts.point_coords[0], prompts.point_coords[1]) for prompts in drawn)


def test_another_seed_gives_other_points(crops):
    batch = batch_of(read_samples(crops.test_csv)[:1])
    one, other = (other_points(batch, slice(0, 1), SIDE, PromptTrials(1, seed))[0] for seed in (3, 4))
    assert not torch.equal(one.point_coords, other.point_coords)


RESULTS = pd.DataFrame({"class_name": ["a", "b", "a"], "image": ["1", "2", "3"], "label": ["m1", "", "m3"],
                        "iou": [0.9, "", 0.5]})


def test_trials_table_and_sentence_by_hand():
    trials = {2: [0.2, 0.4, 0.6], 0: [0.8, 0.8, 0.8]}
    expected = pd.DataFrame([("a", "1", "m1", 0.9, 3, 0.8, 0, 0.8, 0.8), ("a", "3", "m3", 0.5, 3, 0.4, 0.2, 0.2, 0.6)],
                            columns=contracts.PROMPT_TRIALS_COLUMNS)
    pd.testing.assert_frame_equal(trials_table(RESULTS, trials), expected, check_dtype=False)
    assert trials_sentence(RESULTS, trials) == (
        "With 3 other random sets of points in each mask, mean IoU is 0.600 against 0.700 with the table's own points "
        "(-0.100) on 2 objects; from set to set the mean varies by 0.100 and one object's IoU by 0.100 (standard "
        "deviations).")


def test_one_trial_has_no_spread_and_none_is_told():
    assert trials_table(RESULTS, {0: [0.8]})["std_iou"].isna().all()
    assert trials_sentence(RESULTS, {0: [0.8]}) == (
        "With 1 other random set of points in each mask, mean IoU is 0.800 against 0.900 with the table's own points "
        "(-0.100) on 1 object.")
    assert trials_sentence(RESULTS, {}).startswith("No row has both a mask and foreground points")
