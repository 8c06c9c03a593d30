"""The feature store: never stale, and damage is told."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.data.captions.copies import NET, SIZE, feature_request, files
from wsram_ppl.data.captions.backbones import FeatureRequest
from wsram_ppl.data.captions.feature_extraction import extract
from wsram_ppl.data.captions.feature_store import FeatureStore, store_folder
from wsram_ppl.errors import InputError

pytest.importorskip("timm")


def test_every_setting_has_its_own_store(tmp_path: Path, photos: list[Path], weights: Path) -> None:
    other = tmp_path / "other.safetensors"
    state = load_file(weights)
    state["conv_stem.weight"][0, 0, 0, 0] += 1e-3
    save_file(state, other)
    requests = [
        feature_request(weights),
        feature_request(weights, layers=(3, 2)),
        feature_request(weights, layers=(2,)),
        feature_request(weights, image_size=65),
        feature_request(weights, mean=[127.5]),
        feature_request(weights, std=[127.0, 128.0, 128.0]),
        feature_request(weights, backbone="test_resnet"),
        feature_request(other),
        FeatureRequest.make(NET, (2, 3), SIZE, [127.0], [128.0]),
    ]
    folders = {store_folder(tmp_path, wanted, photos) for wanted in requests}
    folders.add(store_folder(tmp_path, requests[0], photos[:-1]))
    folders.add(store_folder(tmp_path, requests[0], photos[::-1]))
    assert len(folders) == len(requests) + 2
    copied = shutil.copy(weights, tmp_path / "copy.safetensors")
    assert feature_request(Path(copied)) == requests[0], "the content counts, not the place"


def test_a_changed_photo(
    tmp_path: Path, photos: list[Path], weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    store = extract(feature_request(weights), photos, cache, weights=weights)
    before = files(store.folder)
    os.utime(photos[2], (1, 1))
    FeatureStore.open(store.folder, photos)  # touched is not changed
    content = photos[2].read_bytes()
    photos[2].write_bytes(content[:-30] + bytes(28) + content[-2:])
    with pytest.raises(
        InputError, match=r"1 photos have changed since their .*the first: 1002_0002.jpg"
    ):
        FeatureStore.open(store.folder, photos)
    steps: list[int] = []
    extract(
        feature_request(weights), photos, cache, weights=weights, progress=lambda d, t: steps.append(d)
    )
    assert steps == [0, 16, 20] and files(store.folder) != before
    assert "computing everything again, since 1 photos have changed" in caplog.text


def test_at_once_where_all_is_there(tmp_path: Path, photos: list[Path], weights: Path) -> None:
    store = extract(feature_request(weights), photos, tmp_path / "cache", weights=weights)

    def never(done: int, total: int) -> None:
        raise AssertionError("computed again")

    again = extract(feature_request(weights), photos, tmp_path / "cache", progress=never)
    assert again.folder == store.folder


@pytest.mark.parametrize("damage", ["cut", "other type", "index", "no layer", "format"])
def test_a_damaged_store(tmp_path: Path, photos: list[Path], weights: Path, damage: str) -> None:
    store = extract(feature_request(weights), photos, tmp_path / "cache", weights=weights)
    before = files(store.folder)
    layer, index = store.folder / "layer-2.npy", store.folder / "index.json"
    if damage == "cut":
        os.truncate(layer, layer.stat().st_size - 1)
    elif damage == "other type":
        np.save(layer, np.load(layer).astype(np.float32))
    elif damage == "index":
        index.write_text(index.read_text()[:-100])
    elif damage == "format":
        index.write_text(index.read_text().replace("features 2", "features 0"))
    else:
        layer.unlink()
    with pytest.raises(InputError, match=r"the features are damaged \(.*\); delete '.*' and compute"):
        FeatureStore.open(store.folder, photos)
    extract(feature_request(weights), photos, tmp_path / "cache", weights=weights)
    assert files(store.folder) == before
