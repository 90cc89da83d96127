"""Configurations and files from a stranger: each ends in words, none runs code, none writes or reads outside."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from PIL import Image

from detlab import cli, storage
from detlab.checkpoint import load_model
from detlab.config import PREFIXES, build, check, find_target
from detlab.data.pennfudan import pennfudan as pennfudan_data
from detlab.errors import UserError
from detlab.untrusted import leads_out, printable, saved_config

Detlab = Callable[..., int]
CANARY = "canary"
# Would create the canary file, if it ran.
TOUCH = f"open({CANARY!r}, 'w')"


@pytest.fixture(autouse=True)
def _canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working folder in which nothing may appear: neither the canary nor, above it, anything at all."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("TORCH_HOME", str(work / "torch"))
    yield
    assert not (work / CANARY).exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"work", "PennFudanPed", "outside"}


TARGETS = [
    "os.system", "os.popen", "os.remove", "os.execv", "posix.system", "nt.system", "subprocess.run", "subprocess.Popen",
    "subprocess.check_output", "builtins.eval", "builtins.exec", "builtins.open", "builtins.getattr", "builtins.__import__",
    "builtins.compile", "io.open", "_io.open", "pickle.loads", "pickle.load", "_pickle.loads", "marshal.loads", "shelve.open",
    "shutil.rmtree", "shutil.copy", "pathlib.Path", "tempfile.mkdtemp", "runpy.run_path", "importlib.import_module",
    "code.interact",
    "ctypes.CDLL", "socket.socket", "urllib.request.urlopen", "urllib.request.urlretrieve", "webbrowser.open", "functools.partial",
    "functools.reduce", "operator.attrgetter", "operator.methodcaller", "types.FunctionType", "sys.exit", "multiprocessing.Process",
    "torch.load", "torch.save", "torch.hub.load", "torch.hub.download_url_to_file", "torch.hub.load_state_dict_from_url",
    "torch.jit.load", "torch.package.PackageImporter", "torch.serialization.load", "torch.utils.cpp_extension.load",
    "torch.utils.data.DataLoader", "torch.nn.modules.module.torch.load", "torch.nn.utils.parametrize.torch.load",
    "torch.nn.Module.load_state_dict.__globals__", "torch.nn.Linear.__init__.__globals__.get", "torch.nn.Linear.__class__.__base__",
    "torch.nn.init.torch.save", "torch.optim.optimizer.torch.save", "torch.optim.lr_scheduler.types.FunctionType",
    "torchvision.io.read_file", "torchvision.io.write_file", "torchvision.datasets.utils.download_url",
    "torchvision.datasets.utils.extract_archive", "torchvision.datasets.CIFAR10", "torchvision.datasets.folder.default_loader",
    "torchvision.models.get_model", "torchvision.models.resnet18", "torchvision.models.detection.fasterrcnn_resnet50_fpn",
    "torchvision.models._api.load_state_dict_from_url", "torchvision.models.resnet.ResNet18_Weights.DEFAULT.get_state_dict",
    "torchvision.ops.misc.torch.load", "detlab.storage.load", "detlab.storage.save", "detlab.storage.write_text",
    "detlab.download.fetch", "detlab.models.weights.settle", "detlab.models.detectors.storage.save",
    "detlab.data.images.read_image",
    "detlab.data.cache.ImageCache", "detlab.data.coco.read_coco", "detlab.evaluation.results.os.system", "detlab.run.main",
    "detlab.data.coco.json_of", "hydra.utils.instantiate", "hydra._internal.utils._locate", "omegaconf.OmegaConf.load", "yaml.load",
    "numpy.load", "numpy.save", "numpy.loadtxt", "PIL.Image.open", "filelock.FileLock", "site.addsitedir", "logging.FileHandler",
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_opens_saves_downloads_or_runs_is_refused_in_every_group(target: str) -> None:
    for group in PREFIXES:
        with pytest.raises(UserError, match=r"not permitted|neither a class|is a function|by itself would download"):
            find_target(target, group=group)
        # Even where a user has allowed all of it, what runs code is refused; the rest is the user's own decision.
        if target.partition(".")[0] in (
            "os",
            "subprocess",
            "builtins",
            "pickle",
            "_pickle",
            "ctypes",
            "runpy",
            "importlib",
        ):
            with pytest.raises(UserError):
                find_target(target, group=group, allow=[target.partition(".")[0]])


TOUCHING = {"_target_": "builtins.exec", "_args_": [TOUCH]}
NODES: dict[str, Any] = {
    "nested": {"_target_": "torch.nn.Sequential", "_args_": [TOUCHING]},
    "in a list in a list": {"_target_": "torch.nn.ModuleList", "modules": [[TOUCHING]]},
    "in a mapping without a target": {"_target_": "torch.nn.ModuleDict", "modules": {"a": {"b": TOUCHING}}},
    "a list for a target": {"_target_": ["builtins.exec", TOUCH]},
    "a mapping for a target": {"_target_": {"_target_": "builtins.exec"}, "_args_": [TOUCH]},
    "a target for a target": {"_target_": {"_target_": "torch.nn.Identity"}},
    "a number for a target": {"_target_": 7},
    "nothing for a target": {"_target_": ""},
    "a relative target": {"_target_": ".os.system", "_args_": [f"touch {CANARY}"]},
    "blanks around a target": {"_target_": " builtins.exec ", "_args_": [TOUCH]},
    "a null in a target": {"_target_": "torch.nn.Linear\0os.system"},
    "a partial": {"_target_": "os.system", "_partial_": True, "_args_": [f"touch {CANARY}"]},
    "a partial of a partial": {"_target_": "functools.partial", "_args_": [TOUCHING]},
    "arguments from a target": {"_target_": "torch.nn.Linear", "_args_": {"_target_": "builtins.exec", "_args_": [TOUCH]}},
    "a target beside _recursive_": {"_target_": "torch.nn.Sequential", "_recursive_": False, "_args_": [TOUCHING]},
    "a target made of parts": {"_target_": "torch.nn.modules.linear.Linear.__init__.__globals__.__getitem__"},
    "an interpolation": {"_target_": "${which}", "which": "builtins.exec", "_args_": [TOUCH]},
    "an interpolation of a node": {"_target_": "torch.nn.Sequential", "_args_": ["${hidden}"], "hidden": TOUCHING},
    "a node that a resolver makes": {"_target_": "torch.nn.Sequential", "_args_": ["${oc.create:'{_target_: builtins.exec}'}"]},
    "an environment's target": {"_target_": "${oc.env:HOSTILE_TARGET}", "_args_": [TOUCH]},
    "a decoded target": {"_target_": "${oc.decode:'builtins.exec'}", "_args_": [TOUCH]},
    "getattr of a module": {"_target_": "builtins.getattr", "_args_": [{"_target_": "torch.nn.Identity"}, "__class__"]},
}  # fmt: skip


@pytest.mark.parametrize("how", NODES)
@pytest.mark.parametrize("group", ["model", "optimizer"])
def test_a_node_runs_no_code_however_it_hides_it(
    group: str, how: str, monkeypatch: pytest.MonkeyPatch, composed: Callable[..., Any]
) -> None:
    from omegaconf import OmegaConf

    monkeypatch.setenv("HOSTILE_TARGET", "builtins.exec")
    with pytest.raises(UserError):
        build(OmegaConf.create(NODES[how]), group=group)
    cfg = composed()
    OmegaConf.set_struct(cfg, False)
    cfg[group] = NODES[how]
    with pytest.raises(UserError):
        check(cfg)


class Runs:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return (eval, (TOUCH,))


def a_checkpoint(**changed: Any) -> dict[str, Any]:
    config = {"model": {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}}
    content = {"format": 1, "config": json.dumps(config), "overrides": [], "choices": {}, "batches": {}, "data": {}}
    return {**content, "class_map": {"names": ["a"], "category_ids": [1]}, "keypoints": None, "model": {}, **changed}


BOMB = "\n".join(["a: &a [x, x, x, x, x, x, x, x, x]", *(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}' if i else '*a'] * 9)}]" for i in range(9))])  # fmt: skip  # noqa: E501
CONFIGS = {
    "target": json.dumps({"model": {"_target_": "builtins.exec", "_args_": [TOUCH]}}),
    "python tag": f'model: !!python/object/apply:builtins.exec ["{TOUCH}"]',
    "python name": "model: !!python/name:os.system",
    "aliases": BOMB,
    "merge": "a: &a {_target_: os.system}\nmodel: {<<: *a}",
    "interpolation": "model: {_target_: torch.nn.Linear, in_features: '${oc.env:HOME}', out_features: 1}",
    "depth": "model: " + "[" * 5000,
    "deep mapping": "{a: " * 5000,
    "no mapping": "[1, 2]",
    "number": "7",
    "no YAML": "a: [",
    "other keys": "1: 2",
    "null": "null",
    "allow": json.dumps({"allow": ["os"], "model": {"_target_": "os.system", "command": f"touch {CANARY}"}}),
}  # fmt: skip


@pytest.mark.parametrize("how", CONFIGS)
def test_a_checkpoints_configuration_runs_no_code(how: str) -> None:
    storage.save(a_checkpoint(config=CONFIGS[how]), Path("a.pt"))
    with pytest.raises(UserError):
        load_model(Path("a.pt"))
    if how not in ("target", "allow"):
        with pytest.raises(UserError, match=r"a\.pt: the configuration in it"):
            saved_config(CONFIGS[how], Path("a.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["model", "config", "overrides", "whole"])
def test_a_checkpoint_with_an_object_is_not_unpickled(place: str) -> None:
    content = a_checkpoint(**{place: Runs()}) if place != "whole" else Runs()
    storage.save(content, Path("a.pt"))  # type: ignore[arg-type]
    for command in (
        ["predict", "a.pt", "."], ["evaluate", "a.pt"], ["replay", "a.pt"], ["train", "model.weights=a.pt", *TINY],
    ):  # fmt: skip
        Image.new("RGB", (8, 8)).save("image.png")
        assert cli.main(command) == 2


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_is_not_loaded(protocol: int) -> None:
    Path("a.pt").write_bytes(pickle.dumps(Runs(), protocol))
    for checked in (True, False):
        with pytest.raises(UserError):
            storage.load(Path("a.pt"), checked=checked)


@pytest.mark.parametrize(
    "content",
    [{"format": 1}, {"format": 2}, {"format": "1"}, {}, [], {"format": 1, "model": 3}],
    ids=["bare", "new", "text", "empty", "list", "number"],
)
def test_a_checkpoint_that_lacks_what_it_needs_ends_in_words(content: Any, capsys: pytest.CaptureFixture[str]) -> None:
    storage.save(content, Path("a.pt"))
    Image.new("RGB", (8, 8)).save("image.png")
    for command in (["predict", "a.pt", "image.png"], ["evaluate", "a.pt"], ["replay", "a.pt"]):
        assert cli.main(command) == 2
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("/etc/passwd", True), ("../a.png", True), ("a/../../b.png", True), ("..", True), ("C:\\a.png", True), ("\\a.png", True),
        ("..\\a.png", True), ("//server/share", True), ("a.png", False), ("a/b.png", False), ("a/../b.png", False),
        ("a..b.png", False), ("...", False), ("ab:c.png", False),
    ],
)  # fmt: skip
def test_a_file_name_that_leads_out_of_its_folder_is_known(name: str, out: bool) -> None:
    assert leads_out(name) == out


def coco(name: str = "a.png", **changed: Any) -> dict[str, Any]:
    content = {
        "images": [{"id": 1, "file_name": name, "height": 8, "width": 8}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    return {**content, **changed}


DEEP = "[" * 100_000 + "]" * 100_000
FILES = {
    "absolute name": json.dumps(coco(str(Path("/etc/hostname")))),
    "parent's name": json.dumps(coco("../outside/a.png")),
    "name that commands a terminal": json.dumps(coco("\x1b[2J.png")),
    "class that commands a terminal": json.dumps(coco(categories=[{"id": 1, "name": "\x1b]0;x\x07"}])),
    "depth": DEEP,
    "depth within": json.dumps(coco()).replace("[1, 1, 4, 4]", DEEP),
    "huge number": json.dumps(coco()).replace('"id": 1', '"id": ' + "9" * 5000),
    "huge exponent": json.dumps(coco()).replace("[1, 1, 4, 4]", "[1, 1, 1e999, 4]"),
    "not a number": json.dumps(coco()).replace("[1, 1, 4, 4]", "[1, 1, NaN, 4]"),
    "no JSON": "{",
    "no text": "\udcff",
    "nothing": "",
    "list": "[]",
    "lists of text": json.dumps(coco(images="a.png")),
    "image of text": json.dumps(coco(images=["a.png"])),
    "box of text": json.dumps(coco()).replace("[1, 1, 4, 4]", '"1, 1, 4, 4"'),
    "counts that are none": json.dumps(coco()).replace('"bbox"', '"segmentation": {"size": [8, 8], "counts": "zzzzzz~~"}, "bbox"'),
    "counts of a huge image": json.dumps(coco()).replace(
        '"bbox"', '"segmentation": {"size": [99999999, 99999999], "counts": [1, 9999999999]}, "bbox"'
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", FILES)
def test_a_hostile_annotation_file_ends_in_words(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "outside").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "outside" / "a.png")
    Path("images").mkdir()
    Image.new("RGB", (8, 8)).save("images/a.png")
    Path("a.json").write_text(FILES[how], encoding="utf-8", errors="surrogateescape")
    data = ["dataset=coco", "dataset.root=.", "dataset.train_annotations=a.json", "dataset.train_images=images"]
    data += ["dataset.val_annotations=null", "dataset.val_size=0", "dataset.iou_types=null"]
    status = cli.main(["validate", *data])
    said = capsys.readouterr()
    assert status in (1, 2), said
    assert "Traceback" not in said.err + said.out
    assert "\x1b[2J" not in said.err + said.out
    assert len(said.err.splitlines()) <= 6


@pytest.mark.parametrize(
    "results",
    ['[{"image_id": 1, "category_id": 1, "bbox": [1, 1, NaN, 4], "score": 0.5}]',
     '[{"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "score": NaN}]',
     '[{"image_id": 1, "category_id": 1, "bbox": [1, 1, Infinity, 4], "score": 0.5}]',
     '[{"image_id": 1, "category_id": 1, "bbox": [1, 1, 4], "score": 0.5}]',
     '[{"image_id": [1], "category_id": 1, "bbox": [1, 1, 4, 4], "score": 0.5}]',
     '[{"image_id": 1, "category_id": 1, "segmentation": {"size": [8, 8], "counts": "zz~~"}, "score": 0.5}]',
     '["a"]', DEEP, "{}", "nothing"],
)  # fmt: skip
def test_a_hostile_results_file_ends_in_words(results: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("truth.json").write_text(json.dumps(coco()))
    Path("results.json").write_text(results)
    assert cli.main(["score", "truth.json", "results.json"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def png_bomb(path: Path, side: int) -> None:
    """A PNG that says it is `side` x `side`, and is a few bytes long."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("side", [20_000, 2**31 - 1])
