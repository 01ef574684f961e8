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
    from eqnet.tensor_file import load as load_tensors

    __version__: str

__all__ = ["EqnetCalculator", "InputError", "load", "load_tensors", "__version__"]

_HOME = {
    "EqnetCalculator": ("eqnet.calculator", "EqnetCalculator"),
    "InputError": ("eqnet.errors", "InputError"),
    "load": ("eqnet.model_file", "load"),
    "load_tensors": ("eqnet.tensor_file", "load"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("eqnet")
    if name in _HOME:
        module, own_name = _HOME[name]
        return getattr(import_module(module), own_name)
    raise AttributeError(f"module 'eqnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
