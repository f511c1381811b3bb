#include "infer/key_value_cache.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/error.hpp"

namespace athanor::infer {

KeyValueCache::KeyValueCache(std::int64_t num_layers, std::int64_t block_size)
    : block_size_(block_size),
      pools_(static_cast<std::size_t>(num_layers)),
      lengths_(static_cast<std::size_t>(num_layers), 0) {
  ATHANOR_CHECK(num_layers > 0 && block_size > 0, "a cache of {} layers in blocks of {}", num_layers,
                block_size);
}

nn::KeyValueStore::KeysValues KeyValueCache::append(std::int64_t layer, const at::Tensor& k_BSGC,
                                                    const at::Tensor& v_BSGC) {
  ATHANOR_CHECK(layer >= 0 && layer < static_cast<std::int64_t>(pools_.size()), "layer {} of {}", layer,
                pools_.size());
  ATHANOR_CHECK(k_BSGC.dim() == 4 && k_BSGC.sizes() == v_BSGC.sizes(), "keys and values differ in shape");
  if (!has_rows_) {
    tables_.resize(static_cast<std::size_t>(k_BSGC.size(0)));
    has_rows_ = true;
  }
  ATHANOR_CHECK(k_BSGC.size(0) == num_rows(), "{} rows of keys for a cache of {}", k_BSGC.size(0),
                num_rows());
  std::int64_t& length = lengths_[static_cast<std::size_t>(layer)];
  Pool& pool = pools_[static_cast<std::size_t>(layer)];
  make_room(length, k_BSGC.size(1));
  fit_pool(pool, k_BSGC);
  write(pool, length, k_BSGC, v_BSGC);
  length += k_BSGC.size(1);
  return {read(pool.k, length), read(pool.v, length)};
}

void KeyValueCache::select_rows(std::span<const std::int64_t> parents) {
  ATHANOR_CHECK(std::equal(lengths_.begin() + 1, lengths_.end(), lengths_.begin()),
                "rows selected inside a pass");
  std::vector<std::vector<std::int64_t>> tables;
  for (std::int64_t parent : parents) {
    ATHANOR_CHECK(parent >= 0 && parent < num_rows(), "row {} of {}", parent, num_rows());
    tables.push_back(tables_[static_cast<std::size_t>(parent)]);
    for (std::int64_t block : tables.back()) {
      ++users_[static_cast<std::size_t>(block)];
    }
  }
  for (const auto& table : tables_) {
    for (std::int64_t block : table) {
      release_block(block);
    }
  }
  tables_ = std::move(tables);
}

std::int64_t KeyValueCache::take_block() {
  if (free_blocks_.empty()) {
    free_blocks_.push_back(num_blocks_++);
    users_.push_back(0);
  }
  const std::int64_t block = free_blocks_.back();
  free_blocks_.pop_back();
  users_[static_cast<std::size_t>(block)] = 1;
  return block;
}

void KeyValueCache::release_block(std::int64_t block) {
  if (--users_[static_cast<std::size_t>(block)] == 0) {
    free_blocks_.push_back(block);
  }
}

// Blocks of every row that will hold positions [first, first + count): there, and the row's own.
void KeyValueCache::make_room(std::int64_t first, std::int64_t count) {
  if (count == 0) {
    return;
  }
  const std::int64_t last_block = (first + count - 1) / block_size_;
  for (auto& table : tables_) {
    for (std::int64_t i = first / block_size_; i <= last_block; ++i) {
      if (i == static_cast<std::int64_t>(table.size())) {
        table.push_back(take_block());
      } else {
        unshare(table[static_cast<std::size_t>(i)]);
      }
    }
  }
}

// A block that other rows hold too is copied in all layers: the table is common to them.
void KeyValueCache::unshare(std::int64_t& block) {
  if (users_[static_cast<std::size_t>(block)] == 1) {
    return;
  }
  const std::int64_t copy = take_block();
  for (Pool& pool : pools_) {
    if (pool.k.defined()) {
      fit_pool(pool, pool.k);
      pool.k[copy].copy_(pool.k[block]);
      pool.v[copy].copy_(pool.v[block]);
    }
  }
  release_block(block);
  block = copy;
}

// Grows a layer's pool by doubling until it holds all blocks.
void KeyValueCache::fit_pool(Pool& pool, const at::Tensor& like_BSGC) {
  const std::int64_t capacity = pool.k.defined() ? pool.k.size(0) : 0;
  if (pool.k.defined() && capacity >= num_blocks_) {
    return;
  }
  const std::vector<std::int64_t> shape = {std::max(num_blocks_, 2 * capacity), block_size_,
                                           like_BSGC.size(2), like_BSGC.size(3)};
  // Zeros: attention reads whole blocks before it narrows to the length.
  Pool grown{at::zeros(shape, like_BSGC.options()), at::zeros(shape, like_BSGC.options())};
  if (capacity > 0) {
    grown.k.narrow(0, 0, capacity).copy_(pool.k);
    grown.v.narrow(0, 0, capacity).copy_(pool.v);
  }
  pool = std::move(grown);
}

void KeyValueCache::write(Pool& pool, std::int64_t first, const at::Tensor& k_BSGC,
                          const at::Tensor& v_BSGC) {
  for (std::int64_t row = 0; row < num_rows(); ++row) {
    for (std::int64_t done = 0; done < k_BSGC.size(1);) {
      const std::int64_t position = first + done;
      const std::int64_t offset = position % block_size_;
      const std::int64_t count = std::min(block_size_ - offset, k_BSGC.size(1) - done);
      const std::int64_t block =
          tables_[static_cast<std::size_t>(row)][static_cast<std::size_t>(position / block_size_)];
      pool.k[block].narrow(0, offset, count).copy_(k_BSGC[row].narrow(0, done, count));
      pool.v[block].narrow(0, offset, count).copy_(v_BSGC[row].narrow(0, done, count));
      done += count;
    }
  }
}

at::Tensor KeyValueCache::read(const at::Tensor& pool, std::int64_t length) const {
  const std::int64_t blocks = (length + block_size_ - 1) / block_size_;
  std::vector<std::int64_t> ids;
  for (const auto& table : tables_) {
    ids.insert(ids.end(), table.begin(), table.begin() + blocks);
  }
  const at::Tensor rows = pool.index_select(0, at::tensor(ids, at::kLong));
  return rows.view({num_rows(), blocks * block_size_, pool.size(2), pool.size(3)}).narrow(1, 0, length);
}

}  // namespace athanor::infer
