"""Puts a judge together from the settings and the team's folder: one way, for the gateway and the command line.

<team folder>/rules/*.yaml   rules beside the built-in ones (docs/guard-rules.md), read anew when edited
<team folder>/band.json      thresholds of `sekisho guard calibrate`, in place of the packaged ones
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

from sekisho.guard.config import GuardConfig
from sekisho.guard.judge import Judge
from sekisho.guard.rule_file import RuleError
from sekisho.guard.rules import RuleFolder

if TYPE_CHECKING:  # numpy, which a start without a judge does not need
    from sekisho.guard.band import Band
    from sekisho.guard.linear import LinearModel

_log = logging.getLogger(__name__)


class GuardUnusable(Exception):
    """The guard cannot be put together, so nothing may be answered. The text says what to mend."""


def rules_folder(team_folder: Path) -> Path:
    return team_folder / "rules"


def band_file(team_folder: Path) -> Path:
    return team_folder / "band.json"


def build_judge(config: GuardConfig, team_folder: Path) -> Judge:
    """The judge of these settings. Loads about 16 MB. Raises GuardUnusable where rules, model or thresholds are wrong:
    an edit of the rules that is wrong later changes nothing (`RuleFolder.problem`)."""
    return Judge(load_rules(team_folder).current, load_linear(team_folder), config.languages)


def load_rules(team_folder: Path) -> RuleFolder:
    """The built-in rules and the team's. Raises GuardUnusable with file and line of every problem."""
    try:
        return RuleFolder(rules_folder(team_folder))
    except (RuleError, OSError) as error:
        raise GuardUnusable(f"the guard's rules cannot be used:\n{error}") from error


def load_linear(team_folder: Path) -> "LinearModel":
    """The packaged model with the team's thresholds, else the packaged ones. Raises GuardUnusable: rules alone would
    let through what they do not know."""
    from sekisho.guard.linear import LinearModel

    try:
        model = LinearModel.load()
    except (OSError, ValueError, BadZipFile, EOFError) as error:
        raise GuardUnusable(f"the guard's model cannot be used: {error}. Install Sekisho again") from error
    band = _own_band(band_file(team_folder), model.classifier.version)
    return model if band is None else LinearModel(model.classifier, band)


def _own_band(path: Path, model_version: str) -> "Band | None":
    """The team's thresholds; None where there are none, or they were made for another model."""
    from sekisho.guard.band import Band

    try:
        band = Band.load(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise GuardUnusable(f"{path} cannot be used: {error}. Remove it, or: sekisho guard calibrate") from error
    if made_for(model_version) not in band.notes:
        _log.warning("%s was made for another model and is not used: sekisho guard calibrate", path)
        return None
    return band


def made_for(model_version: str) -> str:
    """The note of a band that names the model whose scores it cuts."""
    return f"model {model_version}"
