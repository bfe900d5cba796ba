"""Options that `policy tune`, `compare` and `ablate` share."""

from pathlib import Path
from typing import Annotated

import typer

TriedModelOption = Annotated[
    str | None, typer.Option("--model", help="The model to measure; default: the server's default.")
]
PromptOption = Annotated[
    int | None, typer.Option("--prompt-tokens", min=16, help="Of each prompt; default: half a context, at most 512.")
]
AnswerOption = Annotated[
    int, typer.Option("--answer-tokens", min=8, max=65_536, help="Of each answer, at the shortest measurement.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="The same seed asks in the same order.")]
TextOption = Annotated[
    Path | None, typer.Option("--text", help="Text to measure perplexity on; default: control.quality.text.")
]
ReportOption = Annotated[
    Path | None, typer.Option("--out", help="The report's file; default: below the home's `tuning`.", dir_okay=False)
]
