"""From the report's data to one HTML file: no scripts, nothing from elsewhere, both languages, paper and screen.

Whatever is written passes `visible` and is escaped; the only markup from code is our own charts and style sheet.
"""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import msgspec
import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from sekisho.evaluate.definitions import LANGUAGES, Language, Words, define, interval_words, pick, value_words
from sekisho.evaluate.figures import Figure
from sekisho.evaluate.report.charts import draw
from sekisho.evaluate.report.data import Chart, CriterionRow, EcdfChart, ForestChart, ReportData
from sekisho.evaluate.report.tables import interval_charts, sections
from sekisho.evaluate.report.text import shortened, visible

ANSWER_LETTERS, PROMPT_LETTERS, EXAMPLE_LETTERS, VALUE_LETTERS = 1500, 600, 400, 600
STYLES = ("page.css", "contents.css", "tables.css", "charts.css", "narrow.css", "print.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def render(data: ReportData, language: Language = "en") -> str:
    """The whole file, unsigned; `language` is shown first, and printed unless the reader chooses the other."""
    template = environment().get_template("template.html.j2")
    return template.render(
        data=data,
        first=language,
        policy=POLICY,
        style=Markup("\n".join(map(asset, STYLES))),
        pages=[_Page(data, each) for each in LANGUAGES],
    )


class _Page:
    """What the template needs for one language."""

    def __init__(self, data: ReportData, language: Language) -> None:
        self.language = language
        self.words = {key: pick(both, language) for key, both in _words().items()}
        self.sections = sections(data.figures, language)
        charts = (*data.charts, *interval_charts(data.figures))
        self.ecdfs = [self._drawn(chart) for chart in charts if isinstance(chart, EcdfChart)]
        self.intervals = [self._drawn(chart) for chart in charts if not isinstance(chart, EcdfChart | ForestChart)]
        compared = data.comparison.charts if data.comparison is not None else ()
        self.forests = [self._drawn(c) for c in (*compared, *(x for x in charts if isinstance(x, ForestChart)))]
        self.criteria = [(row, self._measured(row, data)) for row in data.criteria]
        self.todo = [each for each in self.criteria if each[0].state != "pass"]
        self.plan = flat(data.plan)

    def say(self, both: Words) -> str:
        return pick(both, self.language)

    def cut(self, text: str, limit: int) -> str:
        return shortened(text, limit, self.words["cut"])

    def answer(self, text: str) -> str:
        return self.cut(text, ANSWER_LETTERS)

    def prompt(self, text: str) -> str:
        return self.cut(text, PROMPT_LETTERS)

    def example(self, text: str) -> str:
        return self.cut(text, EXAMPLE_LETTERS)

    def setting(self, text: str) -> str:
        return self.cut(text, VALUE_LETTERS)

    def _drawn(self, chart: Chart) -> dict[str, Any]:
        picture = Markup(draw(chart, self.language))
        return {"title": self.say(chart.title), "note": self.say(chart.note), "picture": picture}

    def _measured(self, row: CriterionRow, data: ReportData) -> dict[str, Any]:
        """The deciding figure in words, with one digit more than elsewhere: it is compared with a threshold."""
        figure: Figure | None = data.figures.get(row.figure) if row.figure else None
        if figure is None:
            return {}
        interval = figure.interval
        return {
            "id": figure.id,
            "name": pick(define(figure.id).full_name, self.language),
            "value": self.words["not_measured"]
            if figure.value is None
            else value_words(figure, self.language, digits=4),
            "interval": "" if interval is None else interval_words(interval, figure.unit, self.language),
            "n": figure.n,
            "missing": figure.interval_missing,
        }


def flat(plan: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as dotted names."""
    rows: list[tuple[str, str]] = []
    for key, value in plan.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += flat(value, f"{name}.")
        elif isinstance(value, list | tuple):
            rows.append((name, ", ".join(map(_told, value)) or "—"))
        else:
            rows.append((name, _told(value)))
    return rows


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_told(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_told, value)) + "]"
    return {None: "—", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


@cache
def _words() -> dict[str, Words]:
    return msgspec.convert(yaml.safe_load(asset("words.yaml")), dict[str, Words])


@cache
def environment() -> Environment:
    """Autoescape on; every value is made visible before it is escaped; a name that is not there is an error."""
    return Environment(
        autoescape=True,
        finalize=_finalise,
        undefined=StrictUndefined,
        loader=FunctionLoader(asset),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _finalise(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    return visible(value) if isinstance(value, str) else value


def asset(name: str) -> str:
    """A file beside this one."""
    return resources.files("sekisho.evaluate.report").joinpath(name).read_text("utf-8")
