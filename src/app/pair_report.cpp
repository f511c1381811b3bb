#include "app/pair_report.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>

#include "base/error.hpp"
#include "base/log.hpp"
#include "checkpoint/catalog.hpp"
#include "checkpoint/checkpoint_reader.hpp"
#include "config/ini.hpp"
#include "config/recording_plan.hpp"
#include "config/search_plan.hpp"
#include "model/transformer_config.hpp"
#include "train/training.hpp"

namespace athanor::app {
namespace {

// A student of less than this share of the teacher's parameters often learns better from a smaller one.
constexpr double smallest_student = 0.1;
constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

// Which tokenizer the weights of one role were trained with.
struct Origin {
  std::string key;   // "teacher.init"
  std::string path;  // of the checkpoint
  std::string hash;  // empty: it does not say
};

std::vector<Origin> read_origins(const config::RunConfig& config) {
  std::vector<Origin> origins;
  for (const config::RoleConfig& role : config.roles) {
    if (!role.init.empty() && config::runs(config, role)) {
      const std::string path = checkpoint::resolve_checkpoint(role.init);
      const nlohmann::json data = checkpoint::CheckpointReader(path).manifest().data;
      origins.push_back({role.name + ".init", path, data.is_object() ? data.value("tokenizer", "") : ""});
    }
  }
  return origins;
}

void refuse_other_tokenizer(const config::RunConfig& config, const Origin& origin, const Origin& reference) {
  const std::vector<std::string> allowed = config::split_list(config.run.allow_mismatch);
  if (std::find(allowed.begin(), allowed.end(), "data.tokenizer") != allowed.end()) {
    base::log_warning("{}={} was trained with another tokenizer than {} (run.allow_mismatch lets it pass)",
                      origin.key, origin.path, reference.key);
    return;
  }
  throw base::ConfigError(
      "{}={} (it was trained with the tokenizer {}, and {}={} is {}: the same ids mean other text) use the "
      "tokenizer that lies in the checkpoint's folder for data and data.tokenizer, other weights, or "
      "run.allow_mismatch=data.tokenizer if the two are one in fact",
      origin.key, origin.path, origin.hash, reference.key, reference.path, reference.hash);
}

// Operations of a rank for a token, in units of 1 parameter: forward 2, backward 4.
double work_per_token(const config::RoleConfig& role, const model::ParameterCount& count, int ranks) {
  return (role.frozen ? 2.0 : 6.0) * static_cast<double>(count.active) / std::max(ranks, 1);
}

double ratio(double a, double b) {
  return b != 0.0 ? a / b : unknown;
}

std::string describe_pace(const std::string& student, double teacher_over_student) {
  const bool is_teacher_slower = teacher_over_student >= 1.0;
  const double factor = is_teacher_slower ? teacher_over_student : 1.0 / teacher_over_student;
  return fmt::format("{} takes {:.1f} times as long for a step as {}{}",
                     is_teacher_slower ? "teacher" : student, factor, is_teacher_slower ? student : "teacher",
                     factor > train::widest_pace_ratio
                         ? fmt::format(" (more than {:.0f}: give it more ranks)", train::widest_pace_ratio)
                         : "");
}

// NaN for what is not there: a role that did not run, a figure that is not finite.
double number(const nlohmann::json& object, const std::string& pointer) {
  const nlohmann::json::json_pointer place(pointer);
  return object.contains(place) && object.at(place).is_number() ? object.at(place).get<double>() : unknown;
}

// A table with one column for the teacher and two for each student.
class Table {
 public:
  explicit Table(std::size_t students) : students_(students) {}
  void add(const std::string& label, double teacher, const std::vector<double>& students, int decimals,
           bool has_change = true) {
    std::string line = fmt::format("{:<32}{:>12}", label, cell(teacher, decimals));
    for (const double student : students) {
      const double change = 100.0 * (ratio(student, teacher) - 1.0);
      line += fmt::format("{:>12}{:>10}", cell(student, decimals),
                          has_change && std::isfinite(change) ? fmt::format("{:+.1f} %", change) : "");
    }
    text_ += line.substr(0, line.find_last_not_of(' ') + 1) + '\n';
  }
  std::string text(const std::vector<std::string>& names) const {
    std::string head = fmt::format("{:<32}{:>12}", "", "teacher");
    for (std::size_t i = 0; i < students_; ++i) {
      head += fmt::format("{:>12}{:>10}", names[i], "change");
    }
    return head + '\n' + text_;
  }

