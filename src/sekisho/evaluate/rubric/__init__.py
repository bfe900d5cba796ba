"""The rubric: answers to a fixed set of tasks, rated by two people who do not see each other's scores."""
