"""Folders of models as other libraries write them: what tests change in them."""

import json
import os

import safetensors.numpy


def edit(folder, drop=(), **changes):
    """Changes keys of config.json."""
    path = os.path.join(folder, "config.json")
    with open(path, encoding="utf-8") as f:
        content = json.load(f)
    content = {key: value for key, value in (content | changes).items() if key not in drop}
    with open(path, "w", encoding="utf-8") as f:
        json.dump(content, f)


def weights(folder, name="model.safetensors"):
    """The tensors of a file."""
    return safetensors.numpy.load_file(os.path.join(folder, name))


def put(folder, arrays, name="model.safetensors"):
    """Writes a file of tensors."""
    safetensors.numpy.save_file(arrays, os.path.join(folder, name))
