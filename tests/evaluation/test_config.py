"""What a configuration may say of the evaluator."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from detlab.config import CONF, build, check, register
from detlab.errors import UserError
from detlab.evaluation.metrics import BACKENDS
from detlab.structures import ClassMap


def composed(*overrides: str) -> Any:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def test_another_backend_is_refused_in_a_line() -> None:
    with pytest.raises(UserError) as error:
        check(composed("evaluator.backend=fast"))
    assert str(error.value) == "evaluator.backend: 'fast' is not allowed; allowed: auto, pycocotools, faster."


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_configuration_chooses_the_backend(backend: str) -> None:
    cfg = composed(f"evaluator.backend={backend}")
    check(cfg)
    truth: dict[str, Any] = {"images": [], "categories": [{"id": 1, "name": "a"}], "annotations": []}
    passed: dict[str, Any] = {"ground_truth": truth, "class_map": ClassMap(("a",)), "iou_types": ("bbox",)}
    evaluator = build(cfg.evaluator, group="evaluator", keypoint_sigmas=None, **passed)
    assert evaluator.backend == backend


def test_the_fast_one_of_equals_is_the_default() -> None:
    assert composed().evaluator.backend == "auto"
