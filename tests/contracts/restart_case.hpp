// What the tests of contract 3 share: a case, a folder of a group of ranks, a job's checkpoints.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "contracts/run_record.hpp"
#include "train/job_checkpoints.hpp"

namespace athanor::tests {

inline Case restart_case(base::ComputeType compute) {
  Case test;
  test.name = "restart";
  test.role.compute = compute;
  test.role.model.vocab_size = 61;
  test.role.model.layers = 2;
  test.role.model.hidden = 24;
  test.role.model.heads = 12;
  test.role.model.kv_heads = 2;
  test.role.model.head_dim = 4;
  test.role.model.max_seq = 32;
  test.role.model.init_std = 0.15;
  test.role.model.dropout = 0.1;
  test.role.model.moe.num_experts = 24;
  test.role.model.moe.top_k = 3;
  test.role.model.moe.ffn = 5;
  test.role.model.moe.balance = {moe::BalanceKind::squared, moe::BalanceKind::bias};
  test.role.model.moe.balance_weight = 0.05;
  test.role.optim.lr = 3e-3;
  test.role.optim.warmup_steps = 3;
  test.data.vocab = 61;
  test.data.seq = 13;
  test.data.global_batch = 24;
  return test;
}

// A folder of the ranks of `role`.
class RunFolder {
 public:
  RunFolder(const std::string& name, const parallel::Communicator& role) : role_(role) {
    path_ = (std::filesystem::temp_directory_path() / ("athanor_restart_" + name)).string();
    clear();
    if (role.rank() == 0) {
      std::filesystem::create_directories(path_);
    }
    role.barrier();
  }
  ~RunFolder() { clear(); }
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  void clear() const {
    role_.barrier();
    if (role_.rank() == 0) {
      std::filesystem::remove_all(path_);
    }
    role_.barrier();
  }
  const parallel::Communicator& role_;
  std::string path_;
};

inline train::JobCheckpoints::Job make_job(const std::string& folder, bool async, std::int64_t every,
                                           std::int64_t last_step) {
  train::JobCheckpoints::Job job;
  job.options.dir = folder;
  job.options.async = async;
  job.options.every = every;
  job.options.on_error = train::OnSaveError::stop;
  job.head.run_id = "0123456789abcdef";
  job.last_step = last_step;
  return job;
}

}  // namespace athanor::tests
