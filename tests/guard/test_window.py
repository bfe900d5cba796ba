"""The window in which an answer is held back is wide enough for every rule that could stop it."""

from pathlib import Path

from sekisho.core.events import Finished, TextDelta
from sekisho.guard.config import GuardConfig
from sekisho.guard.judge import OUTPUT, Judge
from sekisho.guard.output import OutputOptions, OutputWatch
from sekisho.guard.rules import RuleSet
from sekisho.guard.window import longest_match, stops_answers

RULE = """
rules:
  - id: team.long
    category: other
    decision: refuse
    severity: high
    any: ['alpha.{0,200}beta.{0,200}omega']
    tests:
      match: [alpha and beta then omega, alphabetaomega]
      pass: [alpha alone, omega alone]
"""


def test_the_window_is_as_wide_as_the_longest_built_in_match() -> None:
    """The page of settings names the figure."""
    longest = longest_match(RuleSet.load().rules)
    assert longest > GuardConfig().hold_back_chars
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert f"(built-in rules: {longest})" in page


def test_a_rule_of_the_team_widens_it(tmp_path: Path) -> None:
    """A longer pattern of one's own is never cut by the window."""
    (tmp_path / "own.yaml").write_text(RULE, encoding="utf-8")
    rules = RuleSet.load(tmp_path)
    assert Judge(lambda: rules, None).longest_match() >= 410


def test_orders_to_a_model_end_no_answer() -> None:
    """An answer that quotes an injection is no attack; every other refusal counts in it."""
    rules = RuleSet.load()
    judge = Judge(lambda: rules, None)
    injections = [rule for rule in rules.rules if rule.category == "injection" and rule.decision == "refuse"]
    assert injections
    assert not any(stops_answers(rule) for rule in injections)
    for rule in injections:
        for text in rule.match_tests:
            found = judge.judge_text(text, "assistant", OUTPUT).findings
            assert all(finding.category != "injection" for finding in found)


def test_no_rule_that_ends_answers_lets_its_match_out() -> None:
    """Every own test of every such rule, cut into single characters behind harmless text: nothing of it that reaches
    to the match's end leaves."""
    rules = RuleSet.load()
    judge = Judge(lambda: rules, None)
    window = max(GuardConfig().hold_back_chars, judge.longest_match())
    for rule in rules.rules:
        if not stops_answers(rule):
            continue
        for text in rule.match_tests:
            watch = OutputWatch(lambda said: judge.judge_text(said, "assistant", OUTPUT), OutputOptions(window))
            out = [event for letter in f"Well. {text}" for event in watch.feed([TextDelta(letter)])]
            out += watch.feed([Finished("stop")])
            said = "".join(event.text for event in out if isinstance(event, TextDelta))
            assert watch.refused, (rule.id, text)
            assert text not in said
