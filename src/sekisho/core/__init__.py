"""The nouns of the house: turn, events, errors, clock, ids. Imports nothing but the standard library and msgspec."""
