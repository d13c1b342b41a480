"""`python -m raymimic`."""

from raymimic.cli import main

main()
