"""The benchmark: the same work on both sides, in turns, and what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torchvision import tv_tensors

from detlab.benchmark import chart, plain_first_batch, start
from detlab.benchmark.contestants import OurTraining, TheirTraining, saved_for_backward, write_weights
from detlab.benchmark.detections import Density, MadeImages
from detlab.benchmark.growth import exponent
from detlab.benchmark.measure import DifferentResultsError, check_same
from detlab.benchmark.plain import FlipWithKeypoints, plain_model
from detlab.benchmark.scoring import OurMasks, OurScoring, Stopwatch, TheirMasks, TheirScoring, scored_types
from detlab.benchmark.settings import Settings, settings_of
from detlab.benchmark.turns import BenchmarkFailedError, Rival, Times, in_turns
from detlab.commands.bench import DEFAULTS, main
from detlab.config import register
from detlab.errors import BrokenDownError, UserError
from detlab.preflight import compose_run
from detlab.structures import Keypoints

SMALL = [
    "model=mobilenet", "model.backbone.name=mobilenet_v3_small", "model.enlarge_to=null", "model.box_batch_size_per_image=8",
    "image_size.min=64", "image_size.max=96", "dataset.train_size=8", "dataset.val_size=4", "batch_size=2", "workers=0",
]  # fmt: skip


class Sleeper:
    """Writes into a file that it works, and takes as long as it is told."""

    def __init__(self, name: str, log: Path, seconds: float) -> None:
        self.name, self.log, self.seconds = name, log, seconds

    def round(self) -> float:
        with self.log.open("a") as log:
            log.write(f"{self.name} begins\n")
            log.flush()
            started = time.perf_counter()
            time.sleep(self.seconds)
            log.write(f"{self.name} ends\n")
        return time.perf_counter() - started

    def warm_up(self) -> None:
        self.round()

    def profile(self) -> str:
        return f"{self.name} sleeps"

    def result(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.log.with_suffix(f".{self.name}").write_text("closed")


class Failing(Sleeper):
    def round(self) -> float:
        raise ZeroDivisionError("of my own")


class Dying(Sleeper):
    def round(self) -> float:
        os._exit(7)


class Killed(Sleeper):
    def round(self) -> float:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0.0


class Leaving(Sleeper):
    def round(self) -> float:
        sys.exit(1)


@pytest.mark.slow
def test_both_work_in_turns_and_never_together(tmp_path: Path) -> None:
    log, said = tmp_path / "log", []
    with Rival(Sleeper, "ours", log, 0.02) as ours, Rival(Sleeper, "theirs", log, 0.1) as theirs:
        times = in_turns(ours, theirs, 3, lambda *told: said.append(told))
        assert ours.ask("profile") == "ours sleeps"
        assert ours.ask("peak_memory") > 2**20
    lines = log.read_text().split("\n")[:-1]
    order = ["ours", "theirs", "ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert lines == [f"{name} {what}" for name in order for what in ("begins", "ends")]
    assert [told[0] for told in said] == [1, 2, 3]
    assert len(times.ours) == len(times.theirs) == 3
    assert 2 < times.ratio < 8
    assert {path.read_text() for path in tmp_path.glob("log.*")} == {"closed"}


def test_the_ratio_is_that_of_the_medians() -> None:
    times = Times([1.0, 2.0, 9.0], [8.0, 3.0, 6.0])
    assert times.ratio == 3.0
    assert times.ratios == [8.0, 1.5, 6 / 9]


@pytest.mark.slow
def test_a_side_that_fails_is_told_with_its_own_trace(tmp_path: Path) -> None:
    with (
        Rival(Failing, "ours", tmp_path / "log", 0.0) as ours,
        pytest.raises(BenchmarkFailedError, match="ZeroDivisionError: of my own"),
    ):
        ours.ask("round")


@pytest.mark.slow
def test_a_side_that_dies_in_its_turn_or_between_turns_is_told(tmp_path: Path) -> None:
    with Rival(Dying, "ours", tmp_path / "log", 0.0) as ours:
        for what in ("round", "warm_up"):
            with pytest.raises(BenchmarkFailedError, match="ended with 7; what it printed stands above"):
                ours.ask(what)


@pytest.mark.slow
def test_a_side_that_is_killed_or_leaves_by_itself_is_told_in_a_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        Rival(Killed, "ours", log, 0.0) as ours,
        pytest.raises(BrokenDownError, match="killed, perhaps for want of memory"),
    ):
        ours.ask("round")
    with (
        Rival(Leaving, "theirs", log, 0.0) as theirs,
        pytest.raises(BrokenDownError, match="the plain loop ended by itself"),
    ):
        theirs.ask("round")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ps") is None, reason="there is no ps to list the processes")
@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="Ctrl-C is ignored, as in a shell's background jobs"
)
def test_ctrl_c_is_one_line_and_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "detlab.cli", "bench", *SMALL, "bench.rounds=1000"]
    with (tmp_path / "said").open("w") as said:
        run = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        try:
            deadline = time.monotonic() + 120
            while "round 1" not in (tmp_path / "said").read_text() and time.monotonic() < deadline:
                time.sleep(0.2)
            os.killpg(run.pid, signal.SIGINT)
            assert run.wait(30) == 130
        except BaseException:
            os.killpg(run.pid, signal.SIGKILL)  # or it would slow down all other tests
            run.wait()
            raise
    lines = (tmp_path / "said").read_text().splitlines()
    assert [line for line in lines if not line.startswith("round ")] == ["detlab: interrupted"]
    deadline = time.monotonic() + 20
    while _alive(run.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert _alive(run.pid) == []


def _alive(group: int) -> list[str]:
    """The processes of a group that still run."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [row[2] for row in rows if int(row[0]) == group and not row[1].startswith("Z")]


