// The keys of `distill.*`.
#include "config/key_group.hpp"

namespace athanor::config {

#define RUN(expression)           \
  [](auto& run, auto&) -> auto& { \
    return run.expression;        \
  }
void add_distill_keys(std::vector<Key>& keys) {
  KeyGroup(keys, "distill", commands({Command::distill}))
      .add("students", RUN(distill.students),
           {"Names of several students, comma-separated: the keys of student a begin with student.a., those "
            "of "
            "all with student.; empty: one student."})
      .add("window", RUN(distill.window),
           {"Steps that a teacher may be ahead of a student; both keep the signals of so many.", "steps",
            at_least(1)})
      .add(
          "phases", RUN(distill.phases),
          {"Stages of the run: three_stage (feature_alignment:0.2,soft_label:0.5,joint:0.3), kl_hidden_task "
           "(the teacher's distribution 0.4, with hidden states 0.3, with labels 0.3), joint (one stage with "
           "everything), or a list of kind:fraction of feature_alignment (hidden states and attention), "
           "soft_label (labels and distribution) and joint (all; after feature_alignment with a tenth of the "
           "feature weights)."})
      .add("alpha_schedule", RUN(distill.alpha.kind),
           {"How alpha goes from distill.alpha to distill.alpha_end over each stage; constant: it does not."})
      .add("alpha", RUN(distill.alpha.first),
           {"Share of the teacher's distribution in the loss; labels have the rest.", "", between(0, 1)})
      .add("alpha_end", RUN(distill.alpha.last), {"The share at the end of a stage.", "", between(0, 1)})
      .add("temperature", RUN(distill.temperature.first),
           {"Divides the logits of both; at the start of each stage.", "", above(0)})
      .add("temperature_step", RUN(distill.temperature.step_change),
           {"Added to the temperature after each period; 0: it is constant."})
      .add("temperature_min", RUN(distill.temperature.minimum),
           {"The temperature does not go below.", "", above(0)})
      .add("temperature_period", RUN(distill.temperature.period_steps),
           {"Steps between two changes of the temperature; 0: as many as take each stage down to "
            "distill.temperature_min in equal parts.",
            "steps", at_least(0)})
      .add("temperature_by_domain", RUN(distill.temperature.by_domain),
           {"Constant temperatures of domains of data.train, in place of the schedule.", "", above(0)})
      .add("codec", RUN(distill.codec.kind),
           {"How the teacher's distribution travels: all logits, the largest with the mass of the others, "
            "random "
            "draws, or its last hidden state with its output head."})
      .add("top_k", RUN(distill.codec.top_k), {"Logits of a token that topk keeps.", "tokens", at_least(1)})
      .add("samples", RUN(distill.codec.samples), {"Draws of a token in sampled.", "draws", between(1, 255)})
      .add("loss", RUN(distill.kd.loss),
           {"Divergence of the student's distribution from the teacher's; topk and sampled serve forward_kl "
            "only."})
      .add("skew", RUN(distill.kd.skew),
           {"Share of the other distribution that skew_kl and skew_reverse_kl mix in.", "", below(0, 1)})
      .add("beta", RUN(distill.kd.beta),
           {"Share of the teacher in the mixture of jsd; 0 is forward_kl, 1 reverse_kl.", "", between(0, 1)})
      .add("hidden_layers", RUN(distill.hidden_layers),
           {"Layers whose hidden states are compared: a number of pairs at equal depths, the last layers "
            "included, or a list of student:teacher[:weight], counted from 0; 0: none."})
      .add("hidden_loss", RUN(distill.hidden.kind), {"Distance of hidden states."})
      .add("hidden_weight", RUN(distill.hidden_weight),
           {"Weight of the hidden states in the loss.", "", at_least(0)})
      .add("hidden_gradient_scale", RUN(distill.hidden.gradient_scale),
           {"Factor of the hidden states' gradient into the student (their projections get all of it).", "",
            at_least(0)})
      .add("hidden_wire", RUN(distill.hidden_wire),
           {"Number format of layers' hidden states on the wire; fp8 in the teacher's precision.fp8_format. "
            "Queries and keys travel in the teacher's compute type."})
      .add("attention_layers", RUN(distill.attention_layers),
           {"Layers whose attention maps are compared, as distill.hidden_layers."})
      .add("attention_weight", RUN(distill.attention_weight),
           {"Weight of the attention maps in the loss.", "", at_least(0)})
      .add("attention_loss", RUN(distill.attention_loss), {"Distance of attention maps."})
      .add("maturity_gate", RUN(distill.maturity_gate),
           {"Multiplies alpha by (the student's loss - the teacher's loss) / distill.maturity_margin, at "
            "least 0 "
            "and at most 1."})
      .add("maturity_margin", RUN(distill.maturity.margin),
           {"Lead of the teacher from which it counts fully.", "nats", above(0)})
      .add("deadline_s", RUN(distill.deadline_s),
           {"Longest wait of teacher and student for each other; then the job stops with exit code 70.",
            "seconds", above(0)});
}

#undef RUN

}  // namespace athanor::config
