"""Components of every kind for the tests of configs, and short ways to a config and to a message."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import pytest
import torch
from pydantic import PositiveFloat, PositiveInt
from pyro.nn import PyroModule
from torch import Tensor, nn

from wsram_ppl.config import ExperimentConfig, parse_config
from wsram_ppl.config.catalogue import DATA_SOURCES, GUIDES, MODELS, OBJECTIVES
from wsram_ppl.config.schedules import Schedule
from wsram_ppl.errors import InputError
from wsram_ppl.objectives import ImportanceBound
from wsram_ppl.registry import Registry

if TYPE_CHECKING:
    from elsewhere import OnlyForTypeCheckers  # type: ignore[import-not-found]

ROOT = Path(__file__).parents[2]


class Net(PyroModule):
    """A model with an option of every kind."""

    def __init__(
        self,
        hidden: PositiveInt = 8,
        *,
        location_std: Schedule | float = 0.25,
        width: PositiveFloat = 1,
        spread: PositiveFloat | Schedule = 1.0,
        scales: tuple[PositiveInt, ...] = (1, 2, 4),
        mode: Literal["soft", "hard"] = "hard",
        folder: Path | None = None,
        activation: Callable[[Tensor], Tensor] = torch.relu,
        layer: nn.Module | None = None,
        hint: OnlyForTypeCheckers = None,
        anything=(1, 2),  # type: ignore[no-untyped-def]
    ) -> None:
        super().__init__()
        if hidden == 13:
            raise ValueError("hidden must not\nbe 13")
        if hidden == 14:
            raise InputError("hidden must not be 14")
        if hidden == 15:
            raise RuntimeError("no memory")
        if hidden == 16:
            raise KeyError("sixteen")
        self.arguments = {key: value for key, value in locals().items() if key != "self"}
        self.register_buffer("location_std", torch.tensor(float(location_std)))
        self.register_buffer("spread", torch.ones(2))


class Scheduled(PyroModule):
    """A model whose own default changes during the run."""

    def __init__(self, noise: Schedule | float = Schedule(start=1.0, end=0.5)) -> None:  # noqa: B008
        super().__init__()
        assert isinstance(noise, float)
        self.register_buffer("noise", torch.tensor(noise))


class Anything(PyroModule):
    """A model that takes what it gets."""

    def __init__(self, depth: int = 1, **kwargs: object) -> None:
        super().__init__()
        self.arguments = {"depth": depth, **kwargs}


class Required(PyroModule):
    """A model with an option that must be given."""

    def __init__(self, vocabulary: PositiveInt) -> None:
        super().__init__()


class NeedsModule(PyroModule):
    """A model that no config can build."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()


class Proposal(nn.Module):
    """A guide."""

    def __init__(self, model: OnlyForTypeCheckers, *, layers: PositiveInt = 2, tau: float = 0.5):
        super().__init__()
        self.layers, self.tau = layers, tau
        self.model = model
        self.register_buffer("tau_", torch.tensor(tau))


class Alone(nn.Module):
    """A guide that forgets the model."""

    def __init__(self, *, layers: int = 1) -> None:
        super().__init__()


class Bound(ImportanceBound):
    """An objective."""

    def __init__(
        self,
        num_particles: PositiveInt = 5,
        vectorize_particles: bool = False,
        max_plate_nesting: float = math.inf,
        control_variate: Literal["none", "self-normalized"] = "none",
    ) -> None:
        super().__init__(
            num_particles=num_particles,
            vectorize_particles=vectorize_particles,
            max_plate_nesting=max_plate_nesting,
        )
        self.control_variate = control_variate


class Plain(ImportanceBound):
    """An objective without options."""

    def __init__(self) -> None:
        super().__init__()


class Ones:
    """A data source."""

    def __init__(self, count: PositiveInt = 3) -> None:
        self.count = count

    def training_batch(self, step: int, size: int, seed: int) -> tuple[Tensor, ...]:
        return (torch.ones(size, self.count),)

    def evaluation_batches(self, size: int, limit: int | None = None) -> Iterator[tuple[Tensor, ...]]:
        yield self.training_batch(0, size, 0)

    def to(self, device: torch.device | str) -> Self:
        return self


NAMES: dict[Registry, dict[str, type]] = {
    DATA_SOURCES: {"test-ones": Ones},
    MODELS: {
        "test-net": Net,
        "test-scheduled": Scheduled,
        "test-anything": Anything,
        "test-required": Required,
        "test-needs-module": NeedsModule,
    },
    GUIDES: {"test-proposal": Proposal, "test-alone": Alone},
    OBJECTIVES: {"test-bound": Bound, "test-plain": Plain},
}


def tables(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "data": {"source": "test-ones"},
        "model": {"name": "test-net"},
        "guide": {"name": "test-proposal"},
        "objective": {"name": "test-bound"},
    }
    for section, table in changes.items():
        base[section] = {**base.get(section, {}), **table} if isinstance(table, dict) else table
    return base


def config(*overrides: str, **changes: Any) -> ExperimentConfig:
    return parse_config(tables(**changes), overrides)


def message(function: Callable[..., object], *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments, **keywords)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text
