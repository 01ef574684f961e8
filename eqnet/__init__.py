"""Equivariant neural networks for molecules and materials in JAX."""
