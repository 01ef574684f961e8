"""The options of the model: every hyper-parameter of every model by its one name, no JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

MODEL = "the model's"


def default(text: str, metavar: str | None = None) -> Any:
    """How `--help` shows an option whose default depends on others."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {text})")


@dataclass(frozen=True)
class ModelOptions:
    """The model. What is not set keeps the default of the model; `eqnet info` shows it."""

    model: str = "mace"
    """Architecture: mace, nequip, tdn, esen, escn, equiformer_v2, tensornet,
    egennet or local_frames."""
    preset: Annotated[str | None, default("the model's own values", "NAME")] = None
    """Size of the model: small, medium or large. Options that are set win over it."""
    r_max: Annotated[float | None, default(MODEL, "FLOAT")] = None
    """Cutoff radius in angstrom."""
    num_channels: Annotated[int | None, default(MODEL, "INT")] = None
    """Channels of every irrep."""
    max_L: Annotated[int | None, default(MODEL, "INT")] = None
    """Largest degree of the messages between layers."""
    hidden_irreps: Annotated[str | None, default(MODEL, "IRREPS")] = None
    """Irreps between layers, as "64x0e+64x1o"; instead of num_channels and max_L."""
    max_ell: Annotated[int | None, default(MODEL, "INT")] = None
    """Largest degree of the spherical harmonics of the edges."""
    correlation: Annotated[int | None, default(MODEL, "INT")] = None
    """Order of the symmetric contraction (body order less one)."""
    num_interactions: Annotated[int | None, default(MODEL, "INT")] = None
    """Message-passing layers."""
    num_heads: Annotated[int | None, default(MODEL, "INT")] = None
    """Heads of the attention; of tdn a divisor of num_channels."""
    num_frames: Annotated[int | None, default(MODEL, "INT")] = None
    """Pairs of vectors of an atom that make its frames."""
    num_radial_basis: Annotated[int | None, default(MODEL, "INT")] = None
    """Radial basis functions."""
    radial_basis: Annotated[Literal["gaussian", "bessel"] | None, default(MODEL)] = None
    """Kind of the radial basis functions."""
    num_cutoff_basis: Annotated[int | None, default(MODEL, "INT")] = None
    """Order of the polynomial cutoff."""
    radial_MLP: Annotated[tuple[int, ...] | None, default(MODEL, "INT INT ...")] = None
    """Hidden layers of the radial network."""
    MLP_channels: Annotated[int | None, default(MODEL, "INT")] = None
    """Channels of the last readout."""
    first_residual: Annotated[bool | None, default(MODEL, "/ --no_first_residual")] = None
    """Whether the first layer has a residual connection."""
    product: Annotated[str | None, default(MODEL, "NAME")] = None
    """Tensor product of the messages; docs/tensor_products.md says which there are."""
    node_product: Annotated[str | None, default("as product", "NAME")] = None
    """Tensor product of the many-body features of an atom."""
    rank: Annotated[int | None, default("exact", "INT")] = None
    """Rank of the product cp; below the exact rank it is equivariant up to a stated error."""
    method: str = "default"
    """How the products are computed: default, auto (the fastest here, timed once) or a name."""
    group: Annotated[Literal["O3", "SO3"] | None, default(MODEL)] = None
    """O3, or SO3 for more paths in a model that tells mirror images apart."""
    envelope: Annotated[Literal["polynomial", "cosine"] | None, default(MODEL)] = None
    """How edges end at the cutoff: with two continuous derivatives, or with one as published."""
    parity: Annotated[bool | None, default(MODEL, "/ --no_parity")] = None
    """Whether features between layers have both parities of every degree."""
    residual: Annotated[bool | None, default(MODEL, "/ --no_residual")] = None
    """Whether a layer adds its input to its output."""
    layer_norm: Annotated[bool | None, default(MODEL, "/ --no_layer_norm")] = None
    """Whether the input of a layer is normalised."""
    m_max: Annotated[int | None, default(MODEL, "INT")] = None
    """Largest order |m| of features in the frames of edges."""
    alpha_channels: Annotated[int | None, default(MODEL, "INT")] = None
    """Numbers of a head that its attention weight is made of."""
    value_channels: Annotated[int | None, default(MODEL, "INT")] = None
    """Channels that a head sends."""
    hidden_channels: Annotated[int | None, default(MODEL, "INT")] = None
    """Hidden channels of messages."""
    ffn_channels: Annotated[int | None, default(MODEL, "INT")] = None
    """Hidden channels of the feed-forward networks."""
    edge_channels: Annotated[int | None, default(MODEL, "INT")] = None
    """Channels of the elements of an edge in the radial networks."""
    activation: Annotated[Literal["gate", "s2"] | None, default(MODEL)] = None
    """Nonlinearity of features: gate, or s2 for SiLU on a sphere, approximately equivariant."""
    grid_resolution: Annotated[int | None, default("the model's, with s2", "INT")] = None
    """Latitudes and azimuths of the sphere of s2."""
    attention: Annotated[Literal["smooth", "softmax"] | None, default(MODEL)] = None
    """Attention: smooth at the cutoff, or the plain softmax."""
    pair_repulsion: bool = False
    """Add the ZBL repulsion of the nuclei at short range."""
