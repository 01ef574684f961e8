"""Other libraries do the very task that ours does: the same numbers where weights mean the same."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from eqnet import bench_rivals_edges, bench_rivals_nodes
from eqnet.bench_rivals import installed
from eqnet.bench_tasks import Contestant, Task
from eqnet.irreps import IrrepsArray
from eqnet.ops.clebsch_gordan import ClebschGordan
from eqnet.ops.convolution import Convolution
from eqnet.ops.gaunt import Gaunt
from eqnet.ops.product import Radial, dense

CHANNELS = 3


def task(use, pattern: str = "mimo", paths: str = "even", dtype: str = "float64") -> Task:
    return Task(use, pattern, 2, 2, CHANNELS, 30, dtype, paths)  # pyright: ignore


def output(contestant: Contestant, work: Task) -> IrrepsArray:
    operands = contestant.prepare(*work.inputs())
    return contestant.unpack(contestant.function(operands, contestant.weights))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("pattern", ["mimo", "simo"])
@pytest.mark.parametrize("paths", ["even", "all"])
@pytest.mark.parametrize("name", ["e3nn_tensor_product", "e3nn_legacy"])
def test_convolutions_of_e3nn(name: str, paths: str, pattern: str, summed: bool) -> None:
    work = task("edge", pattern, paths)
    contestant = getattr(bench_rivals_edges, name)(work, summed=summed)
    sides = (work.irreps_left, work.irreps_right, work.irreps_target)
    product: Any = ClebschGordan(*sides, summed=summed)
    assert contestant.couplings == len(product.declaration.couplings)
    hidden, matrix = contestant.weights
    radial = Radial(hidden.reshape((*work.graph.neighbors.shape, -1)), (matrix,))
    ours = Convolution(dense)(product, *work.inputs(), radial, work.graph)
    theirs = output(contestant, work)
    assert theirs.irreps == ours.irreps
    np.testing.assert_allclose(theirs.array, ours.array, atol=1e-6)  # tables of e3nn are float32


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("summed", [False, True])
def test_products_of_features_of_e3nn(summed: bool) -> None:
    work = task("node")
    contestant = bench_rivals_nodes.e3nn_tensor_product(work, summed=summed)
    sides = (work.irreps_left, work.irreps_right, work.irreps_target)
    product = ClebschGordan(*sides, "uuu", summed=summed)
    ours = product(*work.inputs(), contestant.weights.ravel())
    theirs = output(contestant, work)
    assert theirs.irreps == ours.irreps
    np.testing.assert_allclose(theirs.array, ours.array, atol=1e-6)


@pytest.mark.filterwarnings("ignore:jax.scipy.special.lpmn_values:DeprecationWarning")
def test_gaunt_product_of_e3nn() -> None:
    """Its grid is exact: the same but for our norms, and means over the sphere for integrals."""
    work = task("node", dtype="float32")
    contestant = bench_rivals_nodes.e3nn_grid(work)
    product = Gaunt(work.irreps_left, work.irreps_right, work.irreps_target)
    ones = jnp.ones(product.num_weights)
    ours, theirs = product(*work.inputs(), ones), output(contestant, work)
    assert contestant.couplings == len(product.declaration.couplings)
    for norm, a, b in zip(product.norms, ours.blocks, theirs.blocks, strict=True):
        np.testing.assert_allclose(np.asarray(b) * norm / np.sqrt(4 * np.pi), a, atol=1e-5)


def test_what_others_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="no odd paths"):
        bench_rivals_nodes.e3nn_grid(task("node", paths="all"))
    assert "e3nn-jax" in installed()
    assert bench_rivals_nodes.contestants("cuequivariance-jax") == ()
