"""Equivariant interatomic potentials in JAX.

    from eqnet import EqnetCalculator
    atoms.calc = EqnetCalculator("model.eqnet")

Names load on first use, so that `import eqnet` costs nothing and touches no JAX setting.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eqnet.calculator import EqnetCalculator
    from eqnet.errors import InputError
    from eqnet.model_file import load

    __version__: str

__all__ = ["EqnetCalculator", "InputError", "load", "__version__"]

_HOME = {
    "EqnetCalculator": "eqnet.calculator",
    "InputError": "eqnet.errors",
    "load": "eqnet.model_file",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("eqnet")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'eqnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
