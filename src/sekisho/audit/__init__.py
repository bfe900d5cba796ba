"""The book: an encrypted, hash-chained, append-only record of every decision and its outcome."""
