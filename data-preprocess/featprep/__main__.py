"""`python -m featprep`: the command `featprep` without installing it."""

from featprep.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
