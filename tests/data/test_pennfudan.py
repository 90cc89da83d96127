"""Penn-Fudan: what its samples hold, and what is said of a folder that is not right."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED, write_pennfudan
from loopback import closed_port, serving
from PIL import Image

from detlab.data.dataset import IndexedDataset
from detlab.data.loader import EvaluationSamples
from detlab.data.pennfudan import pennfudan as build_pennfudan
from detlab.errors import UserError


def dataset(
    root: Path | None,
    part: str = "train",
    val_size: int = 2,
    split_file: Path | None = None,
    url: str = "",
    md5: str = "",
    **changes: Any,
) -> IndexedDataset:
    keys: dict[str, Any] = {
        "root": None if root is None else str(root),
        "url": url,
        "md5": md5,
        "invalid": "error",
        "val_size": val_size,
        "test_size": 0,
        "split_seed": 0,
        "split_file": None if split_file is None else str(split_file),
        "folds": None,
        "fold": None,
        "fraction": 1.0,
        "cache": "none",
    }
    return build_pennfudan(part=part, **{**keys, **changes})


def test_a_box_encloses_its_mask_with_the_last_column_inside(pennfudan: Path) -> None:
    image, target = dataset(pennfudan)[0]
    assert image.dtype == torch.uint8
    assert image.shape == (3, 60, 80)
    for box, mask in zip(target["boxes"].tolist(), target["masks"], strict=True):
        rows, columns = mask.nonzero().unbind(1)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert target["boxes"][0].tolist()[2] - target["boxes"][0].tolist()[0] == 18
    assert target["area"].tolist() == [float(mask.sum()) for mask in target["masks"]]


def test_the_parts_are_disjoint_whole_and_the_same_for_the_same_seed(pennfudan: Path) -> None:
    train, val = dataset(pennfudan), dataset(pennfudan, "val")
    assert (len(train), len(val)) == (4, 2)
    assert len({*train.image_names, *val.image_names}) == 6
    assert list(dataset(pennfudan).image_names) == list(train.image_names)


def test_the_split_is_the_tutorial_s_permutation_of_the_sorted_names_and_in_its_order(pennfudan: Path) -> None:
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3)).tolist()
    numbers = {
        part: [
            image["id"] - 1 for image in dataset(pennfudan, part, split_seed=3, test_size=1).ground_truth()["images"]
        ]
        for part in ("train", "test", "val")
    }
    assert numbers == {"train": order[:3], "test": order[3:4], "val": order[4:]}
    names = dataset(pennfudan, "val", split_seed=3).image_names
    assert list(names) == [f"Ped{i:05d}.png" for i in order[4:]]


def test_a_fraction_of_the_training_images_is_the_first_of_them(pennfudan: Path) -> None:
    names = [list(dataset(pennfudan, fraction=fraction).image_names) for fraction in (0.5, 0.75, 1.0)]
    assert [len(part) for part in names] == [2, 3, 4]
    assert names[0] == names[1][:2] == names[2][:2]
    assert len(dataset(pennfudan, "val", fraction=0.5)) == 2


def test_each_image_is_in_one_fold(pennfudan: Path) -> None:
    folds = [list(dataset(pennfudan, "val", folds=3, fold=k).image_names) for k in range(3)]
    assert sorted(name for fold in folds for name in fold) == [f"Ped{i:05d}.png" for i in range(6)]
    assert not {*dataset(pennfudan, folds=3, fold=0).image_names} & {*folds[0]}


def test_a_split_file_gives_the_parts_in_its_order(pennfudan: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": ["Ped00004.png", "Ped00001.png"], "val": ["Ped00002.png"]}))
    assert list(dataset(pennfudan, split_file=split).image_names) == ["Ped00004.png", "Ped00001.png"]
    assert list(dataset(pennfudan, "val", split_file=split).image_names) == ["Ped00002.png"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ('{"train": ["Ped00000.png"]}', "'val'"),
        ('{"train": ["x.png"], "val": []}', "x.png"),
        ('{"train": ["Ped00000.png"], "val": ["Ped00000.png"]}', "train and val"),
        ('{"train": ["Ped00000.png", "Ped00000.png"], "val": []}', "twice in train"),
    ],
)
def test_a_bad_split_file_is_named_with_what_is_wrong(pennfudan: Path, tmp_path: Path, content: str, said: str) -> None:
    split = tmp_path / "split.json"
    split.write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        dataset(pennfudan, split_file=split)
    assert "split.json" in str(caught.value)


def test_the_ground_truth_comes_from_the_index_alone_and_agrees_with_the_samples(pennfudan: Path) -> None:
    val = dataset(pennfudan, "val")
    for image in (pennfudan / "PNGImages").iterdir():
        image.write_bytes(b"gone")
    truth = val.ground_truth()
    assert [a["id"] for a in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))
    assert {a["bbox"][2] for a in truth["annotations"]} == {18.0}
    assert {a["area"] for a in truth["annotations"]} == {18 * 35.0}
    assert val.get_height_and_width(0) == (60, 80)
    assert truth["images"][0] == {
        "id": truth["images"][0]["id"], "file_name": val.image_names[0], "height": 60, "width": 80
    }  # fmt: skip


def test_an_image_without_people_is_legal(pennfudan: Path) -> None:
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(pennfudan / "PedMasks" / "Ped00000_mask.png")
    sample = EvaluationSamples(dataset(pennfudan, val_size=0))
    counts = [len(sample[i][1]["labels"]) for i in range(6)]  # type: ignore[index]
    assert 0 in counts


@pytest.mark.parametrize("broken", ["missing", "empty", "wrong"])
def test_a_root_that_is_not_right_says_which_folder_is_wanted(tmp_path: Path, broken: str) -> None:
    root = tmp_path / "root"
    if broken == "empty":
        (root / "PNGImages").mkdir(parents=True)
    elif broken == "wrong":
        write_pennfudan(root / "inner", 2)
    with pytest.raises(UserError, match=r"dataset\.root=.*PNGImages") as caught:
        dataset(root)
    assert "\n" not in str(caught.value)


def test_a_mask_without_its_image_and_the_reverse_are_named(pennfudan: Path) -> None:
    (pennfudan / "PNGImages" / "Ped00003.png").unlink()
    with pytest.raises(UserError, match=r"Ped00003_mask\.png: a mask without its image"):
        dataset(pennfudan)
    (pennfudan / "PedMasks" / "Ped00003_mask.png").unlink()
    (pennfudan / "PedMasks" / "Ped00002_mask.png").unlink()
    with pytest.raises(UserError, match=r"Ped00002\.png: an image without its mask"):
        dataset(pennfudan)


def test_a_corrupt_image_is_named(pennfudan: Path) -> None:
    path = pennfudan / "PNGImages" / "Ped00001.png"
    content = path.read_bytes()
    train = dataset(pennfudan, val_size=0)
    path.write_bytes(content[:200] + bytes(100) + content[300:])
    with pytest.raises(UserError, match=r"Ped00001\.png: not readable"):
        train[train.image_names.index("Ped00001.png")]


def test_a_mask_of_another_size_is_named(pennfudan: Path) -> None:
    Image.fromarray(np.ones((10, 10), np.uint8)).save(pennfudan / "PedMasks" / "Ped00000_mask.png")
    with pytest.raises(UserError, match=r"Ped00000_mask\.png: 10 x 10 pixels"):
        dataset(pennfudan)


@pytest.fixture
def archive(pennfudan: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A zip as its authors serve it, of small images; the cache is an empty folder."""
    path = pennfudan.with_name("served.zip")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("PennFudanPed/readme.txt", "of the authors")
        for image in sorted(pennfudan.rglob("*.png")):
            file.write(image, image.relative_to(pennfudan.parent))
    monkeypatch.setenv("DETLAB_CACHE", str(pennfudan.parent / "cache"))
    return path.read_bytes()


