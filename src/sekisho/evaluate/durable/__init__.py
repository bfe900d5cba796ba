"""Runs whose finished steps are never repeated, whatever was killed in between."""
