"""A data set of COCO's size, and what reading it costs: `python tests/scale.py FOLDER [SHARE]`.

Makes `SHARE` (1) of 118,000 images with 860,000 objects in FOLDER, a JSON of several hundred MB and links to a few photographs,
then measures, each in a process of its own: `json.load` alone, detlab's `coco` data set, torchvision's `CocoDetection`.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

IMAGES, OBJECTS, CLASSES = 118_000, 860_000, 80
SIZES = ((480, 640), (640, 480), (427, 640), (640, 640))
WORKERS = 4


def make(folder: Path, share: float) -> Path:
    """Write the images and the JSON; returns its path."""
    from PIL import Image

    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    originals = []
    for k, (height, width) in enumerate(SIZES):
        pixels = random.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        originals.append(folder / f"original{k}.jpg")
        Image.fromarray(pixels).resize((width, height)).save(originals[-1])
    images, path = round(IMAGES * share), folder / "train.json"
    kinds = random.integers(0, len(SIZES), images)
    for i, kind in enumerate(kinds):
        os.link(originals[kind], folder / "images" / f"{i:012d}.jpg")
    with path.open("w") as file:
        categories = [{"id": k + 1, "name": f"class{k}"} for k in range(CLASSES)]
        file.write('{"categories": ' + json.dumps(categories) + ', "images": [')
        file.write(", ".join(
            f'{{"id": {3 * i + 1}, "file_name": "{i:012d}.jpg", "height": {SIZES[k][0]}, "width": {SIZES[k][1]}}}'
            for i, k in enumerate(kinds)
        ))  # fmt: skip
        file.write('], "annotations": [')
        for number in range(round(OBJECTS * share)):
            i = int(random.integers(images))
            height, width = SIZES[kinds[i]]
            # An outline of 20 to 30 points, as COCO's have on average, with two decimals.
            points = int(random.integers(20, 31))
            angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
            radius = random.uniform(4, 60)
            x = np.clip(random.uniform(0, width - 8) + radius * (1 + np.cos(angles)), 0, width).round(2)
            y = np.clip(random.uniform(0, height - 8) + radius * (1 + np.sin(angles)), 0, height).round(2)
            outline = ", ".join(f"{a}, {b}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
            box = [float(x.min()), float(y.min()), round(float(np.ptp(x)), 2), round(float(np.ptp(y)), 2)]
            row = f'"image_id": {3 * i + 1}, "category_id": {int(random.integers(CLASSES)) + 1}, "bbox": {box}'
            comma = ", " if number else ""
            row += f', "area": {box[2] * box[3]:.4f}, "iscrowd": 0, "segmentation": [[{outline}]]'
            file.write(f'{comma}{{"id": {number + 1}, {row}}}')
        file.write("]}")
    return path


def resident() -> float:
    """MB of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def proportional(pid: int | str) -> float:
    """MB of a process in memory, what it shares counted in parts."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1e3


class Targets:
    """Only the targets of a data set, by a function of the index; decodes no image."""

    def __init__(self, count: int, target: Any) -> None:
        self.count, self.target = count, target

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return len(self.target(index))


def after_a_pass(targets: Targets) -> dict[str, float]:
    """MB that each of the workers adds after a pass over all targets, and the seconds that it took."""
    from torch.utils.data import DataLoader

    before, started = proportional("self"), time.perf_counter()
    batches = DataLoader(targets, batch_size=64, num_workers=WORKERS, persistent_workers=True)  # type: ignore[arg-type]
    for _ in batches:
        pass
    workers = [worker.pid for worker in batches._iterator._workers]  # type: ignore[union-attr]
    together = proportional("self") + sum(proportional(pid) for pid in workers)
    return {"worker_mb": (together - before) / WORKERS, "pass_s": time.perf_counter() - started}


def measure_json(path: Path) -> dict[str, float]:
    started = time.perf_counter()
    with path.open() as file:
        json.load(file)
    return {"json_s": time.perf_counter() - started}


def measure_detlab(path: Path) -> dict[str, float]:
    from hydra import compose, initialize_config_dir
    from torchvision.transforms import v2

    # What is imported is not measured, but what is done.
    import detlab.data.coco  # noqa: F401
    from detlab.config import CONF, build, register
    from detlab.data.loader import training_loader

    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [
            "dataset=coco", f"dataset.root={path.parent}", f"dataset.train_annotations={path.name}",
            "dataset.train_images=images", "dataset.val_annotations=null", "dataset.val_size=0",
        ])  # fmt: skip
    before, started = resident(), time.perf_counter()
    data = build(cfg.dataset, group="dataset", allow=[], part="train")
    index_s = time.perf_counter() - started
    batches = training_loader(
        data, v2.Identity(), batch_size=4, accumulate=1, shuffle=True,
        seed=0, workers=0, pin_memory=False,
    )  # fmt: skip
    batches.start(0, 0)
    next(iter(batches))
    first_batch_s = time.perf_counter() - started
    kept = resident() - before

    def target(i: int) -> Any:
        return data._target(i, *data.get_height_and_width(i))

    index_mb = data.index.nbytes / 1e6
    return {
        "index_s": index_s, "first_batch_s": first_batch_s, "index_mb": index_mb, "resident_mb": kept,
        **after_a_pass(Targets(len(data), target)),
    }  # fmt: skip


def measure_torchvision(path: Path) -> dict[str, float]:
    from torchvision.datasets import CocoDetection

    before, started = resident(), time.perf_counter()
    data = CocoDetection(str(path.parent / "images"), str(path))
    index_s = time.perf_counter() - started
    kept = resident() - before
    targets = Targets(len(data), lambda i: data._load_target(data.ids[i]))
    return {"index_s": index_s, "resident_mb": kept, **after_a_pass(targets)}


MEASURES = {"json": measure_json, "detlab": measure_detlab, "torchvision": measure_torchvision}


def measured(what: str, path: Path) -> dict[str, float]:
    """The numbers of one of `MEASURES`, from a process of its own."""
    done = subprocess.run([sys.executable, __file__, "measure", what, str(path)], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        print(json.dumps(MEASURES[sys.argv[2]](Path(sys.argv[3]))))
    else:
        annotations = make(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 1.0)
        print(f"{annotations}: {annotations.stat().st_size / 1e6:.0f} MB")
        for name in MEASURES:
            print(name, {key: round(value, 1) for key, value in measured(name, annotations).items()})
