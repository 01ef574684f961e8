"""What trainings of the same length compare: tensor products in one model, or models."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from eqnet.errors import InputError
from eqnet.model_choice import config_class_of, default_of, model_options
from eqnet.models import MODELS
from eqnet.ops import POWERS, PRODUCTS, find, power_class
from eqnet.options import TrainOptions

PRODUCT = re.compile(r"(?P<product>\w+)(\+(?P<powers>\w+))?(:(?P<seeds>\d+))?")
MODEL = re.compile(r"(?P<model>\w+)(:(?P<preset>[^\W\d]\w*))?(:(?P<seeds>\d+))?")


@dataclass(frozen=True)
class ProductVariant:
    """A product of the messages, one of the powers, and how often to train."""

    product: str
    powers: str | None
    seeds: int

    @property
    def name(self) -> str:
        """As it is written, and of its files."""
        return f"{self.product}+{self.powers}" if self.powers else self.product

    def applied(self, options: TrainOptions) -> TrainOptions:
        """The options of its trainings."""
        values = {"product": self.product, "node_product": self.powers}
        if self.product != "cp":
            values["rank"] = None
        return options.replace(values)

    def columns(self, options: TrainOptions) -> dict[str, str]:
        """What a table calls it; options are those of all variants."""
        config_class = config_class_of(options.model.model)
        has_powers = "node_product" in getattr(config_class, "__dataclass_fields__", {})
        return {"product": self.product, "node_product": self._powers() if has_powers else ""}

    def _powers(self) -> str:
        """Name of the product of the powers, as a model chooses it."""
        chosen = power_class(self.product, self.powers or "")
        return next(name for name, powers in POWERS.items() if powers is chosen)


@dataclass(frozen=True)
class ModelVariant:
    """A model, its preset, and how often to train."""

    model: str
    preset: str | None
    seeds: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.model}-{self.preset}" if self.preset else self.model

    def applied(self, options: TrainOptions) -> TrainOptions:
        """The options of its trainings."""
        return options.replace({"model": self.model, "preset": self.preset})

    def columns(self, options: TrainOptions) -> dict[str, str]:
        """What a table calls it; options are those of all variants."""
        product = model_options(self.applied(options)).get("product")
        product = product or default_of(config_class_of(self.model), "product")
        return {"model": self.model, "preset": self.preset or "", "product": product}


Variant = ProductVariant | ModelVariant
V = TypeVar("V", ProductVariant, ModelVariant)


def read_products(text: str | None, seeds: int) -> list[ProductVariant]:
    """Variants from 'PRODUCT[+POWERS][:SEEDS]', comma by comma; all products where none are given.

    Raises:
        InputError: they cannot be read, or there is no such product.
    """

    def read(word: str) -> ProductVariant:
        match = PRODUCT.fullmatch(word)
        if match is None or match["seeds"] == "0":
            raise InputError(f"--products: {word!r} cannot be read: write PRODUCT[+POWERS][:SEEDS]")
        try:
            find(match["product"], PRODUCTS, "product")
            find(match["powers"] or "clebsch_gordan", POWERS, "node product")
        except ValueError as error:
            raise InputError(f"--products: {error}") from None
        return ProductVariant(match["product"], match["powers"], int(match["seeds"] or seeds))

    return _each(text or ",".join(PRODUCTS), read, "products")


def read_models(text: str, seeds: int, options: TrainOptions) -> list[ModelVariant]:
    """Variants from 'MODEL[:PRESET][:SEEDS]', comma by comma, or 'all'.

    Args:
        text: the list.
        seeds: of those that name no number.
        options: of all; their preset is that of those that name none.

    Raises:
        InputError: they cannot be read, there is no such model or preset, or a model lacks an
            option that was given.
    """
    own_presets = []

    def read(word: str) -> ModelVariant:
        match = MODEL.fullmatch(word)
        if match is None or match["seeds"] == "0":
            raise InputError(f"--models: {word!r} cannot be read: write MODEL[:PRESET][:SEEDS]")
        own_presets.append(match["preset"])
        preset = match["preset"] or options.model.preset
        variant = ModelVariant(match["model"], preset, int(match["seeds"] or seeds))
        try:
            model_options(variant.applied(options))
        except InputError as error:
            raise InputError(f"--models: {error}") from None
        return variant

    found = _each(",".join(MODELS) if text == "all" else text, read, "models")
    if options.model.preset and all(own_presets):
        raise InputError("--preset has no effect where all --models name their own: leave it out")
    return found


def _each(text: str, read: Callable[[str], V], option: str) -> list[V]:
    """The words of a list, each of which must be another variant."""
    found: dict[str, V] = {}
    for word in [w.strip() for w in text.split(",") if w.strip()]:
        variant = read(word)
        if variant.name in found:
            raise InputError(f"--{option} names {variant.name} twice: leave one of them out")
        found[variant.name] = variant
    if not found:
        raise InputError(f"--{option} names nothing: leave it out")
    return list(found.values())
