#include "device/graph.hpp"

#include <utility>

#include "base/error.hpp"

namespace athanor::device {

GraphRun GraphPlan::next(const ShapeKey& key) {
  if (!supported_) {
    return GraphRun::plain_unsupported;
  }
  int& runs = runs_[key];
  if (runs > options_.warm_up_runs) {
    return GraphRun::replayed;
  }
  if (runs < options_.warm_up_runs) {
    ++runs;
    return GraphRun::plain_warm_up;
  }
  if (graphs_ >= options_.most_graphs) {
    return GraphRun::plain_full;
  }
  ++runs;
  ++graphs_;
  return GraphRun::recorded;
}

void Graph::replay(const ShapeKey& key, const Stream& stream) const {
  ATHANOR_CHECK(key == key_, "a graph recorded for other shapes was asked for");
  launch(stream);
}

GraphRun GraphCache::run(const ShapeKey& key, const Stream& stream, const std::function<void()>& body) {
  const GraphRun how = plan_.next(key);
  if (how == GraphRun::recorded) {
    graphs_.emplace(key, Graph::record(stream, key, body));
  }
  if (how == GraphRun::recorded || how == GraphRun::replayed) {
    graphs_.at(key).replay(key, stream);
  } else {
    const StreamScope scope(stream);
    body();
  }
  ++counts_[how];
  return how;
}

}  // namespace athanor::device
