"""`python -m hwprune` is the command `hwprune`."""

from hwprune.cli import main

main()
