"""Finds particles and data among the batch dimensions of a site, and arranges log-densities by them.

A *datum* is one element of the data plates: those that enclose every observed site (and factor) and
every latent that lies in at least one plate that encloses all observed sites. Latents in none of these
plates are *global*. Everything to the right of the data plates is summed out. Without data plates there
is one weight for the whole trace, and no latent is global.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from wsram_ppl.objectives.sites import Site
from wsram_ppl.primitives.handlers import PARTICLE_PLATE

__all__ = ["PlateLayout", "Plates", "Term", "plates_of"]


@dataclass(frozen=True)
class PlateLayout:
    """The positions of the particle and some plates among a site's batch dimensions.

    Args:
        kept: the (negative) dimensions to keep, leftmost first: the particle's, then the plates'.
        names: of these plates, including the particle's.
        shape: their sizes, without the particle's; -1 for a plate of unknown size.
        vectorized: whether the first of them is the particle's.
    """

    kept: tuple[int, ...]
    names: tuple[str, ...]
    shape: tuple[int, ...]
    vectorized: bool

    def arrange(self, x: Tensor) -> Tensor:
        """``[batch dimensions of a site] -> [particle, *plates, inner]``; sizes of 1 stay."""
        depth = max((-d for d in self.kept), default=0)
        if x.dim() < depth:
            x = x.reshape((1,) * (depth - x.dim()) + x.shape)
        if not self._plain(x):
            x = x.movedim([x.dim() + d for d in self.kept], list(range(len(self.kept))))
        x = x.reshape(*x.shape[: len(self.kept)], -1)
        return x if self.vectorized else x.unsqueeze(0)

    def total(self, x: Tensor) -> Tensor:
        """``[batch dimensions of a site] -> [particle, *plates]``, the rest summed out."""
        if self.vectorized and self._plain(x):
            return x  # the common case, without views
        arranged = self.arrange(x)
        return arranged.squeeze(-1) if arranged.shape[-1] == 1 else arranged.sum(-1)

    def _plain(self, x: Tensor) -> bool:
        """Whether the dimensions of ``x`` are exactly those kept, in order."""
        return self.kept == tuple(range(-x.dim(), 0))

    @classmethod
    def of(cls, plates: Iterable[CondIndepStackFrame]) -> PlateLayout:
        """The layout for these plates, one of which may be the particles'."""
        frames = sorted((f for f in plates if f.vectorized), key=lambda f: f.dim or 0)
        particle = [f for f in frames if f.name == PARTICLE_PLATE]
        kept = particle + [f for f in frames if f.name != PARTICLE_PLATE]
        return cls(
            kept=tuple(f.dim or 0 for f in kept),
            names=tuple(f.name for f in kept),
            shape=tuple(f.size for f in kept[len(particle) :]),
            vectorized=bool(particle),
        )


Frames = frozenset[CondIndepStackFrame]


@dataclass(frozen=True)
class Plates:
    """The plates of one run of model and guide.

    Args:
        data: the data plates, including the particles' if it is a plate.
        particle: the particles' plate alone, if there is one.
        global_names: the latents outside all data plates.
        nested: whether some latent lies in plates other than exactly the data plates.
        scale: a factor of the finished bound: the scale common to all local sites, or else the
            data plates' subsampling.
        unequal: why the scales have no meaning inside an importance weight, if so.
        misplaced: what prevents plates from being data plates; None if nothing does.
        iterated: the plate of data that are visited one by one, where there are no data plates; None
            if there is none.
    """

    data: Frames
    particle: Frames
    global_names: frozenset[str]
    nested: bool
    scale: float
    unequal: str | None
    misplaced: str | None
    iterated: str | None

    @cached_property
    def layout(self) -> PlateLayout:
        """The shape for a datum: ``[particle, *datum]``."""
        return PlateLayout.of(self.data)

    @cached_property
    def global_layout(self) -> PlateLayout:
        """The shape for a global site: ``[particle]``."""
        return PlateLayout.of(self.particle)


