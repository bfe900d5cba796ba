"""The agent's interface: `/v1` on loopback, by aiohttp."""
