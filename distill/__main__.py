"""`python -m distill`: the same as the `distill` command, as launchers need it."""

from distill.cli import main

if __name__ == "__main__":
    main()