def surrounding(sites: Iterable[Site]) -> list[Frames]:
    """The plates around each site; equal ones are the same object."""
    # Pyro's frames are slow to hash and to compare, and most sites lie in the same plates.
    read: dict[tuple[tuple[object, ...], ...], Frames] = {}
    found = []
    for site in sites:
        stack = site["cond_indep_stack"]
        key = tuple((f.name, f.dim, f.size, f.full_size, f.counter) for f in stack)
        if key not in read:
            read[key] = frozenset(stack)
        found.append(read[key])
    return found


def plates_of(model: Mapping[str, Site], guide: Mapping[str, Site]) -> Plates:
    """Finds the data plates, the global latents, and the scales.

    Args:
        model, guide: the random sites by name.
    """
    both = (*model.values(), *guide.values())
    sites = list(zip(both, surrounding(both), strict=True))
    stacks = {id(stack): stack for _, stack in sites}
    particle = frozenset(f for stack in stacks.values() for f in stack if f.name == PARTICLE_PLATE)
    around = {
        key: frozenset(f for f in stack - particle if f.vectorized) for key, stack in stacks.items()
    }
    everywhere: Frames = frozenset().union(*around.values())

    observed = {around[id(stack)] for site, stack in sites if site["is_observed"]}
    latent: dict[str, Frames] = {}
    for site, stack in sites:
        if not site["is_observed"]:
            plates = around[id(stack)]
            latent[site["name"]] = latent.get(site["name"], plates) & plates
    enclosing = frozenset.intersection(*observed) if observed else everywhere
    outside = [name for name, plates in latent.items() if not plates & enclosing]
    # Only globals: the trace is the datum.
    only_globals = bool(outside) and len(outside) == len(latent)
    local = {plates for name, plates in latent.items() if plates & enclosing}
    data = frozenset() if only_globals else frozenset.intersection(enclosing, *local)

    global_names = frozenset(outside if data else ())
    misplaced = iterated = None
    if not data:
        loops: dict[bool, list[str]] = {}  # by whether the site is observed
        for site, stack in sites:
            named = loops.setdefault(bool(site["is_observed"]), [])
            named += [frame.name for frame in stack if not frame.vectorized]
        iterated = next((name for name in loops.get(True, ()) if name in loops.get(False, ())), None)
        if everywhere or loops.get(True):
            misplaced = _misplaced([(site, around[id(stack)]) for site, stack in sites])
    scale, unequal = _common_scale(
        [(site, stack) for site, stack in sites if site["name"] not in global_names], data
    )
    return Plates(
        data=data | particle,
        particle=particle,
        global_names=global_names,
        nested=bool(global_names) or any(plates != data for plates in latent.values()),
        scale=scale,
        unequal=unequal,
        misplaced=misplaced,
        iterated=iterated,
    )


def _misplaced(sites: list[tuple[Site, Frames]]) -> str:
    """Why no plate is a data plate: a site that lies in none, or observations that share none."""
    observed = [(site["name"], plates) for site, plates in sites if site["is_observed"]]
    bare = [name for name, plates in observed if not plates and any(p for _, p in observed)]
    if not bare and observed and all(plates for _, plates in observed):
        shared = frozenset.intersection(*(plates for _, plates in observed))
        if not shared:
            plates = [f"'{name}' in '{min(f.name for f in p)}'" for name, p in observed]
            return f"no plate encloses all observed sites ({', '.join(plates[:3])})"
    bare += [site["name"] for site, plates in sites if not plates]
    bare += [site["name"] for site, _ in sites if not site["is_observed"]]
    return f"site '{bare[0]}' lies outside a plate that contains others"


