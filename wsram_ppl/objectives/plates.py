"""Where particles and data lie among the batch dimensions of a site, and log-densities laid out so.

A *datum* is one element of the plates that enclose every sample site of model and guide; everything
to the right of that is summed out. With no such plate there is one weight for the whole trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from wsram_ppl.objectives.sites import Site
from wsram_ppl.primitives.handlers import PARTICLE_PLATE

__all__ = ["PlateLayout", "Term"]


@dataclass(frozen=True)
class PlateLayout:
    """Where the particle and the data plates lie among a site's batch dimensions.

    Args:
        kept: the (negative) dimensions to keep, leftmost first: the particle's, then the data plates'.
        shape: their sizes.
        vectorized: whether the first of them is the particle's.
        scale: the subsampling scale common to all sites (a factor of the finished bound).
    """

    kept: tuple[int, ...]
    shape: tuple[int, ...]
    vectorized: bool
    scale: float

    def arrange(self, x: Tensor) -> Tensor:
        """``[batch dimensions of a site] -> [particle, *datum, inner]``, broadcast where a size is 1."""
        depth = max((-d for d in self.kept), default=0)
        if x.dim() < depth:
            x = x.reshape((1,) * (depth - x.dim()) + x.shape)
        if not self._plain(x):
            x = x.movedim([x.dim() + d for d in self.kept], list(range(len(self.kept))))
        x = x.reshape(*x.shape[: len(self.kept)], -1)
        return x if self.vectorized else x.unsqueeze(0)

    def total(self, x: Tensor) -> Tensor:
        """``[batch dimensions of a site] -> [particle, *datum]``, the rest summed out."""
        if self.vectorized and self._plain(x):
            return x  # the common case, spared the views
        arranged = self.arrange(x)
        return arranged.squeeze(-1) if arranged.shape[-1] == 1 else arranged.sum(-1)

    def _plain(self, x: Tensor) -> bool:
        """Whether the dimensions of ``x`` are those kept, in order."""
        return self.kept == tuple(range(-x.dim(), 0))

    @classmethod
    def of(cls, sites: Sequence[Site]) -> PlateLayout:
        """Finds the plates common to all sites and checks that scales lie on those alone.

        Raises:
            ValueError: a plate that is not common to all sites is subsampled, or sites are scaled
                differently (``poutine.scale``), or by a tensor.
        """
        # Pyro's frames are slow to hash, and most sites lie in the same plates: each stack is read once.
        first: dict[tuple[tuple[object, ...], ...], Site] = {}
        for site in sites:
            key = ((f.name, f.dim, f.size, f.full_size, f.counter) for f in site["cond_indep_stack"])
            first.setdefault(tuple(key), site)
        stacks = [frozenset(site["cond_indep_stack"]) for site in first.values()]
        common = frozenset.intersection(*stacks) if stacks else frozenset()
        scales = set()
        for site in sites:
            if isinstance(site["scale"], Tensor):
                raise ValueError(
                    f"site '{site['name']}' is scaled by a tensor: importance weights need one "
                    "number, the same for all sites; scale the loss instead"
                )
            scales.add(float(site["scale"]))
        for site in first.values():
            for frame in site["cond_indep_stack"]:
                if frame not in common and frame.full_size not in (None, frame.size):
                    raise ValueError(
                        f"plate '{frame.name}' is subsampled but does not enclose every sample site "
                        f"(it encloses '{site['name']}'): a scale inside an importance weight has no "
                        "meaning; subsample only plates that are common to all sites"
                    )
        if len(scales) > 1:
            raise ValueError(
                f"sites have different scales {sorted(scales)}: a scale inside an importance weight "
                "has no meaning; use one poutine.scale around the whole model and the whole guide"
            )
        frames = sorted((f for f in common if f.vectorized), key=lambda f: f.dim)
        particle = [f for f in frames if f.name == PARTICLE_PLATE]
        kept = particle + [f for f in frames if f.name != PARTICLE_PLATE]
        return cls(
            kept=tuple(f.dim for f in kept),
            shape=tuple(f.size for f in kept[len(particle) :]),
            vectorized=bool(particle),
            scale=scales.pop() if scales else 1.0,
        )


@dataclass(frozen=True)
class Term:
    """One log-density and how much of the guide must have run before it is known.

    Args:
        log_prob: in the site's batch dimensions, masked, not scaled, in float32 or better.
        site_mask: where the site counts, broadcastable to ``log_prob``; None for everywhere.
        layout: of these dimensions.
        last_dependency: position, in the guide's order, of the last latent that it may depend on;
            -1 for none.
    """

    log_prob: Tensor
    site_mask: Tensor | None
    layout: PlateLayout
    last_dependency: int

    @classmethod
    def of(cls, site: Site, value: Tensor, layout: PlateLayout, last_dependency: int) -> Term:
        """From a traced site and its log-density as the distribution gives it."""
        if value.dtype in (torch.float16, torch.bfloat16):
            value = value.float()
        mask = site["mask"]
        value = scale_and_mask(value, 1.0, mask)
        if isinstance(mask, bool):
            mask = None if mask else torch.zeros_like(value, dtype=torch.bool)
        return cls(value, mask, layout, last_dependency)

    @cached_property
    def elements(self) -> Tensor:
        """``[particle, *datum, inner]``."""
        return self.layout.arrange(self.log_prob)

    @cached_property
    def mask(self) -> Tensor | None:
        """Of the shape of ``elements``."""
        if self.site_mask is None:
            return None
        return self.layout.arrange(self.site_mask.expand(self.log_prob.shape))

    @cached_property
    def total(self) -> Tensor:
        """``[particle, *datum]``."""
        return self.layout.total(self.log_prob)
