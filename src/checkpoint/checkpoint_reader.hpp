// Reads a published checkpoint into any layout, verifying every byte it uses.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "checkpoint/manifest.hpp"
#include "checkpoint/tensor_slice.hpp"

namespace athanor::checkpoint {

class CheckpointReader {
 public:
  /// Opens a checkpoint folder: COMPLETE, the manifest's digest, format version, that the slices cover every
  /// tensor exactly once, and presence and size of every file. Not collective; all ranks may open the same
  /// folder. Throws MissingInputError (no such folder), CheckpointError naming file and reason.
  explicit CheckpointReader(const std::string& folder);
  ~CheckpointReader();
  CheckpointReader(const CheckpointReader&) = delete;
  CheckpointReader& operator=(const CheckpointReader&) = delete;

  const std::string& folder() const;
  const Manifest& manifest() const;

  /// Fills the targets' memory from whatever slices overlap them. Each block that is read is checked against
  /// its checksum before use, and every floating-point element that is used is checked to be finite. Targets
  /// must have the stored type and shape. Throws CheckpointError naming tensor, slice, file and reason;
  /// memory of targets is then unspecified, so read into staging memory. Runs on the I/O thread.
  void read(const std::vector<TensorSlice>& targets) const;

  /// Checks every block of every slice, and the files' identities. Returns one line for each problem, naming
  /// tensor, slice and file; empty: all is well. With `part` of `parts`, every parts-th slice only, so that
  /// ranks can share the work.
  std::vector<std::string> verify(int part = 0, int parts = 1) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The role `name`. Throws CheckpointError naming the roles that are there when it is none of them.
const StoredRole& stored_role(const CheckpointReader& reader, const std::string& name);
/// The role `name`, whose weights are here too. Throws CheckpointError as stored_role, and for a role that
/// was frozen: its weights are in no checkpoint of the run.
const StoredRole& stored_role_with_weights(const CheckpointReader& reader, const std::string& name);

/// One HDF5 file with whole tensors under their logical names, from any checkpoint; written beside the
/// target, fsynced and renamed. One tensor at a time in memory. Throws CannotCreateError when `path` exists.
void merge_checkpoint(const CheckpointReader& reader, const std::string& path);

}  // namespace athanor::checkpoint
