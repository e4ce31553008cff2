"""Train a model: `accelerate launch examples/train.py --config examples/configs/demo.yaml --max_steps 200`.

Any field of the configuration can follow on the command line; `dim-hf train --fields` lists them.
"""

from dim_hf.cli.train import command

if __name__ == "__main__":
    command()
