"""``python -m nucleate``, the same as the command ``nucleate``."""

from nucleate.cli.main import run

if __name__ == "__main__":
    run()
