"""What is wrong with a policy, where."""


class PolicyProblem(ValueError):
    """A policy, or a value that stands for a part of one, that cannot be. `field`: the dotted path, a variable's or a
    flag's name. `message`: what is allowed there, to be read after the field."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field, self.message = field, message


def shown(value: object) -> str:
    """A refused value in a message, as JSON would have it, and never long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
