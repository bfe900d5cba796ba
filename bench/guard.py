"""CPU time of one verdict on texts of 2 and 8 KB, p50 and p99 in milliseconds: views, rules, linear model, whole judge,
beside Presidio's analyzer with patterns only and better-profanity, in the same run.

The rivals live in an environment of their own: `python bench/guard.py --prepare` makes build/guard-rivals-venv."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RIVALS = ROOT / "build" / "guard-rivals-venv"
PACKAGES = ["presidio-analyzer", "better-profanity"]
ROUNDS = 400

_MAIL = {
    "en": "Thank you for the minutes. The figures for the second quarter are in the shared folder, please check them. ",
    "ja": "議事録をありがとうございます。第二四半期の数字は共有フォルダにありますのでご確認ください。",
}

_RIVAL = """
import json, sys, time
texts = json.loads(sys.stdin.readline())
def timed(function, text, rounds):
    for _ in range(2): function(text)
    taken = []
    for _ in range(rounds):
        start = time.thread_time_ns(); function(text); taken.append(time.thread_time_ns() - start)
    taken.sort()
    return [taken[len(taken) // 2] / 1e6, taken[int(len(taken) * .99)] / 1e6]
out = {}
try:
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import NlpArtifacts, NlpEngine
    class NoNlp(NlpEngine):
        def load(self): pass
        def is_loaded(self): return True
        def process_text(self, text, language):
            return NlpArtifacts([], [], [], [], nlp_engine=self, language=language)
        def process_batch(self, texts, language, **kwargs): return ((t, self.process_text(t, language)) for t in texts)
        def is_stopword(self, word, language): return False
        def is_punct(self, word, language): return False
        def get_supported_entities(self): return []
        def get_supported_languages(self): return ["en"]
    registry = RecognizerRegistry(); registry.load_predefined_recognizers()
    analyzer = AnalyzerEngine(registry=registry, nlp_engine=NoNlp())
    analyze = lambda text: analyzer.analyze(text=text, language="en", entities=None)
    out["Presidio analyzer, patterns only"] = {name: timed(analyze, text, 100) for name, text in texts.items()}
except Exception as problem:
    out["Presidio analyzer, patterns only"] = repr(problem)[:200]
try:
    from better_profanity import profanity
    profanity.load_censor_words()
    out["better-profanity"] = {name: timed(profanity.contains_profanity, text, 5) for name, text in texts.items()}
except Exception as problem:
    out["better-profanity"] = repr(problem)[:200]
print(json.dumps(out))
"""


def texts() -> dict[str, str]:
    """Requests of 2 and 8 KB in UTF-8, ja and en."""
    made = {}
    for language, sentence in _MAIL.items():
        for size in (2_048, 8_192):
            whole = (sentence * (size // len(sentence.encode()) + 1)).encode()[:size]
            made[f"{language} {size // 1024} KB"] = whole.decode(errors="ignore")
    return made


def timed(function: Callable[[str], object], text: str) -> list[float]:
    for _ in range(50):
        function(text)
    taken = []
    for _ in range(ROUNDS):
        start = time.thread_time_ns()
        function(text)
        taken.append(time.thread_time_ns() - start)
    taken.sort()
    return [taken[len(taken) // 2] / 1e6, taken[int(len(taken) * 0.99)] / 1e6]


def ours(samples: dict[str, str]) -> dict[str, dict[str, list[float]]]:
    sys.path.insert(0, str(ROOT / "src"))
    from sekisho.guard.assembly import load_linear, load_rules
    from sekisho.guard.judge import Judge
    from sekisho.guard.language import language
    from sekisho.guard.text import plain, views

    nowhere = ROOT / "build" / "no-team-folder"
    rules, linear = load_rules(nowhere).current, load_linear(nowhere)
    if linear is None:
        raise SystemExit("no model: make guard")
    count = iter(range(10**9))

    def whole(text: str) -> object:
        return Judge(rules, linear).judge_text(f"{text[:-6]}{next(count):06}")  # never from the cache

    def by_rules(text: str) -> object:
        readings = views(text)
        return rules().match(readings, language(readings[0].text))

    found = {}
    for name, function in (
        ("views (normalise, undisguise)", views),
        ("views + rules", by_rules),
        ("linear model", lambda text: linear.lean(text, "ja" if text[0] > "\u3000" else "en")),
        ("whole judge", whole),
    ):
        prepared = {key: plain(text) if name == "linear model" else text for key, text in samples.items()}
        found[name] = {key: timed(function, text) for key, text in prepared.items()}
    return found


def rivals(samples: dict[str, str]) -> dict[str, object]:
    python = RIVALS / "bin" / "python"
    if not python.exists():
        return {}
    answer = subprocess.run(
        [python, "-W", "ignore", "-c", _RIVAL],
        input=json.dumps(samples) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        return {"rivals": answer.stderr.strip()[-200:]}
    found: dict[str, object] = json.loads(answer.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prepare", action="store_true", help="install the rivals first")
    parser.add_argument("--json", action="store_true")
    plan = parser.parse_args()
    if plan.prepare:
        subprocess.run([sys.executable, "-m", "venv", RIVALS], check=True)
        subprocess.run([RIVALS / "bin" / "python", "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    samples = texts()
    found: dict[str, object] = {**ours(samples), **rivals(samples)}
    if plan.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{'p50 / p99 in ms':36}" + "".join(f"{name:>18}" for name in samples))
    for name, figures in found.items():
        shown = (
            "".join(f"{f'{figures[key][0]:.3f} / {figures[key][1]:.3f}':>18}" for key in samples)
            if isinstance(figures, dict)
            else f"  {figures}"
        )
        print(f"{name:36}{shown}")


if __name__ == "__main__":
    main()
