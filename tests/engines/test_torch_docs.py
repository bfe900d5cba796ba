"""docs/torch-engine.md tells what there is. Needs no torch."""

import re
from pathlib import Path

import msgspec

from sekisho.kv.policy import PRESETS, KVPolicy, from_plain

PAGE = Path(__file__).parents[2] / "docs" / "torch-engine.md"
WORKER = Path(__file__).parents[2] / "src" / "sekisho" / "engines" / "torch_worker" / "server.py"


def test_every_field_of_the_policy_is_in_the_page() -> None:
    """Each has its row; a simple default that the row names is the one that the policy has."""
    text = PAGE.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text.partition("## The policy")[2], re.MULTILINE))
    defaults = msgspec.to_builtins(KVPolicy())
    assert set(defaults) | {"mode"} <= set(rows)
    assert from_plain({"mode": rows["mode"].strip("`")}) == KVPolicy()
    assert all(f"`{mode}`" in text for mode in PRESETS)
    for name, value in defaults.items():
        told = rows[name].strip("`")
        if isinstance(value, bool | int | float | str) and not rows[name].startswith("see"):
            assert told == str(value).lower(), name
    assert all(f"`{name}` {value}" in rows["level_thresholds"] for name, value in defaults["level_thresholds"].items())


def test_every_route_of_the_worker_is_in_the_page() -> None:
    """Whoever has the key finds each address, those of OpenAI's interface in one line."""
    text = PAGE.read_text(encoding="utf-8")
    routes = re.findall(r"add_(?:get|post|put)\(\"([^\"]+)\"", WORKER.read_text(encoding="utf-8"))
    assert len(routes) > 5
    assert [route for route in routes if not re.search(rf"`(?:GET |PUT )?{re.escape(route)}`", text)] == []
