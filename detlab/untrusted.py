"""Reading what others wrote: JSON and YAML that may be damaged or hostile, and the file names in them."""

from __future__ import annotations

import json
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from detlab.errors import UserError


def json_of(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or nested so deep that no program means it.
    """
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deep") from None


class WithoutAliases(yaml.SafeLoader):
    """YAML without aliases, nine lines of which can stand for a billion values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases, which no program of ours writes")
        return super().compose_node(parent, index)


def saved_config(text: Any, where: Path) -> DictConfig:
    """A configuration as a run has written it down: resolved, so that nothing in it is looked up, or computed.

    Args:
        text: YAML.
        where: the file, as the error will name it.

    Raises:
        UserError: it is none.
    """
    try:
        content = yaml.load(text, WithoutAliases)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{where}: the configuration in it is not YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{where}: the configuration in it is no mapping.")
    if "${" in str(text):
        raise UserError(
            f"{where}: the configuration in it holds an interpolation (${{...}}), which no run writes down."
        )
    config = OmegaConf.create(content)
    assert isinstance(config, DictConfig)
    return config


def leads_out(name: str) -> bool:
    """Whether a file name in somebody's annotations leads out of the folder that it is relative to; links are not followed."""
    if not ("/" in name or "\\" in name or ":" in name or name == ".."):
        return False
    # By the rules of Windows, which know drives and both slashes.
    path = PureWindowsPath(name)
    depth = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return bool(path.drive or path.root)


def printable(text: str) -> str:
    """A text whose control characters, other than ends of lines, are escaped: a name in a file cannot command a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def texts_of(path: Path) -> list[str]:
    """A YAML file that is a list of texts, as Hydra's overrides.yaml.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else.
    """
    try:
        content = yaml.load(path.read_bytes(), WithoutAliases)
    except (yaml.YAMLError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    if not isinstance(content, list) or not all(isinstance(text, str) for text in content):
        raise ValueError("no list of texts")
    return content


def csv_cell(value: Any) -> str:
    """A value for a CSV, None as nothing. A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else repr(value)
    return f"'{text}" if isinstance(value, str) and text[:1] in tuple("=+-@\t\r") else text
