"""The bounded map: order, bound, and how it ends."""

import threading
from contextlib import closing

import pytest

from edgekit.quantize.threads import THREAD_NAME, WAITING, bounded_map


def test_results_come_in_the_order_of_the_items_whoever_is_ready_first():
    released = threading.Event()

    def work(number):
        if number == 0:
            released.wait()  # the first cannot be done before the second is
        if number == 1:
            released.set()
        return number

    with closing(bounded_map(work, range(20), workers=2)) as results:
        assert list(results) == list(range(20))


def test_items_are_taken_no_faster_than_results():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    with closing(bounded_map(lambda n: n, items(), workers=3)) as results:
        for number in results:
            assert len(taken) <= number + 3 + WAITING
    assert len(taken) == 100


@pytest.mark.parametrize("where", ["work", "items", "caller"])
def test_an_exception_surfaces_as_itself_and_nothing_begins_after_it(where):
    begun = []

    def work(number):
        begun.append(number)
        if where == "work" and number == 5:
            raise KeyError("the sixth")
        return number

    def items():
        yield from range(10)
        if where == "items":
            raise KeyError("the eleventh")
        yield from range(10, 1000)

    with (
        pytest.raises(KeyError, match="the "),
        closing(bounded_map(work, items(), workers=2)) as results,
    ):
        for number in results:
            if where == "caller" and number == 5:
                raise KeyError("the caller")
    at_the_end = list(begun)
    assert len(at_the_end) < 20
    assert not [t for t in threading.enumerate() if t.name.startswith(THREAD_NAME)]
    assert begun == at_the_end
