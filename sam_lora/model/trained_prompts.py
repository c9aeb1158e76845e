"""What prompts a checkpoint was trained with, by its header, and whether they cover the kinds that it is asked for.

A kind of prompt is (number of points, is there a box). The header's `prompt` describes the training table's own
("3 points", "1-3 points and box"); `prompt_mix` and `correction_rounds` say what was simulated besides.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from sam_lora.model.prompt_mix import MAX_POINTS

Kind = tuple[int, bool]


def trained_kinds(header: Mapping[str, Any]) -> set[Kind]:
    """Every kind that training had, those of corrective rounds included."""
    mix = header.get("prompt_mix") or {"table": 1.0}   # checkpoints of earlier versions: the table's kinds alone
    simulated = range(1, MAX_POINTS + 1)
    kinds = set(_table_kinds(header["prompt"])) if mix.get("table") or mix.get("other_points") else set()
    kinds |= {(count, False) for count in simulated if mix.get("points")}
    kinds |= {(0, True)} if mix.get("box") else set()
    kinds |= {(count, True) for count in simulated if mix.get("box_and_points")}
    return {(count + clicks, boxed) for count, boxed in kinds
            for clicks in range(header.get("correction_rounds", 0) + 1)}


def _table_kinds(description: str) -> list[Kind]:
    points = re.match(r"(\d+)(?:-(\d+))? points", description)
    first, last = (int(points[1]), int(points[2] or points[1])) if points else (0, 0)
    return [(count, "box" in description) for count in range(first, last + 1)]


def describe(kinds: Collection[Kind]) -> str:
    """{(1, False), (2, False), (0, True)} -> "1-2 points, a box"."""
    words = []
    for boxed in (False, True):
        counts = sorted(count for count, has_box in kinds if has_box == boxed)
        if boxed and counts and not counts[0]:
            words.append("a box")
            counts = counts[1:]
        if counts:
            span = f"{counts[0]}-{counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
            words.append(f"{'a box with ' if boxed else ''}{span} point{'s' * (counts[-1] > 1)}")
    return ", ".join(words)


def untrained_note(header: Mapping[str, Any], asked: Collection[Kind]) -> str | None:
    """One line about the kinds that are asked for and were not trained; None if all were."""
    trained = trained_kinds(header)
    others = set(asked) - trained
    if not others:
        return None
    return (f"prompts here are {describe(others)}, which this checkpoint was not trained with ({describe(trained)}); "
            "train.py simulates other kinds by default (--prompt_mix)")
