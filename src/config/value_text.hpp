// From the text of a value to the value and back, exactly.
#pragma once

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "config/key.hpp"

namespace athanor::config {

/// The words for the values of an enum, in the order of documentation.
template <typename Enum>
struct EnumWords;

template <>
struct EnumWords<DeviceKind> {
  static constexpr std::array<std::pair<std::string_view, DeviceKind>, 2> words{
      {{"cpu", DeviceKind::cpu}, {"cuda", DeviceKind::cuda}}};
};
template <>
struct EnumWords<GuardAction> {
  static constexpr std::array<std::pair<std::string_view, GuardAction>, 4> words{
      {{"off", GuardAction::off},
       {"warn", GuardAction::warn},
       {"skip", GuardAction::skip},
       {"rollback", GuardAction::rollback}}};
};
template <>
struct EnumWords<OnSaveError> {
  static constexpr std::array<std::pair<std::string_view, OnSaveError>, 2> words{
      {{"retry", OnSaveError::retry}, {"stop", OnSaveError::stop}}};
};
template <>
struct EnumWords<SearchKind> {
  static constexpr std::array<std::pair<std::string_view, SearchKind>, 2> words{
      {{"none", SearchKind::none}, {"temperature", SearchKind::temperature}}};
};
template <>
struct EnumWords<OnTeacherLoss> {
  static constexpr std::array<std::pair<std::string_view, OnTeacherLoss>, 2> words{
      {{"stop", OnTeacherLoss::stop}, {"labels", OnTeacherLoss::labels}}};
};
template <>
struct EnumWords<InitMode> {
  static constexpr std::array<std::pair<std::string_view, InitMode>, 2> words{
      {{"exact", InitMode::exact}, {"shrink", InitMode::shrink}}};
};
template <>
struct EnumWords<distill::ExpertReduction> {
  static constexpr std::array<std::pair<std::string_view, distill::ExpertReduction>, 2> words{
      {{"choose", distill::ExpertReduction::choose}, {"merge", distill::ExpertReduction::merge}}};
};
template <>
struct EnumWords<WorstCase> {
  static constexpr std::array<std::pair<std::string_view, WorstCase>, 2> words{
      {{"refuse", WorstCase::refuse}, {"warn", WorstCase::warn}}};
};
template <>
struct EnumWords<ExchangeFormat> {
  static constexpr std::array<std::pair<std::string_view, ExchangeFormat>, 1> words{
      {{"hf", ExchangeFormat::hf}}};
};
template <>
struct EnumWords<ExchangeType> {
  static constexpr std::array<std::pair<std::string_view, ExchangeType>, 3> words{
      {{"stored", ExchangeType::stored}, {"f32", ExchangeType::f32}, {"bf16", ExchangeType::bf16}}};
};
template <>
struct EnumWords<base::ComputeType> {
  static constexpr std::array<std::pair<std::string_view, base::ComputeType>, 4> words{
      {{"f32", base::ComputeType::f32},
       {"bf16", base::ComputeType::bf16},
       {"fp16", base::ComputeType::fp16},
       {"f64", base::ComputeType::f64}}};
};
template <>
struct EnumWords<base::WireType> {
  // f32 is a synonym of full; the first word is the one that is written.
  static constexpr std::array<std::pair<std::string_view, base::WireType>, 4> words{
      {{"full", base::WireType::full},
       {"f32", base::WireType::full},
       {"bf16", base::WireType::bf16},
       {"fp8", base::WireType::fp8}}};
};
template <>
struct EnumWords<base::Fp8Format> {
  static constexpr std::array<std::pair<std::string_view, base::Fp8Format>, 2> words{
      {{"e4m3", base::Fp8Format::e4m3}, {"e5m2", base::Fp8Format::e5m2}}};
};
template <>
struct EnumWords<data::DocumentSplit> {
  static constexpr std::array<std::pair<std::string_view, data::DocumentSplit>, 2> words{
      {{"blank_lines", data::DocumentSplit::blank_lines}, {"files", data::DocumentSplit::files}}};
};
template <>
struct EnumWords<moe::RouterScore> {
  static constexpr std::array<std::pair<std::string_view, moe::RouterScore>, 2> words{
      {{"softmax", moe::RouterScore::softmax}, {"sigmoid", moe::RouterScore::sigmoid}}};
};
template <>
struct EnumWords<moe::BalanceKind> {
  static constexpr std::array<std::pair<std::string_view, moe::BalanceKind>, 4> words{
      {{"squared", moe::BalanceKind::squared},
       {"switch", moe::BalanceKind::switch_loss},
       {"sequence", moe::BalanceKind::sequence},
       {"bias", moe::BalanceKind::bias}}};
};
template <>
struct EnumWords<moe::BalanceCounts> {
  static constexpr std::array<std::pair<std::string_view, moe::BalanceCounts>, 2> words{
      {{"batch", moe::BalanceCounts::batch}, {"micro_step", moe::BalanceCounts::micro_step}}};
};
template <>
struct EnumWords<moe::DropPolicy> {
  static constexpr std::array<std::pair<std::string_view, moe::DropPolicy>, 2> words{
      {{"position", moe::DropPolicy::position}, {"score", moe::DropPolicy::score}}};
};
template <>
struct EnumWords<optim::ScheduleKind> {
  static constexpr std::array<std::pair<std::string_view, optim::ScheduleKind>, 4> words{
      {{"constant", optim::ScheduleKind::constant},
       {"linear", optim::ScheduleKind::linear},
       {"cosine", optim::ScheduleKind::cosine},
       {"wsd", optim::ScheduleKind::wsd}}};
};
template <>
struct EnumWords<nn::ActivationClass> {
  static constexpr std::array<std::pair<std::string_view, nn::ActivationClass>, 4> words{
      {{"attention", nn::ActivationClass::attention},
       {"ffn", nn::ActivationClass::ffn},
       {"experts", nn::ActivationClass::experts},
       {"norm", nn::ActivationClass::norm}}};
};
template <>
struct EnumWords<optim::StoredGradients> {
  static constexpr std::array<std::pair<std::string_view, optim::StoredGradients>, 3> words{
      {{"none", optim::StoredGradients::none},
       {"experts", optim::StoredGradients::experts},
       {"all", optim::StoredGradients::all}}};
};
template <>
struct EnumWords<distill::AlphaKind> {
  static constexpr std::array<std::pair<std::string_view, distill::AlphaKind>, 4> words{
      {{"constant", distill::AlphaKind::constant},
       {"linear", distill::AlphaKind::linear},
       {"cosine", distill::AlphaKind::cosine},
       {"wsd", distill::AlphaKind::wsd}}};
};
template <>
struct EnumWords<distill::PayloadKind> {
  static constexpr std::array<std::pair<std::string_view, distill::PayloadKind>, 4> words{
      {{"full", distill::PayloadKind::full},
       {"topk", distill::PayloadKind::topk},
       {"sampled", distill::PayloadKind::sampled},
       {"hidden", distill::PayloadKind::hidden}}};
};
template <>
struct EnumWords<distill::KdLoss> {
  static constexpr std::array<std::pair<std::string_view, distill::KdLoss>, 6> words{
      {{"forward_kl", distill::KdLoss::forward_kl},
       {"reverse_kl", distill::KdLoss::reverse_kl},
       {"skew_kl", distill::KdLoss::skew_kl},
       {"skew_reverse_kl", distill::KdLoss::skew_reverse_kl},
       {"jsd", distill::KdLoss::jsd},
       {"logit_mse", distill::KdLoss::logit_mse}}};
};
template <>
struct EnumWords<distill::HiddenLossKind> {
  static constexpr std::array<std::pair<std::string_view, distill::HiddenLossKind>, 4> words{
      {{"mse", distill::HiddenLossKind::mse},
       {"relative", distill::HiddenLossKind::relative},
       {"cosine", distill::HiddenLossKind::cosine},
       {"normalized", distill::HiddenLossKind::normalized}}};
};
template <>
struct EnumWords<distill::AttentionLossKind> {
  static constexpr std::array<std::pair<std::string_view, distill::AttentionLossKind>, 2> words{
      {{"kl", distill::AttentionLossKind::kl}, {"mse", distill::AttentionLossKind::mse}}};
};

/// " >= 1" to put after "give a number"; "" when everything is legal.
std::string in_range(const Range& range);

/// "f32, bf16, fp16, f64".
template <typename Enum>
std::string legal_words() {
  std::string list;
  for (const auto& [word, value] : EnumWords<Enum>::words) {
    list += fmt::format("{}{}", list.empty() ? "" : ", ", word);
  }
  return list;
}

template <typename Enum>
requires std::is_enum_v<Enum> std::string to_text(Enum value) {
  for (const auto& [word, meaning] : EnumWords<Enum>::words) {
    if (meaning == value) {
      return std::string(word);
    }
  }
  return fmt::format("{}", static_cast<int>(value));
}
inline std::string to_text(bool value) {
  return value ? "true" : "false";
}
inline std::string to_text(const std::string& value) {
  return value;
}
/// Numbers with the fewest digits that read back exactly.
template <typename Number>
requires(std::integral<Number> || std::floating_point<Number>) std::string to_text(Number value) {
  return fmt::format("{}", value);
}
std::string to_text(const std::vector<moe::BalanceKind>& kinds);
std::string to_text(const std::vector<nn::ActivationClass>& classes);
/// "prose:2.5,code:1.5".
std::string to_text(const std::map<std::string, double>& numbers);

template <typename Enum>
requires std::is_enum_v<Enum>
void from_text(const std::string& text, const Range&, Enum& value) {
  for (const auto& [word, meaning] : EnumWords<Enum>::words) {
    if (word == text) {
      value = meaning;
      return;
    }
  }
  throw BadValue(fmt::format("(not a legal value) use one of: {}", legal_words<Enum>()));
}
void from_text(const std::string& text, const Range& range, bool& value);
void from_text(const std::string& text, const Range& range, std::string& value);
void from_text(const std::string& text, const Range& range, double& value);
void from_text(const std::string& text, const Range& range, std::vector<moe::BalanceKind>& kinds);
void from_text(const std::string& text, const Range& range, std::vector<nn::ActivationClass>& classes);
void from_text(const std::string& text, const Range& range, std::map<std::string, double>& numbers);

template <std::integral Number>
void from_text(const std::string& text, const Range& range, Number& value) {
  const std::string legal = in_range(range);
  Number parsed{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), parsed);
  const bool is_whole = end == text.data() + text.size();
  if (error == std::errc::result_out_of_range && is_whole) {
    throw BadValue(
        fmt::format("(too large for an integer of {} bits) give an integer{}", sizeof(Number) * 8, legal));
  }
  if (error != std::errc() || !is_whole) {
    throw BadValue(fmt::format("(not an integer) give an integer{}", legal));
  }
  if (!range.holds(static_cast<double>(parsed))) {
    throw BadValue(fmt::format("(out of range) give an integer{}", legal));
  }
  value = parsed;
}

}  // namespace athanor::config
