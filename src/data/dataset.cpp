#include "data/dataset.hpp"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>
#include <mutex>
#include <span>
#include <utility>

#include "base/error.hpp"
#include "base/hash.hpp"
#include "data/mixture.hpp"
#include "data/packed_stream.hpp"

namespace athanor::data {

namespace {

struct DomainFiles {
  std::string name;
  double weight = 0.0;
  std::vector<TokenFile> files;
};

// Sources by domain, in order of first mention; the files of a domain share the sum of their weights.
std::vector<DomainFiles> open_domains(const std::vector<SourceSpec>& sources) {
  if (sources.empty()) {
    throw base::ConfigError(
        "no data source is given (there is nothing to read) set data.train or data.valid to "
        "path[:weight[:domain]]");
  }
  std::vector<DomainFiles> domains;
  std::map<std::string, std::size_t> by_name;
  for (const SourceSpec& source : sources) {
    const std::string name =
        source.domain.empty() ? std::filesystem::path(source.path).filename().string() : source.domain;
    const auto [known, is_new] = by_name.emplace(name, domains.size());
    if (is_new) {
      domains.push_back({name, 0.0, {}});
    }
    DomainFiles& domain = domains[known->second];
    domain.weight += source.weight;
    domain.files.emplace_back(source.path);
  }
  return domains;
}

std::string describe_files(const PackedStream& stream) {
  std::string list;
  for (const TokenFile& file : stream.files()) {
    list += (list.empty() ? "" : ", ") + file.prefix();
  }
  return list;
}

}  // namespace

struct Dataset::State {
  struct Domain {
    PackedStream stream;
    std::int64_t num_samples = 0;
  };

  std::int64_t seq = 0;
  bool reset_attention = false;
  std::vector<std::string> names;
  std::vector<Domain> domains;
  std::unique_ptr<Mixture> mixture;
  std::uint64_t fingerprint = 0;
  mutable std::once_flag scan_once;
  mutable std::int64_t max_token_id = -1;

