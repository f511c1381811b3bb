#!/usr/bin/env python3
"""Compares models written by parity_dump with Hugging Face's Qwen3-MoE and Qwen3.

    transformers_parity.py FOLDER

For each case in FOLDER: builds the transformers model of the same shape, loads the weights, and compares logits, loss,
the gradient of every parameter, and generated texts (greedy with repetition penalty, and beam search). Fails with the
name and size of the largest difference.
"""

import json
import os
import pathlib
import sys

# Loads only the CPU part of a CUDA build of torch where scripts/parity.sh has put stand-ins for CUDA's libraries.
sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_GLOBAL)
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

LOGITS_TOLERANCE = 1e-4  # of the largest |logit|
LOSS_TOLERANCE = 1e-5  # relative
GRADIENT_TOLERANCE = 1e-4  # of the largest |gradient| of the tensor


class Case:
    """One dumped model: manifest and tensors."""

    def __init__(self, folder):
        self.folder = folder
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.shapes = {entry["name"]: entry["shape"] for entry in self.manifest["parameters"]}
        self.shapes["logits"] = self.manifest["logits"]["shape"]

    def tensor(self, name, suffix=""):
        data = numpy.fromfile(self.folder / f"{name}{suffix}.f32", dtype="<f4")
        return torch.from_numpy(data.reshape(self.shapes[name]))


def make_model(config):
    """The transformers model of a manifest's config, with random weights."""
    common = dict(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden"],
        intermediate_size=config["ffn"],
        num_hidden_layers=config["layers"],
        num_attention_heads=config["heads"],
        num_key_value_heads=config["kv_heads"],
        head_dim=config["head_dim"],
        max_position_embeddings=config["max_seq"],
        rms_norm_eps=config["norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
        tie_word_embeddings=config["tie_embeddings"],
        attn_implementation="eager",
    )
    if config["experts"] == 0:
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**common)).float().eval()
    sparse = transformers.Qwen3MoeConfig(
        **common,
        num_experts=config["experts"],
        num_experts_per_tok=config["top_k"],
        moe_intermediate_size=config["expert_ffn"],
        norm_topk_prob=config["normalize_top_k"],
        decoder_sparse_step=config["every"],
        experts_implementation="eager",
    )
    return transformers.Qwen3MoeForCausalLM(sparse).float().eval()


def layer_map(name):
    """Our parameter name -> list of (their name, how to cut ours)."""
    whole = lambda ours: ours  # noqa: E731
    if name == "embedding.weight":
        return [("model.embed_tokens.weight", whole)]
    if name == "head.weight":
        return [("lm_head.weight", whole)]
    if name == "final_norm.weight":
        return [("model.norm.weight", whole)]
    _, layer, part = name.split(".", 2)
    prefix = f"model.layers.{layer}."
    first = lambda ours: ours[0]  # noqa: E731
    second = lambda ours: ours[1]  # noqa: E731
    parts = {
        "attention_norm.weight": [("input_layernorm.weight", whole)],
        "ffn_norm.weight": [("post_attention_layernorm.weight", whole)],
        "attention.q.weight": [("self_attn.q_proj.weight", whole)],
        "attention.kv.weight": [("self_attn.k_proj.weight", first), ("self_attn.v_proj.weight", second)],
        "attention.o.weight": [("self_attn.o_proj.weight", whole)],
        "attention.q_norm.weight": [("self_attn.q_norm.weight", whole)],
        "attention.k_norm.weight": [("self_attn.k_norm.weight", whole)],
        "ffn.gate_up.weight": [("mlp.gate_proj.weight", first), ("mlp.up_proj.weight", second)],
        "ffn.down.weight": [("mlp.down_proj.weight", whole)],
        "moe.router.weight": [("mlp.gate.weight", whole)],
        "moe.experts.gate_up": [("mlp.experts.gate_up_proj", whole)],
        "moe.experts.down": [("mlp.experts.down_proj", whole)],
    }
    return [(prefix + theirs, cut) for theirs, cut in parts[part]]


