#include "data/tokenize.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <filesystem>
#include <mutex>
#include <string_view>
#include <thread>
#include <utility>

#include "base/error.hpp"
#include "base/hash.hpp"
#include "base/log.hpp"
#include "base/philox.hpp"
#include "base/stopwatch.hpp"
#include "data/detail/line_reader.hpp"
#include "data/detail/output_file.hpp"
#include "data/token_file.hpp"
#include "data/tokenizer.hpp"
#include "data/tokenizer_training.hpp"

namespace athanor::data {

namespace {

// Text that is encoded at a time: enough to keep the threads busy, little memory.
constexpr std::int64_t block_bytes = std::int64_t{8} << 20;
constexpr std::size_t sample_part_bytes = 4 << 10;
constexpr double max_held_out = 0.5;

TextOptions text_options(const TokenizeOptions& options) {
  TextOptions text;
  text.inputs = options.inputs;
  text.split = options.split;
  text.json_field = options.json_field;
  return text;
}

// Decides by (seed, site, text) alone; equal texts share their fate.
class KeyedChoice {
 public:
  KeyedChoice(std::uint64_t seed, std::string_view site, double share)
      : stream_(seed, base::RandomPurpose::data_permutation, site), share_(share) {}
  bool operator()(std::string_view text) const { return stream_.uniform(base::hash_string(text)) < share_; }

 private:
  base::PhiloxStream stream_;
  double share_;
};

// Follows a document over its chunks: its first chunk decides where all of it goes.
class HeldOutChoice {
 public:
  explicit HeldOutChoice(const TokenizeOptions& options)
      : chosen_(options.seed, "held-out", options.held_out) {}
  bool operator()(const TextChunk& chunk) {
    if (chunk.starts_document) {
      current_ = chosen_(chunk.text);
    }
    return current_;
  }

