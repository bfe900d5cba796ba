"""`sekisho model list|add|pull|recommend|export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekisho.cli import quantities
from sekisho.cli.failure import ABSENT, USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, at_home, example, settings_of
from sekisho.cli.output import Output, plain

if TYPE_CHECKING:
    from sekisho.engines.config import ModelConfig
    from sekisho.ops.catalogue import Rejection
    from sekisho.ops.doctor import Finding
    from sekisho.ops.home import Home

app = typer.Typer(
    help="Models: what is set up, what fits this machine, where to get it.",
    epilog=example("sekisho model recommend", "sekisho model pull qwen3-4b", ja="モデルを選び、取得します。"),
    no_args_is_help=True,
)

ContextOption = Annotated[int | None, typer.Option("--context", min=1, help="Tokens per slot.")]
SlotsOption = Annotated[int | None, typer.Option("--slots", min=1, help="Requests at once.")]


@app.command("list", epilog=example("sekisho model list", ja="設定にあるモデルと一覧を表示します。"))
def listing(
    catalogue: Annotated[bool, typer.Option("--catalogue", help="Also the models that `pull` knows by name.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the models of the settings, and whether their files are there."""
    from sekisho.ops.catalogue import catalogue as known

    out, place = Output(as_json=as_json), at_home(home)
    settings = settings_of(place)
    entries = known() if catalogue else ()
    models = [
        {**plain(model), "present": _present(model), "aliases": _aliases(settings.aliases, model.name)}
        for model in settings.models
    ]
    out.json({"models": models, **({"catalogue": entries} if catalogue else {})})
    rows = [
        (model.name, model.engine, _source(model), model.context if model.has_worker else None, model.slots)
        for model in settings.models
    ]
    out.table(out.columns("name", "engine", "source", "context", "slots"), rows)
    if catalogue:
        out.line()
        shown = [
            (e.name, f"{e.parameters_b:g}B", f"{e.size_gib:g} GiB", ", ".join(e.languages), e.licence) for e in entries
        ]
        out.table(["pull", out.text("parameters"), "GGUF", "ja/en", out.text("licence")], shown)


def _aliases(aliases: dict[str, str], name: str) -> list[str]:
    return sorted(alias for alias, target in aliases.items() if target == name)


def _present(model: "ModelConfig") -> bool | None:
    """Whether the file is there; None where no file is needed."""
    if not model.has_worker or model.path is None or model.path == "builtin":
        return None
    path = Path(model.path).expanduser()
    return path.is_file() or (model.engine == "torch" and path.is_dir())


def _source(model: "ModelConfig") -> str:
    source = model.url or model.path or model.engine
    return f"{source} (missing)" if _present(model) is False else source


