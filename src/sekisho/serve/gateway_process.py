"""The gateway's process: from the plan to a running gateway."""

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sekisho.core.clock import SystemClock
from sekisho.engines import registry, worker_process
from sekisho.ops.home import Home
from sekisho.serve.plan import Plan, database_url

if TYPE_CHECKING:
    from sekisho.gateway.app import Gateway


def build_gateway(home: Home, plan: Plan) -> "Gateway":
    """Puts the gateway together. Opens nothing yet."""
    from sekisho.console.assets import SECURITY_HEADERS, asset
    from sekisho.gateway import page
    from sekisho.gateway.app import Gateway
    from sekisho.gateway.guarding import Guarding
    from sekisho.gateway.queue import FairQueue
    from sekisho.gateway.roster import Entry, Roster
    from sekisho.gateway.router import Router
    from sekisho.gateway.routes import ROUTES
    from sekisho.gateway.seal import Sealer, load_or_create_key
    from sekisho.ops.denials import DenialLog
    from sekisho.store import Store, UsageSpool

    settings = plan.settings
    config = settings.gateway
    worker_key = os.environ.get(worker_process.KEY_ENV)
    entries = []
    for model in settings.models:
        worker = plan.workers.get(model.name)
        engine = registry.create(
            model,
            worker.url if worker else None,
            worker_key if worker else None,
            Path(worker.log_path) if worker else None,
        )
        queue = FairQueue(model.slots, config.queue_limit, config.queue_timeout_s)
        if model.name in plan.held:
            queue.hold()
        entries.append(Entry(model, engine, queue, worker.url if worker else None))
    default = settings.default_model or (entries[0].name if entries else None)
    database = database_url(home, settings)

    async def open_store() -> Store:
        return await Store.open(database)

    @cache
    def sealer() -> Sealer:
        return Sealer(load_or_create_key(home.secrets / "seal.key"))

    clock = SystemClock()
    escalation = settings.guard.escalation
    if escalation.link_base_url is None and config.public_url is not None:
        escalation = msgspec.structs.replace(escalation, link_base_url=config.public_url)
    guard = msgspec.structs.replace(settings.guard, escalation=escalation)
    habits = {model.name: model.thinking for model in settings.models}
    guarding = Guarding(guard, settings.audit, (home.audit, home.secrets, home.guard), sealer, clock, habits)
    return Gateway(
        config,
        Router((*ROUTES, *page.routes(asset, SECURITY_HEADERS))),
        Roster(entries, settings.aliases, default, config.restart_wait_s, guarding.stage),
        UsageSpool(home.spool, fsync=settings.store.usage_fsync),
        open_store,
        sealer,
        clock,
        settings.store.responses_ttl_days * 86_400,
        guarding,
        DenialLog(home, clock),
    )


def run_gateway(home: Home, plan: Plan) -> None:
    """Serves until SIGTERM. Blocks."""
    # The guard's sums are small: a second thread of numpy's would cost memory and gain nothing.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from sekisho.gateway.server import serve

    serve(build_gateway(home, plan))
