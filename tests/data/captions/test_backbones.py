"""Pretrained nets: what is asked for is what is had, or a line that says why not."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.data.captions.copies import NET, SIZE, feature_request
from wsram_ppl.data.captions.backbones import Backbone, FeatureRequest
from wsram_ppl.data.captions.feature_extraction import read_picture
from wsram_ppl.errors import InputError

pytest.importorskip("timm")


def test_what_timm_knows_fills_in_what_is_open(weights: Path) -> None:
    made = feature_request(weights, mean=(), std=())
    assert made.mean == pytest.approx([255 * m for m in (0.485, 0.456, 0.406)])
    assert made.std == pytest.approx([255 * s for s in (0.229, 0.224, 0.225)])
    assert feature_request(weights).mean == (127.0,) * 3
    downloaded = FeatureRequest.make(NET, (0,), SIZE)
    assert downloaded.weights == f"timm:timm/{NET}.r160_in1k"
    assert FeatureRequest.make("vgg19", (4,), 224).weights == "timm:timm/vgg19.tv_in1k"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ()}, r"layers = \[\]: should be different numbers from 0"),
        ({"layers": (1, 1)}, r"layers = \[1, 1\]: should be different"),
        ({"layers": (-1,)}, r"layers = \[-1\]: should be different"),
        ({"image_size": 0}, "image_size = 0: should be at least 1"),
        ({"mean": [1.0, 2.0]}, r"mean = \[1.0, 2.0\]: should be three numbers"),
        ({"std": [0.0]}, r"std = \[0.0, 0.0, 0.0\]: should be above 0"),
        ({"weights": Path("nowhere")}, "there is no file of weights 'nowhere'"),
        ({"weights": Path("/")}, "cannot read the weights '/': Is a directory"),
        (
            {"backbone": "test_eficientnet", "mean": ()},
            "timm has no net 'test_eficientnet'; did you mean 'test_efficientnet'?",
        ),
        ({"backbone": "vgg19.nothing", "weights": None}, "backbone 'vgg19.nothing': RuntimeError"),
        ({"backbone": "efficientnet_l2", "weights": None}, "timm offers no pretrained weights for"),
    ],
)
def test_wrong_requests(weights: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        feature_request(weights, **changes)


def test_layers_that_the_net_lacks(weights: Path) -> None:
    with pytest.raises(InputError, match=r"does not have all of the layers \[2, 9\]: it has 0 blocks.0"):
        Backbone(feature_request(weights, layers=(9, 2)), weights)


@pytest.mark.parametrize("damage", ["missing", "surplus", "shape", "junk", "other", "pickle"])
def test_weights_that_do_not_fit(tmp_path: Path, weights: Path, damage: str) -> None:
    """None of them may leave a layer at random without a word."""
    path = tmp_path / "net.safetensors"
    state = load_file(weights)
    message = "does not hold the weights of test_efficientnet, head included: RuntimeError"
    if damage == "missing":
        del state["blocks.2.0.bn1.weight"]
    elif damage == "surplus":
        state["blocks.9.weight"] = torch.zeros(1)
    elif damage == "shape":
        state["blocks.2.0.bn1.weight"] = torch.zeros(3)
    elif damage == "other":
        state = {"weight": torch.zeros(2)}
    save_file(state, path)
    if damage == "junk":
        path.write_bytes(b"junk")
        message = "is not a file of weights"
    elif damage == "pickle":
        path = tmp_path / "net.pth"
        torch.save(Code(tmp_path / "made by code"), path)
        message = "is not a file of weights"
    with pytest.raises(InputError, match=message) as caught:
        Backbone(feature_request(path), path)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)
    assert not (tmp_path / "made by code").exists()


class Code:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self._folder,)


def test_weights_in_pytorchs_own_format(tmp_path: Path, photos: list[Path], weights: Path) -> None:
    optimizer = {"state": {0: {"step": torch.zeros(1)}}, "param_groups": [{"lr": 0.1}]}
    state = load_file(weights)
    picture = torch.from_numpy(read_picture(photos[0], SIZE).pixels)[None]
    theirs = Backbone(feature_request(weights), weights)(picture)
    for content in (
        state,
        {"state_dict": state, "epoch": 3},
        {"model_state_dict": state, "optimizer_state_dict": optimizer},
        {"ema": state},
        {"net": state, "best": torch.zeros(())},
    ):
        path = tmp_path / "net.pth"
        torch.save(content, path)
        ours = Backbone(feature_request(path), path)(picture)
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ({}, "nothing (dict)"),
        ({"state_dict": {}}, "'state_dict'"),
        ({"state_dict": {"model": "w"}, "epoch": 3}, "'state_dict', 'epoch'"),
        ({"model": {"w": torch.zeros(1)}, "ema": {"w": torch.zeros(1)}}, "several: 'model', 'ema'"),
        ({"model": {"net": {"w": torch.zeros(1)}}}, "'model'"),
        (torch.zeros(3), "nothing (Tensor)"),
        ([1, 2], "nothing (list)"),
        ({"w": torch.zeros(1), "version": 2}, "'w', 'version'"),
        (None, "nothing (dict)"),
    ],
)
def test_weights_without_the_state_of_one_net(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, held: str
) -> None:
    """timm, which would download its own instead, is not asked."""
    path = tmp_path / ("net.safetensors" if content is None else "net.pth")
    if content is None:
        save_file({}, path)
    else:
        torch.save(content, path)
    monkeypatch.setattr("timm.create_model", None)
    with pytest.raises(InputError) as caught:
        Backbone(feature_request(path), path)
    assert f"but holds {held}; write it with torch.save(net.state_dict(), FILE)" in str(caught.value)
    assert str(caught.value).startswith(f"{path} should hold the state of one net")


def test_nothing_but_the_file_is_ever_loaded(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where no tensor comes through."""
    monkeypatch.setattr("wsram_ppl.data.captions.backbones._read_state", lambda path: {})
    with pytest.raises(InputError, match="No pretrained weights exist for test_efficientnet"):
        Backbone(feature_request(weights), weights)


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    wanted = FeatureRequest.make(NET, (2,), SIZE)
    with pytest.raises(InputError, match="pretrained weights of test_efficientnet cannot be down") as e:
        Backbone(wanted, None)
    assert "name a file of them" in str(e.value) and "\n" not in str(e.value)


def test_without_timm(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"timm is needed .*pip install 'wsram_ppl\[captions\]'"):
        FeatureRequest.make("vgg19", (4,), 224)
    made = feature_request(weights)  # where all is given, reading a store takes no timm
    assert json.loads(json.dumps(made.to_data()))["backbone"] == NET
