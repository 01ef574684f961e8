"""Tensor products: what they compute (a product) and how (a method of it)."""

from eqnet.irreps import Irreps
from eqnet.ops import convolution
from eqnet.ops.clebsch_gordan import ClebschGordan
from eqnet.ops.convolution import Convolution

# The names of the command line: product -> (edge product, {method: convolution}); first is default.
PRODUCTS = {"clebsch_gordan": (ClebschGordan, convolution.METHODS)}


def edge_product(
    name: str, irreps_left: Irreps, irreps_right: Irreps, irreps_target: Irreps
) -> ClebschGordan:
    """The product of this name for a convolution.

    Raises:
        ValueError: no product of this name.
    """
    if name not in PRODUCTS:
        raise ValueError(f"no product {name!r}; there is: {', '.join(PRODUCTS)}")
    return PRODUCTS[name][0](irreps_left, irreps_right, irreps_target)


def choose_convolution(product: str, method: str = "auto") -> Convolution:
    """The convolution that computes a product by a method; 'auto' is the product's default.

    Raises:
        ValueError: the product has no method of this name.
    """
    methods = PRODUCTS[product][1]
    if method == "auto":
        return next(iter(methods.values()))
    if method not in methods:
        raise ValueError(f"{product} has no method {method!r}; it has: {', '.join(methods)}")
    return methods[method]
