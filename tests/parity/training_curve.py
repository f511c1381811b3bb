#!/usr/bin/env python3
"""Trains the same imported weights with transformers and with the program, and compares the loss curves.

    training_curve.py --program ATHANOR --probe PARITY_PROBE --work FOLDER

A small Qwen3-MoE of transformers with random weights is imported; the same batches in the same order, the same AdamW,
learning rates and clipping train it for 50 steps there and here, on 1 and on 4 ranks: once without a balance loss, once
with `switch` and the z-loss at moe.balance_counts=micro_step. The reference computes both losses per layer from its
router logits (transformers' own balance loss pools the layers and is another one). Losses must agree within 1e-4
relative at every step.
"""

import argparse
import json
import math
import pathlib
import shutil
import sys

from exchange_tools import Programs, Report, load_model, make_config, make_model, torch

STEPS = 50
SEQ = 32
GLOBAL_BATCH = 8
SEED = 11
TOLERANCE = 1e-4  # relative
OPTIM = {"lr": 2e-3, "min_lr": 2e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1,
         "warmup_steps": 5, "schedule": "cosine", "clip": 1.0}  # fmt: skip
BALANCE_WEIGHT = 0.02
Z_WEIGHT = 0.001
LAYOUTS = {"1 rank": (1, []), "4 ranks": (4, ["--parallel.tp=2", "--parallel.ep=4"])}


def make_tokens(vocab_size, documents=120, length=100):
    """Documents with something to learn: each token mostly follows from the one before."""
    generator = torch.Generator().manual_seed(2)
    following = torch.randperm(vocab_size, generator=generator).tolist()
    rows = []
    for _ in range(documents):
        row = [int(torch.randint(vocab_size, (1,), generator=generator))]
        noise = torch.rand(length, generator=generator).tolist()
        jumps = torch.randint(vocab_size, (length,), generator=generator).tolist()
        for chance, jump in zip(noise, jumps):
            row.append(jump if chance < 0.3 else following[row[-1]])
        rows.append(row)
    return rows


def learning_rate(step):
    """That of update `step`, counted from 0: linear warm-up, then a cosine to min_lr at the last step."""
    warmup, lr, min_lr = OPTIM["warmup_steps"], OPTIM["lr"], OPTIM["min_lr"]
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = (step - warmup) / (STEPS - warmup)
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * progress))


class RouterLogits:
    """The logits of every router in the forward pass that ran last, computed from its input and weight."""

    def __init__(self, model):
        self.layers = []
        for layer in model.model.layers:
            layer.mlp.gate.register_forward_pre_hook(self.record)

    def record(self, gate, arguments):
        x = arguments[0].reshape(-1, gate.weight.shape[1]).float()
        self.layers.append(torch.nn.functional.linear(x, gate.weight.float()))

    def take(self):
        layers, self.layers = self.layers, []
        return layers


def balance_terms(router_logits, config):
    """Sums over layers of the switch and z values; f is counted, not differentiated."""
    experts, top_k = config.num_experts, config.num_experts_per_tok
    switch, z = 0.0, 0.0
    for logits in router_logits:
        scores = torch.softmax(logits, dim=-1)
        chosen = torch.topk(scores, top_k, dim=-1).indices
        f = torch.bincount(chosen.flatten(), minlength=experts) / logits.shape[0]
        switch = switch + experts / top_k * (f * scores.mean(dim=0)).sum()
        z = z + torch.logsumexp(logits, dim=-1).square().mean()
    return switch, z


def train_reference(folder, steps, balanced):
    """transformers' loss curve: [(cross-entropy, everything that is minimised, gradient norm)]."""
    model = load_model(folder).train()
    routers = RouterLogits(model)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": OPTIM["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}],
        lr=OPTIM["lr"], betas=(OPTIM["beta1"], OPTIM["beta2"]), eps=OPTIM["eps"])  # fmt: skip
    curve = []
    for step, rows in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        tokens = torch.tensor(rows)
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        switch, z = balance_terms(routers.take(), model.config)
        total = loss + (BALANCE_WEIGHT * switch + Z_WEIGHT * z if balanced else 0.0)
        optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM["clip"])
        optimizer.step()
        curve.append((loss.item(), total.item(), norm.item()))
    return curve


