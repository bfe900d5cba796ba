"""The wiring: settings become a supervisor with its children, and in the gateway's process a running gateway.

sekisho up  ->  supervise  ->  Supervisor  ->  `python -m sekisho.serve gateway`  ->  Gateway in uvicorn
                                           ->  `python -m sekisho.serve agent`  ->  the control agent
                                           ->  `python -m sekisho.engines.llama_worker` or `….torch_worker`, one a
                                               local model
"""

from sekisho.serve.agent_process import run_agent
from sekisho.serve.gateway_process import build_gateway, run_gateway
from sekisho.serve.plan import Plan, PlanFile, Worker, base_url, database_url, local_url, make_plan
from sekisho.serve.supervising import Announcement, StartFailed, supervise

__all__ = [
    "Announcement",
    "Plan",
    "PlanFile",
    "StartFailed",
    "Worker",
    "base_url",
    "build_gateway",
    "database_url",
    "local_url",
    "make_plan",
    "run_agent",
    "run_gateway",
    "supervise",
]
