"""`python -m prefloop`."""

from prefloop.cli import main

main()
