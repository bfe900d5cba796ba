"""Puts a judge together from the settings and the team's folder: one way, for the gateway and the command line.

<team folder>/rules/*.yaml   rules beside the built-in ones (docs/guard-rules.md), read anew when edited
<team folder>/band.json      thresholds of `sekisho guard calibrate`, in place of the packaged ones
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sekisho.guard.config import GuardConfig
from sekisho.guard.judge import Judge, Leaning
from sekisho.guard.rule_file import RuleError
from sekisho.guard.rules import RuleFolder

if TYPE_CHECKING:  # numpy, which a start without a judge does not need
    from sekisho.guard.band import Band
    from sekisho.guard.classifier import Classifier

PACKAGED_BAND = Path(__file__).with_name("band.json")

_log = logging.getLogger(__name__)


class GuardUnusable(Exception):
    """The guard cannot be put together, so nothing may be answered. The text says what to mend."""


class BandedClassifier:
    """The classifier, its scores cut by a band: `judge.Linear`. Safe in several threads."""

    def __init__(self, classifier: "Classifier", band: "Band") -> None:
        import hashlib

        self.classifier = classifier
        self.band = band
        self.version = f"{classifier.version}-{hashlib.sha256(msgspec.json.encode(band)).hexdigest()[:8]}"

    def lean(self, text: str, language: str) -> Leaning:
        cut = self.band.decide(self.classifier.scores(text, language), language)
        return Leaning(cut.decision, cut.category, cut.confidence, cut.threshold, "classifier" if cut.sure else "band")


def rules_folder(team_folder: Path) -> Path:
    return team_folder / "rules"


def band_file(team_folder: Path) -> Path:
    return team_folder / "band.json"


def build_judge(config: GuardConfig, team_folder: Path) -> Judge:
    """The judge of these settings. Loads about 8 MB. Raises GuardUnusable where rules, model or thresholds are wrong:
    an edit of the rules that is wrong later changes nothing (`RuleFolder.problem`)."""
    return Judge(load_rules(team_folder).current, load_classifier(team_folder), config.languages)


def load_rules(team_folder: Path) -> RuleFolder:
    """The built-in rules and the team's. Raises GuardUnusable with file and line of every problem."""
    try:
        return RuleFolder(rules_folder(team_folder))
    except (RuleError, OSError) as error:
        raise GuardUnusable(f"the guard's rules cannot be used:\n{error}") from error


def load_classifier(team_folder: Path) -> BandedClassifier | None:
    """The packaged model with the team's thresholds, else the packaged ones. None in a package without a model, where
    rules decide alone; the policy version says so. Raises GuardUnusable."""
    from sekisho.guard import classifier

    try:
        model = classifier.Classifier.load()
    except FileNotFoundError:
        _log.error("the guard has no model: rules decide alone")
        return None
    except (OSError, ValueError) as error:
        raise GuardUnusable(f"the guard's model cannot be used: {error}. Install Sekisho again") from error
    return BandedClassifier(model, _own_band(band_file(team_folder), model.version) or _packaged_band(model))


def _packaged_band(model: "Classifier") -> "Band":
    from sekisho.guard.band import Band

    try:
        return Band.load(PACKAGED_BAND)
    except (OSError, ValueError) as error:
        raise GuardUnusable(f"the guard's thresholds cannot be used: {error}. Install Sekisho again") from error


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
