"""Machines and processes: the supervisor of our children."""
