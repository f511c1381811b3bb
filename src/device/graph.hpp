// CUDA graphs: work that is the same every time, recorded once and launched as one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "device/stream.hpp"

namespace athanor::device {

/// What must be equal for recorded work to be the same work: shapes, choices, and the addresses of inputs
/// that it reads.
using ShapeKey = std::vector<std::int64_t>;

/// Whether this program can record graphs.
bool graphs_supported() noexcept;

/// Recorded work of one stream. Tensors that were made while recording keep their memory for the graph's
/// life: a replay writes there. Move-only.
class Graph {
 public:
  /// Runs `body` on `stream`, which records what it queues and does none of it. `body` must not wait for the
  /// device, copy from memory that is not pinned, or choose by values of the device; it has run before, so
  /// that libraries have set themselves up. Throws DeviceError if something could not be recorded, or in a
  /// build without CUDA; nothing of the recording is left then.
  static Graph record(const Stream& stream, const ShapeKey& key, const std::function<void()>& body);
  ~Graph();
  Graph(Graph&& other) noexcept;
  Graph& operator=(Graph&& other) noexcept;

  const ShapeKey& key() const noexcept { return key_; }
  /// Queues the recorded work on `stream`. Throws InternalError if `key` is not the recorded one: that would
  /// compute with other shapes than the caller has.
  void replay(const ShapeKey& key, const Stream& stream) const;

 private:
  struct Recorded;
  Graph(std::unique_ptr<Recorded> recorded, ShapeKey key);
  void launch(const Stream& stream) const;
  std::unique_ptr<Recorded> recorded_;
  ShapeKey key_;
};

struct GraphOptions {
  int warm_up_runs = 2;          ///< plain runs of each key before it is recorded
  std::size_t most_graphs = 16;  ///< each keeps its tensors' memory
};

enum class GraphRun {
  plain_warm_up,      ///< ran as it is: too few runs of this key so far
  plain_full,         ///< ran as it is: there are `most_graphs` of other keys
  plain_unsupported,  ///< ran as it is: a build without CUDA
  recorded,           ///< recorded, then launched
  replayed,
};

/// Which way the next run of a key goes; the rule alone, without any device.
class GraphPlan {
 public:
  GraphPlan(const GraphOptions& options, bool supported) : options_(options), supported_(supported) {}
  /// Counts one run of `key` and says how it is to be done.
  GraphRun next(const ShapeKey& key);

 private:
  GraphOptions options_;
  bool supported_;
  std::map<ShapeKey, int> runs_;
  std::size_t graphs_ = 0;
};

/// Graphs by shape key, with plain runs where there is no graph. It is never silent about which it was.
class GraphCache {
 public:
  explicit GraphCache(const GraphOptions& options = {}) : plan_(options, graphs_supported()) {}
  GraphRun run(const ShapeKey& key, const Stream& stream, const std::function<void()>& body);
  /// How often each way was taken, by GraphRun.
  const std::map<GraphRun, std::int64_t>& counts() const noexcept { return counts_; }

 private:
  GraphPlan plan_;
  std::map<ShapeKey, Graph> graphs_;
  std::map<GraphRun, std::int64_t> counts_;
};

}  // namespace athanor::device
