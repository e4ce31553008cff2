"""`python -m dim_hf.cli` is the command line, too."""

from dim_hf.cli import main

if __name__ == "__main__":
    main(prog_name="dim-hf")