 private:
  KeyedChoice chosen_;
  bool current_ = false;
};

void check_options(const TokenizeOptions& options) {
  if (options.inputs.empty()) {
    throw base::ConfigError(
        "no input is given (there is no text to tokenize) set --input to files or folders");
  }
  if (options.output.empty() && options.tokenizer.empty()) {
    throw base::ConfigError(
        "no output is given (the token files need a name) set --output to a path without .bin");
  }
  if (!(options.held_out >= 0.0 && options.held_out <= max_held_out)) {
    throw base::ConfigError("tokenize.held_out is {} (it is a fraction of the documents) use 0 to {}",
                            options.held_out, max_held_out);
  }
  if (options.training_bytes < 1 || options.threads < 0) {
    throw base::ConfigError(
        "tokenize.training_bytes={} and tokenize.threads={} cannot be used (the first is positive, the "
        "second not "
        "negative) correct them",
        options.training_bytes, options.threads);
  }
}

// A sample of about `training_bytes` of the training documents, chosen in parts of a few kilobytes.
std::vector<std::string> sample_text(const TokenizeOptions& options) {
  TextReader reader(text_options(options));
  const double share = static_cast<double>(options.training_bytes) /
                       static_cast<double>(std::max<std::int64_t>(1, reader.total_bytes()));
  const KeyedChoice in_sample(options.seed, "tokenizer-sample", share);
  HeldOutChoice held_out(options);
  std::vector<std::string> texts;
  TextChunk chunk;
  while (reader.next(chunk)) {
    if (held_out(chunk)) {
      continue;
    }
    for (std::string_view rest = chunk.text; !rest.empty();) {
      const std::string_view part = rest.substr(
          0, rest.size() <= sample_part_bytes ? rest.size() : detail::part_end(rest, sample_part_bytes));
      if (share >= 1.0 || in_sample(part)) {
        texts.emplace_back(part);
      }
      rest.remove_prefix(part.size());
    }
  }
  return texts;
}

// Calls body(i) for 0 <= i < count on `threads` threads; throws the first error.
template <typename Body>
void parallel_for(std::size_t count, int threads, Body body) {
  std::atomic<std::size_t> next = 0;
  std::exception_ptr error;
  std::mutex mutex;
  const auto work = [&] {
    try {
      for (std::size_t i = next++; i < count; i = next++) {
        body(i);
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      error = error ? error : std::current_exception();
    }
  };
  std::vector<std::thread> pool;
  for (int i = 1; i < threads; ++i) {
    pool.emplace_back(work);
  }
  work();
  for (std::thread& thread : pool) {
    thread.join();
  }
  if (error) {
    std::rethrow_exception(error);
  }
}

// The token files of one run: one, or the training and the held-out part.
class Outputs {
 public:
  Outputs(const TokenizeOptions& options, TokenType type) {
    const bool split = options.held_out > 0.0;
    for (const std::string& prefix :
         split ? std::vector<std::string>{options.output + "-train", options.output + "-valid"}
               : std::vector<std::string>{options.output}) {
      prefixes_.push_back(prefix);
      writers_.emplace_back(prefix, type);
    }
  }

  TokenFileWriter& writer(bool held_out) { return writers_[held_out ? 1 : 0]; }

  std::vector<TokenizeOutput> finish() {
    std::vector<TokenizeOutput> written;
    for (std::size_t i = 0; i < writers_.size(); ++i) {
      if (writers_[i].num_documents() == 0) {
        throw base::DataError(
            "no document falls into {} (the corpus is small for its share of held-out documents) "
            "give more documents or another share",
            prefixes_[i]);
      }
      written.push_back({prefixes_[i], writers_[i].num_documents(), writers_[i].num_tokens()});
    }
    for (TokenFileWriter& writer : writers_) {
      writer.finish();
    }
    return written;
  }

 private:
  std::vector<std::string> prefixes_;
  std::vector<TokenFileWriter> writers_;
};

// Reads up to block_bytes of chunks.
std::vector<TextChunk> read_block(TextReader& reader) {
  std::vector<TextChunk> block;
  TextChunk chunk;
  for (std::int64_t bytes = 0; bytes < block_bytes && reader.next(chunk);) {
    bytes += static_cast<std::int64_t>(chunk.text.size());
    block.push_back(std::move(chunk));
  }
  return block;
}

void write_token_files(const TokenizeOptions& options, const Tokenizer& tokenizer, TokenizeResult& result) {
  const int threads = options.threads > 0
                          ? options.threads
                          : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  TextReader reader(text_options(options));
  HeldOutChoice held_out(options);
  Outputs outputs(options, token_type_for(tokenizer.vocab_size()));
  const std::int32_t end = tokenizer.end_of_document();
  for (std::vector<TextChunk> block = read_block(reader); !block.empty(); block = read_block(reader)) {
    std::vector<std::vector<std::int32_t>> ids(block.size());
    parallel_for(block.size(), threads, [&](std::size_t i) { ids[i] = tokenizer.encode(block[i].text); });
    for (std::size_t i = 0; i < block.size(); ++i) {
      TokenFileWriter& writer = outputs.writer(held_out(block[i]));
      writer.add(ids[i]);
      if (block[i].ends_document) {
        writer.add({&end, 1});
        writer.end_document();
      }
    }
  }
  result.text = reader.counts();
  if (result.text.documents == 0) {
    throw base::DataError(
        "the corpus is empty ({} files, {} bytes, no document with text) give files with text",
        result.text.files, result.text.bytes);
  }
  result.outputs = outputs.finish();
  for (const TokenizeOutput& output : result.outputs) {
    result.tokens += output.tokens;
  }
}

// Trains the tokenizer unless it exists. Returns its path.
std::string prepare_tokenizer(const TokenizeOptions& options, TokenizeResult& result) {
  std::string path = options.tokenizer.empty() ? options.output + ".model" : options.tokenizer;
  if (!options.tokenizer.empty() && std::filesystem::exists(path)) {
    return path;
  }
  const std::vector<std::string> texts = sample_text(options);
  std::int64_t bytes = 0;
  for (const std::string& text : texts) {
    bytes += static_cast<std::int64_t>(text.size());
  }
  if (bytes == 0) {
    throw base::DataError(
        "the corpus is empty (there is no text to train the tokenizer {} on) give files with text", path);
  }
  base::log_info("training the tokenizer {} on {:.1f} MB of text", path, static_cast<double>(bytes) * 1e-6);
  TokenizerTrainingOptions training;
  training.vocab_size = options.vocab_size;
  train_tokenizer(texts, training, path);
  result.trained = true;
  return path;
}

}  // namespace

TokenizeResult run_tokenize(const TokenizeOptions& options_in) {
  const base::Stopwatch watch;
  TokenizeOptions options = options_in;
  options.output = token_file_prefix(options.output);
  check_options(options);
  if (!options.output.empty()) {
    // Refused before the tokenizer is trained.
    const detail::OutputFile probe(options.output + ".bin");
  }
  TokenizeResult result;
  result.tokenizer = prepare_tokenizer(options, result);
  const Tokenizer tokenizer(result.tokenizer);
  result.vocab_size = tokenizer.vocab_size();
  result.end_of_document = tokenizer.end_of_document();
  if (!options.output.empty()) {
    write_token_files(options, tokenizer, result);
  }
  if (result.text.invalid_utf8 > 0) {
    base::log_warning("{} malformed characters were replaced by U+FFFD (the input is not all UTF-8)",
                      result.text.invalid_utf8);
  }
  result.seconds = watch.seconds();
  return result;
}

}  // namespace athanor::data
