"""placeholder"""


def main(rounds, quick, model):
    raise SystemExit("todo")
