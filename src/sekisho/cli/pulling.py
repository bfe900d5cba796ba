"""The download behind `sekisho model pull`: from the hub into the home's models, with a bar."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sekisho.cli.failure import NO_NETWORK, CommandFailed
from sekisho.cli.output import Output

if TYPE_CHECKING:
    from sekisho.ops.home import Home
    from sekisho.ops.hub import Progress


def fetch(out: Output, place: "Home", repository: str, wanted: str | None, name: str) -> list[Path]:
    """The files of the model, in order. Raises HubError, and CommandFailed (exit code 4) without a network."""
    import asyncio

    from sekisho.ops.hub_listing import NoNetwork

    place.create()
    try:
        return asyncio.run(_fetch(out, place, repository, wanted))
    except NoNetwork as error:
        advice = (
            f"get the GGUF file of {repository} on another machine, copy it into {place.models}, "
            f"then: sekisho model add {name} --path {place.models}/FILE.gguf"
        )
        raise CommandFailed(str(error), hint=advice, exit_code=NO_NETWORK) from error


async def _fetch(out: Output, place: "Home", repository: str, wanted: str | None) -> list[Path]:
    from sekisho.ops.hub import Hub
    from sekisho.ops.hub_listing import choose

    async with Hub.open(os.environ) as hub:
        chosen = choose(await hub.files(repository), wanted)
        folder = place.models / repository.replace("/", "--")
        targets = []
        for file in chosen:
            target = folder / file.name
            with _bar(out) as report:
                fetched = await hub.fetch(repository, file, target, report)
            out.say("model_fetched" if fetched else "model_here", file=target)
            targets.append(target)
        return targets


@contextmanager
def _bar(out: Output) -> "Iterator[Callable[[Progress], None]]":
    """Speed and remaining time on standard error; silent for machines."""
    if out.as_json:
        yield lambda progress: None
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(binary_units=True),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=out.console(error=True)) as bar:
        task = bar.add_task("", total=None)

        def report(progress: "Progress") -> None:
            description = progress.file if progress.state == "downloading" else f"{progress.file} ({progress.state})"
            bar.update(task, description=description, total=progress.total_bytes, completed=progress.done_bytes)

        yield report
