"""`python -m ecd` is `ecd`."""

from ecd.cli import main

main()
