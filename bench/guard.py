"""CPU time of one verdict on texts of 2 and 8 KB: views, rules, linear model, whole judge, redaction of personal data;
beside Presidio's analyzer with patterns only and a linear model in scikit-learn, in the same run.

Hundreds of different texts of each kind, each several times; of a text the least time counts, which is what it costs
while nothing else disturbs, and p50, p99 and the worst are over texts. The rivals live in an environment of their own:
`python bench/guard.py --prepare` makes build/guard-rivals-venv."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RIVALS = ROOT / "build" / "guard-rivals-venv"
PACKAGES = ["presidio-analyzer", "scikit-learn"]
SIZES = (2_048, 8_192)
TEXTS, REPEATS = 320, 5
RIVAL_TEXTS, RIVAL_REPEATS = 16, 3

_PLAIN = {
    "en": """Thank you for the minutes of yesterday's meeting.
The figures for the second quarter are in the shared folder, please check them before Friday.
We moved the workshop to the large room on the third floor because more people want to come.
Could you tell me whether the new supplier has confirmed the date?
The train was late, so I missed the first half of the talk about databases.
My colleague wrote a summary of the three options, with costs and risks of each.
Please translate the attached paragraph into Japanese and keep the tone polite.
The garden needs water every second day while it is as hot as this.
In the first chapter the author explains how prices are formed in a small market.
Our customers asked for a shorter form, and the designers have drawn two drafts.
It rained all weekend, so we stayed at home and cooked soup with beans and bread.
The function returns an empty list when the file has no lines.
Which of these two sentences is better in a letter to a school?
The museum opens at ten and closes at six, except on Mondays.""",
    "ja": """昨日の議事録をありがとうございます。
第二四半期の数字は共有フォルダにありますので、金曜日までにご確認ください。
参加者が増えたため、研修の会場を三階の大会議室に変更しました。
新しい取引先から納期の回答があったかどうか教えてください。
電車が遅れて、データベースについての講演の前半を聞き逃しました。
三つの案について、費用と利点をまとめた資料を作りました。
次の段落を英語に翻訳し、丁寧な文体にしてください。
暑い日が続くので、庭の花には一日おきに水をやっています。
第一章では、小さな市場で価格がどのように決まるかを説明しています。
お客様から入力欄を減らしてほしいという要望があり、画面を二つ考えました。
週末は雨だったので、家で豆のスープを作りました。
ファイルが空のとき、この関数は空のリストを返します。
美術館は十時に開き、六時に閉まります。月曜日は休館です。
この二つの文のうち、学校への手紙に合うのはどちらですか。""",
}

_RIVAL = """
import json, sys, time
kinds, training, repeats = json.loads(sys.stdin.readline())
def timed(function):
    out = {}
    for kind, texts in kinds.items():
        function(texts[0])
        taken = []
        for text in texts:
            least = 1 << 62
            for _ in range(repeats):
                start = time.thread_time_ns(); function(text); least = min(least, time.thread_time_ns() - start)
            taken.append(least / 1e6)
        out[kind] = taken
    return out
out, versions = {}, {}
def tried(name, package, make):
    from importlib.metadata import version
    try:
        versions[package] = version(package)
        out[name] = timed(make())
    except Exception as problem:
        out[name] = repr(problem)[:200]
def presidio():
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
    return lambda text: analyzer.analyze(text=text, language="en", entities=None)
def scikit():
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import SGDClassifier
    vectorizer = HashingVectorizer(analyzer="char", ngram_range=(1, 5), n_features=1 << 18)
    model = SGDClassifier(loss="log_loss", max_iter=5, tol=None)
    model.fit(vectorizer.transform([text for text, _ in training]), [label for _, label in training])
    return lambda text: model.predict_proba(vectorizer.transform([text]))