 private:
  static std::string cell(double value, int decimals) {
    return std::isfinite(value) ? fmt::format("{:.{}f}", value, decimals) : "-";
  }
  std::size_t students_;
  std::string text_;
};

// What the report compares; a teacher that did not run is null.
struct Results {
  nlohmann::json teacher;
  std::vector<std::string> names;
  std::vector<nlohmann::json> students;
};

Results collect(const config::RunConfig& config, const nlohmann::json& json) {
  Results results;
  for (const config::RoleConfig& role : config.roles) {
    if (!json.contains(role.name)) {
      continue;
    }
    if (role.kind == parallel::RoleKind::teacher) {
      results.teacher = json[role.name];
    } else {
      results.names.push_back(role.name);
      results.students.push_back(json[role.name]);
    }
  }
  return results;
}

Table make_table(const Results& results) {
  Table table(results.students.size());
  const auto add = [&](const std::string& label, const std::string& pointer, int decimals,
                       double factor = 1.0, bool has_change = true) {
    std::vector<double> students;
    for (const nlohmann::json& student : results.students) {
      students.push_back(number(student, pointer) * factor);
    }
    table.add(label, number(results.teacher, pointer) * factor, students, decimals, has_change);
  };
  add("parameters, millions", "/parameters", 2, 1e-6);
  add("  active for a token", "/active_parameters", 2, 1e-6);
  add("training loss, last steps", "/pace/loss", 4);
  const nlohmann::json evaluation =
      results.students.empty() ? nlohmann::json() : results.students.front().at("evaluation");
  for (const auto& [domain, unused] : evaluation.items()) {
    const nlohmann::json::json_pointer place = nlohmann::json::json_pointer("/evaluation") / domain;
    add("held-out loss, " + domain, place.to_string() + "/loss", 4);
    add("held-out perplexity, " + domain, place.to_string() + "/perplexity", 2);
  }
  add("work in a step, seconds", "/pace/busy_s", 3);
  add("waits for the other side, %", "/pace/wait_share", 1, 100.0, false);
  add("peak memory, MB a rank", "/peak_rss_bytes", 0, 1e-6);
  return table;
}

// One student against the teacher, on the same tokens.
nlohmann::json compare(const config::RunConfig& config, const nlohmann::json& teacher,
                       const nlohmann::json& student) {
  const auto tokens = static_cast<double>(config.batch.global * config.batch.seq);
  const double loss = number(student, "/pace/loss");
  const double teacher_loss = number(student, "/pace/teacher_loss");
  nlohmann::json fit = {{"steps", student.at("pace").at("steps")}};
  put_number(fit, "student_loss", loss);
  put_number(fit, "teacher_loss", teacher_loss);
  put_number(fit, "loss_gap", loss - teacher_loss);
  put_number(fit, "parameter_ratio", ratio(number(student, "/parameters"), number(teacher, "/parameters")));
  put_number(fit, "speed_ratio", ratio(number(teacher, "/pace/busy_s"), number(student, "/pace/busy_s")));
  put_number(fit, "student_wait_share", number(student, "/pace/wait_share"));
  put_number(fit, "teacher_wait_share", number(teacher, "/pace/wait_share"));
  put_number(fit, "link_bytes_per_token", number(student, "/pace/link_bytes") / tokens);
  return fit;
}

std::string describe_fit(const std::string& name, const nlohmann::json& fit) {
  std::string text = fmt::format(
      "{}: loss {:.4f}, the teacher's on the same tokens {:.4f}, gap {:+.4f}; {:.0f} bytes a token on "
      "the link\n",
      name, number(fit, "/student_loss"), number(fit, "/teacher_loss"), number(fit, "/loss_gap"),
      number(fit, "/link_bytes_per_token"));
  const double speed = number(fit, "/speed_ratio");
  if (number(fit, "/steps") >= train::fewest_paced_steps && std::isfinite(speed)) {
    text += fmt::format("without waits, {}\n", describe_pace(name, speed));
  }
  return text;
}

void describe_search(const config::RunConfig& config, CommandResult& result) {
  if (config.distill.search == config::SearchKind::none) {
    return;
  }
  const std::vector<double> temperatures = config::trial_temperatures(config);
  result.json["trial_temperatures"] = temperatures;
  result.text += fmt::format("search: {} trials of {} steps at temperatures {}\n", temperatures.size(),
                             config.distill.trial_steps, fmt::join(temperatures, ", "));
}

}  // namespace

std::string check_tokenizers(const config::RunConfig& config) {
  const std::vector<Origin> origins = read_origins(config);
  std::optional<Origin> reference;
  if (!config.data.tokenizer.empty()) {
    reference = Origin{"data.tokenizer", config.data.tokenizer, train::file_hash(config.data.tokenizer)};
  }
  std::string text = reference ? "the run's" : "none";
  for (const Origin& origin : origins) {
    const bool is_known = !origin.hash.empty();
    if (is_known && !reference) {
      reference = origin;
    }
    const bool is_same = is_known && origin.hash == reference->hash;
    if (is_known && !is_same) {
      refuse_other_tokenizer(config, origin, *reference);
    }
    text += fmt::format(", of {} {}", origin.key, !is_known ? "unknown" : is_same ? "the same" : "another");
  }
  return text;
}

CommandResult describe_pair(const config::RunConfig& config, const std::vector<int>& ranks) {
  const config::RoleConfig& teacher = config.roles.front();
  const model::ParameterCount teacher_count = model::count_parameters(teacher.model);
  const double teacher_work = work_per_token(teacher, teacher_count, ranks.front());
  CommandResult result{"fit of the pair:\n", nlohmann::json::object()};
  for (std::size_t i = 1; i < config.roles.size(); ++i) {
    const config::RoleConfig& student = config.roles[i];
    const model::ParameterCount count = model::count_parameters(student.model);
    const double size = static_cast<double>(count.total) / static_cast<double>(teacher_count.total);
    const double work = work_per_token(student, count, ranks[i]);
    nlohmann::json& fit = result.json["students"][student.name];
    fit = {{"parameter_ratio", size},
           {"active_parameter_ratio",
            static_cast<double>(count.active) / static_cast<double>(teacher_count.active)},
           {"work_per_token", work}};
    result.text +=
        fmt::format("  {:<12} {:.2f} M parameters, {:.1f} % of the teacher's {:.2f} M{}\n", student.name,
                    count.total / 1e6, 100.0 * size, teacher_count.total / 1e6,
                    size < smallest_student ? " (below a tenth: a smaller teacher may teach it better)" : "");
    if (ranks.front() > 0) {
      fit["speed_ratio"] = teacher_work / work;
      result.text +=
          fmt::format("  {:<12} operations a token and rank: teacher {:.3g}, {} {:.3g}: {}\n", "",
                      teacher_work, student.name, work, describe_pace(student.name, teacher_work / work));
    }
  }
  const std::string tokenizers = check_tokenizers(config);
  result.json["vocabulary"] = teacher.model.vocab_size;
  result.json["tokenizer"] = tokenizers;
  result.text += fmt::format("  {:<12} {} tokens in all roles; tokenizer: {}\n", "vocabulary",
                             teacher.model.vocab_size, tokenizers);
  describe_search(config, result);
  return result;
}

train::PairFitOptions make_pair_fit_options(const parallel::RoleSplit& roles) {
  train::PairFitOptions options;
  options.kind = roles.role().kind;
  for (const parallel::RoleRanks& role : roles.roles()) {
    options.ranks += fmt::format("{}{}.ranks={}", options.ranks.empty() ? "" : ", ", role.name, role.ranks);
  }
  const bool has_teacher = roles.roles().front().kind == parallel::RoleKind::teacher;
  if (roles.comm().rank() != 0 || !has_teacher) {  // a recording is as fast as it is read
    return options;
  }
  const auto tell = [name = roles.role().name, leads = roles.role_index() == 0](base::LogLevel level,
                                                                                const std::string& text) {
    leads ? base::log_once(level, name + ": " + text) : base::log_local(level, text);
  };
  options.inform = [tell](const std::string& text) { tell(base::LogLevel::info, text); };
  options.warn = [tell](const std::string& text) { tell(base::LogLevel::warning, text); };
  return options;
}

nlohmann::json to_json(const train::PairFigures& figures) {
  nlohmann::json json = {{"steps", figures.steps}};
  put_number(json, "step_s", figures.step_s);
  put_number(json, "busy_s", figures.busy_s());
  put_number(json, "wait_s", figures.wait_s);
  put_number(json, "wait_share", figures.wait_share());
  put_number(json, "link_bytes", figures.link_bytes);
  put_number(json, "loss", figures.loss);
  put_number(json, "teacher_loss", figures.teacher_loss);
  return json;
}

void add_pair_report(const config::RunConfig& config, CommandResult& result) {
  const Results results = collect(config, result.json);
  std::string fits;
  for (std::size_t i = 0; i < results.students.size(); ++i) {
    const nlohmann::json fit = compare(config, results.teacher, results.students[i]);
    result.json["pair"]["students"][results.names[i]] = fit;
    fits += describe_fit(results.names[i], fit);
  }
  result.text += fmt::format("\n{}{}", make_table(results).text(results.names), fits);
}

}  // namespace athanor::app
