"""Classifier and band together, as the judge asks them: a leaning for a text."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np

from sekisho.guard.band import Band
from sekisho.guard.classifier import PACKAGED, Classifier
from sekisho.guard.judge import Leaning


class LinearModel:
    """`version` changes with the weights and with the thresholds. Safe in several threads."""

    def __init__(self, classifier: Classifier, band: Band) -> None:
        self.classifier = classifier
        self.band = band
        thresholds = hashlib.sha256(msgspec.json.encode(band)).hexdigest()[:6]
        self.version = f"{classifier.version}-{thresholds}"

    @classmethod
    def load(cls, path: Path = PACKAGED) -> LinearModel:
        """The model that comes with the package, with the thresholds stored beside its weights. Raises OSError or
        ValueError."""
        return cls(Classifier.load(path), packaged_band(path))

    def lean(self, text: str, language: str) -> Leaning:
        """`text` in the plain form of `guard.text`."""
        cut = self.band.decide(self.classifier.scores(text, language), language)
        return Leaning(cut.decision, cut.category, cut.confidence, cut.threshold, "classifier" if cut.sure else "band")


def packaged_band(path: Path = PACKAGED) -> Band:
    """The thresholds that were stored with the weights. Raises OSError or ValueError."""
    with np.load(path, allow_pickle=False) as stored:
        if "band" not in stored:
            raise ValueError(f"{path} holds no thresholds")
        return msgspec.json.decode(str(stored["band"]), type=Band)
