#include "device/graph.hpp"

#include <utility>

#include "base/error.hpp"

namespace athanor::device {

struct Graph::Recorded {};

bool graphs_supported() noexcept {
  return false;
}

Graph Graph::record(const Stream& /*stream*/, const ShapeKey& /*key*/,
                    const std::function<void()>& /*body*/) {
  throw base::DeviceError(
      "a CUDA graph cannot be recorded (this program was built for CPUs only): run the work as it is, or go "
      "through GraphCache, which does");
}

Graph::Graph(std::unique_ptr<Recorded> recorded, ShapeKey key)
    : recorded_(std::move(recorded)), key_(std::move(key)) {}
Graph::~Graph() = default;
Graph::Graph(Graph&& other) noexcept = default;
Graph& Graph::operator=(Graph&& other) noexcept = default;

void Graph::launch(const Stream& /*stream*/) const {}

}  // namespace athanor::device
