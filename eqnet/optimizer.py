"""Optimisers, the course of the learning rate, and the moving average of the weights.

The update of one step is

    u = optimiser(clip(gradient)) - weight_decay * w        (decay: weights with two or more axes)
    w <- w + lr * course(step) * u
    average <- d * average + (1 - d) * w,    d = min(decay, (1 + step) / (10 + step))

The growing d is the one of torch_ema and mace-torch: the average covers about the last tenth of a
run until `decay` is reached, so that a short run forgets its random start and no bias is left to
correct. Adam: Kingma and Ba, arXiv:1412.6980; amsgrad: Reddi et al., arXiv:1904.09237; decoupled
decay: Loshchilov and Hutter, arXiv:1711.05101; Muon: Jordan et al., 2024.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax

from eqnet.options import OptimizerOptions


def optimizer(options: OptimizerOptions) -> optax.GradientTransformation:
    """The direction of a step for learning rate 1, from options that are resolved.

    Muon takes matrices (weights with exactly two axes), scaled so that its steps are as large as
    Adam's and one learning rate serves both; Adam takes the rest. Both with Nesterov's momentum.
    """
    kinds = {
        "adam": lambda: optax.adam(1.0),
        "adamw": lambda: optax.adam(1.0),  # the decay below makes it adamw
        "amsgrad": lambda: optax.amsgrad(1.0),
        "muon": lambda: optax.contrib.muon(1.0, consistent_rms=0.2),
    }
    parts = [kinds[options.optimizer]()]
    if options.clip_grad > 0:
        parts.insert(0, optax.clip_by_global_norm(options.clip_grad))
    if options.weight_decay:
        parts.append(optax.add_decayed_weights(-options.weight_decay, decays))
    return optax.chain(*parts)


def decays(params: optax.Params) -> optax.Params:
    """Which weights decay: those with two or more axes; biases and gains do not."""
    return jax.tree.map(lambda w: w.ndim >= 2, params)


def course(
    options: OptimizerOptions,
    steps_per_epoch: int,
    step: jax.Array,
    length: jax.Array,
    warm: jax.Array | bool = True,
) -> jax.Array:
    """Factor of the learning rate at a step of a stage.

    Args:
        options: resolved options.
        steps_per_epoch: for rates given per epoch.
        step: steps done in this stage, from 0.
        length: steps of the whole stage (only the cosine looks at it).
        warm: whether the stage begins with the warm-up.
    """
    step = jnp.asarray(step, jnp.float32)
    if options.scheduler == "cosine":
        final = options.lr_final or 0.0
        done = jnp.clip(step / jnp.maximum(length, 1), 0.0, 1.0)
        factor = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * done))
    elif options.scheduler == "exponential":
        factor = jnp.asarray(options.lr_scheduler_gamma, jnp.float32) ** (step / steps_per_epoch)
    else:  # constant, and plateau, which the host drives
        factor = jnp.ones((), jnp.float32)
    if options.warmup_steps:
        factor *= jnp.where(warm, jnp.minimum((step + 1) / options.warmup_steps, 1.0), 1.0)
    return factor


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
    """Decay of the average at a step, from 0: min(decay, (1 + step) / (10 + step))."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


@dataclass(frozen=True)
class Plateau:
    """Lower the learning rate when the validation loss stops falling.

    As torch's ReduceLROnPlateau: an improvement is a loss below (1 - 1e-4) of the best. After more
    than `patience` epochs without one, the rate is multiplied by `factor` and the count starts
    again.
    """

    factor: float
    patience: int
    best: float = float("inf")
    best_epoch: int = 0

    def update(self, epoch: int, loss: float) -> tuple[Plateau, bool]:
        """The plateau after an epoch (from 1), and whether to lower the rate now."""
        if loss < self.best * (1 - 1e-4):
            return replace(self, best=loss, best_epoch=epoch), False
        if epoch - self.best_epoch > self.patience:
            return replace(self, best_epoch=epoch), True
        return self, False