def test_settings_and_overrides_are_told_apart() -> None:
    given = ["bench=predict", "model=mobilenet", "bench.rounds=2", "bench.units=7", "bench.profile=true"]
    assert settings_of(given) == (Settings("predict", rounds=2, units=7, profile=True), ["model=mobilenet"])
    assert settings_of([]) == (Settings("train", rounds=5, units=3), [])
    assert settings_of(["bench.images=7", "bench=evaluate"])[0] == Settings("evaluate", rounds=5, images=7)
    assert settings_of(["bench=evaluate"])[0].images == 5000
    assert settings_of(["bench=growth", "bench.plot=a.png"])[0].plot == Path("a.png")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "bench=training",
            r"^bench: 'training' is not allowed; allowed: train, predict, evaluate, masks, start, growth\.$",
        ),
        ("bench.rounds=0", r"^bench\.rounds: '0' is not allowed; allowed: whole numbers from 1\.$"),
        ("bench.profile=yes", r"^bench\.profile: 'yes' is not allowed; allowed: true, false\.$"),
        ("bench.round=3", r"^bench\.round: no such key\. Did you mean bench\.rounds"),
    ],
)
def test_a_wrong_setting_is_the_users_mistake(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        settings_of([override])


@pytest.mark.parametrize(
    ("work", "override", "said"),
    [
        ("train", "bench.images=3", "it has bench.rounds, bench.units, bench.profile"),
        ("evaluate", "bench.units=3", "it has bench.rounds, bench.images, bench.profile"),
        ("start", "bench.profile=true", "it has bench.rounds"),
        ("masks", "bench.plot=a.png", "it has bench.rounds, bench.images, bench.profile"),
    ],
)
def test_a_setting_of_another_work_is_refused(work: str, override: str, said: str) -> None:
    key = override.partition("=")[0]
    for given in ([f"bench={work}", override], [override, f"bench={work}"]):
        with pytest.raises(UserError) as refused:
            settings_of(given)
        assert str(refused.value) == f"{key}: bench={work} does not have it; {said}."


@pytest.mark.parametrize("name", ["growth.svg", "nowhere/growth.png", ""])
def test_a_plot_is_a_picture_in_a_folder_that_is_there(name: str) -> None:
    with pytest.raises(UserError, match=r"^bench\.plot: .* is not allowed; allowed: a \.png or \.jpg file"):
        settings_of(["bench=growth", f"bench.plot={name}"])


def test_the_plain_model_is_made_of_torchvisions_parts_alone(tmp_path: Path) -> None:
    register()
    cfg = compose_run([*DEFAULTS, "model=maskrcnn", "model.backbone.name=resnet18", *SMALL[4:]])
    plain = plain_model(OmegaConf.to_container(cfg.model, resolve=True))
    own = [value for value in _values(plain) if str(value).startswith("detlab.")]
    assert sorted(own) == ["detlab.models.backbones.backbone", "detlab.models.detectors.rcnn"]
    weights = tmp_path / "weights.pt"
    write_weights(cfg, weights)
    theirs = TheirTraining(OmegaConf.to_yaml(cfg), weights, 1)
    kinds = {type(module).__module__.partition(".")[0] for module in theirs.model.modules()}
    assert kinds == {"torch", "torchvision"}
    assert theirs.round() > 0
    theirs.close()


def _values(node: Any) -> list[Any]:
    if isinstance(node, dict | list):
        return [found for value in (node.values() if isinstance(node, dict) else node) for found in _values(value)]
    return [node]


def test_what_is_kept_for_a_backward_pass_is_counted_once_and_without_the_weights() -> None:
    model = torch.nn.Linear(100, 50)
    inputs = torch.rand(10, 100)
    with saved_for_backward(model) as saved:
        hidden = model(inputs)  # keeps inputs and weights
        (hidden.exp() * hidden).sum().backward()  # keeps hidden, and its exponential for two operations
        assert saved.most == (10 * 50 + 10 * 50 + 10 * 100) * 4
        assert saved.now == 0
        model(inputs[:5].clone()).sum().backward()
    assert saved.most == (10 * 50 + 10 * 50 + 10 * 100) * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["model=keypointrcnn_mobilenet", "model.backbone.name=mobilenet_v3_small", *SMALL[2:]],
        [*SMALL, "optimizer=adamw", "optimizer.lr=0.0001"],
        [*SMALL, "aspect_ratio_groups=1"],
    ],
    ids=["keypoints", "adamw", "groups"],
)
def test_both_train_the_same_whatever_the_model_optimizer_and_order(tmp_path: Path, overrides: list[str]) -> None:
    register()
    cfg = compose_run([*DEFAULTS, *overrides])
    write_weights(cfg, tmp_path / "weights.pt")
    sides: list[Any] = [
        side(OmegaConf.to_yaml(cfg), tmp_path / "weights.pt", 1) for side in (OurTraining, TheirTraining)
    ]
    assert type(sides[0].optimizer) is type(sides[1].optimizer)
    seen: list[list[float]] = [[], []]
    for which, side in enumerate(sides):
        side.model.register_forward_pre_hook(  # a mirrored image has the mean of its twin
            lambda _model, inputs, which=which: seen[which].extend(float(image.double().mean()) for image in inputs[0])
        )
        for _ in range(6):  # more than an epoch
            side.work()
        side.close()
    assert seen[0] == pytest.approx(seen[1], rel=1e-6)
    assert len(seen[0]) == 12
    assert len(set(seen[0])) > 6


