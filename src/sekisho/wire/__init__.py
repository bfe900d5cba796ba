"""Protocols. One pure codec per protocol: bytes to a `Turn`, `Event`s to bytes. No I/O, no clock, no server."""
