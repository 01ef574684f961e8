"""Tensor products: what they compute and how."""
