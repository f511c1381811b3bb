#include "optim/detail/wire_parts.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "optim/detail/fp8_parts.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/collectives/rank_order.hpp"

namespace athanor::optim::detail {
namespace {

// Starts an exchange of equal parts that lie one rank after another in flat tensors of one type.
parallel::PendingExchange start_parts(const at::Tensor& received, const at::Tensor& sent, std::int64_t part,
                                      const parallel::Communicator& comm, parallel::Traffic purpose) {
  std::vector<at::Tensor> receive, send;
  for (std::int64_t rank = 0; rank < comm.size(); ++rank) {
    receive.push_back(received.narrow(0, rank * part, part));
    send.push_back(sent.narrow(0, rank * part, part));
  }
  return parallel::start_exchange(std::move(receive), std::move(send), comm, purpose);
}

// The ranks' parts of `received` with this rank's own from `sent`, where they have one type.
void sum_equal_parts(const at::Tensor& sum, const at::Tensor& received, const at::Tensor& sent,
                     std::int64_t part, std::int64_t own) {
  std::vector<at::Tensor> parts;
  for (std::int64_t rank = 0; rank * part < sent.numel(); ++rank) {
    parts.push_back((rank == own ? sent : received).narrow(0, rank * part, part));
  }
  at::Tensor output = sum;
  parallel::reduce_in_rank_order(output, parts, parallel::ReduceOp::sum);
}

class FullParts final : public WireParts {
 public:
  FullParts(const at::Tensor& bucket, std::int64_t ranks) : sent_(bucket) { begin(bucket.numel() / ranks); }

  void round(const at::Tensor&, std::int64_t, std::int64_t, std::int64_t, std::int64_t) override {
    ATHANOR_CHECK(false, "the full wire rounds nothing");
  }
  void read_back(std::int64_t, std::int64_t, const at::Tensor&) const override {
    ATHANOR_CHECK(false, "the full wire rounds nothing");
  }
  void sum(const at::Tensor& sum, const parallel::Communicator& comm, parallel::Traffic purpose) override {
    start(comm, purpose).wait();
    add_up(sum);
  }
  parallel::PendingExchange start(const parallel::Communicator& comm, parallel::Traffic purpose) override {
    own_ = comm.rank();
    received_ = at::empty_like(sent_);
    return start_parts(received_, sent_, count(), comm, purpose);
  }
  void add_up(const at::Tensor& sum) override { sum_equal_parts(sum, received_, sent_, count(), own_); }

 private:
  at::Tensor sent_;
  at::Tensor received_;
  std::int64_t own_ = 0;
};

class Bf16Parts final : public WireParts {
 public:
  Bf16Parts(std::int64_t ranks, std::int64_t largest)
      : ranks_(ranks), sent_(at::empty({ranks * largest}, at::kBFloat16)) {
    begin(largest);
  }

  void round(const at::Tensor& flat, std::int64_t first, std::int64_t count, std::int64_t rank,
             std::int64_t offset) override {
    part(rank, offset, count).copy_(flat.narrow(0, first, count));
  }
  void read_back(std::int64_t rank, std::int64_t offset, const at::Tensor& rounded) const override {
    at::Tensor target = rounded;
    target.copy_(part(rank, offset, rounded.numel()));
  }
  void sum(const at::Tensor& sum, const parallel::Communicator& comm, parallel::Traffic purpose) override {
    at::Tensor output = sum.view({-1, block_elements});
    const at::Tensor parts = sent_.narrow(0, 0, ranks_ * count()).view({-1, block_elements});
    parallel::reduce_scatter_sum_into(output, parts, comm, purpose);
  }
  parallel::PendingExchange start(const parallel::Communicator& comm, parallel::Traffic purpose) override {
    own_ = comm.rank();
    received_ = at::empty_like(sent_);
    return start_parts(received_, sent_, count(), comm, purpose);
  }
  void add_up(const at::Tensor& sum) override {
    sum_equal_parts(sum, received_, sent_.narrow(0, 0, ranks_ * count()), count(), own_);
  }

 private:
  at::Tensor part(std::int64_t rank, std::int64_t offset, std::int64_t count) const {
    return sent_.narrow(0, rank * this->count() + offset, count);
  }
  std::int64_t ranks_;
  at::Tensor sent_;
  at::Tensor received_;
  std::int64_t own_ = 0;
};

// Bytes and scales go together, in records.
class Fp8Parts final : public WireParts {
 public:
  Fp8Parts(std::int64_t ranks, std::int64_t largest, base::Fp8Format format)
      : format_(format),
        sent_(at::empty({ranks * largest / block_elements, record_bytes}, at::kByte)),
        received_(at::empty_like(sent_)) {
    begin(largest);
  }

  void round(const at::Tensor& flat, std::int64_t first, std::int64_t count, std::int64_t rank,
             std::int64_t offset) override {
    quantize_part(flat, first, count, format_, records(sent_, rank, offset, count), losses_);
  }
  void take(const at::Tensor& taken, std::int64_t rank, std::int64_t offset) override {
    records(sent_, rank, offset, taken.size(0) * block_elements).copy_(taken);
  }
  void read_back(std::int64_t rank, std::int64_t offset, const at::Tensor& rounded) const override {
    dequantize_part(records(sent_, rank, offset, rounded.numel()), format_, rounded, 0, rounded.numel());
  }
  void sum(const at::Tensor& sum, const parallel::Communicator& comm, parallel::Traffic purpose) override {
    const std::vector<std::int64_t> rows(static_cast<std::size_t>(comm.size()), count() / block_elements);
    const at::Tensor received = whole(received_, comm.size());
    parallel::all_to_all_v_into(received, whole(sent_, comm.size()), rows, rows, comm, purpose);
    sum_parts(received, comm.size(), format_, sum);
  }
  parallel::PendingExchange start(const parallel::Communicator& comm, parallel::Traffic purpose) override {
    ranks_ = comm.size();
    records(received_, comm.rank(), 0, count()).copy_(records(sent_, comm.rank(), 0, count()));
    return start_parts(received_, sent_, count() / block_elements, comm, purpose);
  }
  void add_up(const at::Tensor& sum) override { sum_parts(whole(received_, ranks_), ranks_, format_, sum); }

 private:
  at::Tensor records(const at::Tensor& of, std::int64_t rank, std::int64_t offset, std::int64_t count) const {
    return of.narrow(0, (rank * this->count() + offset) / block_elements, count / block_elements);
  }
  at::Tensor whole(const at::Tensor& of, std::int64_t ranks) const {
    return of.narrow(0, 0, ranks * count() / block_elements);
  }
  base::Fp8Format format_;
  at::Tensor sent_;
  at::Tensor received_;
  std::int64_t ranks_ = 1;
};

}  // namespace

void WireParts::take(const at::Tensor& /*records*/, std::int64_t /*rank*/, std::int64_t /*offset*/) {
  ATHANOR_CHECK(false, "only the fp8 wire carries records");
}

std::unique_ptr<WireParts> make_rounded_parts(const GradientWire& wire, std::int64_t ranks,
                                              std::int64_t largest) {
  ATHANOR_CHECK(wire.type != base::WireType::full, "the full wire rounds nothing");
  if (wire.type == base::WireType::bf16) {
    return std::make_unique<Bf16Parts>(ranks, largest);
  }
  return std::make_unique<Fp8Parts>(ranks, largest, wire.fp8_format);
}

std::unique_ptr<WireParts> make_full_parts(const at::Tensor& bucket, std::int64_t ranks) {
  return std::make_unique<FullParts>(bucket, ranks);
}

}  // namespace athanor::optim::detail
