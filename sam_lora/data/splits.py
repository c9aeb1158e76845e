"""Seeded train/val/test by photo, stratified by class; the data set's own split; leaks between splits.

Rows (one per object) are given as parallel lists: `groups` names what must stay on one side (`photo_groups`),
`class_ids` what is to be spread evenly. Nothing here depends on the order of the rows.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from sam_lora.contracts import SPLITS

# Which split is filled first where groups are few: train, then test, since without a test row there is no score, while
# training can do without validation.
PRIORITY = (0, 2, 1)


class Leak(NamedTuple):
    """Groups that lie in more than one split."""
    groups: list[str]
    rows: dict[str, int]   # val and test rows whose group train has too; for test also those that val has


def random_split(groups: Sequence[str], class_ids: Sequence[Hashable], fractions: Sequence[float], seed: int
                 ) -> list[str]:
    """train, val or test for each row; whole groups only, each class as near to `fractions` as they allow.

    A class with at least as many groups as there are splits (of a fraction above zero) is in each of them, as far as
    groups with several classes allow that for all classes at once; with fewer groups, train comes first, then test,
    except that one class fills val where no class has groups for all three.
    """
    if not len(groups):
        return []
    fractions = np.asarray(fractions, dtype=float) / np.sum(fractions)
    names = sorted(set(groups))
    classes = sorted(set(class_ids), key=str)
    row_group = np.searchsorted(names, list(groups))
    column = {class_id: index for index, class_id in enumerate(classes)}
    counts = np.zeros((len(names), len(classes)))
    np.add.at(counts, (row_group, [column[class_id] for class_id in class_ids]), 1)
    split_of_group = _assign(counts, fractions, np.random.default_rng(seed))
    return [SPLITS[split] for split in split_of_group[row_group]]


def complete_split(given: Sequence[str], groups: Sequence[str], class_ids: Sequence[Hashable],
                   fractions: Sequence[float], seed: int) -> tuple[list[str], list[str]]:
    """Keep the data set's own split; take what it lacks from train, by group -> (split of each row, notes in words).

    `given`: train, val, test or "" for each row. Rows without one join the rest of their group, else are split by
    `fractions`. A data set without a split, or without train where train is wanted, is split from scratch.
    """
    rows_given = Counter(side for side in given if side)
    counted = ", ".join(f"{side} {rows_given[side]}" for side in SPLITS if rows_given[side])
    wanted = {side for side, fraction in zip(SPLITS, fractions) if fraction > 0}
    if "train" not in rows_given and not (rows_given and wanted <= rows_given.keys()):
        lacking = next((side for side in SPLITS if side in wanted and side not in rows_given), "")
        why = f"the data set's own split has no {lacking} ({counted})" if rows_given else "the data set has no split"
        return random_split(groups, class_ids, fractions, seed), [f"{why}; split by photo from scratch"]
    split, notes = list(given), [f"the data set's own split is kept ({counted}); --resplit makes a new one"]

    def spread(rows: Sequence[int], fractions: Sequence[float]) -> None:
        sides = random_split([groups[row] for row in rows], [class_ids[row] for row in rows], fractions, seed)
        for row, side in zip(rows, sides):
            split[row] = side

    home = {group: side for wanted in reversed(SPLITS) for group, side in zip(groups, given) if side == wanted}
    unknown = [row for row, side in enumerate(given) if not side]
    for row in unknown:
        split[row] = home.get(groups[row], "")
    spread([row for row in unknown if not split[row]], fractions)
    if unknown:
        notes.append(f"{len(unknown)} rows that are not in it were added to it by photo")

    missing = [side for side, fraction in zip(SPLITS, fractions) if fraction > 0 and side not in rows_given]
    if missing:
        open_sides = ("train", *missing)
        closed = {group for group, side in zip(groups, split) if side not in open_sides}  # leaks: not to a third side
        spread([row for row, side in enumerate(split) if side in open_sides and groups[row] not in closed],
               [fraction if side in open_sides else 0 for side, fraction in zip(SPLITS, fractions)])
        taken = " and ".join(f"{split.count(side)} for {side}" for side in missing)
        notes.append(f"it has no {' and no '.join(missing)}: rows taken from train by photo: {taken}"
                     + ("" if all(split.count(side) for side in missing) else "; train has too few photos"))
    return split, notes


def find_leak(groups: Sequence[str], split: Sequence[str]) -> Leak:
    """Groups on more than one side, and how many val and test rows they affect."""
    sides: dict[str, set[str]] = {}
    for group, side in zip(groups, split):
        sides.setdefault(group, set()).add(side)
    rows = {"val": sum(side == "val" and "train" in sides[group] for group, side in zip(groups, split)),
            "test": sum(side == "test" and len(sides[group]) > 1 for group, side in zip(groups, split))}
    return Leak(sorted(group for group, its_sides in sides.items() if len(its_sides) > 1), rows)


def split_cost(total: np.ndarray, groups_of_class: np.ndarray, fractions: np.ndarray
               ) -> Callable[[np.ndarray, int], np.ndarray]:
    """(rows held by a split, (…, C); the split's index) -> what that costs, (…,); as `_assign` says.

    (C,) rows of each class and in how many groups they lie, the last column all rows.
    """
    active = [split for split in PRIORITY if fractions[split] > 0]
    weight = np.ones(len(total))
    weight[-1] = len(total) - 1
    penalty = np.zeros((len(SPLITS), len(total)))
    for rank, split in enumerate(active):
        penalty[split] = np.where(groups_of_class > rank, 1e3, 0)
    penalty[0] *= 10       # there is no point in validating or testing a class that is not trained;
    penalty[:, -1] *= 2    # an empty table is worse than a class that one table lacks;
    penalty[0, -1] = 1e6   # and train must not be empty

    def cost(held: np.ndarray, split: int) -> np.ndarray:
        return (weight * (held / total - fractions[split]) ** 2 + penalty[split] * (held == 0)).sum(axis=-1)

    return cost


def _assign(counts: np.ndarray, fractions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(G, C) rows of each class in each group -> (G,) index of the split.

    Greedy in random order, then single moves that lower the cost most until none does. The cost is the squared
    deviation of each class's fraction, plus that of all rows together (as heavy as all classes), plus a large penalty
    for each class that is missing from a split although it has enough groups.
    """
    active = [split for split in PRIORITY if fractions[split] > 0]
    counts = np.column_stack([counts, counts.sum(axis=1)])
    cost = split_cost(counts.sum(axis=0), (counts > 0).sum(axis=0), fractions)

    held = np.zeros((len(SPLITS), counts.shape[1]))
    side = np.zeros(len(counts), dtype=np.int64)
    for group in rng.permutation(len(counts)):
        gains = [cost(held[split] + counts[group], split) - cost(held[split], split) for split in active]
        side[group] = active[int(np.argmin(gains))]
        held[side[group]] += counts[group]

    for _ in range(1000):
        left = np.empty(len(counts))
        joined = np.empty((len(counts), len(active)))
        for index, split in enumerate(active):
            inside = side == split
            left[inside] = cost(held[split] - counts[inside], split) - cost(held[split], split)
            joined[:, index] = cost(held[split] + counts, split) - cost(held[split], split)
            joined[inside, index] = np.inf
        change = left[:, None] + joined
        group, index = divmod(int(change.argmin()), len(active))
        if not change[group, index] < -1e-5:
            break
        held[side[group]] -= counts[group]
        side[group] = active[index]
        held[side[group]] += counts[group]
    return side