def _common_scale(sites: Iterable[tuple[Site, Frames]], data: Frames) -> tuple[float, str | None]:
    """The scale of the local sites, and the reason if it has no meaning inside an importance weight."""
    scales, problem = set(), None
    for site, stack in sites:
        if isinstance(site["scale"], Tensor):
            problem = (
                f"site '{site['name']}' is scaled by a tensor: importance weights need one "
                "number, the same for all sites; scale the loss instead"
            )
            continue
        scales.add(float(site["scale"]))
        for frame in stack:
            if frame.full_size in (None, frame.size) or frame in data:
                continue
            if not frame.vectorized:
                problem = problem or (
                    f"plate '{frame.name}' is subsampled and iterated over, so that all data share one "
                    "importance weight, in which a scale has no meaning: write 'with pyro.plate(...)' "
                    "in place of 'for ... in pyro.plate(...)', or use VariationalBound"
                )
            else:
                problem = problem or (
                    f"plate '{frame.name}' is subsampled but does not enclose every sample site "
                    f"(it encloses '{site['name']}'): a scale inside an importance weight has no "
                    "meaning; subsample only plates that are common to all sites"
                )
    if scales and not math.isclose(min(scales), max(scales), rel_tol=1e-6):
        problem = problem or (
            f"sites have different scales {sorted(scales)}: a scale inside an importance weight "
            "has no meaning; use one poutine.scale around the whole model and the whole guide"
        )
    if problem is None:
        return max(scales, default=1.0), None
    return math.prod((frame.full_size or frame.size) / frame.size for frame in data), problem


@dataclass(frozen=True)
class Term:
    """One log-density, and how much of the guide must run before it is known.

    Args:
        log_prob: in the site's batch dimensions, masked, not scaled, in float32 or better.
        site_mask: where the site counts, broadcastable to ``log_prob``; None for everywhere.
        layout: the layout of these dimensions.
        last_dependency: position, in the guide's order, of the last latent that it may depend on;
            -1 for none.
        scale: the site's own, in units of the data plates' scale.
        stack: the plates that the site lies in.
    """

    log_prob: Tensor
    site_mask: Tensor | None
    layout: PlateLayout
    last_dependency: int
    scale: float | Tensor = 1.0
    stack: tuple[CondIndepStackFrame, ...] = ()

    @classmethod
    def of(
        cls, site: Site, value: Tensor, layout: PlateLayout, last_dependency: int, unit: float = 1.0
    ) -> Term:
        """Makes a term from a traced site and the log-density of its distribution.

        Args:
            unit: the scale of the data plates.
        """
        if value.dtype in (torch.float16, torch.bfloat16):
            value = value.float()
        mask = site["mask"]
        value = scale_and_mask(value, 1.0, mask)
        if isinstance(mask, bool):
            mask = None if mask else torch.zeros_like(value, dtype=torch.bool)
        stack = site["cond_indep_stack"]
        return cls(value, mask, layout, last_dependency, site["scale"] / unit, stack)

    @property
    def is_scaled(self) -> bool:
        """Whether its scale differs from the data plates'."""
        return isinstance(self.scale, Tensor) or self.scale != 1.0

    @cached_property
    def elements(self) -> Tensor:
        """``[particle, *datum, inner]``."""
        return self.layout.arrange(self.log_prob)

    def arranged(self, layout: PlateLayout) -> Tensor:
        """``[particle, *plates, inner]``, for the elements of other plates of the site."""
        return self.elements if layout is self.layout else layout.arrange(self.log_prob)

    def arranged_mask(self, layout: PlateLayout) -> Tensor | None:
        """The mask, in the shape of ``arranged``."""
        if layout is self.layout or self.site_mask is None:
            return self.mask
        return layout.arrange(self.site_mask.expand(self.log_prob.shape))

    @cached_property
    def mask(self) -> Tensor | None:
        """The mask, in the shape of ``elements``."""
        if self.site_mask is None:
            return None
        return self.layout.arrange(self.site_mask.expand(self.log_prob.shape))

    @cached_property
    def total(self) -> Tensor:
        """``[particle, *datum]``."""
        return self.layout.total(self.log_prob)

    @cached_property
    def scaled(self) -> Tensor:
        """``total`` times the scale: its part of the bound, in units of the data plates' scale."""
        return self.layout.total(self.log_prob * self.scale) if self.is_scaled else self.total

    def summed_to(self, layout: PlateLayout) -> Tensor:
        """``scaled`` for the elements of other plates: ``[particle, *plates]``."""
        if layout is self.layout:
            return self.scaled
        value = self.log_prob * self.scale if self.is_scaled else self.log_prob
        kept = dict(zip(layout.kept, layout.names, strict=True))
        for frame in self.stack:
            # Another plate may have the same dimension.
            if frame.dim in kept and kept[frame.dim] != frame.name and value.dim() >= -frame.dim:
                value = value.sum(frame.dim, keepdim=True)
        return layout.total(value)
