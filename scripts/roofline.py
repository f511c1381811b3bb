#!/usr/bin/env python3
"""Bounds on the training speed of a config on GPUs, by arithmetic: no run, no GPU.

    roofline.py [--gpu NAME...] [--markdown] CONFIG...

Every product of a step takes at least the longer of its operations over the GPU's dense peak and its operands' bytes
over the memory's bandwidth; the optimizer takes at least its state's bytes. Their sum bounds the step from below, and
so the tokens/s from above. Attention's core counts as operations only, elementwise passes and launches not at all, and
what experts get is even. The exchanges of tokens between ranks are a separate column: they may or may not overlap.
"""

import argparse
import configparser
import dataclasses
import pathlib
from typing import Iterator


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Peaks of NVIDIA's data sheets for SXM modules, dense; bytes/s of the links are one way."""

    name: str
    bf16: float
    fp8: float | None
    memory: float  # bytes/s
    node_link: float
    network: float = 50e9  # 400 Gbit/s for each GPU


GPUS = [
    Gpu("A100", 312e12, None, 2.039e12, 300e9, 25e9),
    Gpu("H100", 989e12, 1979e12, 3.35e12, 450e9),
    Gpu("H200", 989e12, 1979e12, 4.8e12, 450e9),
    Gpu("B200", 2250e12, 4500e12, 8.0e12, 900e9),
]
GPUS_PER_NODE = 8
OPTIMIZER_BYTES = 30  # read gradient, master, two moments (f32); write master, moments and the compute copy
WIRE_BYTES = {"full": 2.0, "f32": 2.0, "bf16": 2.0, "fp8": 1.0 + 4.0 / 128.0}


@dataclasses.dataclass(frozen=True)
class Product:
    """[m, k] x [k, n], `count` times: forward, data gradient and weight gradient alike."""

    m: float
    k: float
    n: float
    count: float


@dataclasses.dataclass(frozen=True)
class Shape:
    """A config's figures; the defaults are the program's."""

    name: str
    ranks: int
    tp: int
    ep: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    experts: int
    top_k: int
    ffn: int
    sequences: float  # of one micro-batch of a replica
    micro_steps: float
    seq: int
    recompute: bool
    dispatch: str
    combine: str

    @property
    def tokens(self) -> float:
        return self.sequences * self.seq

    @property
    def replicas(self) -> int:
        return self.ranks // self.tp


