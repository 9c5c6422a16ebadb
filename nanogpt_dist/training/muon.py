"""Muon: momentum whose step is orthogonalized, for the matrices of the blocks; AdamW for all else.

Of a gradient G and the momentum B: B ← μB + (1−μ)G; with Nesterov's U = μB + (1−μ)G, the step is
−rate·factor·O, where O is near the orthogonal matrix nearest to U. All matrices of one shape are
orthogonalized together, and each of them on one rank alone (distributed/dealing).

Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al.
2025, "Muon is Scalable for LLM Training", §2 (decay, match_rms_adamw, sharded matrices).
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from nanogpt_dist.config import TrainConfig
from nanogpt_dist.distributed.dealing import (
    Grid,
    Matrix,
    copy_to_all,
    deal,
    gather_whole,
    give_back,
    grid_of,
    parts,
    total,
)
from nanogpt_dist.distributed.world import World, local_part
from nanogpt_dist.training.adamw import cautious_decay
from nanogpt_dist.training.orthogonalize import BY_NAME, orthogonalize

LEAST_MOMENTUM = 0.85  # where it begins with a warm-up, and ends with a cool-down


def muon_momentum(step: int, config: TrainConfig) -> float:
    """Muon's momentum in the step that follows `step` steps: up from 0.85, flat, and down again."""
    most, least = config.muon_momentum, min(LEAST_MOMENTUM, config.muon_momentum)
    share = 1.0
    if config.muon_momentum_warmup:
        share = min(share, step / config.muon_momentum_warmup)
    if config.muon_momentum_cooldown:
        left = max(0, config.max_iters - step)
        share = min(share, left / config.muon_momentum_cooldown)
    return least + (most - least) * share


