"""Engines: what runs a model. `base` says what an engine promises; each other module is one engine."""