def test_the_plain_mirror_of_keypoints_is_torchvisions_reference() -> None:
    points = torch.tensor([[[3.0, 4.0, 2.0], [7.0, 5.0, 1.0], [0.0, 0.0, 0.0]]])
    boxes = tv_tensors.BoundingBoxes(torch.tensor([[2.0, 3.0, 8.0, 6.0]]), format="XYXY", canvas_size=(10, 20))  # pyright: ignore
    target = {"labels": torch.tensor([1]), "boxes": boxes, "keypoints": points}
    image = torch.arange(600).view(3, 10, 20)
    mirror = FlipWithKeypoints(Keypoints(("left", "right", "nose"), ((0, 1),), (0.1, 0.1, 0.1)))
    images = set()
    for seed in range(8):
        torch.manual_seed(seed)
        found, mirrored = mirror(image, target)
        images.add(int(found[0, 0, 0]))
        if int(found[0, 0, 0]):
            assert torch.equal(found, image.flip(-1))
            assert mirrored["boxes"].tolist() == [[12, 3, 18, 6]]
            assert mirrored["labels"].tolist() == [1]
            assert mirrored["keypoints"].tolist() == [[[13, 5, 1], [17, 4, 2], [0, 0, 0]]]
        else:
            assert torch.equal(mirrored["keypoints"], points)
    assert images == {0, 19}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("augmentation=crop", r"augmentation: \S+ is not allowed; the plain loop knows augmentation=flip alone"),
        ("augmentation=none", r"augmentation: \S+ is not allowed; the plain loop knows augmentation=flip alone"),
        ("augmentation.p=0.3", "augmentation.p: 0.3 is not allowed; the plain loop knows augmentation.p=0.5 alone"),
        ("ema=0.9", "ema: 0.9 is not allowed; the plain loop knows ema=null alone"),
        ("accumulate=2", "accumulate: 2 is not allowed; the plain loop knows accumulate=1 alone"),
        ("clip_grad_norm=1", "clip_grad_norm: .* is not allowed; the plain loop knows clip_grad_norm=null alone"),
        (
            "optimizer.groups={norms: {weight_decay: 0}}",
            "optimizer.groups: .* the plain loop knows optimizer.groups=null alone",
        ),
    ],
)
def test_what_the_plain_loop_does_not_do_is_refused(override: str, said: str) -> None:
    for work in ("train", "start"):
        with pytest.raises(UserError, match="^" + said):
            main([f"bench={work}", *SMALL, override])


