"""Tasks in worker processes, whatever becomes of a task or its process."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

Task = tuple[Any, ...]
Outcome = tuple[Any, Any, BaseException | None]

_worker: Callable[..., Any]  # of a worker process


def run_in_processes(
    tasks: Sequence[Task], jobs: int, make_worker: Callable[..., Callable[..., Any]], arguments: Task = ()
) -> Iterator[Outcome]:
    """Run `make_worker(*arguments)(*task)` for every task, one worker a process.

    A task that ends its process (a crash in C code, too little memory) fails alone: those that ran beside it are run
    again, one by one. No more tasks than processes are under way, so that an interruption loses no more.

    Args:
        tasks: Arguments of the worker's call; picklable, as all else is.
        jobs: Number of processes, of one PyTorch thread each; 0: this one, which is as good as its tasks.
        make_worker: Called once in each process.
        arguments: Of it.

    Yields:
        Each task with its result and `None`, or with `None` and what it raised; as they are done.
    """
    if jobs == 0:
        worker = make_worker(*arguments)
        for task in tasks:
            try:
                result = worker(*task)
            except Exception as error:  # whatever it is, the caller is told
                yield task, None, error
            else:
                yield task, result, None
        return
    waiting = deque(tasks)
    while waiting:
        broken, suspects = False, []
        with _pool(jobs, make_worker, arguments) as pool:
            running: dict[Future, Task] = {}
            while running or (waiting and not broken):
                while waiting and len(running) < jobs and not broken:
                    try:
                        running[pool.submit(_call, waiting[0])] = waiting[0]
                        waiting.popleft()
                    except BrokenProcessPool:  # since the last result; those that run tell of it
                        broken = True
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    if isinstance(future.exception(), BrokenProcessPool):
                        broken = True
                        suspects.append(task)
                    else:
                        yield _outcome(task, future)
        for task in suspects:
            with _pool(1, make_worker, arguments) as pool:
                future = pool.submit(_call, task)
                yield _outcome(task, future)


def _pool(jobs: int, make_worker: Callable[..., Callable[..., Any]], arguments: Task) -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    return ProcessPoolExecutor(jobs, spawn, _start, (make_worker, arguments))


def _start(make_worker: Callable[..., Callable[..., Any]], arguments: Task) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker = make_worker(*arguments)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)


def _call(task: Task) -> Any:
    return _worker(*task)


def _outcome(task: Task, future: Future) -> Outcome:
    error = future.exception()
    return task, None if error else future.result(), error
