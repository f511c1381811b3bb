#include "train/objective.hpp"

#include <ATen/ATen.h>

namespace athanor::train {

double LanguageModelObjective::forward(const model::Transformer& model, const model::ForwardContext& context,
                                       std::int64_t, MicroBatch& micro) {
  const at::Tensor x_BsD = model.embed(micro.batch, context);
  const model::Transformer::Hidden hidden = model.blocks(x_BsD, micro.batch, context);
  micro.objective = model.head_loss(hidden.h_BsD, micro.batch).sum;
  micro.aux = hidden.aux;
  return micro.objective.item<double>();
}

}  // namespace athanor::train
