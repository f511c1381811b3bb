// The one table of keys: from it come the options, --help, --print-config, docs/configuration.md and the
// suggestions for mistyped names. Defaults are those of the structs.
#include "config/command_sets.hpp"
#include "config/key.hpp"
#include "config/key_group.hpp"

namespace athanor::config {
namespace {

#define RUN(expression)           \
  [](auto& run, auto&) -> auto& { \
    return run.expression;        \
  }
#define ROLE(expression)           \
  [](auto&, auto& role) -> auto& { \
    return role.expression;        \
  }

void add_command_keys(std::vector<Key>& keys) {
  KeyGroup(keys, "", commands({Command::tokenize}))
      .add("input", RUN(tokenize.input),
           {"Text to read: a comma-separated list of files and folders. .jsonl, .ndjson and .json are JSON "
            "lines, "
            "anything else is plain text."})
      .add("output", RUN(tokenize.options.output),
           {"Token files to write: this path with .bin and .idx; empty: only train the tokenizer."})
      .add("tokenizer", RUN(tokenize.options.tokenizer),
           {"Tokenizer model: used when the file exists, trained there when not; empty: trained at "
            "OUTPUT.model."});
  KeyGroup(keys, "", uses_weights)
      .add("checkpoint", RUN(source.checkpoint),
           {"A checkpoint folder, a run, or a checkpoints folder (its newest whole one)."});
  KeyGroup(keys, "", uses_weights | commands({Command::checkpoint_export}))
      .add("role", RUN(source.role), {"Which role's weights to use."});
  KeyGroup(keys, "", converts)
      .add("from", RUN(exchange.from),
           {"What to read: a checkpoint folder, a run, or a checkpoints folder (its newest whole one); of "
            "import: a Hugging Face folder."});
  KeyGroup(keys, "",
           commands({Command::checkpoint_diff, Command::checkpoint_merge, Command::checkpoint_export,
                     Command::checkpoint_import}))
      .add("to", RUN(exchange.to),
           {"What to write (it must not exist, or be empty); of diff: the other checkpoint."});
  KeyGroup(keys, "", commands({Command::checkpoint_export, Command::checkpoint_import}))
      .add("format", RUN(exchange.format), {"Format to exchange weights in: hf is Hugging Face's."});
  KeyGroup(keys, "", commands({Command::checkpoint_export}))
      .add("dtype", RUN(exchange.dtype),
           {"Number format of the exported weights; stored: that of the import, or f32."})
      .add("shard_bytes", RUN(exchange.shard_bytes),
           {"Largest size of one exported file of weights.", "bytes", at_least(1)});
  KeyGroup(keys, "", runs_model)
      .per_role()
      .add("ranks", ROLE(ranks),
           {"Ranks of the role; 0: all of the job that no other role has. With --dry-run in one process: "
            "plan for "
            "that many.",
            "ranks", at_least(0)});
  KeyGroup(keys, "", trains | commands({Command::bench_step}))
      .per_role()
      .add("init", ROLE(init),
           {"Checkpoint folder, run, or checkpoints folder (its newest whole one) whose weights the role "
            "starts "
            "from; empty: random weights."});
  KeyGroup(keys, "", trains)
      .per_role()
      .add(
          "init_mode", ROLE(init_mode),
          {"exact: init holds a model of the role's own shape; shrink: a larger one, out of which the role's "
           "is made."})
      .add(
          "init_layers", ROLE(init_layers),
          {"Layers of the larger model that shrink keeps, one for each layer: a rising comma-separated list, "
           "counted from 0; empty: equally spaced, first and last included."})
      .add("init_experts", ROLE(init_experts),
           {"What shrink makes fewer experts of: the most used ones, or means of similar ones."});
  KeyGroup(keys, "", commands({Command::distill, Command::bench_stream}))
      .per_role()
      .add("frozen", ROLE(frozen), {"The role's weights stay as they are; of a teacher only."});
}

void add_run_keys(std::vector<Key>& keys) {
  KeyGroup(keys, "run", trains | commands({Command::bench_checkpoint}))
      .add("dir", RUN(run.dir), {"Folder of the run: configuration, log, metrics and checkpoints."});
  KeyGroup(keys, "run", trains)
      .add("resume", RUN(run.resume),
           {"auto: go on from the newest whole checkpoint of the run, start afresh when it has none; never: "
            "start afresh, refused when it has some; or the path of a checkpoint."})
      .add("allow_mismatch", RUN(run.allow_mismatch),
           {"Keys that may differ from those of the checkpoint although they change the run: a "
            "comma-separated list; data.train and data.tokenizer stand for their contents."})
      .add("end_time", RUN(run.end_time),
           {"When the job will be ended by force, in seconds since 1970 (the job scripts ask Slurm for it): "
            "no "
            "step is begun that could not be saved before; the job then stops with exit code 75. 0: unknown.",
            "seconds", at_least(0)})
      .add("stop_margin_s", RUN(run.stop_margin_s),
           {"Time kept free before run.end_time, besides 1.5 times the longest of the last steps and the "
            "longest save.",
            "seconds", at_least(0)});
  KeyGroup(keys, "run", trains)
      .add("check_collectives", RUN(run.check_collectives),
           {"Debug mode: before each collective its ranks compare operation, element type, counts, root and "
            "call "
            "site, so that a mismatch is an error that names both calls instead of a hang. Slow."})
      .add("check_deadline_s", RUN(run.check_deadline_s),
           {"With run.check_collectives: longest wait for a rank to come to a collective; 0: for ever.",
            "seconds", at_least(0)});
  KeyGroup(keys, "run", builds_model)
      .add("seed", RUN(run.seed),
           {"Seed of every random number: initial weights, order of the data, dropout."});
  KeyGroup(keys, "run", runs_model)
      .add("device", RUN(run.device), {"Where to compute; cuda gives each rank a GPU of its own."});
}

void add_model_keys(std::vector<Key>& keys) {
  KeyGroup(keys, "model", builds_model)
      .per_role()
      .from_checkpoint()
      .add("vocab_size", ROLE(model.vocab_size),
           {"Tokens of the vocabulary; 0: the tokenizer's.", "tokens", at_least(0)})
      .add("layers", ROLE(model.layers), {"Transformer layers.", "layers", at_least(1)})
      .add("hidden", ROLE(model.hidden), {"Width of the residual stream.", "", at_least(1)})
      .add("heads", ROLE(model.heads), {"Query heads.", "heads", at_least(1)})
      .add("kv_heads", ROLE(model.kv_heads),
           {"Key and value heads; divides model.heads.", "heads", at_least(1)})
      .add("head_dim", ROLE(model.head_dim), {"Width of a head, even; 0: hidden / heads.", "", at_least(0)})
      .add("qk_norm", ROLE(model.qk_norm), {"RMS norm of each head's queries and keys."})
      .add("rope_theta", ROLE(model.rope_theta), {"Base of the rotary positions.", "", above(0)})
      .add("max_seq", ROLE(model.max_seq), {"Longest sequence the model takes.", "tokens", at_least(1)})
      .add("tie_embeddings", ROLE(model.tie_embeddings), {"The output head uses the embedding's weights."})
      .add("norm_eps", ROLE(model.norm_eps), {"Added to the mean square in RMS norms.", "", above(0)})
      .add("ffn", ROLE(model.ffn), {"Inner width of the feed-forward part of dense layers.", "", at_least(1)})
      .add("dropout", ROLE(model.dropout), {"Share of activations set to zero in training.", "", below(0, 1)})
      .add("recompute", ROLE(model.recompute),
           {"Keep only the input of each layer and compute the layer again in backward: less memory, a third "
            "more work."})
      .add("init_std", ROLE(model.init_std), {"Standard deviation of the initial weights.", "", above(0)});
}

void add_moe_keys(std::vector<Key>& keys) {
  KeyGroup(keys, "moe", builds_model)
      .per_role()
      .from_checkpoint()
      .add("experts", ROLE(model.moe.num_experts),
           {"Routed experts of a sparse layer; 0: a dense model with model.ffn.", "experts", at_least(0)})
      .add("top_k", ROLE(model.moe.top_k), {"Experts each token is sent to.", "experts", at_least(1)})
      .add("ffn", ROLE(model.moe.ffn), {"Inner width of one expert.", "", at_least(1)})
      .add("shared_experts", ROLE(model.moe.shared_experts),
           {"Experts that every token passes, besides the routed ones.", "experts", at_least(0)})
      .add("groups", ROLE(model.moe.groups),
           {"Groups of neighbouring experts for limited choice; divides moe.experts.", "groups", at_least(1)})
      .add("group_top_k", ROLE(model.moe.group_top_k),
           {"Groups a token may choose from; 0: all.", "groups", at_least(0)})
      .add("score", ROLE(model.moe.score), {"Function from router logits to scores."})
      .add("normalize_top_k", ROLE(model.moe.normalize_top_k), {"Gates of the chosen experts sum to 1."})
      .add("capacity_factor", ROLE(model.moe.capacity_factor),
           {"At most ceil(factor * seq * top_k / experts) choices of a sequence for one expert; 0: no limit.",
            "", at_least(0)})
      .add("drop", ROLE(model.moe.drop),
           {"Which choices stay when there are more than the capacity: the earliest, or those with the "
            "highest scores."})
      .add("balance", ROLE(model.moe.balance), {"What keeps the experts' loads even."})
      .add("balance_counts", ROLE(model.moe.balance_counts),
           {"Which counts the balance gradient uses: of the previous global batch (the same on every "
            "layout), or of the current micro-step (depends on dp x batch.micro)."})
      .add("balance_weight", ROLE(model.moe.balance_weight),
           {"Weight of the balance losses.", "", at_least(0)})
      .add("z_weight", ROLE(model.moe.z_weight), {"Weight of the router's z-loss; 0: none.", "", at_least(0)})
      .add("bias_rate", ROLE(model.moe.bias_rate),
           {"Step of the bias update when moe.balance has bias.", "", at_least(0)})
      .add("dispatch_chunks", ROLE(model.moe.dispatch_chunks),
           {"Parts in which the rows of a layer's experts are exchanged, so that one is under way while "
            "another is computed; 1: exchange, then compute. The same bits.",
            "chunks", at_least(1)})
      .add("every", ROLE(model.moe.every),
           {"Every n-th layer is sparse, the last of each n.", "layers", at_least(1)});
  KeyGroup(keys, "moe", commands({Command::bench_step}))
      .per_role()
      .add("force_uniform", ROLE(model.moe.force_uniform),
           {"Perfectly balanced choices that ignore the router: for measurements only."});
}

void add_layout_keys(std::vector<Key>& keys) {
  KeyGroup(keys, "parallel", runs_model | commands({Command::bench_collectives}))
      .add("collectives", RUN(collectives),
           {"Algorithms of the collectives instead of those of the table in the source: a list of "
            "operation:algorithm (exchange, all_gather, all_reduce, broadcast, barrier), or a file as bench "
            "collectives writes it. Results have the same bits."});
  KeyGroup(keys, "parallel", runs_model)
      .per_role()
      .add("tp", ROLE(parallel.tp),
           {"Tensor-parallel degree; ranks / tp is the data-parallel degree dp.", "ranks", at_least(1)})
      .add("ep", ROLE(parallel.ep),
           {"Expert-parallel degree; divides dp * tp and moe.experts.", "ranks", at_least(1)});
}

void add_data_keys(std::vector<Key>& keys) {
  KeyGroup(keys, "data", trains | commands({Command::bench_step}))
      .from_checkpoint()
      .add("train", RUN(data.train),
           {"Token files to train on: a comma-separated list of path[:weight[:domain]], paths without .bin "
            "and .idx; empty in bench step: synthetic tokens."});
  KeyGroup(keys, "data", trains | commands({Command::evaluate}))
      .from_checkpoint()
      .add("valid", RUN(data.valid), {"Held-out token files, as data.train; empty in train: no evaluation."});
  KeyGroup(keys, "data", runs_model)
      .from_checkpoint()
      .add("tokenizer", RUN(data.tokenizer),
           {"Tokenizer model file: gives model.vocab_size when that is 0, and the text in generate."});
  KeyGroup(keys, "data", trains | commands({Command::evaluate}))
      .from_checkpoint()
      .add("reset_attention", RUN(data.reset_attention),
           {"Documents packed into one sequence do not see each other."});
}

void add_batch_keys(std::vector<Key>& keys) {
  KeyGroup(keys, "batch", runs_model & ~commands({Command::generate}))
      .from_checkpoint()
      .add("global", RUN(batch.global),
           {"Sequences of one optimizer step over all ranks.", "sequences", at_least(1)});
  KeyGroup(keys, "batch", runs_model & ~commands({Command::generate}))
      .per_role()
      .add("micro", ROLE(batch_micro),
           {"Sequences of one forward pass of a data-parallel replica; 0: global / dp, no accumulation.",
            "sequences", at_least(0)});
  KeyGroup(keys, "batch", runs_model & ~commands({Command::generate}))
      .from_checkpoint()
      .add("seq", RUN(batch.seq), {"Length of a sequence.", "tokens", at_least(1)});
}

void add_optim_keys(std::vector<Key>& keys) {
  KeyGroup(keys, "optim", builds_model)
      .per_role()
      .add("lr", ROLE(optim.lr), {"Peak learning rate.", "", above(0)})
      .add("min_lr", ROLE(optim.min_lr), {"Learning rate at the end of the schedule.", "", at_least(0)})
      .add("beta1", ROLE(optim.beta1), {"Decay of the first moment.", "", below(0, 1)})
      .add("beta2", ROLE(optim.beta2), {"Decay of the second moment.", "", below(0, 1)})
      .add("eps", ROLE(optim.eps), {"Added to the root of the second moment.", "", above(0)})
      .add("weight_decay", ROLE(optim.weight_decay), {"Decoupled weight decay of matrices.", "", at_least(0)})
      .add("warmup_steps", ROLE(optim.warmup_steps), {"Steps of linear warm-up.", "steps", at_least(0)})
      .add("schedule", ROLE(optim.schedule), {"Learning rate after the warm-up."})
      .add("clip", ROLE(optim.clip), {"Largest global gradient norm; 0: no clipping.", "", at_least(0)})
      .add("zero", ROLE(optim.zero),
           {"1: optimizer state sharded over the ranks that hold the same parameters; 0: a copy on each.", "",
            between(0, 1)})
      .add("overlap_reduce", ROLE(optim.overlap_reduce),
           {"Buckets of gradients are summed over ranks while the last backward pass of a step runs. Changes "
            "no "
            "result."})
      .add("overlap_gather", ROLE(optim.overlap_gather),
           {"optim.zero=1: updated parameters come back from their owners while the next forward pass runs, "
            "which waits for each where it is read. Changes no result."})
      .add("max_skips", ROLE(optim.max_skips),
           {"Steps with a non-finite gradient in a row after which the run stops with exit code 70.", "steps",
            at_least(1)});
}

void add_precision_keys(std::vector<Key>& keys) {
  KeyGroup(keys, "precision", runs_model)
      .per_role()
      .from_checkpoint()
      .add("compute", ROLE(precision.compute),
           {"Number format of weights and activations; f64 is for tests, fp16 is slow on CPUs."});
  KeyGroup(keys, "precision", builds_model)
      .per_role()
      .add("grad_comm", ROLE(precision.grad_comm),
           {"Number format of gradients on the wire; full is the accumulation type."})
      .add("dispatch_comm", ROLE(precision.dispatch_comm),
           {"Number format of tokens on their way to the experts, and of the gradients of the experts' "
            "results."})
      .add(
          "combine_comm", ROLE(precision.combine_comm),
          {"Number format of the experts' results on their way back, and of the tokens' gradients; not fp8."})
      .add("fp8_format", ROLE(precision.fp8_format), {"FP8 variant, where another precision key is fp8."})
      .add("error_feedback", ROLE(precision.error_feedback),
           {"Adds what the wire's rounding took from a rank's gradients to those of its next step."})
      .add("store_activations", ROLE(precision.store_activations),
           {"What is kept in FP8 between forward and backward: parts of the layers. Forward passes are not "
            "rounded."})
      .add("store_gradients", ROLE(precision.store_gradients),
           {"Gradients that lie in FP8 from backward until they are summed: those of the experts, or all. "
            "Needs precision.grad_comm=fp8 and one micro-batch a step."});
}

void add_train_keys(std::vector<Key>& keys) {
  KeyGroup(keys, "train", trains)
      .add("steps", RUN(train.steps), {"Optimizer steps.", "steps", at_least(1)})
      .add("log_every", RUN(train.log_every), {"A progress line every so many steps.", "steps", at_least(1)})
      .add("eval_every", RUN(train.eval_every),
           {"Evaluation on data.valid every so many steps; 0: only at the end.", "steps", at_least(0)})
      .add("trace", RUN(train.trace),
           {"Writes the timeline of so many steps on all ranks to <run.dir>/trace.json, for Perfetto; 0: "
            "none.",
            "steps", at_least(0)})
      .add("trace_from", RUN(train.trace_from),
           {"First step of the timeline; 0: the job's third.", "step", at_least(0)});
  KeyGroup(keys, "train", trains | commands({Command::evaluate}))
      .add("eval_batches", RUN(train.eval_batches),
           {"Batches per domain of one evaluation; 0: all.", "batches", at_least(0)});
}

void add_checkpoint_keys(std::vector<Key>& keys) {
  KeyGroup(keys, "checkpoint", trains)
      .add("every", RUN(checkpoint.every),
           {"A checkpoint every so many steps, and at the end; 0: only at the end.", "steps", at_least(0)})
      .add("keep", RUN(checkpoint.keep), {"Newest checkpoints that stay.", "checkpoints", at_least(1)})
      .add("pinned", RUN(checkpoint.pinned),
           {"Steps whose checkpoints are never removed: a comma-separated list."})
      .add("async", RUN(checkpoint.async),
           {"Training goes on while a checkpoint is written; false: it waits."})
      .add("dir", RUN(checkpoint.dir), {"Folder of the checkpoints; empty: checkpoints in run.dir."})
      .add("on_error", RUN(checkpoint.on_error),
           {"When a checkpoint cannot be written: try again after the next step (exit code 74 after three "
            "failures in a row), or stop with exit code 74."});
}

#undef RUN
#undef ROLE

std::vector<Key> make_keys() {
  std::vector<Key> keys;
  add_command_keys(keys);
  add_run_keys(keys);
  add_model_keys(keys);
  add_moe_keys(keys);
  add_layout_keys(keys);
  add_data_keys(keys);
  add_batch_keys(keys);
  add_optim_keys(keys);
  add_precision_keys(keys);
  add_train_keys(keys);
  add_checkpoint_keys(keys);
  add_guard_keys(keys);
  add_watchdog_keys(keys);
  add_plan_keys(keys);
  add_distill_keys(keys);
  add_tool_keys(keys);
  return keys;
}

}  // namespace

const std::vector<Section>& all_sections() {
  static const std::vector<Section> sections = {
      {"", "Options without a section"},
      {"run", "The run"},
      {"model", "The transformer"},
      {"moe", "Its sparse layers"},
      {"parallel", "How a role's ranks share the work"},
      {"data", "Token files and tokenizer"},
      {"batch", "What one step reads"},
      {"optim", "AdamW and its schedule"},
      {"precision", "Number formats"},
      {"train", "The training loop"},
      {"checkpoint", "Saving the run"},
      {"guard", "Numbers that go wrong"},
      {"monitor", "When the log warns"},
      {"watchdog", "Ranks that hang or lag"},
      {"plan", "The machine that --dry-run plans for"},
      {"distill", "From teacher to students"},
      {"generate", "Text generation"},
      {"tokenize", "From text to token files"},
      {"bench", "Measurements"},
  };
  return sections;
}

const std::vector<Key>& all_keys() {
  static const std::vector<Key> keys = make_keys();
  return keys;
}

}  // namespace athanor::config