def test_without_a_root_the_zip_is_downloaded_and_extracted_once_for_all_parts(archive: bytes, pennfudan: Path) -> None:
    md5, built = hashlib.md5(archive).hexdigest(), []
    with serving({"/a.zip": archive}, pause=0.2) as server:

        def build(part: str) -> None:
            built.append(dataset(None, part, url=server.url("/a.zip"), md5=md5))

        threads = [threading.Thread(target=build, args=[part]) for part in ("train", "val")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert server.requests == [("/a.zip", None)]
    assert {part.folder for part in built} == {pennfudan.parent / "cache" / "PennFudanPed" / "PNGImages"}
    train, val = sorted(built, key=len, reverse=True)
    assert train.ground_truth() == dataset(pennfudan).ground_truth()
    assert val.ground_truth() == dataset(pennfudan, "val").ground_truth()
    assert torch.equal(train[0][0], dataset(pennfudan)[0][0])
    # The server is gone: what lies in the cache needs none.
    assert list(dataset(None, url=server.url("/a.zip"), md5=md5).image_names) == list(train.image_names)


def test_another_zip_than_the_one_expected_is_refused(archive: bytes, pennfudan: Path) -> None:
    with serving({"/a.zip": archive}) as server, pytest.raises(UserError, match="not 0000000000") as caught:
        dataset(None, url=server.url("/a.zip"), md5="0" * 32)
    assert server.url("/a.zip") in str(caught.value)
    assert not (pennfudan.parent / "cache" / "PennFudanPed").exists()


def test_offline_the_zip_may_be_put_into_the_cache_by_hand(archive: bytes) -> None:
    url, md5 = f"http://127.0.0.1:{closed_port()}/a.zip", hashlib.md5(archive).hexdigest()
    with pytest.raises(UserError) as caught:
        dataset(None, url=url, md5=md5)
    said = str(caught.value).splitlines()
    assert len(said) == 2
    assert url in said[0]
    assert "dataset.root=" in said[1]
    Path(said[1].split()[4]).write_bytes(archive)
    assert len(dataset(None, url=url, md5=md5)) == 4


def test_the_real_data_set_has_170_images_and_423_people() -> None:
    root = SHARED / "data" / "PennFudanPed"
    if not root.is_dir():
        pytest.skip("the real Penn-Fudan is not in ../shared/data")
    real = dataset(root, val_size=0)
    assert len(real) == 170
    assert len(real.ground_truth()["annotations"]) == 423
    split = SHARED / "data" / "pennfudan_split_0.json"
    listed = json.loads(split.read_text())
    assert list(dataset(root, "val", 50).image_names) == listed["val"]
