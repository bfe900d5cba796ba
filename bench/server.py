"""Our gateway as the benchmarks run it: one process, no supervisor, one upstream, and everything switched on that a
team uses: the key looked up by its hash, all limits set (and never reached), usage made durable for every request,
every request and answer judged and written into the book. `--guard off` leaves the judging out.

`--prepare` makes the home folder with its database and key, as a first start would; without it the gateway runs.
"""

import argparse
import os
from pathlib import Path
from typing import Literal

_PLENTY = 10**12
Mode = Literal["off", "basic"]


def prepare(folder: Path, key: str) -> None:
    """A home whose only key is `key`."""
    import asyncio

    from sqlalchemy import create_engine, update

    from sekisho.ops.home import Home
    from sekisho.store import KeySpec, Store, hash_secret
    from sekisho.store.schema import key_secrets

    home = Home(folder).create()
    spec = KeySpec(
        name="bench",
        models=frozenset({"bench"}),
        rpm=_PLENTY,
        tpm=_PLENTY,
        parallel=10_000,
        budget_tokens=_PLENTY,
        budget_cost_micros=_PLENTY,
        networks=("127.0.0.0/8",),
    )

    async def make() -> None:
        store = await Store.open(home.database)
        await store.create_key(spec)
        await store.close()

    asyncio.run(make())
    # All candidates share one key; the store makes its own, so the shared one's hash is put in its place.
    engine = create_engine(f"sqlite:///{home.database}")
    with engine.begin() as connection:
        connection.execute(update(key_secrets).values(secret_hash=hash_secret(key)))
    engine.dispose()


def run(folder: Path, port: int, upstream: str, upstream_key_file: Path | None, guard: Mode) -> None:
    """Blocks until SIGTERM."""
    from sekisho.engines.config import ModelConfig
    from sekisho.gateway.config import GatewayConfig, Price
    from sekisho.guard.config import GuardConfig
    from sekisho.ops.home import Home
    from sekisho.serve import Plan, run_gateway
    from sekisho.settings import Settings

    key_file = str(upstream_key_file) if upstream_key_file else None
    model = ModelConfig(name="bench", engine="openai_http", url=upstream, slots=1024, api_key_file=key_file)
    gateway = GatewayConfig(port=port, prices={"bench": Price(1.0, 2.0)})
    os.environ.pop("DATABASE_URL", None)
    settings = Settings(gateway=gateway, models=(model,), guard=GuardConfig(mode=guard))
    run_gateway(Home(folder), Plan(settings, {}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--prepare", type=Path, metavar="KEY_FILE")
    parser.add_argument("--port", type=int)
    parser.add_argument("--upstream")
    parser.add_argument("--upstream-key-file", type=Path)
    parser.add_argument("--guard", choices=["off", "basic"], default="basic")
    arguments = parser.parse_args()
    if arguments.prepare:
        prepare(arguments.home, arguments.prepare.read_text())
    else:
        run(arguments.home, arguments.port, arguments.upstream, arguments.upstream_key_file, arguments.guard)


if __name__ == "__main__":
    main()