@pytest.mark.slow
@pytest.mark.parametrize("side", [OurTraining, TheirTraining])
def test_a_profile_says_what_holds_the_memory(tmp_path: Path, side: Any) -> None:
    register()
    cfg = compose_run([*DEFAULTS, *SMALL])
    write_weights(cfg, tmp_path / "weights.pt")
    contestant = side(OmegaConf.to_yaml(cfg), tmp_path / "weights.pt", 2)
    contestant.warm_up()
    said = contestant.profile()
    contestant.close()
    assert "conv" in said
    assert contestant.units == 2
    found = dict(re.findall(r"([a-z ]+) (-?\d+)(?:,|$)", said.splitlines()[-1].partition("peak; ")[2]))
    mib = {name.strip(): int(number) for name, number in found.items()}
    weights = sum(value.numel() * value.element_size() for value in contestant.model.state_dict().values()) / 2**20
    assert mib["weights"] == pytest.approx(weights, abs=1)
    # SGD's momentum has a number for each of the gradients'.
    assert 0 < mib["gradients"] == mib["optimizer"] <= mib["weights"]
    assert mib["kept for the backward pass"] > 0
    assert mib["before the model"] > 100
    assert "else and at other times" in mib


@pytest.mark.slow
def test_frozen_norms_without_weights_are_given_statistics(tmp_path: Path) -> None:
    register()
    cfg = compose_run([*DEFAULTS, *SMALL, "model.norm=frozen", "model.trainable_backbone_layers=3"])
    write_weights(cfg, tmp_path / "weights.pt")
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    variances = [value for key, value in weights.items() if key.endswith("running_var")]
    assert variances
    assert not any(torch.equal(value, torch.ones_like(value)) for value in variances)
    assert not any(key.endswith("num_batches_tracked") for key in weights)


def _config(*overrides: str) -> str:
    register()
    return OmegaConf.to_yaml(compose_run([*DEFAULTS, *SMALL, *overrides]))