def read_shape(path: pathlib.Path) -> Shape:
    ini = configparser.ConfigParser()
    ini.read_string("[job]\n" + path.read_text(encoding="utf-8"))

    def get(section: str, key: str, default: str) -> str:
        return ini.get(section, key, fallback=default)

    tp, ep = int(get("parallel", "tp", "1")), int(get("parallel", "ep", "1"))
    ranks = int(get("job", "ranks", str(max(tp, ep))))
    heads, hidden = int(get("model", "heads", "1")), int(get("model", "hidden", "1"))
    share = int(get("batch", "global", "1")) * tp / ranks
    micro = float(get("batch", "micro", "0")) or share
    return Shape(
        path.stem, ranks, tp, ep, hidden, int(get("model", "layers", "1")), heads,
        int(get("model", "kv_heads", str(heads))), int(get("model", "head_dim", str(hidden // heads))),
        int(get("model", "vocab_size", "1")), int(get("moe", "experts", "0")), int(get("moe", "top_k", "1")),
        int(get("moe", "ffn", "1")), micro, share / micro, int(get("batch", "seq", "1")),
        get("model", "recompute", "false") == "true",
        get("precision", "dispatch_comm", "full"), get("precision", "combine_comm", "full"))


def layer_products(s: Shape) -> Iterator[Product]:
    """Of one micro-batch on one rank."""
    width, tokens = s.heads * s.head_dim / s.tp, s.tokens
    yield Product(tokens, s.hidden, width + 2 * s.kv_heads * s.head_dim / s.tp, s.layers)
    yield Product(tokens, width, s.hidden, s.layers)
    yield Product(tokens / s.tp, s.hidden, s.experts, s.layers)
    rows = tokens * (s.ep / s.tp) * s.top_k / s.experts  # of an expert: tokens of all replicas that share the experts
    local = s.experts / s.ep
    yield Product(rows, s.hidden, 2 * s.ffn, s.layers * local)
    yield Product(rows, s.ffn, s.hidden, s.layers * local)


def seconds(product: Product, peak: float, memory: float, element: float) -> tuple[float, float]:
    """Of one pass over the product: the bound, and the part of it in which memory is the slower."""
    operations = 2 * product.m * product.k * product.n / peak
    moved = (element * (product.m * product.k + product.k * product.n) + 2 * product.m * product.n) / memory
    bound = product.count * max(operations, moved)
    return bound, bound if moved > operations else 0.0


def rank_parameters(s: Shape) -> tuple[float, float]:
    """Parameters of a rank whose optimizer state is shared by the ranks of the same slice: dense, expert."""
    attention = s.hidden * s.head_dim * 2 * (s.heads + s.kv_heads)
    dense = (s.layers * attention + 2 * s.vocab * s.hidden) / s.tp + s.layers * s.hidden * s.experts
    return dense, s.layers * s.experts / s.ep * 3 * s.hidden * s.ffn


def step_bound(s: Shape, gpu: Gpu, fp8: bool) -> tuple[float, float]:
    """Seconds of a step on a rank, and the share of them that is bound by memory."""
    peak, element = (gpu.fp8, 1.0) if fp8 else (gpu.bf16, 2.0)
    total = bound_by_memory = 0.0
    passes = 4 if s.recompute else 3
    for product in layer_products(s):
        one, by_memory = seconds(product, peak, gpu.memory, element)
        total += passes * one
        bound_by_memory += passes * by_memory
    # The head stays in bf16 and is not computed again.
    one, by_memory = seconds(Product(s.tokens, s.hidden, s.vocab / s.tp, 1), gpu.bf16, gpu.memory, 2.0)
    total += 3 * one
    bound_by_memory += 3 * by_memory
    attention = s.layers * s.tokens * s.seq / 2 * s.heads * s.head_dim / s.tp * 4
    total += passes * attention / gpu.bf16
    total *= s.micro_steps
    bound_by_memory *= s.micro_steps
    dense, expert = rank_parameters(s)
    state = dense / s.replicas + expert * s.ep / s.ranks
    update = OPTIMIZER_BYTES * state / gpu.memory
    return total + update, (bound_by_memory + update) / (total + update)


def exchange_seconds(s: Shape, gpu: Gpu) -> float:
    """Of the tokens' four exchanges in a step, one way, at the links' full speed."""
    rows = s.tokens / s.tp * s.top_k * s.layers * s.micro_steps
    wire = rows * s.hidden * 2 * (WIRE_BYTES[s.dispatch] + WIRE_BYTES[s.combine])
    if s.recompute:
        wire *= 1.5
    near = min(s.ep, GPUS_PER_NODE)
    return wire * max((near - 1) / s.ep / gpu.node_link, (s.ep - near) / s.ep / gpu.network)


def rows_of(shape: Shape, gpus: list[Gpu]) -> Iterator[list[str]]:
    tokens = shape.tokens * shape.micro_steps / shape.tp  # of a GPU in a step
    for gpu in gpus:
        for fp8 in (False, True) if gpu.fp8 else (False,):
            bound, by_memory = step_bound(shape, gpu, fp8)
            yield [shape.name, gpu.name, "fp8" if fp8 else "bf16", f"{bound * 1e3:,.4g}", f"{tokens / bound:,.0f}",
                   f"{by_memory:.0%}", f"{exchange_seconds(shape, gpu) * 1e3:,.3g}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", type=pathlib.Path)
    parser.add_argument("--gpu", nargs="*", choices=[gpu.name for gpu in GPUS])
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    gpus = [gpu for gpu in GPUS if not options.gpu or gpu.name in options.gpu]
    heads = ["config", "GPU", "products", "step, ms", "tokens/s a GPU", "bound by memory", "exchanges, ms"]
    rows = [row for path in options.configs for row in rows_of(read_shape(path), gpus)]
    if options.markdown:
        print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
        for row in rows:
            print("| " + " | ".join(row) + " |")
        return
    widths = [max(len(line[i]) for line in [heads, *rows]) for i in range(len(heads))]
    for line in [heads, *rows]:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths)))


if __name__ == "__main__":
    main()
