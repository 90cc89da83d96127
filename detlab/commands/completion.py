"""`detlab completion`: the shell function that completes commands, and the keys and choices of a run's configuration."""

from __future__ import annotations

import argparse

from detlab.cli import COMMANDS

# Those that take overrides of a run's configuration.
CONFIGURED = ("train", "evaluate", "rerun", "bench", "validate", "show")

# A word with "=" stays one word. Hydra answers for a program without commands, so the command is left out of the line.
SCRIPT = """\
_detlab() {
    local word="${COMP_WORDS[COMP_CWORD]}" command="${COMP_WORDS[1]}" line
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "@COMMANDS@" -- "$word"))
        COMPREPLY=("${COMPREPLY[@]/%/ }")
    elif [[ " @CONFIGURED@ " == *" $command "* ]]; then
        line="detlab ${COMP_LINE#*[[:space:]]"$command"[[:space:]]}"
        COMPREPLY=($(compgen -W "$(COMP_LINE="$line" "${COMP_WORDS[0]}" train -sc query=bash 2>/dev/null)" -- "$word"))
    fi
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _detlab detlab
"""


def script() -> str:
    """What a shell evaluates."""
    return SCRIPT.replace("@COMMANDS@", " ".join(COMMANDS)).replace("@CONFIGURED@", " ".join(CONFIGURED))


def main(argv: list[str]) -> int:
    """Print the function.

    Args:
        argv: the arguments after `detlab completion`.

    Returns:
        0.

    Raises:
        SystemExit: argparse's, on `--help` (0) and on arguments that it does not know (2).
    """
    argparse.ArgumentParser(
        prog="detlab completion",
        description="Prints the function by which bash, and zsh after bashcompinit, completes detlab's commands, and "
        "the keys and choices of a run's configuration.",
        epilog='in ~/.bashrc: eval "$(detlab completion)"',
        allow_abbrev=False,
    ).parse_args(argv)
    print(script(), end="")
    return 0