@app.command(
    "add",
    epilog=example(
        "sekisho model add office --path model.gguf", "sekisho model add ./Qwen3-8B", ja="モデルを設定に加えます。"
    ),
)
def add(
    name: Annotated[
        str,
        typer.Argument(
            help="What clients call the model; or a Hugging Face model's folder, which then gives the name."
        ),
    ],
    path: Annotated[
        Path | None, typer.Option("--path", help="A GGUF file, a Hugging Face model's folder, or `builtin`.")
    ] = None,
    url: Annotated[str | None, typer.Option("--url", help="An OpenAI-compatible address, ending in /v1.")] = None,
    upstream_model: Annotated[str | None, typer.Option("--upstream-model", help="Its name there.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", help="Environment variable that holds the key for that address.")
    ] = None,
    context: ContextOption = None,
    slots: SlotsOption = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="It makes embeddings.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a model to sekisho.yaml; comments in the file stay as they are."""
    out, place = Output(as_json=as_json), at_home(home)
    if path is None and url is None and Path(name).expanduser().is_dir():
        path = Path(name).expanduser().resolve()
        name = path.name.lower().replace(" ", "-")
    if (path is None) == (url is None):
        raise CommandFailed("one of --path and --url is needed", exit_code=USAGE)
    settings_of(place)  # a file that is wrong is told as such, before anything is added to it
    fields: dict[str, Any] = {"name": name, "embeddings": embeddings}
    if url is not None:
        fields |= {"engine": "openai_http", "url": url, "upstream_model": upstream_model, "api_key_env": api_key_env}
    else:
        fields |= _local_model(out, name, str(path))
    fields |= {key: value for key, value in (("context", context), ("slots", slots)) if value is not None}
    model = _into_settings(place, fields)
    lacking = _lacking(model)
    out.json({"added": model, "path": str(place.settings_file), "findings": lacking})
    out.say("model_added", name=name, path=place.settings_file)
    for finding in lacking:
        what, why, fix = finding.told(out.language)
        out.warn(f"{what}: {why}")
        out.say("model_first", command=fix)
    out.say("model_restart")


def _local_model(out: Output, name: str, path: str) -> dict[str, Any]:
    """What the settings say of a file, for llama.cpp, or of a folder, for torch. Raises CommandFailed."""
    from sekisho.ops.doctor.torch_models import folder_fault

    folder = Path(path).expanduser().absolute()
    if path == "builtin" or not folder.is_dir():
        return {"path": _model_file(path)}
    fault = folder_fault(name, folder)
    if fault is not None:
        what, why, fix = fault.told(out.language)
        raise CommandFailed(f"{what}: {why}", hint=fix, details={"case": fault.case})
    return {"engine": "torch", "path": str(folder)}


def _lacking(model: "ModelConfig") -> "list[Finding]":
    """What must be installed before the model can run."""
    from sekisho.ops.doctor.torch_models import check_packages

    found = check_packages([model.name]) if model.engine == "torch" else []
    return [finding for finding in found if finding.severity == "error"]


def _model_file(path: str) -> str:
    """The absolute path of a GGUF file. Raises CommandFailed."""
    from sekisho.engines.gguf_header import problem

    if path == "builtin":
        return path
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise CommandFailed(f"{file}: no such file", exit_code=ABSENT)
    fault = problem(file)
    if fault is not None:
        raise CommandFailed(f"{file}: {fault}")
    return str(file)


def _into_settings(place: "Home", fields: dict[str, Any]) -> "ModelConfig":
    from sekisho.engines.config import ModelConfig
    from sekisho.settings import add_model, write_text

    model = ModelConfig(**fields)
    place.create()
    file = place.settings_file
    text = file.read_bytes().decode("utf-8-sig") if file.exists() else ""
    write_text(file, add_model(text, model, str(file)))
    return model


@app.command("pull", epilog=example("sekisho model pull qwen3-4b", ja="モデルを取得します（続きから再開できます）。"))
def pull(
    model: Annotated[str, typer.Argument(help="A name of the catalogue, or owner/repository on the Hugging Face hub.")],
    file: Annotated[
        str | None, typer.Option("--file", help="Which GGUF: a name, a pattern, or Q4_K_M and the like.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What clients call it; default: its name here.")] = None,
    no_add: Annotated[bool, typer.Option("--no-add", help="Fetch only; leave sekisho.yaml alone.")] = False,
    context: ContextOption = None,
    slots: SlotsOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a model, check it, add it. A broken download goes on where it stopped."""
    from sekisho.cli import pulling
    from sekisho.ops import catalogue

    out, place = Output(as_json=as_json), at_home(home)
    settings = settings_of(place)
    entry = catalogue.find(model)
    if entry is None and "/" not in model:
        known = ", ".join(e.name for e in catalogue.catalogue())
        raise CommandFailed(
            f"{model}: not in the catalogue", hint=f"known: {known}; or owner/repository", exit_code=ABSENT
        )
    repository = entry.repo if entry is not None else model
    called = name or (entry.name if entry is not None else _short(repository))
    wanted = file or (entry.file if entry is not None else None)
    files = pulling.fetch(out, place, repository, wanted, called)
    report = {"files": [str(f) for f in files], "repository": repository, "model": called, "added": False}
    existing = settings.model(called)
    if not no_add and existing is None:
        fields: dict[str, Any] = {"name": called, "path": str(files[0])}
        fields |= {key: value for key, value in (("context", context), ("slots", slots)) if value is not None}
        fields["embeddings"] = entry is not None and entry.use == "embedding"
        _into_settings(place, fields)
        report["added"] = True
        out.say("model_added", name=called, path=place.settings_file)
        out.say("model_restart")
    elif existing is not None and not no_add:
        out.say("model_in_config", name=called)
    out.json(report)


def _short(repository: str) -> str:
    return repository.rsplit("/", 1)[-1].lower().removesuffix("-gguf")


@app.command(
    "recommend", epilog=example("sekisho model recommend --language ja", ja="このマシンに合うモデルを勧めます。")
)
def recommend(
    context: Annotated[int, typer.Option("--context", min=256, help="Tokens per slot.")] = 4096,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Requests at once.")] = 4,
    kv_type: Annotated[str, typer.Option("--kv-type", help="Type of the KV cache: f16, q8_0, q4_0, …")] = "f16",
    use: Annotated[str, typer.Option("--use", help="chat or embedding.")] = "chat",
    language: Annotated[
        str | None, typer.Option("--language", help="As in ja: models that know it, the best first.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what does not fit, and why.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which models fit this machine: weights, KV cache and overhead against free memory."""
    from sekisho.engines.kv_size import KV_BITS
    from sekisho.ops import catalogue, hardware

    out, place = Output(as_json=as_json), at_home(home)
    _one_of("--kv-type", kv_type, sorted(KV_BITS))
    _one_of("--use", use, ["chat", "embedding"])
    wish = catalogue.Wish(context, slots, kv_type, use, language)  # type: ignore[arg-type]  # checked just above
    machine = hardware.detect(place.path)
    advice = catalogue.recommend(machine, wish)
    out.json({"hardware": machine, "wish": wish, "recommended": advice.fitting, "rejected": advice.rejected})
    ram, vram = quantities.gibibytes(machine.ram_available_bytes), quantities.gibibytes(machine.vram_free_bytes)
    title = out.text("recommend_title", slots=slots, context=context, ram=ram, vram=vram)
    rows = [
        (
            choice.entry.name,
            f"{choice.entry.parameters_b:g}B {choice.entry.quantisation}",
            quantities.gibibytes(choice.need.total_bytes),
            choice.placement if choice.quick else out.text("slowly", place=choice.placement),
            f"{choice.context_possible:,}",
            choice.entry.note,
        )
        for choice in advice.fitting
    ]
    heads = out.columns("name", "parameters", "memory", "runs_on", "longest", "note")
    if rows:
        out.table(heads, rows, title=title)
        out.say("recommend_pull", name=advice.fitting[0].entry.name)
    else:
        out.line(title)
        out.say("recommend_none")
    if everything and advice.rejected:
        _show_rejected(out, advice.rejected)


def _show_rejected(out: Output, rejected: "tuple[Rejection, ...]") -> None:
    rows = [
        (r.entry.name, f"{r.entry.parameters_b:g}B", quantities.gibibytes(r.need.total_bytes), r.reason)
        for r in rejected
    ]
    out.line()
    out.table(out.columns("name", "parameters", "memory", "why"), rows)


def _one_of(option: str, value: str, valid: list[str]) -> None:
    if value not in valid:
        raise CommandFailed(f"{option}: {value!r} is not known", hint=f"one of {', '.join(valid)}", exit_code=USAGE)


@app.command(
    "export",
    epilog=example("sekisho model export sekisho-mini --to mini", ja="内蔵モデルを safetensors に書き出します。"),
)
def export(
    name: Annotated[str, typer.Argument(help="sekisho-mini: the built-in model is the only one that can be exported.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write.")],
    as_json: JsonOption = False,
) -> None:
    """Write the built-in model as safetensors, for engines on torch."""
    out = Output(as_json=as_json)
    if name != "sekisho-mini":
        raise CommandFailed(f"{name}: only sekisho-mini can be exported", exit_code=ABSENT)
    try:
        from sekisho.engines.builtin import safetensors
    except ImportError as error:
        raise _extra_missing(error) from error
    folder = to.expanduser().absolute()
    try:
        files = sorted(file.name for file in safetensors.export(folder))
    except ImportError as error:
        raise _extra_missing(error) from error
    out.json({"folder": str(folder), "files": files})
    out.say("model_exported", folder=folder, count=len(files))


def _extra_missing(error: ImportError) -> CommandFailed:
    return CommandFailed(f"{error.name or error} is not installed", hint='pip install "sekisho[mini]"')
