#include "kernels/attention.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace athanor::kernels::reference {

namespace {

/// One query's place and its softmax over the keys it sees (0 for the others).
template <typename T>
struct Query {
  Query(const T* q, const T* k, const AttentionShape& shape, std::int64_t b, std::int64_t i, std::int64_t h)
      : kv_head(h / (shape.heads / shape.kv_heads)), probability(static_cast<std::size_t>(shape.keys)) {
    const T* query = q + (b * shape.queries + i) * shape.q_token_stride + h * shape.head_dim;
    double sum = 0.0;
    for (std::int64_t j = 0; j < shape.keys; ++j) {
      const bool hidden = (shape.causal && j > shape.keys - shape.queries + i) ||
                          (shape.query_documents != nullptr && shape.query_documents[b * shape.queries + i] !=
                                                                   shape.key_documents[b * shape.keys + j]);
      const T* key = k + (b * shape.keys + j) * shape.k_token_stride + kv_head * shape.head_dim;
      double score = 0.0;
      for (std::int64_t c = 0; c < shape.head_dim; ++c) {
        score += static_cast<double>(query[c]) * key[c] / std::sqrt(static_cast<double>(shape.head_dim));
      }
      probability[static_cast<std::size_t>(j)] = hidden ? 0.0 : std::exp(score);
      sum += probability[static_cast<std::size_t>(j)];
    }
    for (double& p : probability) {
      p /= sum;
    }
    lse = std::log(sum);
  }
  std::int64_t kv_head;
  std::vector<double> probability;
  double lse = 0.0;
};

}  // namespace

template <typename T>
void attention_forward(const T* q, const T* k, const T* v, const AttentionShape& shape, T* y,
                       accumulation_t<T>* lse) {
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t i = 0; i < shape.queries; ++i) {
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        const Query<T> query(q, k, shape, b, i, h);
        lse[(b * shape.heads + h) * shape.queries + i] = static_cast<T>(query.lse);
        for (std::int64_t c = 0; c < shape.head_dim; ++c) {
          double sum = 0.0;
          for (std::int64_t j = 0; j < shape.keys; ++j) {
            const T* value = v + (b * shape.keys + j) * shape.v_token_stride + query.kv_head * shape.head_dim;
            sum += query.probability[static_cast<std::size_t>(j)] * value[c];
          }
          y[((b * shape.queries + i) * shape.heads + h) * shape.head_dim + c] = static_cast<T>(sum);
        }
      }
    }
  }
}

template <typename T>
void attention_backward(const T* dy, const T* q, const T* k, const T* v, const T* y,
                        const accumulation_t<T>* /*lse*/, const AttentionShape& shape, T* dq, T* dk, T* dv) {
  const std::int64_t width = shape.head_dim;
  const double scale = 1.0 / std::sqrt(static_cast<double>(width));
  std::fill(dq, dq + shape.batch * shape.queries * shape.heads * width, T(0));
  std::fill(dk, dk + shape.batch * shape.keys * shape.kv_heads * width, T(0));
  std::fill(dv, dv + shape.batch * shape.keys * shape.kv_heads * width, T(0));
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t i = 0; i < shape.queries; ++i) {
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        const Query<T> query(q, k, shape, b, i, h);
        const std::int64_t out = ((b * shape.queries + i) * shape.heads + h) * width;
        const T* q_row = q + (b * shape.queries + i) * shape.q_token_stride + h * width;
        for (std::int64_t j = 0; j < shape.keys; ++j) {
          const double p = query.probability[static_cast<std::size_t>(j)];
          const T* key = k + (b * shape.keys + j) * shape.k_token_stride + query.kv_head * width;
          const T* value = v + (b * shape.keys + j) * shape.v_token_stride + query.kv_head * width;
          const std::int64_t kv = ((b * shape.keys + j) * shape.kv_heads + query.kv_head) * width;
          double dscore = 0.0;
          for (std::int64_t c = 0; c < width; ++c) {
            dscore += p * static_cast<double>(dy[out + c]) * (static_cast<double>(value[c]) - y[out + c]);
            dv[kv + c] += static_cast<T>(p * dy[out + c]);
          }
          for (std::int64_t c = 0; c < width; ++c) {
            dq[out + c] += static_cast<T>(scale * dscore * key[c]);
            dk[kv + c] += static_cast<T>(scale * dscore * q_row[c]);
          }
        }
      }
    }
  }
}

#define ATHANOR_INSTANTIATE(T)                                                                \
  template void attention_forward<T>(const T*, const T*, const T*, const AttentionShape&, T*, \
                                     accumulation_t<T>*);                                     \
  template void attention_backward<T>(const T*, const T*, const T*, const T*, const T*,       \
                                      const accumulation_t<T>*, const AttentionShape&, T*, T*, T*);
ATHANOR_INSTANTIATE(float)
ATHANOR_INSTANTIATE(double)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::reference
