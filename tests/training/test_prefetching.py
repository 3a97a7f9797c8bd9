"""What is made while something else is at work, by a real thread."""

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest
import torch

from hive_ray.training.prefetching import Prefetcher, pin_memory, prefetch_executor, to_device

CPU = torch.device("cpu")
LIMIT_S = 30


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as pool:
        yield pool


class Counted:
    """0, 1, 2, each made by whoever asks, once its gate is open; that of `shut` is not at first."""

    def __init__(self, count: int, fails_at: int | None = None, shut: int | None = None) -> None:
        self.makers, self.fails_at = [], fails_at
        self.made, self.gates = ([threading.Event() for _ in range(count)] for _ in range(2))
        for number, gate in enumerate(self.gates):
            if number != shut:
                gate.set()

    def __iter__(self):
        for number, (made, gate) in enumerate(zip(self.made, self.gates, strict=True)):
            assert gate.wait(LIMIT_S)
            if number == self.fails_at:
                raise ValueError(f"{number} is cracked")
            self.makers.append(threading.current_thread())
            made.set()
            yield number


def test_the_next_is_made_while_one_is_at_work_and_no_further(executor):
    counted = Counted(4)
    ahead = Prefetcher(iter(counted), executor)
    for number in range(4):
        assert next(ahead) == number
        if number < 3:
            assert counted.made[number + 1].wait(LIMIT_S)  # before it is asked for
        ahead.wait_until_idle()
        assert len(counted.makers) == min(number + 2, 4)
    assert threading.current_thread() not in counted.makers


def test_resting_is_until_what_was_begun_is_made(executor):
    counted = Counted(3, shut=1)
    ahead = Prefetcher(iter(counted), executor)
    ahead.wait_until_idle()
    assert not counted.makers  # nobody has asked yet
    assert next(ahead) == 0
    threading.Timer(0.2, counted.gates[1].set).start()
    ahead.wait_until_idle()
    assert counted.made[1].is_set()
    assert next(ahead) == 1


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("fails_at", [0, 1])
def test_an_error_is_raised_to_who_asks_for_what_was_not_made(executor, alone, fails_at):
    ahead = Prefetcher(iter(Counted(3, fails_at=fails_at)), None if alone else executor)
    for number in range(fails_at):
        assert next(ahead) == number
        ahead.wait_until_idle()
    with pytest.raises(ValueError, match=f"{fails_at} is cracked"):
        next(ahead)


@pytest.mark.parametrize("alone", [True, False])
def test_after_the_last_there_is_none(executor, alone):
    ahead = Prefetcher(iter(Counted(3)), None if alone else executor)
    assert list(ahead) == [0, 1, 2]
    with pytest.raises(StopIteration):
        next(ahead)


def test_closing_waits_for_nothing_and_makes_no_more():
    counted = Counted(3, shut=1)
    ahead = Prefetcher(iter(counted), ThreadPoolExecutor(1))
    assert next(ahead) == 0
    ahead.close()
    counted.gates[1].set()
    ahead.executor.shutdown(wait=True)
    assert len(counted.makers) <= 2  # the second, if it was begun
    with pytest.raises((CancelledError, RuntimeError)):
        next(ahead)


def test_without_a_helper_nothing_is_made_before_it_is_asked_for():
    counted = Counted(2)
    ahead = Prefetcher(iter(counted), prefetch_executor(CPU))
    assert next(ahead) == 0
    ahead.wait_until_idle()
    assert counted.makers == [threading.current_thread()]
    assert next(ahead) == 1


def test_a_batch_for_a_cpu_is_not_copied():
    batch = {"noise": torch.ones(2)}
    assert to_device(CPU, pin_memory(CPU, batch))["noise"] is batch["noise"]
