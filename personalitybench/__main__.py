"""``python -m personalitybench``: the command, for where scripts are not on the path."""

from personalitybench.cli import main

if __name__ == "__main__":
    main()
