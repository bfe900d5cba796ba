"""The gateway: the team's address. Reads HTTP, identifies the key, meters, hands turns to the road and writes back."""
