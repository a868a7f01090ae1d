"""``python -m limbeck``: the command line, for where its script is not on the path."""

from limbeck.cli import main

if __name__ == "__main__":
    main()
