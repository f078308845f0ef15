"""`python -m ecd` is `ecd`."""

from ecd.cli import main

# An engine may start processes that import this module again.
if __name__ == "__main__":
    main()
