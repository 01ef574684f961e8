"""Tensor products: what they compute (a product) and how (a method of it)."""

from collections.abc import Sequence
from typing import Any

from eqnet.irreps import Irreps
from eqnet.ops.cartesian import Cartesian
from eqnet.ops.choose import fastest, fastest_power
from eqnet.ops.clebsch_gordan import ClebschGordan
from eqnet.ops.convolution import Convolution
from eqnet.ops.cp import CP
from eqnet.ops.cp_power import CPPower
from eqnet.ops.gaunt import Gaunt
from eqnet.ops.gaunt_bracket import GauntBracket
from eqnet.ops.gaunt_power import GauntPower
from eqnet.ops.matrix import Matrix
from eqnet.ops.matrix_power import MatrixPower
from eqnet.ops.power import Power
from eqnet.ops.product import Kernel, NodePower, Product, dense
from eqnet.ops.so2 import SO2
from eqnet.ops.vector_gaunt import VectorGaunt

# The names of the command line: bilinear products, and the powers of one feature that some have.
PRODUCTS: dict[str, type[Product]] = {
    "clebsch_gordan": ClebschGordan,
    "gaunt": Gaunt,
    "gaunt_bracket": GauntBracket,
    "vector_gaunt": VectorGaunt,
    "so2": SO2,
    "cp": CP,
    "matrix": Matrix,
    "cartesian": Cartesian,
}
POWERS: dict[str, type[NodePower]] = {
    "clebsch_gordan": Power,
    "gaunt": GauntPower,
    "cp": CPPower,
    "matrix": MatrixPower,
}


def find(name: str, table: dict[str, Any], what: str) -> Any:
    """The entry of a table of names.

    Raises:
        ValueError: there is none.
    """
    if name not in table:
        raise ValueError(f"no {what} {name!r}; there is: {', '.join(table)}")
    return table[name]


def edge_product(
    name: str,
    irreps_left: Irreps,
    irreps_right: Irreps,
    irreps_target: Irreps,
    *,
    needed: Irreps,
    rank: int = 0,
) -> Product:
    """The product of this name for a convolution.

    Args:
        name: a key of `PRODUCTS`.
        irreps_left: irreps of the features.
        irreps_right: irreps of the harmonics.
        irreps_target: outputs to keep where they are reached.
        needed: outputs without which the model cannot do.
        rank: of the product 'cp'; 0 for an exact one.

    Raises:
        ValueError: no product of this name, or it cannot connect these irreps.
    """
    product = find(name, PRODUCTS, "product")
    if rank and name != "cp":
        raise ValueError(f"rank {rank} has no effect on {name}: leave it out or choose product cp")
    options = {"rank": rank} if rank else {}
    made = product(irreps_left, irreps_right, irreps_target, **options)
    missing = _missing(made, needed)
    if missing:
        why = ""
        if name == "vector_gaunt":
            why = " (its vector signals make scalars only of features of degree 1 or more)"
        irreps = irreps_left, irreps_right, irreps_target
        fit = [other for other in PRODUCTS if _fits(other, *irreps, needed)]
        raise ValueError(
            f"{name} has no path from {irreps_left} x {irreps_right} to {', '.join(missing)}, "
            f"which this model needs{why}; products that have: {', '.join(fit)}"
        )
    return made


def _missing(product: Product, needed: Irreps) -> list[str]:
    """Outputs that a product does not reach."""
    reached = {ir for _, ir in product.irreps_out}
    return [str(ir) for _, ir in needed if ir not in reached]


def _fits(name: str, left: Irreps, right: Irreps, target: Irreps, needed: Irreps) -> bool:
    try:
        product = PRODUCTS[name](left, right, target)
        refuse_idle_bracket([product])
    except ValueError:
        return False
    return not _missing(product, needed)


def _has_odd_path(product: Product) -> bool:
    """Whether l1 + l2 + l3 is odd for some path."""
    return any(sum(ir.l for ir in triple) % 2 for triple in product.declaration.couplings)


def refuse_idle_group(group: str, product: Product, described: str) -> None:
    """A model whose product has no odd path has no use for group 'SO3'.

    Raises:
        ValueError: it is asked for.
    """
    if group == "SO3" and not _has_odd_path(product):
        raise ValueError(
            f"group SO3 has no effect: {described} has no path of odd l1 + l2 + l3, which are all "
            "that SO3 adds; leave the group out"
        )


