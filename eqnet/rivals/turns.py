"""The other end of `eqnet bench model --rivals`: a library's model, one call at a time.

    PYTHON turns.py rival_mace_torch

runs in an environment that has the library and not eqnet. It reads lines and answers each by a
line of JSON:

    the task (below)     versions, atoms, edges, parameters, CPU seconds of import, of the first
                         energy and forces from before the model exists, of the first training step
    forces               {"wall": s, "cpu": s} of one energy and forces
    train                {"wall": s, "cpu": s} of one step of training
    end                  {"peak_rss_bytes": n}

The task has a `structure` and a `batch` of structures (numbers, positions, cell, pbc, energy,
forces), the `config` of the model, `dtype`, `platform` ('cpu', 'gpu') and `threads`.
"""

import importlib
import json
import os
import resource
import sys
import time
from importlib.metadata import version

WARM_CALLS = 2  # after the first: TorchScript rewrites a function at its second call


def main():
    """Answer until the end of the input."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    task = json.loads(sys.stdin.readline())
    before = time.process_time()
    library = importlib.import_module(sys.argv[1])
    facts = {"import_cpu_s": time.process_time() - before}
    before = time.process_time()
    rival = library.Rival(task)
    rival.forces()
    facts["first_force_cpu_s"] = time.process_time() - before
    warm(rival.forces)
    if task["batch"]:
        rival.begin_training()
        facts["train_compile_cpu_s"] = clocks_of(rival.train)["cpu"]
        warm(rival.train)
    facts.update(atoms=len(task["structure"]["numbers"]), edges=rival.edges)
    facts.update(parameters=rival.parameters)
    facts["versions"] = {name: version(name) for name in library.PACKAGES}
    answers.write(json.dumps(facts) + "\n")
    for line in sys.stdin:
        word = line.strip()
        answer = (
            {"peak_rss_bytes": peak_rss()} if word == "end" else clocks_of(getattr(rival, word))
        )
        answers.write(json.dumps(answer) + "\n")


def warm(call):
    """Calls that nobody times."""
    for _ in range(WARM_CALLS):
        call()


def clocks_of(call):
    """Seconds of the wall clock and of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def peak_rss():
    """Most memory of this process, in bytes."""
    try:  # on Linux getrusage still counts what the parent had when it made this process
        with open("/proc/self/status") as file:
            (peak,) = [line for line in file if line.startswith("VmHWM:")]
        return 1024 * int(peak.split()[1])
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    main()
