"""finding.py: which runs train a finder, and for how long; that it then finds is tests/test_finding_objects.py's."""

import cv2
import numpy as np
from labelled_samples import sample_at

from sam_lora.ranks import ALONE
from sam_lora.training.finding import plan_finder, steps_left


def test_a_short_run_gets_more_steps_alone():
    assert steps_left(100) == 500 and steps_left(5000) == 200


def test_rows_not_known_to_show_whole_photos_get_a_finder_only_when_asked(tmp_path, capsys):
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), np.zeros((30, 50, 3), np.uint8))
    rows = [sample_at(str(tmp_path / "mask.png"), str(photo))]
    assert plan_finder(rows, False, ALONE) is None
    assert capsys.readouterr().out == ""
    assert plan_finder(rows, None, ALONE) is None
    assert "is not learned: 1 of 1 rows are not known to show whole photos" in capsys.readouterr().out
    plan = plan_finder(rows, True, ALONE)
    assert len(plan["classes"]) == 1 and (plan["photo_side"], plan["threshold"]) == (50, None)
    assert plan["classes"][0] in capsys.readouterr().out
