"""Which models other libraries have, what those lack of a configuration, and what they are told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from eqnet.bench_model import Case
from eqnet.irreps import spherical_irreps
from eqnet.models import ESENConfig, MACEConfig

# The models of each library that are compared.
MODELS_OF = {"mace-torch": ("mace",), "mlip": ("mace", "esen"), "fairchem-core": ("esen",)}


def reasons_against(name: str, case: Case) -> Iterator[tuple[bool, str]]:
    """Whether the library lacks the model of the case, and what to do about it."""
    models = MODELS_OF[name]
    words = f"it is compared with --model {' and '.join(models)} only, this is {case.model}"
    yield case.model not in models, words
    yield case.pair_repulsion, "it is compared without --pair_repulsion: leave it out"
    yield from (_against_mace if case.model == "mace" else _against_esen)(name, case)


def _against_mace(name: str, case: Case) -> Iterator[tuple[bool, str]]:
    config = MACEConfig(**_values(case))
    exact = config.product == "clebsch_gordan" and config.node_product in ("", "clebsch_gordan")
    ours = config.product if config.product != "clebsch_gordan" else config.node_product
    yield not exact, f"it has no product {ours}: let clebsch_gordan be the first"
    if name == "mlip":
        channels, degree = _channels(config), _degree(config)
        same = config.irreps() == spherical_irreps(degree) * channels
        yield not same, f"it has no --hidden_irreps {config.irreps()}, only a number of channels"
        yield degree > config.max_ell, f"its max_L is at most max_ell: lower --max_L {degree}"
        yield config.correlation > 4, f"it has no --correlation {config.correlation}, at most 4"
        order = config.num_cutoff_basis
        yield order != 5, f"it has no --num_cutoff_basis {order}, only 5"


def _against_esen(name: str, case: Case) -> Iterator[tuple[bool, str]]:
    config = ESENConfig(**_values(case))
    alike = config.group == "SO3"
    yield not alike, "it has the weights of --group SO3 alone, about twice as many: add that"
    order = config.num_cutoff_basis
    yield order != 5, f"it has no --num_cutoff_basis {order}, only 5"
    if name == "fairchem-core":
        gaussian = config.radial_basis == "gaussian"
        yield not gaussian, f"it has no --radial_basis {config.radial_basis}, only gaussian"
    yield config.max_L == 0, "it has no --max_L 0, which leaves nothing to turn: raise it"


def settings(case: Case) -> dict[str, Any]:
    """The configuration in plain values, with what a library asks for in other words."""
    if case.model != "mace":
        return dict(case.config)
    config = MACEConfig(**_values(case))
    return {
        **case.config,
        "irreps": str(config.irreps()),
        "num_channels": _channels(config),
        "max_L": _degree(config),
    }


def _values(case: Case) -> dict[str, Any]:
    """The configuration, whose values may come from JSON."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in case.config.items()}


def _channels(config: MACEConfig) -> int:
    return max(mul for mul, _ in config.irreps())


def _degree(config: MACEConfig) -> int:
    return max(ir.l for _, ir in config.irreps())
