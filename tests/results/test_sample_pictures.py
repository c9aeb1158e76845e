"""sample_pictures.py: which samples are drawn."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sam_lora.results.sample_pictures import choose_pictures


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40), st.integers(1, 50), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_pictures_cover_all_classes_evenly(names, count, seed):
    chosen = choose_pictures(names, count, seed)
    assert chosen == sorted(set(chosen)) == choose_pictures(names, count, seed)
    assert len(chosen) == min(count, len(names))
    shown = {name: sum(names[row] == name for row in chosen) for name in set(names)}
    assert min(shown.values()) >= 1 or count < len(shown)
    for name, number in shown.items():  # a class has fewer pictures than another only if it has no more rows
        assert number >= max(shown.values()) - 1 or number == names.count(name)


def test_pictures_are_drawn_by_lot():
    assert len({tuple(choose_pictures(["a"] * 50, 5, seed)) for seed in range(5)}) == 5
