"""Pretrained conv nets, cut after any of their layers (timm's ``features_only``)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from wsram_ppl.errors import InputError, RunError, nearest, one_line

__all__ = ["Backbone", "FeatureRequest"]


@dataclass(frozen=True)
class FeatureRequest:
    """Everything that determines the features of a picture, except the picture itself.

    Attributes:
        backbone: timm's name of the net.
        layers: which of its feature maps, timm's ``out_indices``, in the order of the batch.
        image_size: a picture is resized to a square with this side in pixels, without cropping.
        mean, std: of red, green and blue; the net receives (pixel - mean) / std, pixels 0..255.
        weights: the weights' identity: ``sha256:`` and the digest of a local file, or ``timm:`` and
            the name of those that timm downloads.
    """

    backbone: str
    layers: tuple[int, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str

    @classmethod
    def make(
        cls,
        backbone: str,
        layers: Sequence[int],
        image_size: int,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        weights: Path | None = None,
    ) -> Self:
        """A request, with defaults filled in.

        Args:
            mean, std: three numbers, one for all colours, or none for timm's values.
            weights: a local file; None for those that timm downloads.

        Raises:
            InputError: a wrong value, an unknown net (if timm has to look something up), or a
                missing weights file.
        """
        if not layers or min(layers) < 0 or len(set(layers)) < len(layers):
            raise InputError(f"layers = {list(layers)}: should be different numbers from 0")
        if image_size < 1:
            raise InputError(f"image_size = {image_size}: should be at least 1")
        mean, std = _of_colours("mean", mean), _of_colours("std", std)
        if min(std, default=1.0) <= 0:
            raise InputError(f"std = {list(std)}: should be above 0")
        config = _timm_config(backbone) if weights is None or not mean or not std else {}
        identity = f"sha256:{_file_digest(weights)}" if weights else _identity(backbone, config)
        return cls(
            backbone,
            tuple(layers),
            image_size,
            mean or tuple(255.0 * value for value in config["mean"]),
            std or tuple(255.0 * value for value in config["std"]),
            identity,
        )

    def to_data(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    def digest(self) -> str:
        """SHA-256 (hexadecimal) of all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class Backbone:
    """A pretrained net that turns pictures into the maps of some of its layers.

    Args:
        request: what to compute.
        weights: the local file that ``request.weights`` identifies: the state of the whole net, head
            included, under timm's names (safetensors or PyTorch; in a PyTorch file it may be the only
            state in a dict, such as ``{"state_dict": ..., "epoch": 3}``); None: downloaded by timm.
        device: where to compute.

    Attributes:
        shapes: (channels, height, width) of each map.
        modules: timm's name of the module behind each map.

    Raises:
        InputError: timm is not installed, the net or a layer of it does not exist, the weights do not
            fit or cannot be downloaded, or its maps are not laid out as [channels, height, width].
        RunError: the net cannot take pictures of this size.
    """

    def __init__(
        self, request: FeatureRequest, weights: Path | None, device: torch.device | str = "cpu"
    ) -> None:
        self._request = request
        self._device = torch.device(device)
        net = _load_net(request, weights)
        self._net = net.eval().requires_grad_(False).to(self._device)
        columns = (1, len(request.mean), 1, 1)
        self._mean = torch.tensor(request.mean, device=self._device).view(columns)
        self._std = torch.tensor(request.std, device=self._device).view(columns)
        info: Any = net.feature_info
        channels = info.channels()
        size = request.image_size
        try:
            maps = self._run(torch.zeros(1, size, size, 3, dtype=torch.uint8))
        except RuntimeError as error:
            raise RunError(
                f"{request.backbone} cannot take pictures of {size} x {size}: {one_line(error)}"
            ) from error
        # timm returns maps in the order of the net, whatever order was asked for.
        places = [sorted(request.layers).index(layer) for layer in request.layers]
        self._places = places
        for place in places:
            if maps[place].ndim != 4 or maps[place].shape[1] != channels[place]:
                raise InputError(
                    f"the maps of {request.backbone} are {list(maps[place].shape[1:])}, not [channels, "
                    "height, width]; choose a conv net"
                )
        self.shapes = tuple(
            (int(c), int(h), int(w)) for c, h, w in (maps[place].shape[1:] for place in places)
        )
        self.modules = tuple(str(info.module_name()[place]) for place in places)

    def __call__(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """The maps [B, C, H, W], float32 on the device, of pictures [B, size, size, 3], uint8."""
        maps = self._run(pictures)
        return tuple(maps[place].float() for place in self._places)

    @torch.no_grad()
    def _run(self, pictures: Tensor) -> list[Tensor]:
        pixels = pictures.to(self._device, non_blocking=True).permute(0, 3, 1, 2).float()
        return list(self._net((pixels - self._mean) / self._std))


def _of_colours(name: str, values: Sequence[float]) -> tuple[float, ...]:
    if len(values) not in (0, 1, 3):
        raise InputError(
            f"{name} = {list(values)}: should be three numbers, one for all colours, or none"
        )
    return tuple(float(value) for value in values) * (3 if len(values) == 1 else 1)


def _file_digest(path: Path) -> str:
    path = Path(os.path.expanduser(path))
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise InputError(f"there is no file of weights {str(path)!r}") from None
    except OSError as error:
        raise InputError(f"cannot read the weights {str(path)!r}: {error.strerror}") from None


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise InputError(
            f"timm is needed ({one_line(error)}): pip install 'wsram_ppl[captions]'"
        ) from error
    return timm


def _timm_config(backbone: str) -> Mapping[str, Any]:
    """What timm knows about a net's pretrained weights."""
    timm = _timm()
    if not timm.is_model(backbone):
        raise InputError(
            f"timm has no net {backbone!r};{nearest(backbone, timm.list_models())} "
            "timm.list_models() lists them"
        )
    try:
        config = timm.get_pretrained_cfg(backbone)
    except RuntimeError as error:
        raise InputError(f"backbone {backbone!r}: {one_line(error)}") from None
    return {} if config is None else config.to_dict()


def _identity(backbone: str, config: Mapping[str, Any]) -> str:
    if not config.get("hf_hub_id") and not config.get("url"):
        raise InputError(
            f"timm offers no pretrained weights for {backbone!r}: name a file of them (weights = ...), "
            "or choose another backbone"
        )
    return f"timm:{config.get('hf_hub_id') or config.get('url')}"


def _load_net(request: FeatureRequest, weights: Path | None) -> nn.Module:
    timm = _timm()
    _timm_config(request.backbone)
    source: dict[str, Any] = {"pretrained": True}
    if weights is not None:
        state = _read_state(weights)
        # Leave nothing else that timm could load.
        only: dict[str, Any] = {"url": "", "hf_hub_id": None, "file": None, "source": None}
        try:
            # timm loads a cut net leniently: weights missing from the file would silently stay random.
            # The whole net is loaded strictly.
            timm.create_model(
                request.backbone,
                pretrained=True,
                pretrained_cfg_overlay={"state_dict": {**state}, **only},
            )
        except Exception as error:  # torch's, and anything that timm's adaptations raise
            raise InputError(
                f"{weights} does not hold the weights of {request.backbone}, head included: "
                f"{_shortened(one_line(error))}"
            ) from error
        source["pretrained_cfg_overlay"] = {"state_dict": state, **only}
    out = sorted(request.layers)
    try:
        with _quiet("timm"):
            net: nn.Module = timm.create_model(
                request.backbone, features_only=True, out_indices=tuple(out), **source
            )
    except (AssertionError, IndexError) as error:
        raise InputError(
            f"{request.backbone} does not have all of the layers {list(out)}: "
            f"{_describe_layers(request)}"
        ) from error
    except Exception as error:  # any network error
        text = _shortened(one_line(error))
        raise InputError(
            f"the pretrained weights of {request.backbone} cannot be downloaded ({text}); name a file "
            "of them (weights = ...)"
        ) from error
    return net


@contextmanager
def _quiet(library: str) -> Iterator[None]:
    """Silences messages about weights beyond the cut, which are unused as they should be."""
    log = logging.getLogger(library)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _read_state(path: Path) -> dict[str, Tensor]:
    """The tensors in a file of weights, by name; code in it is never run."""
    path = Path(os.path.expanduser(path))
    try:
        content: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # anything that safetensors, zip and pickle raise
        raise InputError(
            f"{path} is not a file of weights (safetensors, or PyTorch's without code): "
            f"{_shortened(one_line(error))}"
        ) from error
    if _is_state(content):
        return dict(content)
    entries = content if isinstance(content, Mapping) else {}
    states = [key for key, value in entries.items() if _is_state(value)]
    if len(states) != 1:
        keys = ", ".join(repr(key) for key in states or entries)
        held = f"several: {keys}" if states else keys or f"nothing ({type(content).__name__})"
        raise InputError(
            f"{path} should hold the state of one net, tensors by name, alone or in a dict with other "
            f"things, but holds {_shortened(held)}; write it with torch.save(net.state_dict(), FILE)"
        )
    return dict(entries[states[0]])


def _is_state(value: Any) -> bool:
    """Whether this is a non-empty dict of tensors by name."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(part, Tensor) for name, part in value.items())
    )


def _shortened(text: str) -> str:
    return text if len(text) <= 300 else text[:297] + "..."


def _describe_layers(request: FeatureRequest) -> str:
    try:
        found: Any = _timm().create_model(request.backbone, features_only=True, pretrained=False)
        info = found.feature_info.info
    except Exception:  # some nets cannot be cut without out_indices
        return "see its feature_info in timm"
    rows = [f"{i} {row['module']} ({row['num_chs']} channels)" for i, row in enumerate(info)]
    return "it has " + ", ".join(rows)
