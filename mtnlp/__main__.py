"""`python -m mtnlp` is the command `mtnlp`."""

from mtnlp.cli.main import main

if __name__ == "__main__":
    main()
