// A student's first weights from a larger model's: layers are chosen, channels and heads kept by importance,
// experts chosen or merged. Works on named tensors, of which it reads a part at a time.
//
// Importance is computed from weights alone, as in pruning by norm (Li et al. 2017, "Pruning Filters for
// Efficient ConvNets") and, for a whole transformer, weight subcloning (Samragh et al. 2023). |.| is the
// Euclidean norm; a matrix behind an RMS norm counts with that norm's gains multiplied in, and everything
// that has the width of the residual stream counts its kept channels only.
//
//   residual channel c   sum over the matrices that read it (q, kv, gate_up, router, head) and write it
//                        (embedding, o, down) of |row or column c|^2 / |matrix|^2: each matrix has one vote.
//                        One choice for the whole stream, over the layers that are kept.
//   query head h         |v_g| |o_h|, without query/key norm times |q_h| |k_g| (the norm removes their size);
//                        g its key/value head. A key/value head has the sum of its best query heads.
//   value channel c      |v_c| |o_c| over the kept query heads of its key/value head.
//   query/key channels   not by importance: the student's rotary pair j turns with the frequency of the
//                        source's pair j * C_source / C_student, and takes the nearest one, both halves.
//   ffn channel f        |gate_f| |up_f| |down_f|.
//   expert e             its share of routed tokens, where it is known, else |router_e| |gate_up_e| |down_e|.
//
// Merging experts follows M-SMoE (Li et al. 2024, "Merge, Then Compress"): the most used experts each gather
// those whose router rows are most similar; channels are first brought into the order of the gathering
// expert's (greedily, by cosine), then weights and router rows are averaged by use.
//
// Scale. Fewer residual channels change the mean square that RMS norms divide by: with e_c the channels'
// share of what is written into the stream, gains are multiplied by sqrt(mean kept e_c / mean e_c), so that
// what is kept reaches the next matrix as large as it was. Queries are multiplied by sqrt(C_source /
// C_student), because attention divides by sqrt(C). A dense layer made of experts weighs each of them by its
// share of use among those it has. Channels that are dead in the source can go without any change of the
// function; a size that does not change is copied bit for bit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "parallel/shard_spec.hpp"

namespace athanor::distill {

/// What a decoder-only transformer looks like, as far as its tensors tell.
struct ModelShape {
  std::int64_t vocab_size = 0;
  std::int64_t hidden = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  bool qk_norm = false;
  double rope_theta = 0.0;
  bool tie_embeddings = false;
  std::int64_t ffn = 0;         ///< of a dense layer
  std::int64_t experts = 0;     ///< of a sparse layer
  std::int64_t expert_ffn = 0;  ///< of one expert
  std::int64_t shared_ffn = 0;  ///< of the experts that every token passes; 0: none
  std::int64_t expert_groups = 1;
  bool sigmoid_scores = false;
  std::vector<bool> sparse;  ///< one for each layer
  std::int64_t num_layers() const { return static_cast<std::int64_t>(sparse.size()); }
};

/// From many experts to few: the most important ones, or means of similar ones.
enum class ExpertReduction { choose, merge };

struct StudentInitOptions {
  std::vector<std::int64_t> layers;  ///< of the source, one for each layer, rising; empty: equally spaced
  ExpertReduction experts = ExpertReduction::choose;
};

/// Where the larger model's tensors come from.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  /// The box of the tensor `name`: contiguous, f32 or f64, of the box's local shape, in memory that the
  /// caller may write to. Throws when the tensor is not there or has another shape than box.global_shape.
  virtual at::Tensor read(const std::string& name, const parallel::ShardSpec& box) const = 0;
  /// How often each expert of a sparse layer was chosen; empty where nobody counted.
  virtual std::vector<double> expert_uses(std::int64_t layer) const = 0;
};

/// A part of an expert of the source.
struct ExpertPart {
  std::int64_t expert = 0;
  double weight = 1.0;                 ///< in the mean; 1 alone
  std::vector<std::int64_t> channels;  ///< of the source, in the student's order
  bool operator==(const ExpertPart&) const = default;
};
/// One expert of the student: the weighted mean of parts with equally many channels.
struct ExpertPlan {
  std::vector<ExpertPart> parts;
  double gate = 1.0;  ///< of its output, where it becomes a part of a dense layer
  bool operator==(const ExpertPlan&) const = default;
};

/// Where the weights of one of the student's layers are in the source.
struct LayerPlan {
  std::int64_t source = 0;
  std::vector<std::int64_t> q_rows;     ///< of q.weight
  std::vector<std::int64_t> k_rows;     ///< of kv.weight[0]
  std::vector<std::int64_t> v_rows;     ///< of kv.weight[1]
  std::vector<std::int64_t> o_columns;  ///< of o.weight
  std::vector<std::int64_t> channels;   ///< of a dense layer from a dense one
  std::vector<std::int64_t> shared;     ///< channels of the shared experts
  std::vector<ExpertPlan> experts;      ///< from a sparse layer; a dense layer has their channels in turn
  bool operator==(const LayerPlan&) const = default;
};

/// The whole plan: a function of the source's weights alone, whoever computes it.
struct StudentPlan {
  ModelShape source;
  ModelShape student;
  ExpertReduction experts = ExpertReduction::choose;
  std::vector<std::int64_t> layers;  ///< of the source
  std::vector<std::int64_t> hidden;  ///< channels of the source's residual stream
  double norm_scale = 1.0;           ///< of the RMS norms' gains
  double query_scale = 1.0;
  std::vector<LayerPlan> layer_plans;  ///< one for each layer of the student
};

/// The layers that are taken, before anything is read. Throws ConfigError, naming keys of the configuration,
/// when the student is larger than the source in anything, or has what the source cannot give.
StudentPlan start_plan(const ModelShape& source, const ModelShape& student,
                       const StudentInitOptions& options);

/// Energies of the residual channels, read from part `part` of 0 to num_hidden_parts() - 1: f64 [2, D of the
/// source], votes of readers and of writers. One after another or on different ranks; sum nothing yourself.
std::int64_t num_hidden_parts(const StudentPlan& plan);
at::Tensor score_hidden_part(const StudentPlan& plan, std::int64_t part, const WeightSource& source);
/// Whether the student's stream is narrower: score_hidden_part() is needed.
bool needs_hidden_scores(const StudentPlan& plan);
/// Sets hidden and norm_scale from scores [parts, 2, D].
void choose_hidden(StudentPlan& plan, const at::Tensor& scores_P2D);

/// The plan of one layer, when hidden is known. Reads nothing where sizes do not change.
LayerPlan plan_layer(const StudentPlan& plan, std::int64_t layer, const WeightSource& source);

/// A layer's plan as bytes, to hand it to other ranks, and back.
std::string encode_layer_plan(const LayerPlan& plan);
LayerPlan decode_layer_plan(const std::string& bytes);

/// All of the above on one rank.
StudentPlan make_student_plan(const ModelShape& source, const ModelShape& student,
                              const StudentInitOptions& options, const WeightSource& weights);

/// This rank's box of the student's tensor `name` ("layers.0.attention.q.weight"), f32 or f64, contiguous,
/// read from the source no further than it needs. Throws InternalError for a name or shape that is not the
/// student's.
at::Tensor make_student_tensor(const StudentPlan& plan, const std::string& name,
                               const parallel::ShardSpec& box, const WeightSource& source);

}  // namespace athanor::distill
