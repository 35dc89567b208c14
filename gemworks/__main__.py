"""`python -m gemworks` is the `gemworks` command."""

from gemworks.cli.main import main

if __name__ == "__main__":
    main()
