"""The sparse products of a dictionary: which latents are active where, and what is computed with only those.

Legend of the shape suffixes here and in all of `train`: B rows of a batch, P width read, R width written, D either,
F latents, N active latents of the whole batch.
"""

from train.kernels.pattern import DensePattern, Pattern, SparsePattern, pattern_of, places

__all__ = ["DensePattern", "Pattern", "SparsePattern", "pattern_of", "places"]
