"""Asking an address and reading its answer: timed at the socket, believed in nothing."""
