#include "distill/codec.hpp"

#include <cstring>
#include <utility>

#include <ATen/ATen.h>

#include "base/error.hpp"

namespace athanor::distill {
namespace {

/// The tensors of a payload that have a row for each token, in a fixed order.
std::vector<at::Tensor> token_tensors(const TeacherSignal& signal) {
  if (const auto* full = std::get_if<FullSignal>(&signal.payload)) {
    return {full->logits_Nv};
  }
  if (const auto* hidden = std::get_if<HiddenSignal>(&signal.payload)) {
    return {hidden->h_ND};
  }
  if (const auto* topk = std::get_if<TopKSignal>(&signal.payload)) {
    return {topk->ids_NK, topk->logits_NK, topk->lse_1_N, topk->lse_NJ, topk->log_tail_NJ};
  }
  if (const auto* sampled = std::get_if<SampledSignal>(&signal.payload)) {
    return {sampled->ids_NJM, sampled->counts_NJM, sampled->entropy_NJ};
  }
  return {};
}

TeacherSignal with_tensors(const TeacherSignal& like, std::vector<at::Tensor> t) {
  TeacherSignal result;
  result.temperatures = like.temperatures;
  switch (like.kind()) {
    case PayloadKind::none:
      break;
    case PayloadKind::full:
      result.payload = FullSignal{t[0]};
      break;
    case PayloadKind::hidden:
      result.payload = HiddenSignal{t[0], std::get<HiddenSignal>(like.payload).head_vD};
      break;
    case PayloadKind::topk:
      result.payload = TopKSignal{t[0], t[1], t[2], t[3], t[4]};
      break;
    case PayloadKind::sampled:
      result.payload = SampledSignal{t[0], t[1], t[2]};
      break;
  }
  return result;
}

}  // namespace

at::Tensor teacher_chunk_logits(const at::Tensor& h_CD, const at::Tensor& head_vD) {
  const at::NoGradGuard no_grad;
  return at::mm(h_CD, head_vD.t());
}

TeacherSignal concatenate(const std::vector<TeacherSignal>& chunks) {
  ATHANOR_CHECK(!chunks.empty(), "there are no chunks to put together");
  std::vector<std::vector<at::Tensor>> parts(token_tensors(chunks.front()).size());
  for (const TeacherSignal& chunk : chunks) {
    ATHANOR_CHECK(chunk.kind() == chunks.front().kind() && chunk.temperatures == chunks.front().temperatures,
                  "chunks of the payloads {} and {} are put together", name_of(chunk.kind()),
                  name_of(chunks.front().kind()));
    const std::vector<at::Tensor> tensors = token_tensors(chunk);
    for (std::size_t i = 0; i < parts.size(); ++i) {
      parts[i].push_back(tensors[i]);
    }
  }
  std::vector<at::Tensor> whole;
  for (const std::vector<at::Tensor>& tensors : parts) {
    whole.push_back(at::cat(tensors));
  }
  return with_tensors(chunks.front(), std::move(whole));
}

at::Tensor pack_sampled(const SampledSignal& sampled) {
  const at::Tensor ids = sampled.ids_NJM.contiguous(), counts = sampled.counts_NJM.contiguous();
  const at::Tensor entropy = sampled.entropy_NJ.contiguous();
  const std::int64_t samples = ids.size(2);
  const std::int64_t number = entropy.element_size();
  ATHANOR_CHECK(samples <= 255, "{} draws do not fit a count of one byte", samples);
  const std::int64_t distinct = ids.ge(0).sum().item<std::int64_t>();
  const at::Tensor bytes =
      at::empty({packed_sampled_bytes(ids.size(0), distinct, ids.size(1), number)}, at::kByte);
  std::uint8_t* out = bytes.data_ptr<std::uint8_t>();
  for (std::int64_t place = 0; place < ids.size(0) * ids.size(1); ++place) {
    const std::int32_t* row_ids = ids.const_data_ptr<std::int32_t>() + place * samples;
    const std::int32_t* row_counts = counts.const_data_ptr<std::int32_t>() + place * samples;
    std::int64_t used = 0;
    while (used < samples && row_ids[used] >= 0) {
      ++used;
    }
    *out++ = static_cast<std::uint8_t>(used);
    std::memcpy(out, row_ids, static_cast<std::size_t>(used) * 4);
    out += used * 4;
    for (std::int64_t m = 0; m < used; ++m) {
      *out++ = static_cast<std::uint8_t>(row_counts[m]);
    }
    std::memcpy(out, static_cast<const std::uint8_t*>(entropy.const_data_ptr()) + place * number,
                static_cast<std::size_t>(number));
    out += number;
  }
  return bytes;
}

SampledSignal unpack_sampled(const at::Tensor& bytes, std::int64_t tokens, std::int64_t temperatures,
                             std::int64_t samples, at::ScalarType type) {
  SampledSignal sampled;
  sampled.ids_NJM = at::full({tokens, temperatures, samples}, -1, at::kInt);
  sampled.counts_NJM = at::zeros({tokens, temperatures, samples}, at::kInt);
  sampled.entropy_NJ = at::empty({tokens, temperatures}, type);
  const at::Tensor packed = bytes.contiguous();
  const std::int64_t number = sampled.entropy_NJ.element_size();
  const std::uint8_t* in = packed.const_data_ptr<std::uint8_t>();
  const std::uint8_t* end = in + packed.numel();
  for (std::int64_t place = 0; place < tokens * temperatures; ++place) {
    const std::int64_t used = in < end ? *in++ : samples + 1;
    if (used > samples || end - in < used * 5 + number) {
      throw base::DataError(
          "a packed signal of {} bytes is damaged (token {} of {} does not fit it) record it again",
          packed.numel(), place / temperatures, tokens);
    }
    std::memcpy(sampled.ids_NJM.data_ptr<std::int32_t>() + place * samples, in,
                static_cast<std::size_t>(used) * 4);
    in += used * 4;
    for (std::int64_t m = 0; m < used; ++m) {
      sampled.counts_NJM.data_ptr<std::int32_t>()[place * samples + m] = *in++;
    }
    std::memcpy(static_cast<std::uint8_t*>(sampled.entropy_NJ.data_ptr()) + place * number, in,
                static_cast<std::size_t>(number));
    in += number;
  }
  if (in != end) {
    throw base::DataError("a packed signal of {} bytes is damaged ({} are left over) record it again",
                          packed.numel(), end - in);
  }
  return sampled;
}

}  // namespace athanor::distill
