"""`detlab COMMAND`: finds the command and calls it; imports nothing that is not asked for."""

from __future__ import annotations

import importlib
import os
import sys

from detlab import __version__

# What each command does, and the module of detlab.commands that has its `main(argv) -> int`.
COMMANDS = {
    "train": "train, score and record a run, or a sweep of runs with -m (python -m detlab.run is the same)",
    "init": "start a project of your own: detlab init FOLDER [ANNOTATIONS.json] [--images DIR]",
    "doctor": "say what is wrong with this machine, and what to do: detlab doctor [--json]",
    "evaluate": "score a run's model, on its own data set or another: detlab evaluate RUN [overrides] [--part val] [--json]",
    "score": "score a COCO results file: detlab score GT.json RESULTS.json [--iou-type bbox|segm|keypoints] [--json]",
    "predict": "draw and write what a run's model detects: detlab predict RUN IMAGE... [--out DIR] [--threshold 0.5]",
    "compare": "say in what two runs differ, and whether they can be told apart: detlab compare RUN RUN [--json]",
    "export": "write a run's model as ONNX, verified against its own predictions: detlab export RUN [--out FILE]",
    "replay": "repeat a step that was not finite, and say where it broke down: detlab replay crash.pt [--json]",
    "rerun": "repeat a run in a new folder, and say what differs now: detlab rerun RUN [overrides] [--dry-run], or SWEEP --failed",
    "report": "say which run of a sweep was best, and what became of the others: detlab report SWEEP|FOLDER [--out DIR] [--json]",
    "bench": "time detlab against the plain torchvision loop: detlab bench [bench=train|...] [overrides] [--json]",
    "validate": "say what is wrong with a data set, image by image: detlab validate [overrides] [--no-decode] [--json]",
    "show": "draw samples as the model will see them, and tell a data set's statistics: detlab show [overrides] [--part train]",
    "completion": 'let the shell complete commands, keys and choices: eval "$(detlab completion)"',
}


def usage() -> str:
    """The text of `detlab --help`."""
    lines = [f"  {name:<10} {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            f"detlab {__version__}: train, compare and use object detectors on your own data.",
            "",
            "usage: detlab COMMAND ...",
            "",
            *lines,
            "",
            "detlab train --help shows the groups, the keys and examples.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """The console script. Returns the exit status: 0 done, 1 failed, 2 the user's mistake, 130 Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        from detlab.config import did_you_mean

        hint = did_you_mean(command, list(COMMANDS))
        print(f"detlab: no command {command!r}; there are {', '.join(COMMANDS)}.{hint}", file=sys.stderr)
        return 2
    if command == "train":
        from detlab import run

        sys.argv[1:] = rest
        return run.main()
    sys.path.insert(0, os.getcwd())  # a user's own classes lie in the working folder
    try:
        return importlib.import_module(f"detlab.commands.{command}").main(rest)
    except KeyboardInterrupt:
        print("detlab: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        from detlab.jobs import explain

        return explain(error)


if __name__ == "__main__":
    sys.exit(main())
