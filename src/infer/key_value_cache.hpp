// Keys and values of the positions generated so far, in blocks of fixed size that sequences can share.
//
// Legend: B rows (sequences) of the batch, L positions so far, G key/value heads of this rank, C head width.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "nn/attention.hpp"

namespace athanor::infer {

/// A paged cache. A block holds `block_size` positions of one sequence in every layer; a row is a table of
/// block numbers. Blocks are taken from a pool when positions arrive and go back when no row uses them, so
/// memory follows the lengths that exist. Rows that continue one row (beams) share its blocks until one of
/// them writes: the writer then gets a copy of that block. All rows have equal length for now; the tables are
/// per row so that this can change behind the interface.
class KeyValueCache final : public nn::KeyValueStore {
 public:
  explicit KeyValueCache(std::int64_t num_layers, std::int64_t block_size = 32);

  /// As nn::KeyValueStore. The first append after construction fixes B, G, C and the dtype; layers must
  /// append the same number of positions, each once a pass.
  KeysValues append(std::int64_t layer, const at::Tensor& k_BSGC, const at::Tensor& v_BSGC) override;

  /// Row i of the new batch continues row parents[i]; rows may repeat (beams), change order or be left out
  /// (finished sequences). Copies no keys or values. Only between passes.
  void select_rows(std::span<const std::int64_t> parents);

  std::int64_t num_rows() const { return static_cast<std::int64_t>(tables_.size()); }
  /// Positions that layer 0 holds.
  std::int64_t length() const { return lengths_.front(); }
  std::int64_t block_size() const { return block_size_; }
  /// Blocks that rows use now / that were ever taken from the system.
  std::int64_t blocks_in_use() const { return num_blocks_ - static_cast<std::int64_t>(free_blocks_.size()); }
  std::int64_t blocks_allocated() const { return num_blocks_; }

 private:
  struct Pool {  // one layer: [capacity, block_size, G, C]
    at::Tensor k;
    at::Tensor v;
  };

  std::int64_t take_block();
  void release_block(std::int64_t block);
  void make_room(std::int64_t first, std::int64_t count);
  void unshare(std::int64_t& block);
  void fit_pool(Pool& pool, const at::Tensor& like_BSGC);
  void write(Pool& pool, std::int64_t first, const at::Tensor& k_BSGC, const at::Tensor& v_BSGC);
  at::Tensor read(const at::Tensor& pool, std::int64_t length) const;

  std::int64_t block_size_ = 0;
  bool has_rows_ = false;
  std::vector<Pool> pools_;                        // by layer
  std::vector<std::int64_t> lengths_;              // by layer: differ only inside a pass
  std::vector<std::vector<std::int64_t>> tables_;  // by row: its blocks in order of position
  std::vector<std::int64_t> users_;                // by block: rows that hold it
  std::vector<std::int64_t> free_blocks_;
  std::int64_t num_blocks_ = 0;
};

}  // namespace athanor::infer
