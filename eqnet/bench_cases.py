"""The models of a benchmark: methods of a model file, products x methods of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from eqnet import model_file
from eqnet.bench_model import Case
from eqnet.data.frame import Frame
from eqnet.data.items import make_items
from eqnet.data.neighbors import average_num_neighbors
from eqnet.errors import InputError
from eqnet.model_choice import config_class_of, default_of, make_config, model_options
from eqnet.model_options import ModelOptions
from eqnet.models import MODELS
from eqnet.ops import POWERS, PRODUCTS, kernels, power_class
from eqnet.options import TrainOptions
from eqnet.potential import Potential


def of_file(path: str, methods: str, dtype: str) -> list[Case]:
    """A model file by several methods, comma by comma, or 'all'.

    Raises:
        InputError: the file cannot be read, or its model has no such method.
    """
    info = model_file.read_info(path)
    config = info["config"]
    product, node_product = config.get("product"), config.get("node_product")
    if product not in PRODUCTS:
        raise InputError(f"{path}: this model has no tensor products, and so no methods to compare")

    def case(method: str) -> Case:
        return Case(
            product,
            _powers(product, node_product),
            method,
            lambda: model_file.load(path, dtype=dtype, method=method, verify=False),
            info["model"],
            config,
            info["potential"].get("pair_repulsion", False),
        )

    known, wanted = (_methods(product, node_product, m) for m in ("all", methods))
    if not wanted or not (methods == "all" or set(_split(methods, "methods")) <= set(wanted)):
        raise InputError(f"--methods {methods}: {product} has default, auto, {', '.join(known)}")
    return [case(method) for method in wanted]


def of_models(
    options: ModelOptions,
    models: str,
    presets: str | None,
    products: str | None,
    methods: str,
    dtype: str,
    frames: Sequence[Frame],
) -> list[Case]:
    """Models by presets, each with its own product or the given ones.

    Args:
        options: of all models; their preset is that of the models that name none.
        models: MODEL[:PRESET], comma by comma, or 'all'.
        presets: names, comma by comma, or 'all' of each: those of the models that name none.
        products: as `of_configuration`.
        methods: as `of_configuration`.
        dtype: precision of the weights.
        frames: structures that the models must suit.

    Raises:
        InputError: there is no such model or preset, or the options do not go together.
    """
    words = list(MODELS) if models == "all" else _split(models, "models")
    for option, value in (("preset", options.preset), ("presets", presets)):
        if value is not None and all(":" in word for word in words):
            raise InputError(f"--{option} has no effect where all --models name their own")
    cases = []
    for model, colon, own in (word.partition(":") for word in words):
        chosen: list[str | None] = [own if colon else options.preset]
        if presets is not None and not colon:
            known = config_class_of(model).PRESETS
            chosen = [*(known if presets == "all" else _split(presets, "presets"))]
        for preset in chosen:
            one = replace(options, model=model, preset=preset)
            cases += of_configuration(one, products, methods, dtype, frames)
    return cases


def of_configuration(
    options: ModelOptions,
    products: str | None,
    methods: str,
    dtype: str,
    frames: Sequence[Frame],
) -> list[Case]:
    """Models with random weights for the elements of some structures.

    Args:
        options: of the model.
        products: names, comma by comma, 'all', or None for that of the options.
        methods: names, comma by comma, or 'all'; a product is computed by those that it has.
        dtype: precision of the weights.
        frames: structures that the model must suit.

    Raises:
        InputError: the options do not go together, or a name is not known.
    """
    config_class = config_class_of(options.model)
    given = model_options(TrainOptions(model=options))
    elements = tuple(sorted({int(z) for frame in frames for z in frame.numbers}))
    cutoff = given.get("r_max", default_of(config_class, "r_max"))
    items = make_items(frames[:20], elements, cutoff)
    neighbors = average_num_neighbors([item.neighbors for item in items])
    if not neighbors:
        raise InputError(f"no atom has a neighbour within r_max = {cutoff} A: raise --r_max")
    names = [given.get("product", default_of(config_class, "product"))]
    if products is not None:
        names = list(PRODUCTS) if products == "all" else _split(products, "products")
    cases = []
    for product in names:
        if product not in PRODUCTS:
            raise InputError(f"there is no product {product!r}; there is {', '.join(PRODUCTS)}")
        powers = given.get("node_product", "") if "node_product" in _fields(config_class) else None
        values = given | {"product": product}
        for method in _methods(product, powers, methods):
            config = make_config(config_class, values, elements=elements, neighbors=neighbors)
            make = _maker(options, config, method, dtype)
            settings = (options.model, asdict(config), options.pair_repulsion)
            case = Case(product, _powers(product, powers), method, make, *settings)
            cases.append(replace(case, preset=options.preset or ""))
    missing = set(_split(methods, "methods")) - {case.method for case in cases} - {"all"}
    if missing:
        known = ", ".join(dict.fromkeys(m for p in names for m in _methods(p, "", "all")))
        raise InputError(f"no product here has a method {min(missing)!r}; there is {known}")
    return cases


def _maker(options: ModelOptions, config: Any, method: str, dtype: str) -> Callable[[], Potential]:
    model_class = MODELS[options.model][1]

    def make() -> Potential:
        model = nnx.jit(lambda: model_class(config, rngs=nnx.Rngs(0), method=method))()
        number = len(config.elements)
        potential = Potential(
            model,
            elements=config.elements,
            cutoff=config.r_max,
            atomic_energies=[0.0] * number,
            scale=[1.0] * number,
            shift=[0.0] * number,
            pair_repulsion=options.pair_repulsion,
        )
        graphdef, weights = nnx.split(potential)
        return nnx.merge(graphdef, jax.tree.map(lambda x: x.astype(np.dtype(dtype)), weights))

    return make


def _methods(product: str, node_product: str | None, wanted: str) -> list[str]:
    """Those of the wanted methods that a model has; node_product is None if it has no powers."""
    edge = kernels(product)
    node = () if node_product is None else power_class(product, node_product).methods
    known = ["default", "auto", *dict.fromkeys([*edge, *node])]
    if wanted == "all":
        return known[2:]
    return [method for method in _split(wanted, "methods") if method in known]


def _powers(product: str, node_product: str | None) -> str:
    """Name of the product of the powers."""
    if node_product is None:
        return ""
    return node_product or (product if product in POWERS else "clebsch_gordan")


def _fields(config_class: type) -> set[str]:
    return set(getattr(config_class, "__dataclass_fields__", {}))


def _split(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"--{option} names nothing: leave it out")
    return list(dict.fromkeys(names))
