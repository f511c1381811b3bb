// Commands that share keys, by what they do.
#pragma once

#include "config/key.hpp"

namespace athanor::config {

inline const CommandSet uses_weights = commands({Command::evaluate, Command::generate});
inline const CommandSet trains = commands({Command::train, Command::distill});
inline const CommandSet builds_model =
    trains | commands({Command::bench_step, Command::bench_checkpoint, Command::bench_stream,
                       Command::bench_dispatch, Command::bench_kernels});
inline const CommandSet converts = commands(
    {Command::checkpoint_list, Command::checkpoint_verify, Command::checkpoint_show, Command::checkpoint_diff,
     Command::checkpoint_merge, Command::checkpoint_export, Command::checkpoint_import});
inline const CommandSet runs_model = uses_weights | builds_model;

}  // namespace athanor::config
