from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_lora.contracts import SPLITS
from sam_lora.data.splits import complete_split, find_leak, random_split

FRACTIONS = (0.6, 0.2, 0.2)


# ---- random_split -----------------------------------------------------------------------------------------

@st.composite
def data_sets(draw, min_groups=1):
    """Rows as (group, class): groups of one to five rows, of one to four classes, several to a group."""
    rows = []
    classes = draw(st.integers(1, 4))
    for group in range(draw(st.integers(min_groups, 40))):
        for _ in range(draw(st.integers(1, 5))):
            rows.append((f"photo {group}", draw(st.integers(0, classes - 1))))
    return rows


def by_group(rows, split):
    sides = defaultdict(set)
    for (group, _), side in zip(rows, split):
        sides[group].add(side)
    return dict(sides)


@given(rows=data_sets(), seed=st.integers(0, 5), order=st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_no_group_is_split_and_row_order_does_not_matter(rows, seed, order):
    split = random_split(*zip(*rows), FRACTIONS, seed)
    sides = by_group(rows, split)
    assert all(len(found) == 1 for found in sides.values())
    assert "train" in split
    shuffled = order.sample(rows, len(rows))
    assert by_group(shuffled, random_split(*zip(*shuffled), FRACTIONS, seed)) == sides


@given(rows=data_sets(min_groups=15), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_fractions_are_near(rows, seed):
    """Within one group's rows of the wanted number, give or take what the classes ask for."""
    count = Counter(random_split(*zip(*rows), FRACTIONS, seed))
    for side, fraction in zip(SPLITS, FRACTIONS):
        assert abs(count[side] - fraction * len(rows)) <= 5


@given(groups_of_class=st.lists(st.integers(1, 12), min_size=1, max_size=6), objects=st.integers(1, 3),
       seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_each_class_comes_into_each_split_where_it_has_the_groups(groups_of_class, objects, seed):
    rows = [(f"class {class_id} photo {number}", class_id) for class_id, count in enumerate(groups_of_class)
            for number in range(count) for _ in range(objects)]
    split = random_split(*zip(*rows), FRACTIONS, seed)
    found = [{side for (_, row_class), side in zip(rows, split) if row_class == class_id}
             for class_id in range(len(groups_of_class))]
    expected = [{1: {"train"}, 2: {"train", "test"}}.get(count, set(SPLITS)) for count in groups_of_class]
    if max(groups_of_class) == 2 and groups_of_class.count(2) > 1:  # else val would have no row at all
        filler = found.index({"train", "val"})
        expected[filler] = {"train", "val"}
    assert found == expected


def test_classes_that_share_photos_come_into_each_split():
    """Class 0 is in every photo, class 1 in three of thirty, class 2 in another three."""
    rows = [(f"photo {number:02d}", 0) for number in range(30)]
    rows += [(f"photo {number:02d}", 1) for number in (0, 1, 2)] + [(f"photo {number:02d}", 2) for number in (2, 3, 4)]
    for seed in range(10):
        split = random_split(*zip(*rows), FRACTIONS, seed)
        found = {(row_class, side) for (_, row_class), side in zip(rows, split)}
        assert len(found) == 9
        assert abs(Counter(split)["train"] - 0.6 * len(rows)) <= 3


def test_each_class_has_its_share():
    rows = [(f"photo {number}", number % 3) for number in range(300)]
    split = random_split(*zip(*rows), (0.7, 0.1, 0.2), 1)
    count = Counter((row_class, side) for (_, row_class), side in zip(rows, split))
    for row_class in range(3):
        assert [count[row_class, side] for side in SPLITS] == pytest.approx([70, 10, 20], abs=1)


def test_the_seed_decides():
    rows = [(f"photo {number}", 0) for number in range(30)]
    first, again, other = (random_split(*zip(*rows), FRACTIONS, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_fraction_of_zero_gets_nothing():
    rows = [(f"photo {number}", 0) for number in range(20)]
    assert Counter(random_split(*zip(*rows), (0.8, 0.0, 0.2), 0)) == {"train": 16, "test": 4}


@pytest.mark.parametrize(("photos", "expected"), [(0, []), (1, ["train"]), (2, ["test", "train"]),
                                                  (3, ["test", "train", "val"])])
def test_few_photos_train_first_then_test(photos, expected):
    names = [f"photo {number}" for number in range(photos)]
    assert sorted(random_split(names, [0] * photos, (0.2, 0.4, 0.4), 0)) == expected


def test_many_photos_in_good_time():
    """Not a timing, but a search that would not end in a minute shows."""
    rng = np.random.default_rng(0)
    groups = [f"photo {number}" for number in rng.integers(0, 3000, 8000)]
    split = random_split(groups, rng.integers(0, 40, 8000).tolist(), FRACTIONS, 0)
    assert Counter(split)["val"] == pytest.approx(1600, rel=0.03)


# ---- the data set's own split -----------------------------------------------------------------------------

GROUPS = [f"photo {number}" for number in range(20)]
CLASSES = [number % 2 for number in range(20)]


def test_own_split_is_kept():
    own = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
    split, notes = complete_split(own, GROUPS, CLASSES, FRACTIONS, 0)
    assert split == own
    assert notes == ["the data set's own split is kept (train 12, val 4, test 4); --resplit makes a new one"]


@pytest.mark.parametrize(("own", "count", "note"), [
    pytest.param(["train"] * 16 + ["val"] * 4, {"train": 12, "val": 4, "test": 4},
                 "it has no test: rows taken from train by photo: 4 for test", id="no test"),
    pytest.param(["train"] * 16 + ["test"] * 4, {"train": 12, "val": 4, "test": 4},
                 "it has no val: rows taken from train by photo: 4 for val", id="no val"),
    pytest.param(["train"] * 20, {"train": 12, "val": 4, "test": 4},
                 "it has no val and no test: rows taken from train by photo: 4 for val and 4 for test",
                 id="train only"),
])
def test_what_the_own_split_lacks_comes_from_train(own, count, note):
    split, notes = complete_split(own, GROUPS, CLASSES, FRACTIONS, 0)
    assert Counter(split) == count
    assert all(side == before for side, before in zip(split, own) if before != "train")
    assert notes[1:] == [note]


def test_nothing_is_taken_from_train_for_a_fraction_of_zero():
    own = ["train"] * 16 + ["test"] * 4
    assert complete_split(own, GROUPS, CLASSES, (0.8, 0, 0.2), 0)[0] == own


@pytest.mark.parametrize(("own", "note"), [
    pytest.param([""] * 20, "the data set has no split; split by photo from scratch", id="none"),
    pytest.param(["val"] * 10 + ["test"] * 10, "the data set's own split has no train (val 10, test 10); "
                 "split by photo from scratch", id="no train"),
])
def test_without_train_all_is_split_from_scratch(own, note):
    split, notes = complete_split(own, GROUPS, CLASSES, FRACTIONS, 3)
    assert split == random_split(GROUPS, CLASSES, FRACTIONS, 3)
    assert notes == [note]


def test_rows_without_a_split_go_where_their_photo_is():
    own = ["train"] * 12 + ["val"] * 4 + ["test"] * 4 + ["", ""] + [""] * 10
    groups = [*GROUPS, "photo 13", "photo 17", *(f"new {number}" for number in range(10))]
    split, notes = complete_split(own, groups, [*CLASSES, *[0] * 12], FRACTIONS, 0)
    assert split[:22] == [*own[:20], "val", "test"]
    assert Counter(split[22:]) == {"train": 6, "val": 2, "test": 2}
    assert notes[1:] == ["12 rows that are not in it were added to it by photo"]


def test_a_leak_is_kept_but_never_taken_to_a_third_split():
    own = ["train"] * 16 + ["val"] * 4
    groups = [*GROUPS[:16], *GROUPS[:4]]  # the four photos of val are in train too
    for seed in range(5):
        split, _ = complete_split(own, groups, CLASSES, FRACTIONS, seed)
        leak = find_leak(groups, split)
        assert leak.groups == GROUPS[:4]
        assert leak.rows == {"val": 4, "test": 0}
        assert split[:4] == ["train"] * 4


@pytest.mark.parametrize(("groups", "split", "leaky", "rows"), [
    pytest.param("aab", ["train", "train", "val"], [], {"val": 0, "test": 0}, id="none"),
    pytest.param("abba", ["train", "train", "val", "test"], ["a", "b"], {"val": 1, "test": 1}, id="val and test"),
    pytest.param("abb", ["train", "val", "test"], ["b"], {"val": 0, "test": 1}, id="test has what val has"),
])
def test_find_leak(groups, split, leaky, rows):
    assert find_leak(list(groups), split) == (leaky, rows)
