// The fields that flow to a student as a recording of them describes them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "distill/link/link_plan.hpp"
#include "distill/signal_file/format.hpp"
#include "train/signal_plan.hpp"

namespace athanor::train {

namespace field {
/// The triples' other two parts: inputs and hard labels, and the documents that attention keeps apart.
inline constexpr const char* tokens = "tokens";
inline constexpr const char* labels = "labels";
inline constexpr const char* documents = "documents";
}  // namespace field

/// `num_temperatures`: in use where the field flows.
distill::signal_file::FieldInfo describe_field(const distill::Field& field, const SignalOptions& options,
                                               std::int64_t num_temperatures);

/// One of field::tokens, labels, documents.
distill::signal_file::FieldInfo describe_triple_field(const char* name, std::int64_t seq);

/// All fields that flow to a student in steps [first, end), each once, and those of the triples.
std::vector<distill::signal_file::FieldInfo> describe_fields(const SignalOptions& options,
                                                             const distill::PlanOfStep& plan_of_step,
                                                             std::int64_t first, std::int64_t end);

/// The key that decides about a field: "distill.hidden_layers" for the state of a layer.
std::string key_of_field(const std::string& name);

/// Whether rank `role_rank` writes its part of a field: of ranks that have the same part the first does.
bool writes_field(const distill::Field& field, int role_rank);

}  // namespace athanor::train