def test_an_image_bomb_is_named_and_not_decoded(side: int, capsys: pytest.CaptureFixture[str]) -> None:
    Path("images").mkdir()
    png_bomb(Path("images/a.png"), side)
    content = coco()
    content["images"][0] = {"id": 1, "file_name": "a.png", "height": side, "width": side}
    Path("a.json").write_text(json.dumps(content))
    data = ["dataset=coco", "dataset.root=.", "dataset.train_annotations=a.json", "dataset.train_images=images"]
    assert cli.main(["validate", *data, "dataset.val_annotations=null", "dataset.val_size=0"]) in (1, 2)
    said = capsys.readouterr()
    assert "a.png" in said.out + said.err
    assert "Traceback" not in said.err


ENTRIES = ["../outside/x", "/tmp/detlab-canary", "a/../../x", "C:\\x", "a\\..\\..\\x", "..", "//server/x"]


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_zip_that_leads_out_is_not_extracted(entry: str) -> None:
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("x"), b"whole")
        info = zipfile.ZipInfo("x")
        info.filename = info.orig_filename = entry
        archive.writestr(info, b"canary")
    from detlab.download import _unpack

    Path("into").mkdir()
    with pytest.raises(UserError, match="not extracted"):
        _unpack(Path("a.zip"), Path("into"), 1000, 10)
    assert not list(Path("into").iterdir())
    assert not Path("/tmp/detlab-canary").exists()


