"""Sekisho: a private LLM server for a team. The command line is in `sekisho.cli`, the wiring in `sekisho.serve`."""

__version__ = "0.1.0"
