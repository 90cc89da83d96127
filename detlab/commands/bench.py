"""`detlab bench`: how much faster is detlab than the plain torchvision loop, here, on the same work?"""

from __future__ import annotations

import argparse
import json

from detlab.benchmark.settings import settings_of

# Both sides train by the tutorial's optimizer, at a rate at which random weights stay what they are.
DEFAULTS = ("optimizer=sgd", "optimizer.lr=0.0001", "optimizer.weight_decay=0.0005")


def main(argv: list[str]) -> int:
    """Time both sides in turns, and say how they compare.

    Args:
        argv: the arguments after `detlab bench`.

    Returns:
        0.

    Raises:
        UserError: an override that does not fit.
        SystemExit: argparse's, on `--help` (0) and on arguments that it does not know (2).
    """
    arguments = _parser().parse_intermixed_args(argv)
    # Only now: all this takes time, which --help should not.
    from detlab.config import check, register
    from detlab.preflight import compose_run

    settings, overrides = settings_of(arguments.overrides)
    register()
    overrides = [*DEFAULTS, *overrides]
    cfg = compose_run(overrides)
    check(cfg)
    # torch takes seconds, which a wrong key should not.
    from detlab.benchmark.measure import measured
    from detlab.benchmark.report import lines

    report = measured(cfg, overrides, settings, quiet=arguments.json)
    if arguments.json:
        print(json.dumps(report))
    else:
        print("\n".join(lines(report)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="detlab bench",
        description="Times detlab against torchvision's own loop on the same images, weights, input size and regions, in turns, "
        "and prints medians and their ratio. torchvision's default would enlarge small images to 800 pixels; here both sides "
        "resize as model.min_size and model.max_size say.",
        epilog="example: detlab bench bench=train model=mobilenet dataset.difficulty=hard precision=bf16",
        allow_abbrev=False,
    )
    parser.add_argument(
        "overrides",
        metavar="OVERRIDE",
        nargs="*",
        default=[],
        help="key=value, group=choice, as of a run; bench=train (the default), predict, evaluate (COCO's numbers of made "
        "detections), masks (made into run lengths), start (to the first batch) or growth (what more images, objects, classes "
        "and processes cost); bench.rounds=5, bench.units=3 (of train, predict and growth: steps or images in a round), "
        "bench.images=5000 (of evaluate, masks and growth: made images), bench.profile=true (where the time goes, by operation, "
        "and of train what holds the memory), bench.plot=FILE (of growth: a picture of it)",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object: ratio, ours, theirs, rounds, work and more"
    )
    return parser