def model_options(config):
    return [f"--{key}={value}" for key, value in {
        "model.vocab_size": config.vocab_size, "model.layers": config.num_hidden_layers,
        "model.hidden": config.hidden_size, "model.heads": config.num_attention_heads,
        "model.kv_heads": config.num_key_value_heads, "model.head_dim": config.head_dim,
        "model.rope_theta": config.rope_parameters["rope_theta"], "model.max_seq": config.max_position_embeddings,
        "model.norm_eps": config.rms_norm_eps, "model.ffn": config.intermediate_size,
        "model.init_std": config.initializer_range, "moe.experts": config.num_experts,
        "moe.top_k": config.num_experts_per_tok, "moe.ffn": config.moe_intermediate_size}.items()]  # fmt: skip


def train_here(programs, work, config, balanced, layout):
    """The program's curve, from its metrics."""
    ranks, options = LAYOUTS[layout]
    run = work / f"run-{ranks}-{balanced}"
    shutil.rmtree(run, ignore_errors=True)
    balance = ["--moe.balance=none"]
    if balanced:
        balance = ["--moe.balance=switch", "--moe.balance_counts=micro_step",
                   f"--moe.balance_weight={BALANCE_WEIGHT}", f"--moe.z_weight={Z_WEIGHT}"]  # fmt: skip
    programs.run(
        "train", f"--run.dir={run}", f"--run.resume={work / 'imported'}", f"--run.seed={SEED}",
        f"--data.train={work / 'tokens'}", f"--batch.seq={SEQ}", f"--batch.global={GLOBAL_BATCH}",
        f"--train.steps={STEPS}", *model_options(config), *balance, *options,
        *[f"--optim.{key}={value}" for key, value in OPTIM.items()], ranks=ranks)  # fmt: skip
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["total_loss"], line["grad_norm"]) for line in lines if "loss" in line]


def compare(report, name, ours, theirs):
    report.check(len(ours) == len(theirs), f"{name}: {len(ours)} steps instead of {len(theirs)}")
    worst = [0.0, 0.0, 0.0]
    for step, (here, there) in enumerate(zip(ours, theirs)):
        for i, what in enumerate(("loss", "total loss")):
            difference = abs(here[i] - there[i]) / abs(there[i])
            worst[i] = max(worst[i], difference)
            report.check(difference <= TOLERANCE,
                         f"{name}: {what} of step {step + 1} is {here[i]:.6f}, not {there[i]:.6f}")  # fmt: skip
        worst[2] = max(worst[2], abs(here[2] - there[2]) / there[2])
    print(f"{name}: loss {theirs[0][0]:.4f} -> {theirs[-1][0]:.4f}; largest relative differences: loss {worst[0]:.1e}, "
          f"total {worst[1]:.1e}, gradient norm {worst[2]:.1e}", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("program", "probe", "work"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    options = parser.parse_args()
    programs = Programs(options.program.resolve(), options.probe.resolve())
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    config = make_config(8, tied=False, vocab_size=96, hidden_size=48, initializer_range=0.08)
    make_model(config, seed=4).save_pretrained(work / "original")
    programs.run("checkpoint", "import", f"--from={work / 'original'}", f"--to={work / 'imported'}")
    (work / "rows.json").write_text(json.dumps(make_tokens(config.vocab_size)))
    programs.ask("write", work / "rows.json", work / "tokens")
    programs.ask("batches", work / "tokens", SEQ, SEED, GLOBAL_BATCH, STEPS, work / "batches.json")
    steps = json.loads((work / "batches.json").read_text())
    report = Report()
    last = []
    for balanced in (False, True):
        theirs = train_reference(work / "original", steps, balanced)
        last.append(theirs[-1][0])
        for layout in LAYOUTS:
            name = f"{'switch and z' if balanced else 'no balance loss'}, {layout}"
            compare(report, name, train_here(programs, work, config, balanced, layout), theirs)
    # Otherwise the second comparison would not notice a missing balance gradient.
    report.check(abs(last[0] - last[1]) > 10 * TOLERANCE * last[0], f"the balance losses change nothing: {last}")
    return report.finish("training curves")


if __name__ == "__main__":
    sys.exit(main())
