"""The evidence: what a team adopts a model on, measured, with the command that measures each figure again."""
