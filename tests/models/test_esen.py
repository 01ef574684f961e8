"""eSEN: its published sizes, mirror images, and frames that roll."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from graphs import Structure, make_graph

from eqnet.models.esen import ESEN, ESENConfig
from eqnet.ops.so2_linear import OrderRows
from eqnet.ops.so2_orders import Group

PUBLISHED = {"group": "SO3", "num_channels": 128, "hidden_channels": 128, "edge_channels": 128}


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        # SPICE and TM23; eSEN-30M-MP; eSEN-30M-OAM
        ({"max_L": 2, "num_interactions": 2, "radial_basis": "bessel"}, 3_199_745),
        ({"max_L": 3, "num_interactions": 10, "r_max": 6.0}, 30_085_121),
        ({"max_L": 3, "num_interactions": 10, "r_max": 6.0, "num_radial_basis": 64}, 30_161_153),
    ],
)
def test_published_numbers_of_parameters(changes: dict, number: int) -> None:
    config = ESENConfig(tuple(range(1, 101)), **PUBLISHED, **changes)
    weights = jax.eval_shape(lambda: nnx.split(ESEN(config, rngs=nnx.Rngs(0)))[1])
    assert sum(int(np.prod(w.shape)) for w in jax.tree.leaves(weights)) == number


def test_options_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match="only product so2 fits"):
        ESENConfig((1,), product="gaunt").irreps()
    with pytest.raises(ValueError, match="m_max 3 has no effect"):
        ESENConfig((1,), m_max=3).irreps()
    with pytest.raises(ValueError, match="no method"):
        ESEN(ESENConfig((1,)), rngs=nnx.Rngs(0), method="dense")


def chiral(sign: float = 1.0) -> Structure:
    positions = [[0, 0, 0], [1.1, 0.1, 0], [-0.3, 1.2, 0.2], [-0.4, -0.5, 1.0], [0.2, -0.6, -1.3]]
    return Structure(np.array([6, 1, 8, 1, 6]), sign * np.array(positions), np.zeros((3, 3)))


@pytest.mark.parametrize("group", ["O3", "SO3"])
def test_mirror_images_and_rolls(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mirror images differ where the group is SO3; the roll of a frame never matters."""
    config = ESENConfig(
        (1, 6, 8), r_max=4.0, num_channels=4, hidden_channels=4, edge_channels=4, group=group
    )
    matrices = OrderRows.matrices

    def rolled(self: OrderRows, unit: jax.Array) -> jax.Array:
        """Frames turned further, each by its own angle: x[+m] + i x[-m] -> exp(i m g) (...)."""
        a = np.asarray(matrices(self, unit))
        out, row = np.zeros_like(a), 0
        g = np.random.default_rng(0).uniform(0, 2 * np.pi, size=(*unit.shape[:-1], 1, 1))
        for order in self.orders:
            size = len(order.inputs)
            real, imaginary = a[..., row : row + size, :], a[..., row + size : row + 2 * size, :]
            c, s = np.cos(order.m * g), np.sin(order.m * g)
            if order.m == 0:
                out[..., row : row + size, :] = real
            else:
                out[..., row : row + size, :] = c * real - s * imaginary
                out[..., row + size : row + 2 * size, :] = s * real + c * imaginary
            row += size * (2 if order.m else 1)
        return jnp.asarray(out)

    with jax.enable_x64(True):
        model = ESEN(config, rngs=nnx.Rngs(0))
        definition, state = nnx.split(model)
        energies = jax.jit(lambda s, g: nnx.merge(definition, s)(g))
        here, mirrored = (
            np.asarray(energies(state, make_graph([chiral(sign)], (1, 6, 8), 4.0)))
            for sign in (1.0, -1.0)
        )
        monkeypatch.setattr(OrderRows, "matrices", rolled)
        other = model(make_graph([chiral()], (1, 6, 8), 4.0))
    np.testing.assert_allclose(other, here, rtol=0, atol=1e-12)
    if group == "O3":
        np.testing.assert_allclose(mirrored, here, rtol=0, atol=1e-12)
    else:
        assert np.abs(mirrored - here).max() > 1e-4
