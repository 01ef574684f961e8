"""`eqnet bench ops` and `eqnet bench model`: what products and models cost on this machine.

eqnet bench ops --l_max 1 2 3 4 --threads 1 --csv ops.csv --plot ops.png
eqnet bench ops --use node --products gaunt,clebsch_gordan --paths all
eqnet bench model model.eqnet --structures water.xyz --methods all
eqnet bench model --products clebsch_gordan,gaunt --structures water.xyz --json out.json
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from eqnet.errors import InputError

USAGE = """usage: eqnet bench {ops,model} [options]

Measure on this machine what tensor products or whole models cost.

  ops    every product x method, and other libraries that are installed, at the same tasks
  model  energy and forces, and training, of a model file or of any configuration

`eqnet bench ops --help` and `eqnet bench model --help` list the options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    kind = argv[0] if argv else "--help"
    if kind in ("-h", "--help"):
        print(USAGE)
        return 0
    if kind not in ("ops", "model"):
        raise InputError(f"eqnet bench measures ops or model, not {kind!r}: write one of them")
    os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # compile times are measured
    return import_module(f"eqnet.scripts.bench_{kind}").main(argv[1:])


if __name__ == "__main__":
    from eqnet.scripts import run

    sys.exit(run("bench"))
