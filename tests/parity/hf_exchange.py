#!/usr/bin/env python3
"""Compares exported and imported folders with what transformers writes and reads.

    hf_exchange.py --program ATHANOR --probe PARITY_PROBE --work FOLDER

1. Models of transformers (with experts and dense, tied and not, f32, bf16, f16, one file and many, fused experts, older
   keys) are imported and exported again: same logits, same tensors bit for bit, same config.json.
2. Models trained by the program, with its tokenizer, are exported: transformers loads them, computes the same logits,
   generates, and AutoTokenizer gives the same ids.
3. Damaged folders, and models without an equivalent, are refused by name, and nothing is written.
"""

import argparse
import json
import pathlib
import random
import shutil
import sys

from exchange_tools import (
    Programs,
    Report,
    load_model,
    make_config,
    make_model,
    read_config,
    read_tensors,
    torch,
    transformers,
)
from safetensors.torch import load_file, save_file

LOGITS_TOLERANCE = 1e-4  # absolute
CHECKPOINT = "checkpoints/step-00000000"


def random_tokens(vocab_size, rows=3, seq=19):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, vocab_size, (rows, seq), generator=generator).tolist()


def largest_difference(ours, model, tokens):
    with torch.no_grad():
        return float((ours - model(torch.tensor(tokens)).logits).abs().max())


def generate(model, tokens):
    prompt = torch.tensor(tokens)[:, :5]
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False,
                          pad_token_id=0)


# ---------------------------------------------------------------------------------------------- import -> export


def save_plain(model, folder, dtype):
    model.to(dtype).save_pretrained(folder)
    model.float()


def save_sharded(model, folder, dtype):
    model.to(dtype).save_pretrained(folder, max_shard_size="20KB")
    model.float()


def save_fused(model, folder, dtype):
    """As some writers do: the names and layouts of the model in memory."""
    save_plain(model, folder, dtype)
    state = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def save_mixed(model, folder, dtype):
    """Routers and norms in f32, the rest in `dtype`."""
    save_plain(model, folder, dtype)
    state = load_file(folder / "model.safetensors")
    state = {k: v.float() if "norm" in k or k.endswith("mlp.gate.weight") else v for k, v in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def save_with_old_keys(model, folder, dtype):
    """config.json as transformers 4 wrote it, with a tokenizer that is no SentencePiece model."""
    save_plain(model, folder, dtype)
    config = read_config(folder)
    config["num_experts"] = config.pop("num_local_experts")
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["rope_scaling"] = None
    config["torch_dtype"] = config.pop("dtype")
    config["eos_token_id"] = 7
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "tokenizer.json").write_text('{"kept": "as it is"}')
    (folder / "tokenizer_config.json").write_text("{ }\n")


CASES = {
    "moe": (make_config(6, tied=False), save_plain, torch.float32),
    "moe_tied_bf16": (make_config(6, tied=True, norm_topk_prob=False), save_plain, torch.bfloat16),
    "moe_sharded_every_second": (
        make_config(12, tied=False, num_hidden_layers=4, decoder_sparse_step=2), save_sharded, torch.bfloat16),
    "moe_some_layers_dense": (
        make_config(4, tied=True, num_hidden_layers=4, mlp_only_layers=[0, 2]), save_plain, torch.float32),
    "moe_fused": (make_config(6, tied=False), save_fused, torch.float32),
    "moe_mixed_dtypes": (make_config(6, tied=False), save_mixed, torch.bfloat16),
    "moe_old_keys": (make_config(6, tied=False), save_with_old_keys, torch.float16),
    "dense_tied": (make_config(0, tied=True), save_plain, torch.float32),
    "dense_bf16": (make_config(0, tied=False, num_key_value_heads=1), save_sharded, torch.bfloat16),
}  # fmt: skip


def compare_folders(report, name, ours, theirs):
    """Names, shapes, dtypes and bytes of the tensors, and the config."""
    tensors, expected = read_tensors(ours), read_tensors(theirs)
    report.check(tensors.keys() == expected.keys(), f"{name}: tensors {sorted(tensors.keys() ^ expected.keys())}")
    for tensor in tensors.keys() & expected.keys():
        report.check(tensors[tensor] == expected[tensor], f"{name}: {tensor} differs")
    config, expected = read_config(ours), read_config(theirs)
    for key in sorted(config.keys() | expected.keys()):
        report.check(config.get(key) == expected.get(key) and (key in config) == (key in expected),
                     f"{name}: config.json {key}: {config.get(key)} instead of {expected.get(key)}")  # fmt: skip


