// The attention kernel against the plain reference in f64: all types, masks, odd sizes, strided inputs.
#include "kernels/attention.hpp"
#include "kernels/kernel_test.hpp"

namespace athanor::kernels {
namespace {

using tests::expect_near;
using tests::random_values;
using tests::unit_roundoff;
using tests::widen;

struct Case {
  std::int64_t batch, queries, keys, heads, kv_heads, head_dim;
  bool causal, documents;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {2, 7, 7, 4, 2, 6, true, false},       // smaller than every tile
      {1, 130, 130, 2, 1, 32, true, false},  // several blocks of queries, the last one short
      {1, 70, 70, 3, 3, 40, true, true},     // documents; a width that is no multiple of a vector
      {2, 1, 19, 4, 2, 16, true, false},     // one new token with earlier keys
      {1, 66, 97, 2, 1, 34, true, false},    // a piece of a sequence
      {1, 65, 33, 2, 2, 8, false, false},    // no causal order
      {1, 1, 1, 1, 1, 2, true, false},
  };
  return all;
}

AttentionShape shape_of(const Case& c, const std::vector<std::int64_t>& query_ids,
                        const std::vector<std::int64_t>& key_ids) {
  AttentionShape shape;
  shape.batch = c.batch;
  shape.queries = c.queries;
  shape.keys = c.keys;
  shape.heads = c.heads;
  shape.kv_heads = c.kv_heads;
  shape.head_dim = c.head_dim;
  shape.q_token_stride = c.heads * c.head_dim + 3;
  shape.k_token_stride = 2 * c.kv_heads * c.head_dim;
  shape.v_token_stride = c.kv_heads * c.head_dim;
  shape.causal = c.causal;
  shape.query_documents = c.documents ? query_ids.data() : nullptr;
  shape.key_documents = c.documents ? key_ids.data() : nullptr;
  return shape;
}

template <typename T>
class AttentionKernel : public ::testing::Test {};
TYPED_TEST_SUITE(AttentionKernel, tests::ElementTypes);

TYPED_TEST(AttentionKernel, MatchesReference) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  for (const Case& c : cases()) {
    std::vector<std::int64_t> ids(static_cast<std::size_t>(c.batch * c.keys));
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ids[i] = static_cast<std::int64_t>(i) / 11;
    }
    const AttentionShape shape = shape_of(c, ids, ids);
    const auto q = random_values<T>(c.batch * c.queries * shape.q_token_stride, 1);
    const auto k = random_values<T>(c.batch * c.keys * shape.k_token_stride, 2);
    const auto v = random_values<T>(c.batch * c.keys * shape.v_token_stride, 3);
    const auto dy = random_values<T>(c.batch * c.queries * c.heads * c.head_dim, 4);
    const std::size_t kv_size = static_cast<std::size_t>(c.batch * c.keys * c.kv_heads * c.head_dim);
    const std::size_t lse_size = static_cast<std::size_t>(c.batch * c.heads * c.queries);
    std::vector<T> y(dy.size()), dq(dy.size()), dk(kv_size), dv(kv_size);
    std::vector<A> lse(lse_size);
    cpu::attention_forward(q.data(), k.data(), v.data(), shape, y.data(), lse.data());
    cpu::attention_backward(dy.data(), q.data(), k.data(), v.data(), y.data(), lse.data(), shape, dq.data(),
                            dk.data(), dv.data());

    const auto q64 = widen(q), k64 = widen(k), v64 = widen(v), dy64 = widen(dy);
    std::vector<double> y64(y.size()), lse64(lse_size), dq64(dq.size()), dk64(kv_size), dv64(kv_size);
    reference::attention_forward(q64.data(), k64.data(), v64.data(), shape, y64.data(), lse64.data());
    reference::attention_backward(dy64.data(), q64.data(), k64.data(), v64.data(), y64.data(), lse64.data(),
                                  shape, dq64.data(), dk64.data(), dv64.data());
    expect_near(y, y64, 32 * unit_roundoff<A>() + unit_roundoff<T>(), "y");
    expect_near(lse, lse64, 32 * unit_roundoff<A>(), "lse");
    expect_near(dv, dv64, 128 * unit_roundoff<A>() + unit_roundoff<T>(), "dv");
    if (c.keys > 1) {  // one key: these are 0 up to cancellation
      expect_near(dq, dq64, 128 * unit_roundoff<A>() + 4 * unit_roundoff<T>(), "dq");
      expect_near(dk, dk64, 128 * unit_roundoff<A>() + 4 * unit_roundoff<T>(), "dk");
    }
  }
}

TEST(AttentionKernelF32, NoSequences) {
  AttentionShape shape = shape_of(cases().front(), {}, {});
  shape.batch = 0;
  float untouched = 3.0f;
  cpu::attention_forward<float>(nullptr, nullptr, nullptr, shape, &untouched, nullptr);
  EXPECT_EQ(untouched, 3.0f);
}

}  // namespace
}  // namespace athanor::kernels
