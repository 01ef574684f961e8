"""Tensor products: what they compute (a product) and how (a method of it)."""

from eqnet.irreps import Irreps
from eqnet.ops.clebsch_gordan import ClebschGordan
from eqnet.ops.convolution import Convolution
from eqnet.ops.product import Product, dense

# The names of the command line.
PRODUCTS: dict[str, type[Product]] = {"clebsch_gordan": ClebschGordan}


def product_class(name: str) -> type[Product]:
    """The product of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in PRODUCTS:
        raise ValueError(f"no product {name!r}; there is: {', '.join(PRODUCTS)}")
    return PRODUCTS[name]


def edge_product(
    name: str, irreps_left: Irreps, irreps_right: Irreps, irreps_target: Irreps
) -> Product:
    """The product of this name for a convolution.

    Raises:
        ValueError: no product of this name, or it cannot connect these irreps.
    """
    return product_class(name)(irreps_left, irreps_right, irreps_target)


def choose_convolution(name: str, method: str = "auto") -> Convolution:
    """The convolution that computes a product by a method; 'auto' is the product's default.

    Raises:
        ValueError: the product has no method of this name.
    """
    kernels = {**product_class(name).kernels, "dense": dense}
    if method == "auto":
        return Convolution(next(iter(kernels.values())))
    if method not in kernels:
        raise ValueError(f"{name} has no method {method!r}; it has: {', '.join(kernels)}")
    return Convolution(kernels[method])
