// For each sequence and key/value head, keys and values are packed into cache-sized f32 (f64) blocks once;
// then, for each query head on it, blocks of 64 queries form their whole score rows, so the softmax needs no
// rescaling. Causal blocks stop at their last visible key. (Dao 2023 for the backward pass without stored
// probabilities.)
#include "kernels/attention.hpp"

#include <algorithm>
#include <vector>

#include "kernels/cpu/elements.hpp"
#include "kernels/cpu/small_gemm.hpp"

namespace athanor::kernels::cpu {

namespace {

constexpr std::int64_t query_block = 64;

/// Padded sizes and buffers of one call. Padding is zero and stays so.
template <typename A>
class Workspace {
  std::vector<std::vector<A>> storage_;  // first: the pointers below are made from it

 public:
  explicit Workspace(const AttentionShape& shape)
      : keys(round_up(shape.keys, 16)),
        width(round_up(shape.head_dim, 16)),
        key_rows(buffer(keys * width)),
        key_columns(buffer(width * keys)),
        value_rows(buffer(keys * width)),
        value_columns(buffer(width * keys)),
        dkeys(buffer(keys * width)),
        dvalues(buffer(keys * width)),
        queries(buffer(query_block * width)),
        doutput(buffer(query_block * width)),
        result(buffer(query_block * width)),
        scores(buffer(query_block * keys)),
        dscores(buffer(query_block * keys)) {}

  std::int64_t keys, width;
  A *key_rows, *key_columns, *value_rows, *value_columns;  // [keys, width] and [width, keys]
  A *dkeys, *dvalues;                                      // [keys, width]
  A *queries, *doutput, *result;                           // [query_block, width]
  A *scores, *dscores;                                     // [query_block, keys]

