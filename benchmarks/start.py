"""CPU time of commands: those that only print, and those that load a model.

    python -m benchmarks.start [--runs 5]

Prints the least of several runs, user and system time of the whole process.
"""

import argparse
import resource
import subprocess
import sys

COMMANDS = (["--version"], ["--help"], ["encode", "--help"], ["tokenize-corpus", "--help"], ["info"])


def cpu_seconds(command: list[str]) -> float:
    """User and system time of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(runs: int) -> None:
    program = [sys.executable, "-m", "modeling_jepa_daam.cli"]
    for arguments in COMMANDS:
        seconds = min(cpu_seconds([*program, *arguments]) for _ in range(runs))
        print(f"jepa-audio {' '.join(arguments)}: {seconds:.2f} s of CPU time", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    main(parser.parse_args().runs)
