"""`python -m sekisho.serve gateway|agent`: a child of the supervisor."""

import argparse
import sys
from pathlib import Path

import msgspec

from sekisho.core.errors import EngineUnavailable
from sekisho.ops.child import EXIT_CONFIGURATION, die_with_parent
from sekisho.ops.home import Home
from sekisho.serve.agent_process import run_agent
from sekisho.serve.gateway_process import run_gateway
from sekisho.serve.plan import Plan


def main() -> int:
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m sekisho.serve")
    parser.add_argument("process", choices=["gateway", "agent"])
    parser.add_argument("--home", required=True, type=Path)
    arguments = parser.parse_args()
    home = Home.find(arguments.home)
    try:
        plan = msgspec.json.decode((home.run / "plan.json").read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        print(f"{home.run / 'plan.json'} cannot be read ({error}): start with `sekisho up`", file=sys.stderr)  # noqa: T201
        return EXIT_CONFIGURATION
    return _run_agent_process(home, plan) if arguments.process == "agent" else _run_gateway_process(home, plan)


def _run_agent_process(home: Home, plan: Plan) -> int:
    from sekisho.control.policy_book import PolicyBookError
    from sekisho.control.policy_changes import PolicyProblem
    from sekisho.gateway.log_lines import log_to_stderr

    log_to_stderr()
    try:
        run_agent(home, plan)
    except (PolicyProblem, PolicyBookError) as error:  # a book or a token that a person must look at
        print(f"The control agent cannot run: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_CONFIGURATION
    return 0


def _run_gateway_process(home: Home, plan: Plan) -> int:
    from sekisho.guard.assembly import GuardUnusable

    try:
        run_gateway(home, plan)
    except (ValueError, EngineUnavailable, GuardUnusable) as error:  # what only building could judge
        print(f"The gateway cannot run with these settings: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_CONFIGURATION
    return 0


if __name__ == "__main__":
    sys.exit(main())
