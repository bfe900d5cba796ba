"""The store: keys, usage, responses state. SQLite by default, PostgreSQL by URL, one code path."""
