"""Writes the index of the built-in rules, from which a server starts without reading YAML. Run after an edit of a rule;
a test fails until then, and a server meanwhile starts half a second later."""

from sekisho.guard.rules import BUILT_IN, INDEX, index_of

if __name__ == "__main__":
    (BUILT_IN / INDEX).write_bytes(index_of(BUILT_IN))
    print(f"wrote {BUILT_IN / INDEX}")
