"""`eqnet bench ops`, `model`, `train`, ...: what products and models cost and are worth.

eqnet bench ops --l_max 1 2 3 4 --threads 1 --csv ops.csv --plot ops.png
eqnet bench ops --use node --products gaunt,clebsch_gordan --paths all
eqnet bench model model.eqnet --structures water.xyz --methods all
eqnet bench model --products clebsch_gordan,gaunt --structures water.xyz --json out.json
eqnet bench model --models all --presets all --structures water.xyz --threads 1
eqnet bench train water.xyz --num_test 100 --products clebsch_gordan:3,gaunt:3,cp --minutes 10
eqnet bench train water.xyz --num_test 100 --models mace:small,nequip:small:3 --minutes 10
eqnet bench geometry --models mace,nequip --layers 1 2 3 --degrees 1 2
eqnet bench symmetry --cases inertia-z --levels 0 0.3
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from eqnet.errors import InputError

USAGE = """usage: eqnet bench {ops,model,train,geometry,symmetry} [options]

Measure on this machine what tensor products or whole models cost, and what they are worth.

  ops    every product x method, and other libraries that are installed, at the same tasks
  model  energy and forces, and training, of a model file, of any configuration, or of all presets
  train  test errors of products or models that trained on your data for the same time
  geometry  which structures a model can tell apart, whatever it is trained on
  symmetry  whether regularised networks find out which symmetries of a function are broken

`eqnet bench ops --help` and the like list the options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    kind = argv[0] if argv else "--help"
    if kind in ("-h", "--help"):
        print(USAGE)
        return 0
    if kind not in ("ops", "model", "train", "geometry", "symmetry"):
        raise InputError(
            f"eqnet bench measures ops, model, train, geometry or symmetry, not {kind!r}"
        )
    if kind in ("ops", "model"):  # compile times are measured
        os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
    return import_module(f"eqnet.scripts.bench_{kind}").main(argv[1:])


if __name__ == "__main__":
    from eqnet.scripts import run

    sys.exit(run("bench"))