  explicit State(const DatasetOptions& options);
  const Domain& at(std::int64_t domain) const;
  Batch make_batch(std::int64_t rows) const;
  void fill_row(Batch& batch, std::int64_t row, std::int64_t domain, std::int64_t sample) const;
  void mark_documents(Batch& batch, std::int64_t row, const std::vector<std::int64_t>& starts) const;
};

Dataset::State::State(const DatasetOptions& options)
    : seq(options.seq), reset_attention(options.reset_attention) {
  if (seq < 1 || seq >= std::numeric_limits<std::int32_t>::max()) {
    throw base::ConfigError(
        "batch.seq is {} (a sample has at least one token, and fewer than 2^31) set it to the "
        "length of a training sequence",
        seq);
  }
  std::vector<MixtureDomain> mixed;
  std::vector<std::uint64_t> parts;
  for (DomainFiles& found : open_domains(options.sources)) {
    Domain domain{PackedStream(std::move(found.files)), 0};
    domain.num_samples = std::max<std::int64_t>(0, (domain.stream.num_tokens() - 1) / seq);
    if (domain.num_samples == 0) {
      throw base::DataError(
          "domain {} is smaller than one sample ({} has {} tokens, batch.seq={} takes {}) add text "
          "or lower batch.seq",
          found.name, describe_files(domain.stream), domain.stream.num_tokens(), seq, seq + 1);
    }
    parts.push_back(base::hash_string(found.name));
    for (const TokenFile& file : domain.stream.files()) {
      parts.push_back(file.fingerprint());
    }
    mixed.push_back({found.name, found.weight, domain.num_samples});
    names.push_back(found.name);
    domains.push_back(std::move(domain));
  }
  fingerprint = base::hash_bytes(parts.data(), parts.size() * sizeof(parts[0]));
  mixture = std::make_unique<Mixture>(std::move(mixed), options.seed);
}

const Dataset::State::Domain& Dataset::State::at(std::int64_t domain) const {
  ATHANOR_CHECK(domain >= 0 && domain < static_cast<std::int64_t>(domains.size()), "domain {} of {}", domain,
                domains.size());
  return domains[static_cast<std::size_t>(domain)];
}

Batch Dataset::State::make_batch(std::int64_t rows) const {
  Batch batch;
  batch.rows = rows;
  batch.seq = seq;
  const auto elements = static_cast<std::size_t>(rows * seq);
  batch.tokens.resize(elements);
  batch.labels.resize(elements);
  batch.positions.resize(elements);
  batch.documents.resize(elements);
  batch.sample_ids.resize(static_cast<std::size_t>(rows));
  batch.domains.resize(static_cast<std::size_t>(rows));
  return batch;
}

void Dataset::State::fill_row(Batch& batch, std::int64_t row, std::int64_t domain,
                              std::int64_t sample) const {
  const PackedStream& stream = at(domain).stream;
  std::vector<std::int32_t> ids(static_cast<std::size_t>(seq) + 1);
  stream.read(sample * seq, ids);
  std::copy(ids.begin(), ids.end() - 1, batch.tokens.begin() + row * seq);
  std::copy(ids.begin() + 1, ids.end(), batch.labels.begin() + row * seq);
  batch.domains[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(domain);
  mark_documents(batch, row,
                 reset_attention ? stream.document_starts(sample * seq, seq) : std::vector<std::int64_t>{});
}

// `starts` are the columns at which a new document begins.
void Dataset::State::mark_documents(Batch& batch, std::int64_t row,
                                    const std::vector<std::int64_t>& starts) const {
  std::size_t next = 0;
  std::int64_t begin = 0;
  for (std::int64_t column = 0; column < seq; ++column) {
    if (next < starts.size() && starts[next] == column) {
      begin = column;
      ++next;
    }
    const auto at = static_cast<std::size_t>(row * seq + column);
    batch.positions[at] = static_cast<std::int32_t>(column - begin);
    batch.documents[at] = static_cast<std::int32_t>(next);
  }
}

Dataset::Dataset(const DatasetOptions& options) : state_(std::make_unique<State>(options)) {}
Dataset::~Dataset() = default;
Dataset::Dataset(Dataset&&) noexcept = default;
Dataset& Dataset::operator=(Dataset&&) noexcept = default;

const std::vector<std::string>& Dataset::domain_names() const {
  return state_->names;
}
std::int64_t Dataset::num_samples(std::int64_t domain) const {
  return state_->at(domain).num_samples;
}

std::int64_t Dataset::num_samples() const {
  std::int64_t total = 0;
  for (const State::Domain& domain : state_->domains) {
    total += domain.num_samples;
  }
  return total;
}

std::int64_t Dataset::num_tokens() const {
  std::int64_t total = 0;
  for (const State::Domain& domain : state_->domains) {
    total += domain.stream.num_tokens();
  }
  return total;
}

std::int64_t Dataset::max_token_id() const {
  std::call_once(state_->scan_once, [this] {
    for (const State::Domain& domain : state_->domains) {
      state_->max_token_id = std::max(state_->max_token_id, domain.stream.max_token_id());
    }
  });
  return state_->max_token_id;
}

std::uint64_t Dataset::fingerprint() const {
  return state_->fingerprint;
}

Batch Dataset::read_training(std::int64_t first, std::int64_t rows) const {
  Batch batch = state_->make_batch(rows);
  for (std::int64_t row = 0; row < rows; ++row) {
    const MixtureSample found = state_->mixture->sample_at(first + row);
    state_->fill_row(batch, row, found.domain, found.sample);
    batch.sample_ids[static_cast<std::size_t>(row)] = first + row;
  }
  return batch;
}

Batch Dataset::read_in_order(std::int64_t domain, std::int64_t first, std::int64_t rows) const {
  const std::int64_t last = std::min(first + rows, num_samples(domain));
  Batch batch = state_->make_batch(std::max<std::int64_t>(0, last - first));
  for (std::int64_t row = 0; row < batch.rows; ++row) {
    state_->fill_row(batch, row, domain, first + row);
    batch.sample_ids[static_cast<std::size_t>(row)] = first + row;
  }
  return batch;
}

}  // namespace athanor::data
