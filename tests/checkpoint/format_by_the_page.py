#!/usr/bin/env python3
"""Reads a checkpoint by docs/checkpoint_format.md alone: json, h5py, xxhash, numpy; none of athanor's code.

    format_by_the_page.py FOLDER [--sample]

Checks everything that the page asks of a loader, puts every tensor together from the shard files, and compares it with
the virtual dataset in index.h5, opened from another working directory. --sample: the checkpoint is the one of
tests/checkpoint/sample_checkpoint.hpp, whose values follow a rule; they are compared too. Prints one line; exits with
1 and the reason at the first difference.
"""

import argparse
import json
import math
import os
import pathlib
import re
import sys
import tempfile
from typing import Any

import h5py
import numpy as np
import xxhash

STORED = {
    "f64": np.dtype("<f8"),
    "f32": np.dtype("<f4"),
    "bf16": np.dtype("<u2"),
    "f16": np.dtype("<f2"),
    "i64": np.dtype("<i8"),
}
BLOCK_BYTES = 16777216
KEYS = {
    "manifest": ("format", "format_version", "run_id", "step", "created", "program", "world_size",
                 "checksum_block_bytes", "config", "data", "roles", "files", "tensors", "slices"),
    "role": ("name", "kind", "layout", "state"),
    "file": ("name", "bytes", "rank"),
    "tensor": ("dtype", "shape"),
    "slice": ("tensor", "file", "dataset", "global_shape", "offset", "shape", "first", "count", "checksums"),
}


class Refused(Exception):
    """The checkpoint is not what the page says."""


def require(condition: bool, reason: str) -> None:
    if not condition:
        raise Refused(reason)


def require_keys(kind: str, value: Any) -> None:
    require(isinstance(value, dict), f"a {kind} is no object")
    for key in KEYS[kind]:
        require(key in value, f"a {kind} has no '{key}'")


def read_manifest(folder: pathlib.Path) -> dict:
    text = (folder / "manifest.json").read_bytes()
    line = f"xxh3-128 {xxhash.xxh3_128_hexdigest(text)} {len(text)} manifest.json\n".encode()
    require((folder / "COMPLETE").read_bytes() == line, "COMPLETE does not fit the manifest")
    manifest = json.loads(text)
    require(manifest.get("format") == "athanor-checkpoint", "another format")
    require(manifest.get("format_version") == 1, f"format version {manifest.get('format_version')}")
    require_keys("manifest", manifest)
    require(manifest["checksum_block_bytes"] == BLOCK_BYTES, "another block size")
    for kind in ("role", "file", "slice"):
        for value in manifest[kind + "s"]:
            require_keys(kind, value)
    for value in manifest["tensors"].values():
        require_keys("tensor", value)
    return manifest


def check_files(folder: pathlib.Path, manifest: dict) -> None:
    names = [file["name"] for file in manifest["files"]]
    require(len(set(names)) == len(names), "a file is listed twice")
    for file in manifest["files"]:
        require(re.fullmatch(r"rank-\d{5,}\.h5", file["name"]) is not None, f"a file is named {file['name']}")
        require((folder / file["name"]).stat().st_size == file["bytes"], f"{file['name']} has another size")


