"""Whether an address does what client programs and people need: gates, conversations, sessions, safety."""
