"""What hf_exchange.py and training_curve.py share: running the programs, small models, comparing folders."""

import json
import os
import pathlib
import subprocess
import sys

# Loads only the CPU part of a CUDA build of torch where scripts/parity.sh has put stand-ins for CUDA's libraries.
sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_GLOBAL)
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors import safe_open  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


class Programs:
    """The program under test and the probe beside it."""

    def __init__(self, program, probe):
        self.program = str(program)
        self.probe = str(probe)
        # This process has stand-ins for CUDA's libraries in its path; the programs do not need them.
        self.environment = {k: v for k, v in os.environ.items() if k not in ("LD_LIBRARY_PATH", "PYTHONPATH")}
        self.environment.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMP_NUM_THREADS="1",
                                OMPI_MCA_mpi_yield_when_idle="1")

    def run(self, *arguments, ranks=1, code=0):
        """Runs the program; returns its --json result, or what it wrote to stderr where `code` is an error's."""
        launch = [] if ranks == 1 else ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(ranks)]
        command = [*launch, self.program, *[str(argument) for argument in arguments], "--json"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode != code:
            raise AssertionError(f"{' '.join(command)}: exit code {done.returncode}, not {code}\n{done.stderr}")
        return json.loads(done.stdout.splitlines()[-1]) if code == 0 else done.stderr

    def ask(self, *arguments):
        """Runs the probe."""
        subprocess.run([self.probe, *[str(argument) for argument in arguments]], env=self.environment, check=True)

    def logits(self, checkpoint, tokens, vocab_size, work):
        """Logits [rows, seq, vocab] that the program's model gives to `tokens` (a list of equal rows)."""
        (work / "tokens.json").write_text(json.dumps(tokens))
        self.ask("logits", checkpoint, work / "tokens.json", work / "logits.f32")
        data = numpy.fromfile(work / "logits.f32", dtype="<f4")
        return torch.from_numpy(data.reshape(len(tokens), len(tokens[0]), vocab_size))


def make_config(experts, tied, **changes):
    """A small Qwen3-MoE (experts > 0) or Qwen3 config."""
    common = dict(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=tied,
        initializer_range=0.05,
    )
    common.update(changes)
    if experts == 0:
        return transformers.Qwen3Config(**common)
    sparse = dict(num_experts=experts, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True)
    sparse.update(common)
    return transformers.Qwen3MoeConfig(**sparse)


def make_model(config, seed=0):
    """A model with random weights, in f32; norm weights are spread so that a forgotten one is seen."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def load_model(folder):
    """The model of a folder as transformers loads it, computing in f32."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for kind, names in report.items():
        assert not names, f"{folder}: {kind}: {names}"
    return model.eval()


def read_tensors(folder):
    """name -> (dtype, shape, bytes) of all safetensors files of a folder."""
    tensors = {}
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                tensor = file.get_tensor(name)
                data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
                tensors[name] = (str(tensor.dtype), tuple(tensor.shape), data)
    return tensors


def read_config(folder):
    return json.loads((pathlib.Path(folder) / "config.json").read_text())


class Report:
    """Collects what was compared and what differed."""

    def __init__(self):
        self.failures = []
        self.checks = 0

    def check(self, condition, message):
        self.checks += 1
        if not condition:
            self.failures.append(message)
            print(f"FAILED {message}", flush=True)

    def finish(self, title):
        state = "FAILED" if self.failures else "equal"
        print(f"{title}: transformers {transformers.__version__}, {self.checks} checks: {state}")
        return 1 if self.failures else 0
