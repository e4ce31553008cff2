"""The Space: the demo of dim-hf, as `dim-hf demo` runs it."""

import os

from dim_hf.demo.app import launch

if __name__ == "__main__":
    launch(host=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1"))
