"""python -m deepsanitizer: the command line."""

from deepsanitizer.cli import main

main()