def test_made_images_are_as_full_as_val2017() -> None:
    made = MadeImages(5000)
    truth = made.ground_truth()
    # https://cocodataset.org, instances_val2017.json.
    assert len(truth["images"]) == 5000
    assert len(truth["annotations"]) == made.objects == 36_781
    assert sum(row["iscrowd"] for row in truth["annotations"]) == made.crowds == 446
    assert {row["category_id"] for row in truth["annotations"]} == set(range(1, 81))
    areas = torch.tensor([row["area"] for row in truth["annotations"]])
    small, large = (areas < 32**2).float().mean(), (areas > 96**2).float().mean()
    assert 0.36 < small < 0.46
    assert 0.19 < large < 0.29
    counts = [len(made.prediction(index, masks=False)["boxes"]) for index in range(len(made))]
    assert sum(counts) == made.detections
    assert 34 < sum(counts) / 5000 < 38
    assert max(counts) == 100


def test_made_objects_are_outlines_inside_their_images_and_crowds_run_lengths() -> None:
    truth = MadeImages(300).ground_truth()
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    for row in truth["annotations"]:
        height, width = sizes[row["image_id"]]
        x, y, w, h = row["bbox"]
        assert min(x, y) >= 0
        assert min(w, h) > 0
        assert x + w <= width + 0.01
        assert y + h <= height + 0.01
        if row["iscrowd"]:
            assert row["segmentation"]["size"] == [height, width]
            assert sum(row["segmentation"]["counts"]) == height * width
            assert sum(row["segmentation"]["counts"][1::2]) == row["area"]
        else:
            (outline,) = row["segmentation"]
            assert len(outline) in range(40, 61, 2)
            assert 0 < row["area"] <= (w + 0.01) * (h + 0.01)


def test_made_detections_are_those_of_a_model_and_exact_in_float32() -> None:
    made = MadeImages(20)
    for index in range(20):
        found = made.prediction(index, masks=True)
        height, width = found["image_size"]
        count = len(found["scores"])
        x0, y0, x1, y1 = found["boxes"].unbind(1)
        assert bool(((x0 >= 0) & (x1 <= width) & (x1 - x0 >= 1) & (y0 >= 0) & (y1 <= height) & (y1 - y0 >= 1)).all())
        assert torch.equal((x1 - x0).double(), x1.double() - x0.double())
        assert found["masks_in_boxes"].shape == (count, 1, 28, 28)
        assert found["masks_in_boxes"].dtype == found["boxes"].dtype == found["scores"].dtype == torch.float32
        assert bool((found["scores"].diff() <= 0).all())


def test_what_is_made_depends_on_the_seed_alone() -> None:
    first, again, other = (MadeImages(5, seed=seed) for seed in (1, 1, 2))
    assert first.ground_truth() == again.ground_truth() != other.ground_truth()
    masks = [made.prediction(2, masks=True)["masks_in_boxes"] for made in (first, again)]
    assert torch.equal(*masks)


@pytest.mark.parametrize(
    ("model", "density"), [("bbox", None), ("segm", None), ("segm", Density(objects=0.5, classes=3))]
)
def test_both_evaluations_find_the_same_numbers(model: str, density: Density | None) -> None:
    iou_types: Any = ("bbox", "segm")[: 1 + (model == "segm")]
    config = _config()
    sides = [kind(config, iou_types, 12, density) for kind in (OurScoring, TheirScoring)]
    for side in sides:
        side.warm_up()
        assert side.round() > 0
    ours, theirs = (side.result() for side in sides)
    check_same(ours, theirs)
    assert len(ours) == 12 * len(iou_types)
    assert 0.1 < ours[f"{model}/AP"] < 0.9


def test_both_make_the_same_run_lengths_of_masks() -> None:
    ours, theirs = (kind(_config(), ("segm",), 4) for kind in (OurMasks, TheirMasks))
    assert ours.round() < theirs.round()
    check_same(ours.result(), theirs.result())
    assert len(ours.result()) == 4
    assert "paste_mask" in theirs.profile()


def test_different_results_are_said_and_their_times_are_not_compared() -> None:
    check_same({"AP": 0.5, "APs": float("nan")}, {"AP": 0.5 + 1e-8, "APs": float("nan")})
    with pytest.raises(
        DifferentResultsError, match=r"the same: AP is 0\.5 by detlab and 0\.51 by the plain way, and 1 more"
    ):
        check_same({"AP": 0.5, "APs": 0.1}, {"AP": 0.51, "APs": float("nan")})
    with pytest.raises(DifferentResultsError, match="image 3 is ab by detlab and None"):
        check_same({"image 3": "ab"}, {})


