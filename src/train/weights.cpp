#include "train/weights.hpp"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>

#include "base/error.hpp"
#include "base/hash.hpp"
#include "checkpoint/safetensors.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::train {
namespace {

constexpr const char* file_name = "model.safetensors";
constexpr const char* bias_name = "balance.bias";
constexpr std::int64_t max_io_bytes = std::int64_t{1} << 30;

std::string dtype_name(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return "F32";
    case at::kDouble:
      return "F64";
    case at::kBFloat16:
      return "BF16";
    case at::kHalf:
      return "F16";
    default:
      throw base::InternalError("weights of type {} have no safetensors name", at::toString(type));
  }
}

at::ScalarType scalar_type_of(const std::string& path, const checkpoint::SafetensorsEntry& entry) {
  if (entry.dtype == "F32") {
    return at::kFloat;
  }
  if (entry.dtype == "F64") {
    return at::kDouble;
  }
  if (entry.dtype == "BF16") {
    return at::kBFloat16;
  }
  if (entry.dtype == "F16") {
    return at::kHalf;
  }
  throw base::CheckpointError("{}: tensor {} is {} (weights are F32, F64, BF16 or F16)", path, entry.name,
                              entry.dtype);
}

class File {
 public:
  File(const std::string& path, int flags) : path_(path), fd_(::open(path.c_str(), flags, 0644)) {
    if (fd_ < 0) {
      throw base::CannotCreateError("cannot open {} ({})", path, std::strerror(errno));
    }
  }
  ~File() { ::close(fd_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void write_at(const void* data, std::int64_t bytes, std::int64_t offset) const {
    const char* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t done =
          ::pwrite(fd_, from, static_cast<std::size_t>(std::min(bytes, max_io_bytes)), offset);
      if (done <= 0) {
        throw base::IoError("writing {} failed ({}) free space or choose another run.dir", path_,
                            std::strerror(errno));
      }
      from += done;
      bytes -= done;
      offset += done;
    }
  }
  void read_at(void* data, std::int64_t bytes, std::int64_t offset) const {
    char* to = static_cast<char*>(data);
    while (bytes > 0) {
      const ssize_t done = ::pread(fd_, to, static_cast<std::size_t>(std::min(bytes, max_io_bytes)), offset);
      if (done <= 0) {
        throw base::IoError("reading {} failed ({})", path_,
                            done == 0 ? "it ends early" : std::strerror(errno));
      }
      to += done;
      bytes -= done;
      offset += done;
    }
  }
  void sync() const {
    if (::fsync(fd_) != 0) {
      throw base::IoError("fsync of {} failed ({})", path_, std::strerror(errno));
    }
  }

 private:
  std::string path_;
  int fd_ = -1;
};

// Calls visit(first element in the file's tensor, first element in the slice, count) for each contiguous run
// of a box.
template <typename Visit>
void for_each_run(const parallel::ShardSpec& shard, Visit visit) {
  const std::int64_t local = shard.local_numel();
  if (local == 0) {
    return;
  }
  // A run spans the trailing dimensions that are whole, and the last sharded one.
  std::int64_t run = 1;
  for (std::size_t dim = shard.global_shape.size(); dim-- > 0;) {
    run *= shard.local_shape[dim];
    if (shard.local_shape[dim] != shard.global_shape[dim]) {
      break;
    }
  }
  for (std::int64_t first = 0; first < local; first += run) {
    visit(shard.global_index(first), first, run);
  }
}

std::uint64_t slice_hash(const parallel::Parameter& parameter) {
  return base::hash_string(fmt::format("{}|{}|{}", parameter.name, fmt::join(parameter.shard.offset, ","),
                                       fmt::join(parameter.shard.local_shape, ",")));
}

// For each parameter: whether this rank is the first holder of its slice.
std::vector<bool> first_holders(const parallel::ParameterMap& parameters,
                                const parallel::Communicator& role) {
  const auto num = static_cast<std::int64_t>(parameters.all().size());
  at::Tensor own = at::empty({num}, at::kLong);
  for (std::int64_t i = 0; i < num; ++i) {
    own.data_ptr<std::int64_t>()[i] =
        static_cast<std::int64_t>(slice_hash(*parameters.all()[static_cast<std::size_t>(i)]));
  }
  const at::Tensor all = parallel::all_gather(own, role, parallel::Traffic::other).view({role.size(), num});
  std::vector<bool> first(static_cast<std::size_t>(num), true);
  for (std::int64_t i = 0; i < num; ++i) {
    for (int rank = 0; rank < role.rank(); ++rank) {
      if (all[rank][i].item<std::int64_t>() == own[i].item<std::int64_t>()) {
        first[static_cast<std::size_t>(i)] = false;
      }
    }
  }
  return first;
}

checkpoint::SafetensorsHeader make_header(const parallel::ParameterMap& parameters,
                                          const moe::BalanceState& balance) {
  checkpoint::SafetensorsHeader header;
  header.metadata["format"] = "pt";
  for (const auto& parameter : parameters.all()) {
    header.entries.push_back(
        {parameter->name, dtype_name(parameter->value.scalar_type()), parameter->shard.global_shape, 0, 0});
  }
  if (balance.bias_PE.defined() && balance.bias_PE.numel() > 0) {
    header.entries.push_back(
        {bias_name, dtype_name(balance.bias_PE.scalar_type()), balance.bias_PE.sizes().vec(), 0, 0});
  }
  return header;
}

void load_parameter(const File& file, const std::string& path, const checkpoint::SafetensorsHeader& header,
                    parallel::Parameter& parameter) {
  const checkpoint::SafetensorsEntry* entry = header.find(parameter.name);
  if (entry == nullptr) {
    throw base::CheckpointError("{} has no tensor {} (it is of another model) use its own config.ini", path,
                                parameter.name);
  }
  if (entry->shape != parameter.shard.global_shape) {
    throw base::CheckpointError("{}: tensor {} is [{}] (the model needs [{}]) use its own config.ini", path,
                                parameter.name, fmt::join(entry->shape, ", "),
                                fmt::join(parameter.shard.global_shape, ", "));
  }
  at::Tensor buffer = at::empty({parameter.shard.local_numel()}, scalar_type_of(path, *entry));
  const std::int64_t element = checkpoint::safetensors_element_bytes(entry->dtype);
  for_each_run(parameter.shard, [&](std::int64_t global, std::int64_t local, std::int64_t count) {
    file.read_at(static_cast<char*>(buffer.data_ptr()) + local * element, count * element,
                 header.data_begin + entry->begin + global * element);
  });
  at::NoGradGuard no_grad;
  parameter.value.copy_(buffer.view(parameter.shard.local_shape));
}

}  // namespace

