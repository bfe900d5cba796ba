"""Gate results for machines: JSON, and the JUnit XML that build servers show."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

import msgspec

from sekisho.evaluate.behaviour.gate import GateResult
from sekisho.evaluate.client.target import Target

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LANGUAGES = ("en", "ja")


def passed(results: Sequence[GateResult]) -> bool:
    """Nothing failed and something was tried."""
    return all(result.passed is not False for result in results) and any(result.passed for result in results)


def as_json(results: Sequence[GateResult], target: Target) -> dict[str, Any]:
    """JSON types; texts as (English, Japanese)."""
    return {
        "place": target.place,
        "url": target.url,
        "model": target.model,
        "passed": passed(results),
        "gates": msgspec.to_builtins(list(results)),
    }


def as_junit(results: Sequence[GateResult], target: Target, *, language: str = "en", at: float) -> bytes:
    """One test case a gate, with reason, server's words and next step. `at`: seconds since 1970."""
    name = f"sekisho.gate.{target.place}"
    seconds = sum(result.ms or 0.0 for result in results) / 1e3
    counts = {
        "tests": str(len(results)),
        "failures": str(sum(result.passed is False for result in results)),
        "errors": "0",
        "skipped": str(sum(result.passed is None for result in results)),
        "time": f"{seconds:.3f}",
    }
    suites = ElementTree.Element("testsuites", counts)
    stamp = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    suite = ElementTree.SubElement(suites, "testsuite", {"name": name, **counts, "timestamp": stamp})
    properties = ElementTree.SubElement(suite, "properties")
    for field, value in (("url", target.url), ("model", target.model)):
        ElementTree.SubElement(properties, "property", {"name": field, "value": _visible(value)})
    for result in results:
        _case(suite, name, result, _LANGUAGES.index(language))
    ElementTree.indent(suites)
    body: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return body + b"\n"


def _case(suite: ElementTree.Element, name: str, result: GateResult, language: int) -> None:
    times = {"time": f"{(result.ms or 0.0) / 1e3:.3f}"}
    case = ElementTree.SubElement(suite, "testcase", {"classname": name, "name": result.gate, **times})
    reason, following = result.reason[language], result.next[language]
    if result.passed is None:
        ElementTree.SubElement(case, "skipped", {"message": reason})
    elif not result.passed:
        failure = ElementTree.SubElement(case, "failure", {"type": result.kind, "message": reason})
        status = f"HTTP {result.status}" if result.status is not None else ""
        failure.text = _visible("\n".join(part for part in (status, result.words, following) if part))
    seen = [f"{fault.kind}: {fault.detail}".rstrip(": ") for fault in result.faults if not fault.fails]
    seen += [result.note[language]] if result.note[language] else []
    if seen:
        ElementTree.SubElement(case, "system-out").text = _visible("\n".join(seen))


def _visible(text: str) -> str:
    """Servers' words may hold what XML has no place for."""
    return _NOT_XML.sub("�", text)
