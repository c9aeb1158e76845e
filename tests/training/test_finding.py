"""finding.py: which runs train a finder, and for how long; that it then finds is tests/test_finding_objects.py's."""

from sam_lora.training.finding import steps_left


def test_a_short_run_gets_more_steps_alone():
    assert steps_left(100) == 500 and steps_left(5000) == 200
