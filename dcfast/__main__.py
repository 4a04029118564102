"""``python -m dcfast``: the command line, for torchrun, which starts modules."""

from dcfast.cli import main

main()
