// Token files of several domains as one endless, seekable sequence of samples; and as finite held-out sets.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/batch.hpp"

namespace athanor::data {

/// One entry of `data.train` or `data.valid`: "path[:weight[:domain]]"; path is without .bin/.idx.
struct SourceSpec {
  std::string path;
  double weight = 1.0;
  std::string domain;  ///< default: the path's last component
};
/// Parses a comma-separated list. Throws ConfigError naming the entry.
std::vector<SourceSpec> parse_sources(const std::string& list);

struct DatasetOptions {
  std::vector<SourceSpec> sources;
  std::int64_t seq =
      256;  ///< tokens of a sample; sample i is the seq+1 tokens from i*seq of the packed stream
  std::uint64_t seed = 0;
  bool reset_attention = false;  ///< documents do not see each other; labels across a boundary stay valid
};

/// Memory-mapped, read-only, thread-safe. Files that share a domain are one packed stream, in list order.
class Dataset {
 public:
  /// Throws MissingInputError, DataError (truncated, foreign, empty, shorter than one sample).
  explicit Dataset(const DatasetOptions& options);
  ~Dataset();
  Dataset(Dataset&&) noexcept;
  Dataset& operator=(Dataset&&) noexcept;

  const std::vector<std::string>& domain_names() const;
  std::int64_t num_samples(std::int64_t domain) const;
  std::int64_t num_samples() const;
  std::int64_t num_tokens() const;
  /// Largest token id in the files (scanned once, cached).
  std::int64_t max_token_id() const;
  /// Stable hash of the files' contents description (sizes, index bytes): guards pairings and resumes.
  std::uint64_t fingerprint() const;

  /// Rows for training positions [first, first + rows) of the mixture's endless order: pure arithmetic, no
  /// replay (design section 8).
  Batch read_training(std::int64_t first, std::int64_t rows) const;
  /// Rows for samples [first, first + rows) of one domain in file order (evaluation). sample_ids count from 0
  /// within the domain. Rows past the end are left out.
  Batch read_in_order(std::int64_t domain, std::int64_t first, std::int64_t rows) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace athanor::data