def test_a_stopwatch_adds_up_what_is_spent_within_it() -> None:
    clock = Stopwatch()
    for _ in range(2):
        time.sleep(0.05)
        with clock:
            time.sleep(0.02)
    assert 0.04 <= clock.seconds < 0.1


def test_the_model_says_what_is_scored() -> None:
    assert scored_types(_config()) == ("bbox",)
    register()
    small = ["image_size.min=64", "image_size.max=96", "model.backbone.name=resnet18"]
    masks = OmegaConf.to_yaml(compose_run([*DEFAULTS, "model=maskrcnn", *small]))
    assert scored_types(masks) == ("bbox", "segm")
    with pytest.raises(UserError, match="scored by keypoints"):
        scored_types(OmegaConf.to_yaml(compose_run([*DEFAULTS, "model=keypointrcnn", *small])))


@pytest.mark.parametrize(
    "overrides", [SMALL[:2], ["model=maskrcnn", "model.backbone.name=resnet18", "model.norm=batch"]]
)
def test_the_plain_script_makes_the_configured_model(overrides: list[str]) -> None:
    register()
    cfg = compose_run([*DEFAULTS, *overrides])
    with start.sides(cfg, overrides) as (_, theirs):
        told = json.loads(theirs.command[-1])
    model = plain_first_batch.model_of(told, 2)
    from detlab import parts
    from detlab.models.weights import settle

    settle(cfg.model)
    data = parts.data_sets(cfg)["train"]
    ours = parts.detector(cfg, data.class_map, data.keypoints)
    shapes = [{name: value.shape for name, value in made.state_dict().items()} for made in (ours, model)]
    assert shapes[0] == shapes[1]


def test_the_plain_script_reads_penn_fudan_as_the_tutorial_does(pennfudan: Path) -> None:
    node = {"_target_": "detlab.data.pennfudan.pennfudan", "root": str(pennfudan)}
    train, val, classes = plain_first_batch.data_sets(node, ["bbox", "segm"])
    assert (len(train), len(val), classes) == (6, 6, 2)
    image, target = val[1]
    assert image.shape == (3, 60, 80)
    assert image.dtype == torch.float
    assert target["masks"].shape == (2, 60, 80)
    assert torch.equal(target["boxes"][0], torch.tensor([5.0, target["boxes"][0, 1], 22.0, target["boxes"][0, 3]]))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 with numpy 2
def test_the_plain_script_reads_cocos_format_by_torchvision(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    outline = [5, 5, 15, 5, 15, 20, 5, 20]
    content = {
        "images": [{"id": 3, "file_name": "a.png", "height": 30, "width": 40}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 7, "bbox": [5, 5, 10, 15], "area": 150, "iscrowd": 0, "segmentation": [outline]}
        ],
        "categories": [{"id": 7, "name": "thing"}],
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(content))
    node = {
        "_target_": "detlab.data.coco.coco", "root": str(tmp_path), "train_annotations": "a.json", "train_images": ".",
        "val_annotations": None, "val_images": None,
    }  # fmt: skip
    train, val, classes = plain_first_batch.data_sets(node, ["bbox", "segm"])
    assert (len(train), len(val), classes) == (1, 1, 8)
    image, target = val[0]
    assert image.shape == (3, 30, 40)
    assert image.dtype == torch.float
    assert target["boxes"].tolist() == [[5, 5, 15, 20]]
    assert target["labels"].tolist() == [7]
    assert int(target["masks"].sum()) == 150


def test_a_start_that_has_no_plain_script_is_refused() -> None:
    register()
    cfg = compose_run([*DEFAULTS, "model=retinanet"])
    with pytest.raises(UserError, match=r"^model: bench=start has a plain script"), start.sides(cfg, []):
        pass


