"""prompt_kinds.py: the scores equal SamPredictor's with the same prompts; tables by hand."""

import numpy as np
import pandas as pd
import pytest
from conftest import random_sam
from predicted_rows import predictions, rows_of_three_images

from sam_lora import contracts
from sam_lora.data import clicks, geometry, imaging
from sam_lora.data.samples import Sample
from sam_lora.results import metrics, predict, prompt_kinds
from sam_lora.results.prompt_kinds import PromptScores, clicks_to, kinds_sentence, kinds_table, summarise_kinds


@pytest.fixture(scope="module")
def mini():
    return random_sam("vit_mini")


@pytest.fixture
def shared_image_samples(crops) -> list[Sample]:
    return rows_of_three_images(crops.test_csv)


def test_every_kind_is_scored_and_each_image_is_encoded_once(mini, shared_image_samples):
    seen = []
    hook = mini.image_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        scored = predictions(mini, shared_image_samples, batch_size=2, kinds_seed=0)
    finally:
        hook.remove()
    assert seen == [2, 1]
    for sample, prediction in zip(shared_image_samples, scored):
        if sample.label is None:
            assert prediction.by_prompt is None
            continue
        assert prediction.by_prompt.by_kind.keys() == set(contracts.PROMPT_KINDS) - {"table"}
        assert len(prediction.by_prompt.by_clicks) == contracts.MAX_CLICKS
        assert all(0 <= iou <= 1 for iou in [*prediction.by_prompt.by_kind.values(), *prediction.by_prompt.by_clicks])


@pytest.mark.parametrize(("batch_size", "prompts_per_image", "prompts_per_decode"), [
    pytest.param(1, 1, 1, id="all alone"), pytest.param(3, 64, 2, id="decoded in several calls")])
def test_scores_do_not_depend_on_how_rows_travel(mini, shared_image_samples, monkeypatch, batch_size,
                                                 prompts_per_image, prompts_per_decode):
    expected = predictions(mini, shared_image_samples, batch_size=8, kinds_seed=5)
    monkeypatch.setattr(predict, "PROMPTS_PER_DECODE", prompts_per_decode)
    for ours, theirs in zip(predictions(mini, shared_image_samples, batch_size, prompts_per_image, kinds_seed=5),
                            expected):
        if theirs.by_prompt is not None:
            assert ours.by_prompt.by_kind == pytest.approx(theirs.by_prompt.by_kind, abs=0.02)


def test_scores_equal_sam_predictor_s_with_the_same_prompts(mini, shared_image_samples):
    from segment_anything import SamPredictor
    samples = shared_image_samples[:2]
    scored = predictions(mini, samples, batch_size=2, kinds_seed=9)
    predictor = SamPredictor(mini)
    for row, sample in enumerate(samples):
        predictor.set_image(imaging.load_image(sample.image))
        truth = imaging.load_mask(sample.label)
        rng = np.random.default_rng((9, row))
        others = clicks.random_points(truth, 1, 3, rng)[0].astype(float)
        box = np.array(geometry.mask_to_xyxy(truth), float)
        moved = np.array(geometry.move_sides(box, truth.shape[::-1], rng.normal(0, prompt_kinds.BOX_JITTER, 4)))
        point = np.array([clicks.inner_click(truth)], float)

        def iou(points=None, box=None, truth=truth, multimask=False):
            masks, scores, _ = predictor.predict(points, None if points is None else np.ones(len(points)), box,
                                                 multimask_output=multimask)
            return metrics.iou(masks[scores.argmax()], truth)

        expected = {"random_points": iou(others), "point": iou(point), "point_best_of_3": iou(point, multimask=True),
                    "box": iou(box=box), "jittered_box": iou(box=moved), "box_and_point": iou(point, box)}
        assert scored[row].by_prompt.by_kind == pytest.approx(expected, abs=0.01)


def test_corrective_clicks_equal_a_loop_over_sam_predictor(mini, shared_image_samples):
    """Compared as long as both click the same pixels: a pixel's difference in a mask may lead to another click."""
    from segment_anything import SamPredictor
    sample = shared_image_samples[0]
    found = predictions(mini, [sample], batch_size=1, kinds_seed=0)[0].by_prompt.by_clicks
    predictor, truth = SamPredictor(mini), imaging.load_mask(sample.label)
    predictor.set_image(imaging.load_image(sample.image))
    points, labels, logits, ious = [clicks.inner_click(truth)], [1], None, []
    for _ in range(3):
        masks, _, logits = predictor.predict(np.array(points, float), np.array(labels), mask_input=logits,
                                             multimask_output=False)
        ious.append(metrics.iou(masks[0], truth))
        point, label = clicks.corrective_click(masks[0], truth, points)
        points.append(point)
        labels.append(label)
    assert found[:3] == pytest.approx(ious, abs=0.02)


# ---- tables -----------------------------------------------------------------------------------------------------

RESULTS = pd.DataFrame({"class_name": ["a", "b", "a"], "image": ["1", "2", "3"], "label": ["m1", "", "m3"],
                        "iou": [0.5, "", 0.7]})


def scores(first: float, last: float) -> PromptScores:
    kinds = {name: first for name in contracts.PROMPT_KINDS if name not in ("table", "random_points")}
    return PromptScores(kinds, np.linspace(first, last, 10).tolist())


def test_tables_and_sentence_by_hand():
    table = kinds_table(RESULTS, {2: scores(0.8, 0.8), 0: scores(0.1, 1.0)})
    assert table["label"].tolist() == ["m1", "m3"] and table["table"].tolist() == [0.5, 0.7]
    assert table["clicks_10"].tolist() == [1.0, 0.8] and table["random_points"].isna().all()
    assert table[list(contracts.CLICKS_TO)].to_numpy().tolist() == [[8, 9, 9], [1, 10, 10]]
    summary = summarise_kinds(table, tuned=True, other=table.assign(box=0.25))
    assert summary["prompt"].tolist()[4] == "exact box" and summary.loc[4, ["base", "tuned"]].tolist() == [0.25, 0.45]
    assert summary["prompt"].tolist()[-2] == "clicks to IoU 0.85 (10 = never)" and summary["tuned"].iloc[-2] == 9.5
    turned = summarise_kinds(table, tuned=False, other=None)
    assert turned["tuned"].isna().all() and turned["base"].equals(summary["tuned"])
    assert kinds_sentence(table) == (
        "By kind of prompt, mean IoU on 2 objects: the table's own 0.600, one click 0.450, an exact box 0.450, a box "
        "about 10 % off 0.450; corrective clicks lift the first 0.450 to 0.900 after 10, and 9.50 clicks reach IoU "
        "0.85 on average (10 = never).")
    assert kinds_sentence(table[:0]).startswith("No row has a ground truth")


@pytest.mark.parametrize(("ious", "expected"), [([0.9], 1), ([0.2, 0.85, 0.1], 2), ([0.2, 0.3], 2)])
def test_clicks_to_an_iou(ious, expected):
    assert clicks_to(ious, 0.85) == expected