def load_weights(case, model):
    """Copies the dumped weights; every parameter on both sides must be met."""
    parameters = dict(model.named_parameters())
    left = set(parameters)
    with torch.no_grad():
        for name in case.shapes:
            if name == "logits":
                continue
            for theirs, cut in layer_map(name):
                parameters[theirs].copy_(cut(case.tensor(name)))
                left.discard(theirs)
    assert not left, f"no weights for {sorted(left)}"


class Report:
    """Collects differences and remembers failures."""

    def __init__(self, name):
        self.name = name
        self.failures = []
        self.worst = {}

    def compare(self, kind, what, ours, theirs, tolerance):
        scale = max(float(theirs.abs().max()), 1e-30)
        difference = float((ours.double() - theirs.double()).abs().max()) / scale
        self.worst[kind] = max(self.worst.get(kind, 0.0), difference)
        if not difference <= tolerance:
            self.failures.append(f"{self.name}: {what} differs by {difference:.2e} (limit {tolerance:.0e})")

    def equal(self, what, ours, theirs):
        if ours != theirs:
            self.failures.append(f"{self.name}: {what}: {ours} instead of {theirs}")


def compare_training(case, model, report):
    tokens = torch.tensor(case.manifest["tokens"])
    out = model(tokens, labels=tokens)
    report.compare("logits", "logits", case.tensor("logits"), out.logits.detach(), LOGITS_TOLERANCE)
    report.compare("loss", "loss", torch.tensor(case.manifest["loss"]), out.loss.detach(), LOSS_TOLERANCE)
    out.loss.backward()
    parameters = dict(model.named_parameters())
    for name in case.shapes:
        if name == "logits":
            continue
        for theirs, cut in layer_map(name):
            ours = cut(case.tensor(name, ".grad"))
            report.compare("gradient", f"gradient of {theirs}", ours, parameters[theirs].grad, GRADIENT_TOLERANCE)


def compare_generation(case, model, report):
    for settings in case.manifest["generation"]:
        for row, ours in enumerate(settings["texts"]):
            prompt = torch.tensor([case.manifest["tokens"][row][: settings["prompt_tokens"]]])
            end = settings["end_of_document"]
            out = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=settings["max_new_tokens"],
                num_beams=settings["beams"],
                repetition_penalty=settings["repetition_penalty"],
                length_penalty=settings["length_penalty"],
                eos_token_id=end,
                pad_token_id=end,
                output_scores=True,
                return_dict_in_generate=True,
            )
            theirs = out.sequences[0, prompt.shape[1] :].tolist()
            if end in theirs:
                theirs = theirs[: theirs.index(end)]
            what = f"text {row} with {settings['beams']} beams"
            report.equal(what, ours["tokens"], theirs)
            if settings["beams"] > 1 and ours["tokens"] == theirs:
                score = torch.tensor(ours["beam_score"])
                report.compare("beam score", f"score of {what}", score, out.sequences_scores[0], 1e-4)


def main():
    folder = pathlib.Path(sys.argv[1])
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    cases = sorted(path.parent for path in folder.glob("*/manifest.json"))
    assert cases, f"no cases in {folder}"
    failures = []
    for path in cases:
        case = Case(path)
        model = make_model(case.manifest["config"])
        load_weights(case, model)
        report = Report(path.name)
        compare_training(case, model, report)
        compare_generation(case, model, report)
        worst = ", ".join(f"{kind} {value:.1e}" for kind, value in report.worst.items())
        lengths = [len(text["tokens"]) for settings in case.manifest["generation"] for text in settings["texts"]]
        print(f"{path.name}: largest relative differences: {worst}; generated lengths {lengths}")
        failures += report.failures
    for failure in failures:
        print(f"FAILED {failure}")
    print(f"transformers {transformers.__version__}, {len(cases)} models:", "FAILED" if failures else "equal")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
