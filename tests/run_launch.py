"""Takes two steps and says how it was started, for `test_launch.py`; started by `accelerate launch`."""

import json
import tempfile

from tests.tiny import tiny_trainer

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        # As a user starts it: what the launcher says decides, and no argument.
        trainer = tiny_trainer(folder, use_cpu=False, max_steps=2)
        trainer.train()
        args, steps = trainer.args, trainer.state.global_step
        said = {"rank": args.process_index, "processes": args.world_size, "device": args.device.type, "steps": steps}
        print("\n" + json.dumps(said), flush=True)
