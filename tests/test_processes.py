import os
import signal
from concurrent.futures.process import BrokenProcessPool

from training.processes import run_in_processes


def die_on(victim):
    def work(number):
        if number == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        if number < 0:
            raise ValueError("negative")
        return number * 10

    return work


def test_a_task_that_kills_its_process_fails_alone():
    outcomes = list(run_in_processes([(n,) for n in (0, 1, 2, -3, 4, 5)], 2, die_on, (2,)))
    assert sorted(result for _, result, error in outcomes if error is None) == [0, 10, 40, 50]
    failed = {task: type(error) for task, _, error in outcomes if error is not None}
    assert failed == {(2,): BrokenProcessPool, (-3,): ValueError}


def test_without_processes_errors_are_told_the_same_way():
    outcomes = list(run_in_processes([(1,), (-1,)], 0, die_on, (2,)))
    assert outcomes[0] == ((1,), 10, None)
    assert isinstance(outcomes[1][2], ValueError)
