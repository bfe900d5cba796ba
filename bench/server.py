"""Our gateway as the benchmarks run it: one process, no supervisor, one upstream, and everything switched on that a
team uses: the key looked up by its hash, all limits set (and never reached), usage made durable for every request.
"""

import argparse
import asyncio
import os
import tempfile
from pathlib import Path

from sqlalchemy import create_engine, update

from sekisho.engines.config import ModelConfig
from sekisho.gateway.config import GatewayConfig, Price
from sekisho.ops.home import Home
from sekisho.serve import Plan, run_gateway
from sekisho.settings import Settings
from sekisho.store import KeySpec, Store, hash_secret
from sekisho.store.schema import key_secrets

_PLENTY = 10**12


async def _make_key(home: Home) -> None:
    store = await Store.open(home.database)
    await store.create_key(
        KeySpec(
            name="bench",
            models=frozenset({"bench"}),
            rpm=_PLENTY,
            tpm=_PLENTY,
            parallel=10_000,
            budget_tokens=_PLENTY,
            budget_cost_micros=_PLENTY,
            networks=("127.0.0.0/8",),
        )
    )
    await store.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--key-file", type=Path, required=True)
    parser.add_argument("--upstream-key-file", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sekisho-bench-home-") as folder:
        home = Home(Path(folder)).create()
        asyncio.run(_make_key(home))
        # All candidates share one key; ours makes its own, so its hash is put in place of the new one's.
        engine = create_engine(f"sqlite:///{home.database}")
        with engine.begin() as connection:
            connection.execute(update(key_secrets).values(secret_hash=hash_secret(arguments.key_file.read_text())))
        engine.dispose()
        model = ModelConfig(
            name="bench",
            engine="openai_http",
            url=arguments.upstream,
            slots=1024,
            api_key_file=str(arguments.upstream_key_file) if arguments.upstream_key_file else None,
        )
        gateway = GatewayConfig(port=arguments.port, prices={"bench": Price(1.0, 2.0)})
        os.environ.pop("DATABASE_URL", None)
        run_gateway(home, Plan(Settings(gateway=gateway, models=(model,)), {}))


if __name__ == "__main__":
    main()