RECORDS = {
    "no JSON": "{",
    "depth": DEEP,
    "a list": "[]",
    "overrides of another type": '{"overrides": 7}',
    "an override that cannot be read": '{"overrides": ["a=[", "b"]}',
    "an override of hydra's": '{"overrides": ["hydra.run.dir=../outside", "model=none_such"]}',
    "another's code": '{"overrides": ["allow=[os]", "model._target_=os.system"]}',
    "a launcher": '{"overrides": ["hydra/launcher=evil", "optimizer._target_=builtins.exec"]}',
}


@pytest.mark.slow
@pytest.mark.parametrize("how", RECORDS)
def test_a_hostile_run_folder_ends_in_words(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path("run")
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.json").write_text(RECORDS[how])
    (run / "config.yaml").write_text("a: 1\n")
    storage.save(a_checkpoint(position={}), run / "checkpoints" / "last.pt")
    for command in (["train", "resume=run"], ["rerun", "run", "--dry-run"]):
        assert cli.main(command) == 2
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["a b", "a'b", 'a"b', "ä", "-x", "a=b", "a,b", "$(touch canary)", "a;b", "a%41"])
def test_a_run_folder_with_an_odd_name_is_written_and_read(folder: str, composed: Callable[..., Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from detlab.console import Console
    from detlab.writer import RunWriter

    Path(folder).mkdir()
    with RunWriter(
        Path(folder), Console(1, bar=False), log_every=1, step=0, records={}, device=torch.device("cpu")
    ) as out:
        out.scalars(1, 0, {"train/loss": 1.0})
    board = EventAccumulator(folder)
    board.Reload()
    assert [event.value for event in board.Scalars("train/loss")] == [1.0]


def test_what_is_said_commands_no_terminal() -> None:
    assert printable("a\x1b[2J\nb\x07") == "a\\x1b[2J\nb\\x07"


def test_symbolic_links_are_followed(pennfudan: Path, tmp_path: Path) -> None:
    # Stated: a link is its owner's decision, as names are not.
    (tmp_path / "outside").mkdir()
    image = next((pennfudan / "PNGImages").iterdir())
    moved = image.rename(tmp_path / "outside" / image.name)
    image.symlink_to(moved)
    data = pennfudan_data(
        part="train", root=str(pennfudan), url="", md5="", invalid="error", val_size=1, test_size=0, split_seed=0,
        split_file=None, folds=None, fold=None, fraction=1.0, cache="none",
    )  # fmt: skip
    assert len(data) == 5