def compare_dtype(report, name, programs, run, original, dtype, work):
    """An export in a dtype of the user's choice: what torch's own rounding gives."""
    folder = work / f"{name}-{dtype}"
    programs.run("checkpoint", "export", f"--from={run}", f"--to={folder}", f"--dtype={dtype}")
    target = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    state = {}
    for path in sorted(original.glob("*.safetensors")):
        state.update(load_file(path))
    for tensor, (kind, _, data) in read_tensors(folder).items():
        expected = state[tensor].float().to(target).contiguous().view(torch.uint8).numpy().tobytes()
        report.check(kind == str(target) and data == expected, f"{name}: {tensor} as {dtype} differs")
    return folder


def check_round_trip(report, programs, work, name):
    config, save, dtype = CASES[name]
    original, run, exported = work / name, work / f"{name}-run", work / f"{name}-exported"
    original.mkdir()
    save(make_model(config), original, dtype)
    model = load_model(original)
    programs.run("checkpoint", "import", f"--from={original}", f"--to={run}")
    tokens = random_tokens(config.vocab_size)
    ours = programs.logits(run / CHECKPOINT, tokens, config.vocab_size, work)
    difference = largest_difference(ours, model, tokens)
    report.check(difference <= LOGITS_TOLERANCE, f"{name}: imported logits differ by {difference:.1e}")

    limit = ["--shard_bytes=20000"] if save is save_sharded else []
    programs.run("checkpoint", "export", f"--from={run}", f"--to={exported}", *limit)
    compare_folders(report, name, exported, original)
    files = sorted(path.name for path in exported.glob("model*.safetensors"))
    if save is save_plain:  # the container too
        same = (exported / files[0]).read_bytes() == (original / files[0]).read_bytes()
        report.check(same, f"{name}: {files[0]} is not the same file")
    if save is save_sharded:
        report.check(len(files) > 1, f"{name}: only {files}")
    for kept in original.glob("tokenizer*"):
        report.check((exported / kept.name).read_bytes() == kept.read_bytes(), f"{name}: {kept.name} has changed")
    again = load_model(exported)
    report.check(torch.equal(generate(again, tokens), generate(model, tokens)), f"{name}: generates other tokens")
    for target in ("f32", "bf16"):
        load_model(compare_dtype(report, name, programs, run, original, target, work))
    print(f"{name}: logits within {difference:.1e}, {len(files)} file(s), {len(read_tensors(exported))} tensors")


# ---------------------------------------------------------------------------------------------- trained here


WORDS = "the furnace feeds a river while every student follows its teacher and lanterns route tokens".split()


def make_text(path):
    rng = random.Random(5)
    lines = []
    for i in range(3000):
        line = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(3, 12)))
        ends = [".", ",\n    and so on", " == 12;", " -- Köln", "\t{\n        x += 1;\n    }"]
        lines.append(line + rng.choice(ends))
    documents = ["\n".join(lines[i : i + 10]) for i in range(0, len(lines), 10)]
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")


def tokenizer_texts(sample):
    """Text of all kinds: what was trained on, runs of spaces and signs, other scripts, names of special tokens."""
    rng = random.Random(7)
    texts = ["", " ", "  ", "\n", "\n\n\n", "\t", "a", " a", "a ", "  a  b  ", "Hello world", "aaaaaaaaaaaaa", " " * 17,
             "--------", "=====-=", "<unk>", "<eod>", "a<eod>b", "<0x41>", "x<0x0A>y", "\u2581", "a\u2581b", "Grüße",
             "東京で会いましょう", "😀😃👨\u200d👩\u200d👧", "\u00a0nbsp\u2003em", "e\u0301", "\u200b\ufeff", "Ω≈ç√∫",
             "Привет, мир!", "مرحبا", "12345 67.89", "\r\nwin\r\n", "\x01\x02\x7f", "!!!???", "\U0010ffff",
             "end  "]  # fmt: skip
    for _ in range(300):
        start = rng.randrange(len(sample))
        texts.append(sample[start : start + rng.randrange(1, 300)])
    parts = [" ", "  ", "\n", "a", "e", "th", "the", "- ", "--", "=", "ü", "東", "😀", "\t", "0", ".", ",", "<", ">"]
    for _ in range(500):
        texts.append("".join(rng.choice(parts) for _ in range(rng.randrange(1, 60))))
    for _ in range(200):
        ranges = [(32, 127), (160, 0x3000), (0x10000, 0x1F700)]
        texts.append("".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(40)))
    texts.append(sample[:60000])
    return texts


