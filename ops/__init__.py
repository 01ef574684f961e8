"""Tensor products: what they compute (a product) and how (a method of it)."""

from collections.abc import Sequence
from typing import Any

from eqnet.irreps import Irreps
from eqnet.ops.cartesian import Cartesian
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
    reached = {ir for _, ir in made.irreps_out}
    missing = [str(ir) for _, ir in needed if ir not in reached]
    if missing:
        raise ValueError(
            f"{name} does not take {irreps_left} to {', '.join(missing)}, which this model needs; "
            "clebsch_gordan has every path there is"
        )
    return made


def refuse_idle_bracket(products: Sequence[Product]) -> None:
    """A model that never uses an odd path has no use for the bracket.

    Raises:
        ValueError: all products are 'gaunt_bracket' and none has an odd path.
    """
    names = {product.declaration.name for product in products}
    triples = [triple for product in products for triple in product.declaration.couplings]
    if names == {"gaunt_bracket"} and not any(sum(ir.l for ir in t) % 2 for t in triples):
        raise ValueError(
            "gaunt_bracket adds odd paths, and the features of this model reach none, so that it "
            "would be gaunt: choose product gaunt, or nequip with features of both parities"
        )


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


def kernels(product: str) -> dict[str, Kernel]:
    """All methods of a product on edges, the default first, the plain one last."""
    return {**find(product, PRODUCTS, "product").kernels, "dense": dense}


def choose_methods(
    product: str, node_product: str = "", method: str = "auto"
) -> tuple[Convolution, str]:
    """How to compute the convolution and the powers of a model.

    Args:
        product: of the convolution.
        node_product: of the powers, see `power_class`.
        method: 'auto' for the default of each; otherwise a method of one of them or of both, and
            what does not have it keeps its default.

    Raises:
        ValueError: neither has a method of this name.
    """
    edge, node = kernels(product), power_class(product, node_product).methods
    if method != "auto" and method not in edge and method not in node:
        known = ", ".join(dict.fromkeys([*edge, *node]))
        raise ValueError(f"{product} has no method {method!r}; it has: {known}")
    return (
        Convolution(edge.get(method, next(iter(edge.values())))),
        method if method in node else node[0],
    )


def choose_convolution(product: str, method: str = "auto") -> Convolution:
    """The convolution that computes a product by a method; 'auto' is the product's default.

    Raises:
        ValueError: the product has no method of this name.
    """
    edge = kernels(product)
    if method == "auto":
        return Convolution(next(iter(edge.values())))
    if method not in edge:
        raise ValueError(f"{product} has no method {method!r}; it has: {', '.join(edge)}")
    return Convolution(edge[method])
