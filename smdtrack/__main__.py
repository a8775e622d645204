"""`python -m smdtrack`, the same as the `smdtrack` command."""

from smdtrack.cli import main

if __name__ == "__main__":
    main()