void save_weights(const std::string& folder, const parallel::ParameterMap& parameters,
                  const moe::BalanceState& balance, const parallel::Communicator& role) {
  const std::string path = folder + "/" + file_name;
  const std::string unfinished = path + ".tmp";
  checkpoint::SafetensorsHeader header = make_header(parameters, balance);
  const std::string header_bytes = checkpoint::layout_safetensors(header);
  if (role.rank() == 0) {
    const File file(unfinished, O_WRONLY | O_CREAT | O_TRUNC);
    file.write_at(header_bytes.data(), static_cast<std::int64_t>(header_bytes.size()), 0);
    if (const auto* entry = header.find(bias_name)) {
      const at::Tensor bias = balance.bias_PE.contiguous();
      file.write_at(bias.data_ptr(), static_cast<std::int64_t>(bias.nbytes()),
                    header.data_begin + entry->begin);
    }
  }
  role.barrier();
  const std::vector<bool> first = first_holders(parameters, role);
  {
    const File file(unfinished, O_WRONLY);
    for (std::size_t i = 0; i < parameters.all().size(); ++i) {
      if (!first[i]) {
        continue;
      }
      const parallel::Parameter& parameter = *parameters.all()[i];
      const at::Tensor value = parameter.value.detach().contiguous();
      const auto element = static_cast<std::int64_t>(value.element_size());
      for_each_run(parameter.shard, [&](std::int64_t global, std::int64_t local, std::int64_t count) {
        file.write_at(static_cast<const char*>(value.data_ptr()) + local * element, count * element,
                      header.data_begin + header.entries[i].begin + global * element);
      });
    }
    file.sync();
  }
  role.barrier();
  if (role.rank() == 0) {
    std::filesystem::rename(unfinished, path);
  }
  role.barrier();
}

void load_weights(const std::string& folder, const parallel::ParameterMap& parameters,
                  moe::BalanceState& balance, const parallel::Communicator& role) {
  const std::string path = folder + "/" + file_name;
  const checkpoint::SafetensorsHeader header = checkpoint::read_safetensors_header(path);
  const File file(path, O_RDONLY);
  for (const auto& parameter : parameters.all()) {
    load_parameter(file, path, header, *parameter);
  }
  if (const auto* entry = header.find(bias_name); entry != nullptr && balance.bias_PE.defined()) {
    at::Tensor bias = at::empty(entry->shape, scalar_type_of(path, *entry));
    if (bias.sizes() != balance.bias_PE.sizes()) {
      throw base::CheckpointError(
          "{}: {} has another shape than the model's (another model) use its own config.ini", path,
          bias_name);
    }
    file.read_at(bias.data_ptr(), static_cast<std::int64_t>(bias.nbytes()), header.data_begin + entry->begin);
    balance.bias_PE.copy_(bias);
  }
  role.barrier();
}

}  // namespace athanor::train
