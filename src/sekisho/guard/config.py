"""Settings of the `guard:` part of sekisho.yaml."""

from typing import Literal

import msgspec

from sekisho.guard.desk_config import EscalationConfig
from sekisho.guard.guard_model import GuardModelConfig

Mode = Literal["off", "basic", "production", "emergency"]


class GuardConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`mode`: `off` decides nothing and says so in the book; `basic` and `production` differ in what an escalation
    does (a ticket at once, or a held request); `emergency` lets only `emergency_allow` through and escalates the rest.
    `test_mode`: decides and records, calls nobody and holds nobody.
    `languages`: what rules and classifier may decide alone; any other language escalates.
    `emergency_allow`: key names that still pass in `emergency`.
    `unsure`: how far the linear classifier counts where no rule agrees. `escalate`: what it decides counts, and what
    it is not sure of escalates. `allow`: what it is not sure of passes, with the finding in the book, and what it would
    refuse goes to a person. None: `allow` in `basic`, `escalate` in the stricter modes.
    `output`: whether answers are judged too. `hold_back_chars`: how much of a stream is held for that,
    where the rules do not need more: never less than their longest match.
    `deadline_s`: a guard that takes longer refuses. `model`: a guard model beside rules and classifier.
    """

    mode: Mode = "basic"
    test_mode: bool = False
    languages: tuple[str, ...] = ("ja", "en")
    emergency_allow: tuple[str, ...] = ()
    unsure: Literal["escalate", "allow"] | None = None
    output: bool = True
    hold_back_chars: int = 128
    deadline_s: float = 5.0
    model: GuardModelConfig | None = None
    escalation: EscalationConfig = EscalationConfig()

    def lets_unsure_pass(self, mode: Mode) -> bool:
        return (self.unsure or ("allow" if mode == "basic" else "escalate")) == "allow"
