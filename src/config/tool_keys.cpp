// The keys of `generate.*`, `tokenize.*` and `bench.*`.
#include "config/command_sets.hpp"
#include "config/key_group.hpp"

namespace athanor::config {

#define RUN(expression)           \
  [](auto& run, auto&) -> auto& { \
    return run.expression;        \
  }

void add_tool_keys(std::vector<Key>& keys) {
  KeyGroup(keys, "generate", commands({Command::generate}))
      .add("prompt", RUN(generate.prompt), {"Text to continue; empty: start a document."})
      .add("max_new_tokens", RUN(generate.max_new_tokens),
           {"Tokens to generate at most.", "tokens", at_least(1)})
      .add("min_new_tokens", RUN(generate.min_new_tokens),
           {"Tokens to generate at least: the end of the document is not chosen before.", "tokens",
            at_least(0)})
      .add("top_k", RUN(generate.top_k),
           {"Sample among so many most probable tokens; 0: all.", "tokens", at_least(0)})
      .add("top_p", RUN(generate.top_p),
           {"Sample among the most probable tokens that together have this probability.",
            "",
            {.min = 0, .max = 1, .min_is_legal = false}})
      .add("temperature", RUN(generate.temperature),
           {"Divides the logits; 0: always the most probable token.", "", at_least(0)})
      .add("repetition_penalty", RUN(generate.repetition_penalty),
           {"Lowers the logits of tokens that were there already; 1: no penalty.", "", above(0)})
      .add("length_penalty", RUN(generate.length_penalty),
           {"Beams are compared by log probability / length^penalty.", "", {}})
      .add("beams", RUN(generate.beams), {"Beams of the search; 1: sampling.", "beams", at_least(1)})
      .add("seed", RUN(generate.seed), {"Seed of the sampling."});
  KeyGroup(keys, "tokenize", commands({Command::tokenize}))
      .add("vocab_size", RUN(tokenize.options.vocab_size),
           {"Vocabulary of the tokenizer that is trained.", "tokens", at_least(2)})
      .add("training_bytes", RUN(tokenize.options.training_bytes),
           {"Text that the tokenizer is trained on, at most.", "bytes", at_least(1)})
      .add("held_out", RUN(tokenize.options.held_out),
           {"Share of the documents kept for evaluation: OUTPUT-train and OUTPUT-valid are written; 0: none.",
            "", between(0, 0.5)})
      .add("seed", RUN(tokenize.options.seed), {"Chooses the tokenizer's sample and the held-out documents."})
      .add("split", RUN(tokenize.options.split), {"What separates the documents of a plain text file."})
      .add("json_field", RUN(tokenize.options.json_field),
           {"Member of each JSON line that holds the document."})
      .add("threads", RUN(tokenize.options.threads),
           {"Encoding threads; 0: one for each core. The output does not depend on it.", "threads",
            at_least(0)});
  KeyGroup(keys, "bench",
           commands({Command::bench_step, Command::bench_checkpoint, Command::bench_stream,
                     Command::bench_collectives, Command::bench_dispatch, Command::bench_kernels}))
      .add("rounds", RUN(bench.rounds),
           {"Alternations of what is measured and its limit.", "rounds", at_least(1)});
  KeyGroup(keys, "bench", commands({Command::bench_collectives}))
      .add("min_bytes", RUN(bench.min_bytes), {"Smallest message of a rank.", "bytes", at_least(64)})
      .add("max_bytes", RUN(bench.max_bytes),
           {"Largest message of a rank; sizes go up from the smallest in steps of 4.", "bytes", at_least(64)})
      .add("table", RUN(bench.table),
           {"File to write the best algorithms to, for parallel.collectives; empty: none."});
  KeyGroup(keys, "bench", commands({Command::bench_step, Command::bench_stream, Command::bench_dispatch}))
      .add("warmup_steps", RUN(bench.warmup_steps), {"Steps before the clock starts.", "steps", at_least(0)})
      .add("steps_per_round", RUN(bench.steps_per_round),
           {"Steps timed in one round.", "steps", at_least(1)});
  KeyGroup(keys, "bench", commands({Command::bench_step}))
      .add("compare_balanced", RUN(bench.compare_balanced),
           {"Times the router's choices beside balanced ones, in place of the GEMM limit."})
      .add("worst_routing", RUN(bench.worst_routing),
           {"All tokens choose the first experts, which one rank of each expert group holds."});
}

#undef RUN

}  // namespace athanor::config
