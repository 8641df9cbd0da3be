"""Properties of the multi-scale sampler."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.sampler import BatchShape, batch_shapes, epoch_schedule

sides = st.integers(1, 400)
sizes = st.one_of(sides, st.tuples(sides, sides))
shape_lists = st.builds(
    batch_shapes,
    st.lists(sizes, min_size=1, max_size=6, unique=True),
    st.integers(32, 320),
    st.integers(1, 64),
)
seeds = st.integers(0, 2**40)


@given(st.lists(sizes, min_size=1, max_size=6), sizes, st.integers(1, 2000))
def test_batches_have_the_pixels_of_the_base_batch(sizes, base_size, base_batch):
    def area(size):
        return size[0] * size[1] if isinstance(size, tuple) else size * size

    shapes = batch_shapes(sizes, base_size, base_batch)
    areas = [shape.height * shape.width for shape in shapes]
    assert areas == sorted(map(area, sizes))
    pixels = area(base_size) * base_batch
    assert [s.batch for s in shapes] == [max(1, round(pixels / a)) for a in areas]


@given(st.lists(sizes, min_size=1, max_size=6), st.integers(1, 64), st.integers(1, 64))
def test_batches_are_the_next_multiple(sizes, base_batch, multiple):
    single = batch_shapes(sizes, 100, base_batch)
    for one, many in zip(single, batch_shapes(sizes, 100, base_batch, multiple)):
        assert many[:2] == one[:2] and many.batch % multiple == 0
        assert (
            abs(many.batch - one.batch) <= multiple / 2 + 0.5 or many.batch == multiple
        )


@given(shape_lists, st.integers(1, 5000), seeds, st.integers(1, 5))
def test_shapes_repeat_where_examples_suffice(shapes, num_examples, seed, repeats):
    schedule = epoch_schedule(shapes, num_examples, 0, seed, repeats)
    total = sum(shape.batch for shape in schedule)
    smallest = min(shape.batch for shape in shapes)
    assert num_examples <= total < num_examples + smallest
    # In runs of `repeats`, and then the smallest batch alone: no other length.
    runs = schedule[: len(schedule) // repeats * repeats]
    groups = [runs[i : i + repeats] for i in range(0, len(runs), repeats)]
    mixed = [group for group in groups if len(set(group)) > 1]
    assert all(group[-1].batch == smallest for group in mixed) and len(mixed) <= 1
    if num_examples >= repeats * min(shape.batch for shape in shapes):
        assert len(set(schedule[:repeats])) == 1


def test_sizes_that_are_not_square():
    assert batch_shapes([(64, 128), [32, 64], 32], (64, 64), 8) == [
        BatchShape(32, 32, 32),
        BatchShape(32, 64, 16),
        BatchShape(64, 128, 4),
    ]


@given(shape_lists, st.integers(1, 5000), st.integers(0, 20), seeds)
def test_every_example_has_its_place(shapes, num_examples, epoch, seed):
    schedule = epoch_schedule(shapes, num_examples, epoch, seed)
    smallest = min(shape.batch for shape in shapes)
    total = sum(shape.batch for shape in schedule)
    assert set(schedule) <= set(shapes)
    assert num_examples <= total < num_examples + smallest
    # Only the last batch can be short, and it is never empty.
    assert total - schedule[-1].batch < num_examples
    assert schedule == epoch_schedule(shapes, num_examples, epoch, seed)


@given(shape_lists, st.integers(1, 30), seeds)
def test_shapes_are_used_equally_often_while_whole_rounds_fit(shapes, rounds, seed):
    schedule = epoch_schedule(shapes, rounds * sum(s.batch for s in shapes), 0, seed)
    assert Counter(schedule) == {
        shape: rounds * shapes.count(shape) for shape in shapes
    }


@given(shape_lists, st.integers(0, 5000), st.integers(0, 5), seeds)
def test_all_shapes_are_met_in_an_epoch_of_one_round(shapes, more, epoch, seed):
    num_examples = sum(shape.batch for shape in shapes) + more
    assert set(epoch_schedule(shapes, num_examples, epoch, seed)) == set(shapes)


@given(seeds, st.integers(0, 1000))
def test_another_seed_or_epoch_draws_another_order(seed, epoch):
    shapes = batch_shapes((128, 160, 192, 224, 256), 160, 64)
    first = epoch_schedule(shapes, 20_000, epoch, seed)
    assert epoch_schedule(shapes, 20_000, epoch + 1, seed) != first
    assert epoch_schedule(shapes, 20_000, epoch, seed + 1) != first


@pytest.mark.parametrize(
    "size", [0, -32, 32.0, "32", None, (), (32,), (32, 0), [1] * 3]
)
def test_sizes_that_are_refused(size):
    with pytest.raises(ValueError, match="positive integer or a pair.*Received: "):
        batch_shapes([32, size], 32, 8)
    with pytest.raises(ValueError, match="positive integer or a pair.*Received: "):
        batch_shapes([32], size, 8)


@pytest.mark.parametrize("batch", [0, -1, 1.5, True])
def test_base_batches_that_are_refused(batch):
    with pytest.raises(ValueError, match=f"positive integer. Received: {batch}"):
        batch_shapes([32], 32, batch)


def test_no_sizes():
    with pytest.raises(ValueError, match="at least one size. Received none"):
        batch_shapes([], 32, 8)


@pytest.mark.parametrize("num_examples", [0, -5])
def test_no_examples(num_examples):
    shapes = batch_shapes([32], 32, 8)
    with pytest.raises(ValueError, match=f"one example. Received: {num_examples}"):
        epoch_schedule(shapes, num_examples, 0)
