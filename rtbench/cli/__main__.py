"""`python -m rtbench.cli`."""

from rtbench.cli import main

if __name__ == "__main__":
    main()
