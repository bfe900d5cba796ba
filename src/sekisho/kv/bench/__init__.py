"""Rivals of the tiered cache, and the measurement of quality, memory and speed of all of them.

from sekisho.kv.bench.run import Plan, run

results = run(Plan(model="sekisho-mini"), print)
msgspec.json.encode(results)
"""
