"""A report of everything, with figures made by hand."""

from typing import Any

from sekisho.evaluate.environment import Section
from sekisho.evaluate.figures import Figure, Figures, Interval
from sekisho.evaluate.report.data import (
    Approval,
    Command,
    Comparison,
    ComparisonRow,
    CriterionRow,
    Disagreement,
    EcdfChart,
    FaultCount,
    ForestChart,
    Rating,
    Ratio,
    ReportData,
    Series,
    ThresholdsPart,
    VerdictPart,
)
from sekisho.evaluate.report.signing import public_key

KEY = b"k" * 32
COMMAND = "sekisho bench --seed 1"


def cell(what: str, value: Any, unit: Any = "s", **more: Any) -> Figure:
    return Figure(
        id=f"bench.engine.closed.p1.t256.{what}",
        value=value,
        unit=unit,
        n=80,
        command=COMMAND,
        file="bench.csv",
        **more,
    )


FIGURES = Figures(
    (
        cell("ttft_p95_s", 0.512, interval=Interval(0.45, 0.61, "order statistics")),
        cell("total_p95_s", 9.3, interval_missing="an interval for P95 needs at least 80 values, not 40"),
        cell("success_rate", 0.9875, "share", interval=Interval(0.93, 0.998, "wilson")),
        Figure(id="gate.engine.models", value=True, command="sekisho gate"),
        Figure(id="gate.engine.state", value=False, note="no_end", command="sekisho gate"),
        Figure(id="gate.engine.no_key", value=None, why_null="the engine asks for no key"),
        Figure(id="cold.ttfb_s", value=16.83, unit="s", n=1, interval_missing="one restart", command="sekisho cold"),
        Figure(id="ui.fatal_errors", value=0, unit="count", n=30, attested_by="佐藤"),
        Figure(id="cost.amount", value=None, unit="currency", why_null="no price is set"),
        Figure(id="something.new", value=1.5, unit="ratio"),
    )
)
RATINGS = tuple(
    Rating(rater=who, scores=((("Correctness", "正確性"), points, 2),), adoptable=points == 2, comment=comment)
    for who, points, comment in (("rater-a", 2, ""), ("rater-b", 1, "a wrong cause"))
)
DATA = ReportData(
    run="run_1",
    title=("Evaluation of m", "m の評価"),
    made_at="2026-03-05T18:40:11+09:00",
    notices=(("A quick run.", "簡易実行です。"),),
    verdict=VerdictPart(
        outcome="limited",
        sentence=("Chat only.", "チャットのみ。"),
        a="pass",
        b="fail",
        certain=False,
        reasons=(("A stream broke.", "ストリームが切れました。"),),
        next=(("Measure B again.", "B を測り直します。"),),
    ),
    criteria=(
        CriterionRow(
            id="cold",
            pattern="both",
            name=("First byte after a restart", "再起動直後"),
            threshold=("at most 20 s", "20 秒以下"),
            figure="cold.ttfb_s",
            state="pass",
            certain=False,
        ),
        CriterionRow(
            id="state",
            pattern="B",
            name=("State", "状態"),
            threshold=("yes", "はい"),
            figure="gate.engine.state",
            state="fail",
            why=("The stream ended early.", "ストリームが途中で終わりました。"),
            next=("Put Sekisho in front.", "前段に Sekisho を置きます。"),
        ),
    ),
    figures=FIGURES,
    charts=(EcdfChart(id="ttft", title=("First token", "最初のトークン"), series=(Series(("m", "m"), (1.0, 2.0)),)),),
    exchanges=2184,
    faults=(
        FaultCount(
            kind="no_end",
            count=3,
            means=("no final event", "終了イベントなし"),
            next=("Another version.", "別の版を使います。"),
            example="data: …",
        ),
    ),
    disagreements=(Disagreement(task="en-03", prompt="Summarise.", answer="It rained.", ratings=RATINGS),),
    comparison=Comparison(
        a="m1",
        b="m2",
        sentence=("Not shown.", "まだ言えません。"),
        state="open",
        rows=(ComparisonRow(name=("TTFT", "TTFT"), a="1 s", b="2 s", difference=("2.0", "2.0"), n=24),),
        charts=(ForestChart(id="f", title=("B", "B"), ratios=(Ratio(name=("T", "T"), value=1.1),)),),
    ),
    plan={"seed": 41, "bench": {"parallel": [1, 2, 3]}},
    environment=(Section(("Machine", "マシン"), (("processor", "EPYC"),)),),
    thresholds=ThresholdsPart(
        profile="a40x2",
        sha256="ab" * 32,
        approval=Approval(who="田中", when="2026-02-24", why="first day", run="run_0"),
    ),
    commands=(Command(("All of it", "全体"), "sekisho evaluate --seed 41"),),
    signer=public_key(KEY).hex(),
    data_sha256="cd" * 32,
)
