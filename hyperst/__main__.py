"""``python -m hyperst``: the same as the ``hyperst`` command."""

from hyperst.cli import main

if __name__ == "__main__":
    main()