def factor(rows: int, columns: int, scale: str) -> float:
    """What the rate of a matrix is multiplied by, of the setting muon_scale."""
    if scale == "original":
        return math.sqrt(max(1, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


class Muon(torch.optim.Optimizer):
    """Muon for the groups that have `splits`, `adamw` for those that it has.

    splits: for each parameter of a group, the rows of each matrix that it is made of. low: the type
    of the model's products, in which matrices are orthogonalized. The state of a matrix is
    momentum_buffer alone.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        adamw: torch.optim.AdamW,
        config: TrainConfig,
        world: World | None,
        low: torch.dtype,
    ) -> None:
        given = {"lr": config.muon_learning_rate, "momentum": config.muon_momentum}
        super().__init__(groups, given)
        # not float16: in its range a small gradient that is not divided by its norm yet is gone
        self.low = torch.float32 if low == torch.float16 else low
        self.config = config
        self.device = None if world is None else world.device
        self.grid = grid_of(self.param_groups[0]["params"][0], world)
        self.adamw, self.matrix_groups = adamw, list(self.param_groups)
        # one optimizer for all others to see: of all groups, with one state
        self.param_groups.extend(adamw.param_groups)
        adamw.state = self.state
        # step() looks at found_inf, a scalar on the device: 1 leaves the step out
        self._step_supports_amp_scaling = True
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of all groups, on all ranks together; gives gradients other values."""
        found_inf = self.found_inf
        if found_inf is not None and found_inf.device.type == "cpu":
            if found_inf.item():
                return
            found_inf = None
        self.adamw.found_inf = found_inf  # type: ignore[attr-defined]
        self.adamw.step()
        for group in self.matrix_groups:
            self._step(group, found_inf)

    def _step(self, group: dict[str, Any], found_inf: Tensor | None) -> None:
        for parameter in group["params"]:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(
                    parameter, requires_grad=False
                )
        weights = [local_part(p) for p in group["params"]]
        gradients = [local_part(p.grad) for p in group["params"]]
        momenta = [local_part(self.state[p]["momentum_buffer"]) for p in group["params"]]
        if found_inf is not None:  # the momentum in place of the gradient leaves it as it is
            for gradient, momentum in zip(gradients, momenta, strict=True):
                torch.where(found_inf == 0, gradient, momentum, out=gradient)
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        torch._foreach_lerp_(gradients, momenta, group["momentum"])  # Nesterov's updates now
        grid = self.grid
        for each in deal(matrices_of(group), grid.size):
            rows = [each[at : at + grid.shard] for at in range(0, grid.size, grid.shard)]
            updates = self._updates(rows[grid.row], gradients)
            whole = gather_whole(updates, rows[grid.row], grid)
            made = give_back(self._orthogonalized(whole, each[grid.rank]), rows[grid.row], grid)
            if found_inf is not None:
                made = made * (found_inf == 0)
            sizes = [sum(parts(m, grid.column, grid.shard) for m in row) for row in rows]
            for row, held in zip(rows, copy_to_all(made, sizes, grid), strict=True):
                self._apply(group, _pieces(row, held, weights, grid), found_inf)

    def _updates(self, row: Iterable[tuple[Matrix, ...]], updates: list[Tensor]) -> Tensor:
        """(elements,) what this rank holds of the updates of its row's matrices.

        ddp: of its own matrices.
        """
        grid = self.grid
        mine = list(itertools.chain.from_iterable(row))
        device = updates[0].device if self.device is None else self.device
        found = torch.empty(parts(mine, grid.column, grid.shard), dtype=self.low, device=device)
        for _, place, update in _pieces([mine], found, updates, grid):
            place.copy_(update)
        return found

    def _orthogonalized(self, whole: Tensor, matrices: tuple[Matrix, ...]) -> Tensor:
        """`whole`, of matrices one behind the other, with each of them orthogonalized."""
        config, found, at = self.config, [], 0
        for (rows, columns), group in itertools.groupby(matrices, lambda m: (m.rows, m.columns)):
            alike = tuple(group)
            stack = whole[at : at + total(alike)].view(len(alike), rows, columns)
            at += total(alike)
            coefficients = BY_NAME[config.muon_coefficients]
            found.append(orthogonalize(stack, coefficients, config.muon_steps).flatten())
        return found[0] if len(found) == 1 else torch.cat(found) if found else whole

    def _apply(
        self,
        group: dict[str, Any],
        pieces: Iterable[tuple[Matrix, Tensor, Tensor]],
        found_inf: Tensor | None,
    ) -> None:
        """Decay each piece of a weight, and make the step."""
        rate, decay = group["lr"], group["lr"] * group["weight_decay"]
        for matrix, step, weight in pieces:
            step = step.to(weight.device)
            scaled = rate * factor(matrix.rows, matrix.columns, self.config.muon_scale)
            if decay and self.config.cautious_weight_decay:
                cautious_decay(weight, weight, step, decay, found_inf)
            elif decay and found_inf is not None:
                weight.mul_(1 - decay * (found_inf == 0))
            elif decay:
                weight.mul_(1 - decay)
            weight.add_(step, alpha=-scaled)


def matrices_of(group: dict[str, Any]) -> tuple[Matrix, ...]:
    """The matrices that a group's parameters are made of."""
    found = []
    both = zip(group["params"], group["splits"], strict=True)
    for number, (parameter, splits) in enumerate(both):
        of_rows, columns = parameter.shape
        for first, rows in zip(itertools.accumulate(splits, initial=0), splits, strict=False):
            found.append(Matrix(number, first, rows, columns, of_rows))
    return tuple(found)


def _pieces(
    row: Iterable[Iterable[Matrix]],
    flat: Tensor,
    tensors: list[Tensor],
    grid: Grid,
) -> Iterator[tuple[Matrix, Tensor, Tensor]]:
    """Each matrix, this rank's rows of it in `flat`, and those in the parameter's own tensor."""
    at = 0
    for matrix in itertools.chain.from_iterable(row):
        low, high, begin = matrix.held(grid.column, grid.shard)
        size = (high - low) * matrix.columns
        if size:
            held = tensors[matrix.parameter][begin : begin + high - low]
            yield matrix, flat[at : at + size].view(held.shape), held
        at += size