def compare_tokenizers(report, programs, name, folder, texts, work):
    (work / "texts.json").write_text(json.dumps(texts))
    programs.ask("ids", folder / "tokenizer.model", work / "texts.json", work / "ids.json")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text, (ids, decoded) in zip(texts, json.loads((work / "ids.json").read_text())):
        theirs = tokenizer(text)["input_ids"]
        report.check(theirs == ids, f"{name}: ids of {text[:60]!r}: {ids[:9]} here, {theirs[:9]} there")
        report.check(tokenizer.decode(ids) == decoded, f"{name}: decodes to other than {decoded[:60]!r}")
    report.check(tokenizer.eos_token_id == 1, f"{name}: eos_token_id is {tokenizer.eos_token_id}")
    return tokenizer


TRAINED = {
    "teacher": ["--moe.experts=8", "--moe.top_k=2", "--moe.ffn=16", "--model.max_seq=128"],
    "dense_student": ["--moe.experts=0", "--model.ffn=40", "--model.tie_embeddings=true"],
}


def check_trained(report, programs, work, name, data):
    run, exported, half = work / f"{name}-run", work / f"{name}-exported", work / f"{name}-bf16"
    programs.run("train", f"--run.dir={run}", f"--data.train={data}", f"--data.tokenizer={data}.model",
                 "--model.layers=2", "--model.hidden=32", "--model.heads=4", "--model.kv_heads=2",
                 "--batch.seq=32", "--batch.global=8", "--train.steps=4", "--optim.lr=0.01", *TRAINED[name],
                 ranks=2)  # fmt: skip
    programs.run("checkpoint", "export", f"--from={run}", f"--to={exported}", "--dtype=f32")
    model = load_model(exported)
    tokens = random_tokens(model.config.vocab_size)
    checkpoint = run / "checkpoints" / "step-00000004"
    ours = programs.logits(checkpoint, tokens, model.config.vocab_size, work)
    difference = largest_difference(ours, model, tokens)
    report.check(difference <= LOGITS_TOLERANCE, f"{name}: exported logits differ by {difference:.1e}")
    texts = tokenizer_texts((work / "text.txt").read_text())
    tokenizer = compare_tokenizers(report, programs, name, exported, texts, work)
    prompt = tokenizer("the furnace", return_tensors="pt")
    out = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    text = tokenizer.decode(out[0], skip_special_tokens=True)
    report.check(text.startswith("the furnace"), f"{name}: generates {text!r}")
    programs.run("checkpoint", "export", f"--from={run}", f"--to={half}", "--dtype=bf16")
    rounded = {k: v.bfloat16() for k, v in load_file(exported / "model.safetensors").items()}
    written = load_file(half / "model.safetensors")
    report.check(all(torch.equal(rounded[k], written[k]) for k in rounded), f"{name}: bf16 is rounded otherwise")
    print(f"{name}: logits within {difference:.1e}; generates {text!r}")
    return exported


def check_imports_back(report, programs, work, name, exported):
    """What the program exported is imported again, tokenizer included."""
    run, again = work / f"{name}-back-run", work / f"{name}-back"
    programs.run("checkpoint", "import", f"--from={exported}", f"--to={run}")
    programs.run("checkpoint", "export", f"--from={run}", f"--to={again}")
    compare_folders(report, f"{name} back", again, exported)
    for path in exported.iterdir():
        report.check((again / path.name).read_bytes() == path.read_bytes(), f"{name} back: {path.name} has changed")


# ---------------------------------------------------------------------------------------------- refusals


def damage(folder, change):
    """A copy of `folder` with its one weights file changed by `change(bytes) -> bytes`."""
    path = folder / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))


def edit_tensors(folder, edit):
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder, **changes):
    config = read_config(folder)
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))


