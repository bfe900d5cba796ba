"""Runtime profiles: what a model gets on a known machine where its own settings say nothing (SPEC G2).

A profile fills gaps only. The order, strongest first: the model's own line in sekisho.yaml, SEKISHO_CONTEXT and
SEKISHO_DEVICES, the profile, the defaults of `ModelConfig`. The supervisor hands the result on as it is, so a restart
runs with exactly what the first start ran with.
"""

from typing import Final

import msgspec


class Profile(msgspec.Struct, frozen=True):
    """`context` is tokens per slot, `devices` the cards' numbers."""

    context: int
    devices: str | None = None
    gpu_layers: int = -1
    slots: int = 4


PROFILES: Final[dict[str, Profile]] = {
    "cpu": Profile(context=4096, gpu_layers=0, slots=2),
    "a100": Profile(context=8192, devices="0"),
    "a40": Profile(context=4096, devices="0"),
    "a40x2": Profile(context=4096, devices="0,1"),
    "h100": Profile(context=16384, devices="0", slots=8),
    "l4": Profile(context=4096, devices="0", slots=2),
    "l40s": Profile(context=8192, devices="0"),
    "rtx4090": Profile(context=8192, devices="0", slots=2),
    "rtx4090x2": Profile(context=8192, devices="0,1"),
}