tried("scikit-learn, hashed 1- to 5-grams", "scikit-learn", scikit)
tried("Presidio analyzer, patterns only", "presidio-analyzer", presidio)
print(json.dumps([out, versions]))
"""


def texts() -> dict[str, list[str]]:
    """Different texts of each kind: plain prose in both languages, and cuts of the pages in docs/."""
    made: dict[str, list[str]] = {}
    chance = random.Random(1)
    pages = "\n".join(path.read_text() for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])).encode()
    for size in SIZES:
        for language, lines in _PLAIN.items():
            made[f"{language} {size // 1024} KB"] = [
                _cut(_sentences(lines.splitlines(), size, chance), 0, size) for _ in range(TEXTS)
            ]
        step = (len(pages) - size) // TEXTS
        made[f"pages {size // 1024} KB"] = [_cut(pages, start * step, size) for start in range(TEXTS)]
    return made


def _sentences(lines: list[str], size: int, chance: random.Random) -> bytes:
    told = b""
    while len(told) < size:
        told += " ".join(chance.sample(lines, len(lines))).encode() + f" {chance.randrange(10**6)}\n".encode()
    return told


def _cut(data: bytes, start: int, size: int) -> str:
    return data[start : start + size].decode(errors="ignore")


def timed(function: Callable[[str], object], kind: Iterable[str]) -> list[float]:
    """Milliseconds of each text, the least of several times."""
    taken = []
    for text in kind:
        least = 1 << 62
        for _ in range(REPEATS):
            start = time.thread_time_ns()
            function(text)
            least = min(least, time.thread_time_ns() - start)
        taken.append(least / 1e6)
    return taken


def ours(samples: dict[str, list[str]]) -> dict[str, dict[str, list[float]]]:
    sys.path.insert(0, str(ROOT / "src"))
    from sekisho.guard.assembly import load_linear, load_rules
    from sekisho.guard.judge import Judge
    from sekisho.guard.language import language
    from sekisho.guard.personal import redact
    from sekisho.guard.text import View, views

    nowhere = ROOT / "build" / "no-team-folder"
    rules, linear = load_rules(nowhere).current, load_linear(nowhere)
    if linear is None:
        raise SystemExit("no model: make guard")
    read: dict[str, tuple[View, ...]] = {text: views(text) for kind in samples.values() for text in kind}
    spoken = {text: language(readings[0].text) for text, readings in read.items()}

    def whole(text: str) -> object:
        return Judge(rules, linear).judge_text(text)  # a new one: nothing is cached

    found: dict[str, dict[str, list[float]]] = {}
    steps: tuple[tuple[str, Callable[[str], object]], ...] = (
        ("views (normalise, undisguise)", views),
        ("rules", lambda text: rules().match(read[text], spoken[text])),
        ("linear model, plain view", lambda text: linear.lean(read[text][0].text, spoken[text])),
        ("whole judge", whole),
        ("redaction of personal data", redact),
    )
    for name, function in steps:
        found[name] = {kind: timed(function, chosen) for kind, chosen in samples.items()}
    return found


def rivals(samples: dict[str, list[str]]) -> tuple[dict[str, object], dict[str, str]]:
    python = RIVALS / "bin" / "python"
    if not python.exists():
        return {}, {}
    few = {kind: chosen[:: TEXTS // RIVAL_TEXTS] for kind, chosen in samples.items()}
    lines = (ROOT / "tests" / "guard" / "heldout.jsonl").read_text().splitlines()
    training = [(one["text"], one["decision"]) for one in map(json.loads, lines)]
    answer = subprocess.run(
        [python, "-W", "ignore", "-c", _RIVAL],
        input=json.dumps([few, training, RIVAL_REPEATS]) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        return {"rivals": answer.stderr.strip()[-200:]}, {}
    found, versions = json.loads(answer.stdout.splitlines()[-1])
    return found, versions


def share(taken: list[float], part: float) -> float:
    return sorted(taken)[min(len(taken) - 1, int(len(taken) * part))]


def table(found: dict[str, object], kinds: Iterable[str]) -> list[str]:
    """Rows of Markdown: p50, p99 and the worst, and how many times the whole judge's p50."""
    judge = found["whole judge"]
    assert isinstance(judge, dict)
    rows = ["| CPU ms: p50, p99, worst (times the judge's p50) | " + " | ".join(kinds) + " |"]
    rows.append("| --- |" + " --- |" * len(judge))
    for name, figures in found.items():
        if not isinstance(figures, dict):
            rows.append(f"| {name} | {figures} |")
            continue
        cells = [
            f"{share(taken, 0.5):.2f}, {share(taken, 0.99):.2f}, {max(taken):.2f}"
            f" (× {share(taken, 0.5) / share(judge[kind], 0.5):.1f})"
            for kind, taken in figures.items()
        ]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prepare", action="store_true", help="install the rivals first")
    parser.add_argument("--json", action="store_true")
    plan = parser.parse_args()
    if plan.prepare:
        subprocess.run([sys.executable, "-m", "venv", RIVALS], check=True)
        subprocess.run([RIVALS / "bin" / "python", "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    samples = texts()
    others, versions = rivals(samples)
    found: dict[str, object] = {**ours(samples), **others}
    if plan.json:
        print(json.dumps({"ms": found, "versions": versions}, indent=2))
        return
    print("\n".join(table(found, samples)))
    print(f"\nPython {sys.version.split()[0]}, " + ", ".join(f"{name} {number}" for name, number in versions.items()))


if __name__ == "__main__":
    main()
