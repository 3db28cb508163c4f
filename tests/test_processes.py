import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from modeling_jepa_daam.processes import run_in_processes

ROOT = Path(__file__).parents[1]


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


def orphan_maker():
    """A parent that is killed while a worker waits for it."""
    outcomes = run_in_processes([(n,) for n in range(3)], 1, die_on, (-1,))
    next(outcomes)
    print(multiprocessing.active_children()[0].pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_ends_with_its_parent():
    code = "from tests.test_processes import orphan_maker; orphan_maker()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    worker = int(done.stdout)
    for _ in range(100):
        if not is_running(worker):
            break
        time.sleep(0.1)
    assert not is_running(worker)


def is_running(process):
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
