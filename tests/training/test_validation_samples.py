import pytest

from diffusers_lightningdit.training.validation_samples import check_share, own_share, spread


@pytest.mark.parametrize(("num_samples", "available", "processes"), [(9, 8, 1), (7, 8, 2)])
def test_samples_that_cannot_be_shared(num_samples, available, processes):
    with pytest.raises(ValueError, match=f"`num_validation_samples` is {num_samples}; required: a multiple of the"):
        check_share(num_samples, available, processes)
    check_share(8, 8, 2)


@pytest.mark.parametrize(("length", "count"), [(10, 10), (10, 3), (1000, 32)])
def test_numbers_that_are_spread(length, count):
    numbers = spread(length, count)
    edges = [place * length // count for place in range(count + 1)]
    assert len(numbers) == count  # one of each stretch
    assert all(first <= number < end for number, first, end in zip(numbers, edges[:-1], edges[1:], strict=True))
    assert numbers == spread(length, count)


def test_spread_numbers_are_of_all_classes_however_these_lie():
    numbers = spread(1000, 40)
    assert {number // 100 for number in numbers} == set(range(10))  # sorted
    assert {number % 5 for number in numbers} == set(range(5))  # in turns: 40 is a multiple of 5


def test_the_processes_share_the_samples_in_order():
    shares = [own_share(1000, 40, rank, 4) for rank in range(4)]
    assert [first for first, _ in shares] == [0, 10, 20, 30]
    assert [index for _, indices in shares for index in indices] == spread(1000, 40)