def test_a_start_that_fails_is_told_with_what_it_said() -> None:
    with pytest.raises(BenchmarkFailedError, match=r"(?s)detlab\.cli ended with 2\..*no command 'nothing'"):
        start.Start("detlab.cli", ["nothing"]).ask("round")


def test_the_exponent_is_the_slope_of_the_logarithms() -> None:
    assert exponent([(1, 3.0), (2, 12.0), (8, 192.0)]) == pytest.approx(2)
    assert exponent([(1, 3.0), (2, 3.0)]) == pytest.approx(0)


def test_a_chart_shows_every_point_of_every_curve() -> None:
    curves = {"images": [(10, 1.0), (20, 2.0), (40, 4.0)], "processes": [(1, 2.0), (2, 1.5)]}
    picture = chart.drawn(curves)
    assert picture.shape == (3, 320, 840)
    for number, count in enumerate((3, 2)):
        panel = picture[:, :, 420 * number : 420 * (number + 1)]
        colour = torch.tensor(chart.COLOURS[4 + number])[:, None, None]
        columns = (panel == colour).all(0).sum(0)
        assert int(columns.count_nonzero()) > 10 * count


@pytest.mark.slow
@pytest.mark.parametrize("work", ["train", "predict"])
def test_one_object_with_what_was_measured(work: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"bench={work}", "bench.rounds=2", "bench.units=2", "bench.profile=true", *SMALL, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ratio"] == pytest.approx(report["theirs"] / report["ours"])
    assert len(report["all"]["ours"]) == report["rounds"] == 2
    assert report["work"]["bench"] == work
    assert report["precision"] == "fp32"
    assert min(report["memory"].values()) > 2**26
    assert [("conv" in profile) for profile in report["profiles"]] == [True, True]


@pytest.mark.parametrize(
    ("work", "images"),
    [pytest.param("evaluate", 30, marks=pytest.mark.slow), pytest.param("masks", 10, marks=pytest.mark.long)],
)
def test_made_work_is_timed_and_told(work: str, images: int, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"bench={work}", "bench.rounds=2", f"bench.images={images}", *SMALL]
    assert main([*given, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ratio"] == pytest.approx(report["theirs"] / report["ours"])
    assert report["work"]["images"] == images
    assert ("bbox/AP" in report["work"]) == (work == "evaluate")
    assert main([*given, "bench.profile=true"]) == 0
    said = capsys.readouterr().out
    assert "s a round" in said
    assert said.count("Ordered by: internal time") == 2


@pytest.mark.slow
def test_a_start_is_told_step_by_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench=start", "bench.rounds=1", *SMALL, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    steps = report["steps"]
    assert list(steps["theirs"]) == ["interpreter", "imports", "data", "model", "first batch"]
    assert list(steps["ours"]) == ["interpreter", "config", "imports", "data", "model", "first batch"]
    for side, taken in steps.items():
        assert sum(taken.values()) == pytest.approx(report[side])
        assert min(taken.values()) > 0
    assert set(report["commands"]) == {"--help", "--cfg job"}
    assert min(report["memory"].values()) > 2**26


@pytest.mark.long
def test_growth_is_a_table_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "growth.png"
    given = ["bench=growth", "bench.rounds=1", "bench.images=16", "bench.units=1", f"bench.plot={plot}"]
    assert main([*given, *SMALL, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    kinds = [row["of"] for row in report["rows"]]
    assert kinds == ["images"] * 4 + ["objects"] * 4 + ["classes"] * 4 + ["processes"] * 2
    assert [row["at"] for row in report["rows"]][:4] == [2, 4, 8, 16]
    assert list(report["exponents"]) == ["images", "objects", "classes", "processes"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_growth_needs_images_for_its_sizes_and_a_batch_for_two_processes() -> None:
    with pytest.raises(UserError, match=r"^bench\.images: 7 is not allowed; allowed with bench=growth: from 8\.$"):
        main(["bench=growth", "bench.images=7", *SMALL])
    with pytest.raises(UserError, match=r"^batch_size: 3 cannot be shared by 2 processes"):
        main(["bench=growth", *SMALL, "batch_size=3"])