Q = "model.layers.1.self_attn.q_proj.weight"
BAD_FOLDERS = {
    # name: (what is done to a good folder, exit code, what the message names)
    "truncated": (lambda f: damage(f, lambda b: b[:-1]), 65, "truncated"),
    "short header": (lambda f: damage(f, lambda b: b[:100]), 65, "header length"),
    "empty file": (lambda f: damage(f, lambda b: b""), 65, "header length"),
    "no JSON": (lambda f: damage(f, lambda b: b[:8] + b"x" * (len(b) - 8)), 65, "not a JSON object"),
    "missing tensor": (lambda f: edit_tensors(f, lambda s: s.pop(Q)), 65, Q),
    "unexpected tensor": (lambda f: edit_tensors(f, lambda s: s.update(extra=torch.zeros(2))), 65, "extra"),
    "wrong shape": (lambda f: edit_tensors(f, lambda s: s.update({Q: s[Q][:4].clone()})), 65, Q),
    "wrong dtype": (lambda f: edit_tensors(f, lambda s: s.update({Q: s[Q].int()})), 65, "I32"),
    "not finite": (lambda f: edit_tensors(f, lambda s: s[Q].view(-1)[5].fill_(float("nan"))), 65, "element 5"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), 66, "holds no weights"),
    "no config": (lambda f: (f / "config.json").unlink(), 66, "config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), 65, "config.json"),
    "other model": (lambda f: edit_config(f, model_type="llama"), 65, "llama"),
    "scaled positions": (lambda f: edit_config(f, rope_parameters={"rope_type": "yarn"}), 65, "rope_parameters"),
    "sliding window": (lambda f: edit_config(f, use_sliding_window=True), 65, "use_sliding_window"),
    "quantised": (lambda f: edit_config(f, quantization_config={"bits": 4}), 65, "quantization_config"),
    "huge": (lambda f: edit_config(f, num_hidden_layers=16000, num_local_experts=16000), 65, "tensors"),
    "too many layers": (lambda f: edit_config(f, num_hidden_layers=3), 65, "model.layers.2"),
}  # fmt: skip


def check_refusals(report, programs, work, trained_run):
    good = work / "good"
    make_model(make_config(4, tied=False)).save_pretrained(good)
    for number, (name, (change, code, part)) in enumerate(BAD_FOLDERS.items()):
        bad, run = work / f"bad-{number}", work / "bad-run"
        shutil.copytree(good, bad)
        change(bad)
        message = programs.run("checkpoint", "import", f"--from={bad}", f"--to={run}", code=code)
        report.check(part in message, f"refusal of '{name}' does not name {part}: {message}")
        left = [path.name for path in work.iterdir() if "bad-run" in path.name]
        report.check(not left, f"refusal of '{name}' leaves {left}")
    taken = work / "taken"
    taken.mkdir()
    (taken / "file").write_text("mine")
    programs.run("checkpoint", "import", f"--from={good}", f"--to={taken}", code=73)
    programs.run("checkpoint", "export", f"--from={trained_run}", f"--to={taken}", code=73)
    report.check([path.name for path in taken.iterdir()] == ["file"], "a folder that was not empty has changed")


def check_no_equivalent(report, programs, work, data):
    for key, value in [("moe.shared_experts", 1), ("moe.score", "sigmoid"), ("moe.capacity_factor", 1.5),
                       ("model.qk_norm", "false"), ("moe.balance", "bias")]:  # fmt: skip
        run = work / f"none-{key}"
        programs.run("train", f"--run.dir={run}", f"--data.train={data}", f"--data.tokenizer={data}.model",
                     "--model.layers=1", "--model.hidden=16", "--model.heads=2", "--model.kv_heads=1",
                     "--batch.seq=16", "--batch.global=2", "--train.steps=1", "--moe.experts=4", "--moe.top_k=2",
                     "--moe.ffn=8", f"--{key}={value}")  # fmt: skip
        message = programs.run("checkpoint", "export", f"--from={run}", f"--to={work / 'none'}", code=64)
        report.check(key in message, f"the refusal of {key} does not name it: {message}")
        report.check(not (work / "none").exists(), f"the refusal of {key} leaves a folder")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("program", "probe", "work"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    options = parser.parse_args()
    programs = Programs(options.program.resolve(), options.probe.resolve())
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    report = Report()
    for name in CASES:
        check_round_trip(report, programs, work, name)
    make_text(work / "text.txt")
    data = work / "data"
    programs.run("tokenize", f"--input={work / 'text.txt'}", f"--output={data}", "--tokenize.vocab_size=400")
    for name in TRAINED:
        exported = check_trained(report, programs, work, name, data)
        check_imports_back(report, programs, work, name, exported)
    check_refusals(report, programs, work, work / "teacher-run")
    check_no_equivalent(report, programs, work, data)
    return report.finish("exchange with Hugging Face")


if __name__ == "__main__":
    sys.exit(main())
