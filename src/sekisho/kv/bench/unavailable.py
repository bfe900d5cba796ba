"""What a measurement raises where there is no figure."""


class Unavailable(Exception):
    """This contender cannot take part; the text says why."""