def check_slices(manifest: dict) -> None:
    files = {file["name"] for file in manifest["files"]}
    datasets = set()
    for part in manifest["slices"]:
        where = f"slice {part['dataset']} in {part['file']}"
        require(part["file"] in files and part["tensor"] in manifest["tensors"], f"{where} is of nothing listed")
        require((part["file"], part["dataset"]) not in datasets, f"{where} is listed twice")
        datasets.add((part["file"], part["dataset"]))
        tensor = manifest["tensors"][part["tensor"]]
        require(part["global_shape"] == tensor["shape"], f"{where} is of another shape")
        for offset, extent, whole in zip(part["offset"], part["shape"], tensor["shape"], strict=True):
            require(offset >= 0 and extent >= 0 and offset + extent <= whole, f"{where} lies outside its tensor")
        require(part["first"] >= 0 and part["count"] >= 1, f"{where} has no elements")
        require(part["first"] + part["count"] <= math.prod(part["shape"]), f"{where} lies outside its box")
        blocks = -(-part["count"] * STORED[tensor["dtype"]].itemsize // BLOCK_BYTES)
        require(len(part["checksums"]) == blocks, f"{where} has not one checksum a block")


def read_slice(path: pathlib.Path, file: h5py.File, part: dict, dtype: str) -> np.ndarray:
    where = f"{part['dataset']} in {path.name}"
    data = file[part["dataset"]]
    require(data.shape == (part["count"],) and data.dtype == STORED[dtype], f"{where} has another type or count")
    require(data.chunks is None and not data.external and not data.is_virtual, f"{where} is not contiguous")
    for key in ("global_shape", "offset", "shape"):
        require(data.attrs[key].tolist() == part[key], f"attribute {key} of {where} differs")
    for key in ("first", "count"):
        require(int(data.attrs[key]) == part[key], f"attribute {key} of {where} differs")
    require(as_text(data.attrs["dtype"]) == dtype, f"attribute dtype of {where} differs")
    values = data[:]
    with open(path, "rb") as raw:
        raw.seek(data.id.get_offset())
        require(raw.read(values.nbytes) == values.tobytes(), f"{where}: plain reads give other bytes than HDF5")
    stored = values.tobytes()
    for block, checksum in enumerate(part["checksums"]):
        bytes_of_block = stored[block * BLOCK_BYTES:(block + 1) * BLOCK_BYTES]
        require(xxhash.xxh3_64_hexdigest(bytes_of_block) == checksum, f"block {block} of {where} is damaged")
    require(is_finite(values, dtype), f"{where} has elements that are not finite")
    return values


def as_text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def as_numbers(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bf16":
        return (values.astype("<u4") << 16).view("<f4")
    return values


def is_finite(values: np.ndarray, dtype: str) -> bool:
    return dtype == "i64" or bool(np.isfinite(as_numbers(values, dtype)).all())


def read_tensors(folder: pathlib.Path, manifest: dict) -> dict[str, np.ndarray]:
    """Every logical tensor, with each of its elements placed once."""
    tensors = {
        name: np.zeros(tensor["shape"], STORED[tensor["dtype"]]) for name, tensor in manifest["tensors"].items()
    }
    placed = {name: np.zeros(tensor.shape, np.uint8) for name, tensor in tensors.items()}
    for entry in manifest["files"]:
        path = folder / entry["name"]
        with h5py.File(path, "r") as file:
            require(as_text(file.attrs["format"]) == "athanor-checkpoint", f"{path.name} is of another format")
            identity = (as_text(file.attrs["run_id"]), int(file.attrs["step"]), int(file.attrs["rank"]))
            require(identity == (manifest["run_id"], manifest["step"], entry["rank"]), f"{path.name} is of {identity}")
            for part in (part for part in manifest["slices"] if part["file"] == entry["name"]):
                name = part["tensor"]
                values = read_slice(path, file, part, manifest["tensors"][name]["dtype"])
                numbers = np.arange(part["first"], part["first"] + part["count"])
                index = np.unravel_index(numbers, part["shape"])
                index = tuple(within + offset for within, offset in zip(index, part["offset"], strict=True))
                tensors[name][index] = values
                np.add.at(placed[name], index, 1)
    for name, count in placed.items():
        require(bool((count == 1).all()), f"tensor {name} is not stored exactly once")
    return tensors


def compare_with_index(folder: pathlib.Path, manifest: dict, tensors: dict[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as elsewhere:
        os.chdir(elsewhere)
        with h5py.File(folder / "index.h5", "r") as index:
            require(as_text(index.attrs["run_id"]) == manifest["run_id"], "index.h5 is of another run")
            require(int(index.attrs["step"]) == manifest["step"], "index.h5 is of another step")
            for name, tensor in tensors.items():
                shown = index[name]
                require(shown.dtype == tensor.dtype and shown.shape == tensor.shape, f"index.h5: {name} differs")
                require(as_text(shown.attrs["dtype"]) == manifest["tensors"][name]["dtype"], f"index.h5: {name}")
                require(shown[:].tobytes() == tensor.tobytes(), f"index.h5 shows other values of {name}")
        os.chdir("/")


def compare_with_sample(manifest: dict, tensors: dict[str, np.ndarray]) -> None:
    for name, tensor in tensors.items():
        dtype = manifest["tensors"][name]["dtype"]
        salt = xxhash.xxh3_64_intdigest(name.encode()) % 97
        quarters = (np.arange(tensor.size, dtype=np.int64) * 7 + salt) % 251 - 125
        expected = quarters if dtype == "i64" else quarters / 4.0
        shown = as_numbers(tensor, dtype).reshape(-1).astype(np.float64)
        require(bool((shown == expected).all()), f"{name} has other values than the sample")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="a checkpoint folder")
    parser.add_argument("--sample", action="store_true", help="compare with the values of the tests' sample")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    try:
        manifest = read_manifest(folder)
        check_files(folder, manifest)
        check_slices(manifest)
        tensors = read_tensors(folder, manifest)
        compare_with_index(folder, manifest, tensors)
        if arguments.sample:
            compare_with_sample(manifest, tensors)
    except (Refused, OSError, KeyError, ValueError) as reason:
        print(f"{folder}: {type(reason).__name__}: {reason}", file=sys.stderr)
        return 1
    elements = sum(tensor.size for tensor in tensors.values())
    print(f"{folder.name}: {len(tensors)} tensors, {elements} elements in {len(manifest['slices'])} slices of "
          f"{len(manifest['files'])} files, as the page says")
    return 0


if __name__ == "__main__":
    sys.exit(main())
