"""The nearest matrix with orthogonal rows or columns, by a few matrix products: G = U S Vᵀ → U Vᵀ.

Each step takes X to a·X + b·(X Xᵀ)·X + c·(X Xᵀ)²·X, which leaves U and V alone and takes each
singular value s to a·s + b·s³ + c·s⁵. Shape letters: N matrices of one shape, R rows, C columns,
M the smaller of both.

Sources: Jordan et al. 2024, "Muon" (newton_schulz: one triple, steep at 0, that ends near 1 and not
at it); Amsel et al. 2025, "The Polar Express" (polar_express: the best triple for each step).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Coefficients:
    """a, b, c of each step, of which the last is repeated.

    margin: a matrix is divided by so many times its Frobenius norm. least: no norm counts as less.
    """

    triples: tuple[Triple, ...]
    margin: float
    least: float

    def of(self, step: int) -> Triple:
        """The triple of step number `step`, from 0."""
        return self.triples[min(step, len(self.triples) - 1)]


# The first five are computed for five steps and singular values down to 0.001, with the margin for
# their rounding.
POLAR_EXPRESS = Coefficients(
    (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
        (1.875, -1.25, 0.375),  # where singular values are near 1 by now: they go to 1
    ),
    margin=1.02,
    least=1e-6,
)
NEWTON_SCHULZ = Coefficients(((3.4445, -4.7750, 2.0315),), margin=1.0, least=1e-7)
BY_NAME = {"polar_express": POLAR_EXPRESS, "newton_schulz": NEWTON_SCHULZ}


def orthogonalize(matrices: Tensor, coefficients: Coefficients, steps: int) -> Tensor:
    """Near U Vᵀ of each matrix U S Vᵀ: (N, R, C) → (N, R, C), in their own precision.

    Gives `matrices` other values. Those of zeros stay zeros.
    """
    norms = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    x = matrices.div_((norms * coefficients.margin).clamp_(min=coefficients.least))
    tall = x.size(1) > x.size(2)
    for step in range(steps):
        a, b, c = coefficients.of(step)
        gram = torch.bmm(x.mT, x) if tall else torch.bmm(x, x.mT)  # (N, M, M)
        # aI + b·gram + c·gram²: bmm alone, since baddbmm of bf16 is a third slower on a CPU
        factor = torch.bmm(gram, _plus(gram * c, b))
        x = torch.bmm(x, _plus(factor, a)) if tall else torch.bmm(_plus(factor, a), x)
    return x


def _plus(matrices: Tensor, number: float) -> Tensor:
    """Add `number` times the identity to each of (N, M, M), in place."""
    matrices.diagonal(dim1=1, dim2=2).add_(number)
    return matrices
