"""A user who has transformers and not this package: `python -I -S run_without_dim_hf.py <packages> <request as JSON>`.

With -I and -S neither the working directory nor the editable install is on the path. Prints facts as JSON.
"""

import importlib.util
import json
import socket
import sys


def refuse(*arguments, **options):
    raise AssertionError(f"a socket was used: {arguments}")


def load(name, **options):
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    model = AutoModelForSemanticSegmentation.from_pretrained(name, **options)
    return model.eval(), AutoImageProcessor.from_pretrained(name, **options)


def predictions(model, processor):
    """Classes of model and processor, logits of one image, and what the pipeline makes of it."""
    import torch
    from PIL import Image
    from transformers import pipeline

    pixels = torch.arange(3 * 40 * 50, dtype=torch.float32).reshape(3, 40, 50).remainder(251).to(torch.uint8).numpy()
    with torch.no_grad():
        logits = model(**processor(pixels, return_tensors="pt")).logits
    parts = pipeline("image-segmentation", model=model, image_processor=processor)(
        Image.fromarray(pixels.transpose(1, 2, 0).copy())
    )
    return {
        "classes": [type(model).__module__, type(processor).__module__],
        "logits": logits.mean(dim=(2, 3)).flatten().tolist(),
        "parts": {part["label"]: [*part["mask"].size, part["mask"].mode] for part in parts},
    }


def try_loading(name, **options):
    try:
        return predictions(*load(name, trust_remote_code=True, **options))
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}


def mismatches(name):
    from huggingface_hub import HfApi

    return sorted(mismatch["path"] for mismatch in HfApi().verify_repo_checksums(name).mismatches)


def execute(code):
    exec(code, names := {})
    return sorted(names.keys() & {"model", "processor", "segment", "part"})


def main(packages, request):
    sys.path.append(packages)
    if request.get("blocked"):
        socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
    if "chunk" in request:
        from huggingface_hub import constants

        constants.DOWNLOAD_CHUNK_SIZE = request["chunk"]  # only whole chunks are kept when a connection breaks
    facts = {"found": importlib.util.find_spec("dim_hf") is not None}
    for key, (name, options) in request.get("load", {}).items():
        facts[key] = try_loading(name, **options)
    for key, name in request.get("verify", {}).items():
        facts[key] = mismatches(name)
    for key, code in request.get("run", {}).items():
        facts[key] = execute(code)
    return facts | {"imported": "dim_hf" in sys.modules}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]))))