 private:
  A* buffer(std::int64_t elements) {
    storage_.emplace_back(static_cast<std::size_t>(elements), A(0));
    return storage_.back().data();
  }
};

/// A block of queries of one head of one sequence, and what it sees.
struct Block {
  std::int64_t sequence, head, first, count;
  std::int64_t visible;         ///< keys that the last query sees, so no query sees more
  std::int64_t padded_queries;  ///< count rounded up to the row tile
  std::int64_t padded_keys;     ///< visible rounded up to whole vectors
};

template <typename A>
Block block_at(const AttentionShape& shape, std::int64_t sequence, std::int64_t head, std::int64_t first) {
  Block block{sequence, head, first, std::min(query_block, shape.queries - first), shape.keys, 0, 0};
  if (shape.causal) {
    block.visible = shape.keys - shape.queries + first + block.count;
  }
  block.padded_queries = round_up(block.count, gemm_row_tile);
  block.padded_keys = round_up(block.visible, 16);
  return block;
}

/// Asks for rows [first, first + count) of C elements at `stride`, which the next loops read: pieces of rows
/// far apart are not fetched ahead by the processor itself. Addresses behind the end do no harm.
template <typename T>
ATHANOR_KERNEL_INLINE void prefetch_rows(const T* x, std::int64_t stride, std::int64_t first,
                                         std::int64_t count, std::int64_t head_dim) {
  constexpr std::int64_t line = 64 / sizeof(T);
  for (std::int64_t row = first; row < first + count; ++row) {
    for (std::int64_t c = 0; c < head_dim; c += line) {
      __builtin_prefetch(x + row * stride + c);
    }
  }
}

/// rows [count, C] at `stride` -> dense rows [count, width], times `scale`; rows up to `padded` become 0.
template <typename T, typename A>
ATHANOR_KERNEL_INLINE void pack_rows(const T* x, std::int64_t stride, std::int64_t count, std::int64_t padded,
                                     std::int64_t head_dim, A scale, A* out, std::int64_t width) {
  constexpr std::int64_t ahead = 8;
  for (std::int64_t row = 0; row < count; ++row) {
    prefetch_rows(x, stride, row + ahead, 1, head_dim);
    for (std::int64_t c = 0; c < head_dim; ++c) {
      out[row * width + c] = scale * load(x[row * stride + c]);
    }
  }
  for (std::int64_t i = count * width; i < padded * width; ++i) {
    out[i] = A(0);
  }
}

/// out [head_dim, columns] = the transpose of rows [columns, head_dim] (stride `width`).
template <typename A>
ATHANOR_KERNEL_INLINE void transpose(const A* rows, std::int64_t count, std::int64_t head_dim,
                                     std::int64_t width, A* out, std::int64_t columns) {
  for (std::int64_t c = 0; c < head_dim; ++c) {
    for (std::int64_t row = 0; row < count; ++row) {
      out[c * columns + row] = rows[row * width + c];
    }
  }
}

template <typename T, typename A>
ATHANOR_KERNEL_INLINE void unpack_rows(const A* rows, std::int64_t count, std::int64_t head_dim,
                                       std::int64_t width, T* out, std::int64_t stride) {
  for (std::int64_t row = 0; row < count; ++row) {
    for (std::int64_t c = 0; c < head_dim; ++c) {
      out[row * stride + c] = store<T>(rows[row * width + c]);
    }
  }
}

/// Keys that query `i` of the block sees (before documents): [0, result).
ATHANOR_KERNEL_INLINE std::int64_t visible_keys(const AttentionShape& shape, const Block& block,
                                                std::int64_t i) {
  return shape.causal ? shape.keys - shape.queries + block.first + i + 1 : shape.keys;
}

/// scores = (q / sqrt(C)) k^T of a block, -infinity where documents differ.
template <typename T, typename A>
ATHANOR_KERNEL_INLINE void block_scores(const T* q, const AttentionShape& shape, const Block& block, A scale,
                                        Workspace<A>& work) {
  pack_rows(
      q + (block.sequence * shape.queries + block.first) * shape.q_token_stride + block.head * shape.head_dim,
      shape.q_token_stride, block.count, block.padded_queries, shape.head_dim, scale, work.queries,
      work.width);
  small_gemm<Store::overwrite>(LeftOperand<A>{work.queries, work.width, 1}, work.key_columns, work.keys,
                               block.padded_queries, block.padded_keys, shape.head_dim, work.scores,
                               work.keys);
  if (shape.query_documents == nullptr) {
    return;
  }
  const std::int64_t* query_ids = shape.query_documents + block.sequence * shape.queries + block.first;
  const std::int64_t* key_ids = shape.key_documents + block.sequence * shape.keys;
  for (std::int64_t i = 0; i < block.count; ++i) {
    A* row = work.scores + i * work.keys;
    for (std::int64_t j = 0; j < block.visible; ++j) {
      row[j] = key_ids[j] == query_ids[i] ? row[j] : -std::numeric_limits<A>::infinity();
    }
  }
}

struct AttentionForward {
  /// Scores of one row to e^(score - maximum), 0 beyond `count`; returns their sum.
  template <typename A>
  ATHANOR_KERNEL_INLINE static A exponentials(A* row, A maximum, std::int64_t count, std::int64_t padded) {
    for (std::int64_t j = 0; j < count; ++j) {
      row[j] = fast_exp(row[j] - maximum);
    }
    for (std::int64_t j = count; j < padded; ++j) {
      row[j] = A(0);
    }
    LaneSum<A> sum;
    for (std::int64_t j = 0; j < padded; j += LaneSum<A>::width) {
      for (int lane = 0; lane < LaneSum<A>::width; ++lane) {
        sum.lane[lane] += row[j + lane];
      }
    }
    return sum.total();
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run_block(const T* q, const AttentionShape& shape, const Block& block,
                                              A scale, Workspace<A>& work, T* y, A* lse) {
    block_scores(q, shape, block, scale, work);
    A inverse_sum[query_block];
    for (std::int64_t i = 0; i < block.count; ++i) {
      A* row = work.scores + i * work.keys;
      const std::int64_t count = visible_keys(shape, block, i);
      const A maximum = row_maximum<A>(row, count);
      const A sum = exponentials(row, maximum, count, block.padded_keys);
      inverse_sum[i] = A(1) / sum;
      lse[(block.sequence * shape.heads + block.head) * shape.queries + block.first + i] =
          maximum + std::log(sum);
    }
    small_gemm<Store::overwrite>(LeftOperand<A>{work.scores, work.keys, 1}, work.value_rows, work.width,
                                 block.padded_queries, work.width, block.visible, work.result, work.width);
    for (std::int64_t i = 0; i < block.count; ++i) {
      const std::int64_t token = block.sequence * shape.queries + block.first + i;
      T* out = y + (token * shape.heads + block.head) * shape.head_dim;
      for (std::int64_t c = 0; c < shape.head_dim; ++c) {
        out[c] = store<T>(work.result[i * work.width + c] * inverse_sum[i]);
      }
    }
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run(const T* q, const T* k, const T* v,
                                        const AttentionShape* shape_pointer, A scale, Workspace<A>* work,
                                        T* y, A* lse) {
    const AttentionShape& shape = *shape_pointer;
    const std::int64_t repeats = shape.heads / shape.kv_heads;
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      for (std::int64_t g = 0; g < shape.kv_heads; ++g) {
        pack_rows(k + b * shape.keys * shape.k_token_stride + g * shape.head_dim, shape.k_token_stride,
                  shape.keys, shape.keys, shape.head_dim, A(1), work->key_rows, work->width);
        transpose(work->key_rows, shape.keys, shape.head_dim, work->width, work->key_columns, work->keys);
        pack_rows(v + b * shape.keys * shape.v_token_stride + g * shape.head_dim, shape.v_token_stride,
                  shape.keys, shape.keys, shape.head_dim, A(1), work->value_rows, work->width);
        for (std::int64_t h = g * repeats; h < (g + 1) * repeats; ++h) {
          for (std::int64_t first = 0; first < shape.queries; first += query_block) {
            run_block(q, shape, block_at<A>(shape, b, h, first), scale, *work, y, lse);
          }
        }
      }
    }
  }
};

struct AttentionBackward {
  /// One row: scores -> probabilities (in place), dscores: dP -> dS = P (dP - projection) (in place); 0
  /// beyond `count`.
  template <typename A>
  ATHANOR_KERNEL_INLINE static void softmax_gradient(A* __restrict scores, A* __restrict dscores, A lse,
                                                     A projection, std::int64_t count, std::int64_t padded) {
    for (std::int64_t j = 0; j < count; ++j) {
      const A probability = fast_exp(scores[j] - lse);
      scores[j] = probability;
      dscores[j] = probability * (dscores[j] - projection);
    }
    for (std::int64_t j = count; j < padded; ++j) {
      scores[j] = A(0);
      dscores[j] = A(0);
    }
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run_block(const T* dy, const T* q, const T* y, const A* lse,
                                              const AttentionShape& shape, const Block& block, A scale,
                                              Workspace<A>& work, T* dq) {
    const std::int64_t stride = shape.heads * shape.head_dim;
    const std::int64_t offset =
        (block.sequence * shape.queries + block.first) * stride + block.head * shape.head_dim;
    prefetch_rows(y + offset, stride, 0, block.count, shape.head_dim);
    block_scores(q, shape, block, scale, work);
    pack_rows(dy + offset, stride, block.count, block.padded_queries, shape.head_dim, A(1), work.doutput,
              work.width);
    small_gemm<Store::overwrite>(LeftOperand<A>{work.doutput, work.width, 1}, work.value_columns, work.keys,
                                 block.padded_queries, block.padded_keys, shape.head_dim, work.dscores,
                                 work.keys);
    const A* lse_row = lse + (block.sequence * shape.heads + block.head) * shape.queries + block.first;
    for (std::int64_t i = 0; i < block.count; ++i) {
      const A projection = dot<A>(dy + offset + i * stride, y + offset + i * stride, shape.head_dim);
      softmax_gradient(work.scores + i * work.keys, work.dscores + i * work.keys, lse_row[i], projection,
                       visible_keys(shape, block, i), block.padded_keys);
    }
    // The packed queries carry the factor 1/sqrt(C), which dk needs; dq gets it here.
    small_gemm<Store::overwrite>(LeftOperand<A>{work.dscores, work.keys, 1}, work.key_rows, work.width,
                                 block.padded_queries, work.width, block.visible, work.result, work.width);
    for (std::int64_t i = 0; i < block.count; ++i) {
      for (std::int64_t c = 0; c < shape.head_dim; ++c) {
        dq[offset + i * stride + c] = store<T>(scale * work.result[i * work.width + c]);
      }
    }
    small_gemm<Store::add>(LeftOperand<A>{work.dscores, 1, work.keys}, work.queries, work.width,
                           block.padded_keys, work.width, block.count, work.dkeys, work.width);
    small_gemm<Store::add>(LeftOperand<A>{work.scores, 1, work.keys}, work.doutput, work.width,
                           block.padded_keys, work.width, block.count, work.dvalues, work.width);
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run(const T* dy, const T* q, const T* k, const T* v, const T* y,
                                        const A* lse, const AttentionShape* shape_pointer, A scale,
                                        Workspace<A>* work, T* dq, T* dk, T* dv) {
    const AttentionShape& shape = *shape_pointer;
    const std::int64_t repeats = shape.heads / shape.kv_heads;
    const std::int64_t kv_stride = shape.kv_heads * shape.head_dim;
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      for (std::int64_t g = 0; g < shape.kv_heads; ++g) {
        pack_rows(k + b * shape.keys * shape.k_token_stride + g * shape.head_dim, shape.k_token_stride,
                  shape.keys, shape.keys, shape.head_dim, A(1), work->key_rows, work->width);
        transpose(work->key_rows, shape.keys, shape.head_dim, work->width, work->key_columns, work->keys);
        pack_rows(v + b * shape.keys * shape.v_token_stride + g * shape.head_dim, shape.v_token_stride,
                  shape.keys, shape.keys, shape.head_dim, A(1), work->value_rows, work->width);
        transpose(work->value_rows, shape.keys, shape.head_dim, work->width, work->value_columns, work->keys);
        for (std::int64_t i = 0; i < work->keys * work->width; ++i) {
          work->dkeys[i] = A(0);
          work->dvalues[i] = A(0);
        }
        for (std::int64_t h = g * repeats; h < (g + 1) * repeats; ++h) {
          for (std::int64_t first = 0; first < shape.queries; first += query_block) {
            run_block(dy, q, y, lse, shape, block_at<A>(shape, b, h, first), scale, *work, dq);
          }
        }
        const std::int64_t out = b * shape.keys * kv_stride + g * shape.head_dim;
        unpack_rows(work->dkeys, shape.keys, shape.head_dim, work->width, dk + out, kv_stride);
        unpack_rows(work->dvalues, shape.keys, shape.head_dim, work->width, dv + out, kv_stride);
      }
    }
  }
};

template <typename A>
A score_scale(const AttentionShape& shape) {
  return static_cast<A>(1.0 / std::sqrt(static_cast<double>(shape.head_dim)));
}

}  // namespace

template <typename T>
void attention_forward(const T* q, const T* k, const T* v, const AttentionShape& shape, T* y,
                       accumulation_t<T>* lse) {
  using A = accumulation_t<T>;
  Workspace<A> work(shape);
  dispatch<AttentionForward>(q, k, v, &shape, score_scale<A>(shape), &work, y, lse);
}

template <typename T>
void attention_backward(const T* dy, const T* q, const T* k, const T* v, const T* y,
                        const accumulation_t<T>* lse, const AttentionShape& shape, T* dq, T* dk, T* dv) {
  using A = accumulation_t<T>;
  Workspace<A> work(shape);
  dispatch<AttentionBackward>(dy, q, k, v, y, lse, &shape, score_scale<A>(shape), &work, dq, dk, dv);
}

#define ATHANOR_INSTANTIATE(T)                                                                \
  template void attention_forward<T>(const T*, const T*, const T*, const AttentionShape&, T*, \
                                     accumulation_t<T>*);                                     \
  template void attention_backward<T>(const T*, const T*, const T*, const T*, const T*,       \
                                      const accumulation_t<T>*, const AttentionShape&, T*, T*, T*);
ATHANOR_FOR_EACH_ELEMENT(ATHANOR_INSTANTIATE)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cpu
