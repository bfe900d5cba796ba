"""What `sekisho policy tune`, `compare` and `ablate` leave behind: what was measured, on what, and how."""

from typing import Any

import msgspec

from sekisho.control.comparison import Comparison
from sekisho.control.trial_engine import TrialPlan
from sekisho.control.tuner_report import TuningReport
from sekisho.engines.config import ModelConfig
from sekisho.evaluate.ablation_run import Ablation
from sekisho.evaluate.environment import Section


class Side(msgspec.Struct, frozen=True):
    """`name` as it was given; `settings`: what it means for the model, where that is more than its own settings."""

    name: str
    policy: dict[str, Any]
    settings: dict[str, Any]


class TuningRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One of `tuning`, `comparison` (with its two `sides`) and `ablation`. `notes`: what to know when reading it."""

    made_at: str
    command: str
    model: ModelConfig
    plan: TrialPlan
    tuning: TuningReport | None = None
    comparison: Comparison | None = None
    sides: tuple[Side, ...] = ()
    ablation: Ablation | None = None
    notes: tuple[str, ...] = ()
    environment: tuple[Section, ...] = ()
