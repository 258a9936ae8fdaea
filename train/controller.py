"""A penalty's weight, steered so that l0 comes to its target."""

import math

import torch
from torch import Tensor

GAIN = 0.02
"""How far the weight's logarithm moves in a step for an l0 off by a factor of e."""
PROPORTION = 0.5
"""How far the weight's logarithm answers at once to an l0 off by a factor of e."""
FIRST_SHARE = 0.05
"""The penalty's first share of the reconstruction error."""


class PenaltyController:
    """A proportional-integral controller of the logarithm of the weight, on the logarithm of l0 / target.

    The error is bounded, so a start far from the target cannot wind it up; on a logarithmic scale one pair of gains
    serves every penalty, width and l0.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self.log_weight = -math.inf
        self.error = 0.0

    def weight(self) -> float:
        """The weight for the next step; 0 before the first."""
        return math.exp(self.log_weight + PROPORTION * self.error)

    def update(self, l0: float, penalty: float, unexplained: float) -> None:
        """Learn what a step reached: its l0, its penalty before the weight, its reconstruction error."""
        if self.log_weight == -math.inf:
            self.log_weight = math.log(FIRST_SHARE * max(unexplained, 1e-9) / max(penalty, 1e-9))
        self.error = max(-1.0, min(1.0, math.log(max(l0, 1e-3) / self.target)))
        self.log_weight += GAIN * self.error

    def state(self) -> Tensor:
        return torch.tensor([self.log_weight, self.error], dtype=torch.float64)

    def restore(self, state: Tensor) -> None:
        self.log_weight, self.error = state.tolist()