def refuse_idle_bracket(products: Sequence[Product]) -> None:
    """A model that never uses an odd path has no use for the bracket.

    Raises:
        ValueError: all products are 'gaunt_bracket' and none has an odd path.
    """
    names = {product.declaration.name for product in products}
    if names == {"gaunt_bracket"} and not any(map(_has_odd_path, products)):
        raise ValueError(
            "gaunt_bracket adds odd paths, and the features of this model reach none, so that it "
            "would be gaunt: choose product gaunt, or nequip with features of both parities"
        )


def require_cartesian(model: str, product: str, method: str = "default") -> None:
    """Refuse another product or method for a model of numbers times vectors.

    Raises:
        ValueError: naming those that fit.
    """
    if product != "cartesian":
        raise ValueError(
            f"{model} multiplies numbers by vectors, so that only product cartesian fits, not "
            f"{product}: leave it out, or choose mace or nequip, which take any"
        )
    if method not in ("default", "auto"):
        raise ValueError(f"{model} has no method {method!r}; it has: default, auto")


def power_class(product: str, node_product: str = "") -> type[NodePower]:
    """The powers to go with a convolution: as named, or of its product, or Clebsch-Gordan."""
    return (
        find(node_product, POWERS, "node product") if node_product else POWERS.get(product, Power)
    )


def node_power(
    product: str, node_product: str, irreps_in: Irreps, irreps_out: Irreps, correlation: int
) -> NodePower:
    """The powers of a feature with the atoms' weights.

    Raises:
        ValueError: no such powers, or they do not reach these irreps.
    """
    return power_class(product, node_product)(irreps_in, irreps_out, correlation)


def kernels(product: str | Product) -> dict[str, Kernel]:
    """All methods of a product on edges, the default first, the plain one last."""
    made = find(product, PRODUCTS, "product") if isinstance(product, str) else product
    return {**made.kernels, "dense": dense}


def choose_methods(
    product: str, node_product: str = "", method: str = "default"
) -> tuple[str, str]:
    """The methods of the convolutions and of the powers of a model, from one name.

    Args:
        product: of the convolutions.
        node_product: of the powers, see `power_class`.
        method: 'default', 'auto', or a method of one of them or of both; what does not have it
            keeps its default.

    Raises:
        ValueError: neither has a method of this name.
    """
    edge, node = kernels(product), power_class(product, node_product).methods
    if method in ("default", "auto"):
        return method, method
    if method not in edge and method not in node:
        raise _no_method(product, [*edge, *node], method)
    return method if method in edge else "default", method if method in node else "default"


def choose_convolution(product: Product, method: str = "default") -> Convolution:
    """The convolution that computes a product.

    Args:
        product: with one channel on the right.
        method: 'default' for its first method; 'auto' for the fastest here, which is timed if it
            never was (`choose.fastest`); or the name of one.

    Raises:
        ValueError: the product has no method of this name.
    """
    known = kernels(product)
    if method == "auto":
        method = fastest(product, product.kernels)
    return Convolution(known[_named(product.declaration.name, list(known), method)])


def choose_power_method(power: NodePower, method: str = "default") -> str:
    """The name of the method for powers; arguments as of `choose_convolution`.

    Raises:
        ValueError: they have no method of this name.
    """
    if method == "auto":
        method = fastest_power(power, [name for name in power.methods if name != "dense"])
    kind = type(power)
    name = next((name for name, powers in POWERS.items() if powers is kind), kind.__name__)
    return _named(f"node product {name}", power.methods, method)


def method_name(product: Product, convolve: Convolution) -> str:
    """What the method is called by which a convolution computes this product."""
    return next(name for name, kernel in kernels(product).items() if kernel is convolve.kernel)


def _named(name: str, known: Sequence[str], method: str) -> str:
    """A method of `known`, the first for 'default'."""
    if method != "default" and method not in known:
        raise _no_method(name, known, method)
    return known[0] if method == "default" else method


def _no_method(name: str, known: Sequence[str], method: str) -> ValueError:
    there = ", ".join(dict.fromkeys(["default", "auto", *known]))
    return ValueError(f"{name} has no method {method!r}; it has: {there}")
