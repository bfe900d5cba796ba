"""What the agent answered to a change of policy, told."""

from typing import Any

from sekisho.cli.output import Output
from sekisho.cli.policy_fields import short


def tell(out: Output, answer: dict[str, Any]) -> None:
    """What changed, and what each engine said to it; for people."""
    for field, (old, new) in answer["changed"].items():
        out.line(f"  {field}: {short(old)} → {short(new)}", style="bold")
    rows = [
        (
            each["model"],
            each["field"],
            out.text(f"effect_{each['effect']}"),
            short(each.get("value")),
            each.get("reason"),
        )
        for each in answer["applied"]
        if each["effect"] != "unchanged"
    ]
    if rows:
        out.table(out.columns("model", "setting", "effect", "value", "reason"), rows, unbroken=2)
    key = "policy_would" if answer["dry_run"] else "policy_done"
    out.say(key, version=answer["version"], outcome=out.text(f"outcome_{answer['outcome']}"))
