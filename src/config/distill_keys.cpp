// The keys of `distill.*`.
#include "config/key_group.hpp"

namespace athanor::config {

#define RUN(expression)           \
  [](auto& run, auto&) -> auto& { \
    return run.expression;        \
  }
void add_distill_keys(std::vector<Key>& keys) {
  KeyGroup(keys, "distill", commands({Command::distill, Command::bench_stream}))
      .add("students", RUN(distill.students),
           {"Names of several students, comma-separated: the keys of student a begin with student.a., those "
            "of "
            "all with student.; empty: one student."})
      .add("window", RUN(distill.window),
           {"Steps that a teacher may be ahead of a student; both keep the signals of so many.", "steps",
            at_least(1)})
      .add(
          "overlap_sends", RUN(distill.overlap_sends),
          {"Signals travel while the teacher computes; false: it waits until they have left. The same bits."})
      .add(
          "phases", RUN(distill.phases),
          {"Stages of the run: three_stage (feature_alignment:0.2,soft_label:0.5,joint:0.3), kl_hidden_task "
           "(the teacher's distribution 0.4, with hidden states 0.3, with labels 0.3), joint (one stage with "
           "everything), or a list of kind:fraction[:learning-rate factor] of feature_alignment (hidden "
           "states "
           "and attention), "
           "soft_label (labels and distribution) and joint (all; after feature_alignment with a tenth of the "
           "feature weights)."})
      .add(
          "phase_settings", RUN(distill.phase_settings),
          {"What is different in some stages: a list of stage.key=value with keys of distill without their "
           "prefix, such as soft_label.temperature=2,joint.codec=hidden; losses, weights, alpha, temperature "
           "and codec can be set."})
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
      .add("difficulty_gate", RUN(distill.difficulty_gate),
           {"Multiplies alpha of a token by how easy its label is for the teacher: 1 where the teacher's "
            "loss is "
            "at most distill.difficulty_full_until times its running mean, 0 from "
            "distill.difficulty_zero_from times, linear between."})
      .add("difficulty_full_until", RUN(distill.difficulty.full_until),
           {"Loss of the teacher up to which a token keeps all of alpha.", "running means", above(0)})
      .add("difficulty_zero_from", RUN(distill.difficulty.zero_from),
           {"Loss of the teacher from which a token has none of alpha; above distill.difficulty_full_until.",
            "running means", above(0)})
      .add("balance_losses", RUN(distill.balance_losses),
           {"Brings the hidden-state and attention terms to the size of the distribution's term (of the "
            "labels' in a stage without it) by running means, at most 100-fold, before their weights apply."})
      .add("hidden_warmup_steps", RUN(distill.hidden_schedule.warmup_steps),
           {"Steps of each stage in which distill.hidden_weight grows to its value.", "steps", at_least(0)})
      .add("hidden_decay", RUN(distill.hidden_schedule.decay),
           {"Factor of distill.hidden_weight after each distill.decay_period steps of a stage, counted from "
            "the end of its warm-up; 1: the weight stays.",
            "",
            {.min = 0, .max = 1, .min_is_legal = false}})
      .add("attention_warmup_steps", RUN(distill.attention_schedule.warmup_steps),
           {"As distill.hidden_warmup_steps, for distill.attention_weight.", "steps", at_least(0)})
      .add("attention_decay", RUN(distill.attention_schedule.decay),
           {"As distill.hidden_decay, for distill.attention_weight.",
            "",
            {.min = 0, .max = 1, .min_is_legal = false}})
      .add("decay_period", RUN(distill.decay_period),
           {"Steps between two decays of the weights of hidden states and attention.", "steps", at_least(1)})
      .add(
          "held_out", RUN(distill.held_out),
          {"Share of the training samples, drawn by run.seed and their tokens, that students are measured on "
           "and not trained on; the teacher trains on them.",
           "", below(0, 1)})
      .add(
          "patience", RUN(distill.stopping.patience),
          {"A student stops early when its distillation loss on the held-out samples has not improved for so "
           "many evaluations, one each train.eval_every steps; 0: never.",
           "evaluations", at_least(0)})
      .add("min_improvement", RUN(distill.stopping.min_improvement),
           {"What counts as an improvement for distill.patience: a fall of the held-out loss by more than "
            "this.",
            "nats", at_least(0)})
      .add("gap_every", RUN(distill.gap_every),
           {"Steps between two measurements of what the codec loses: the teacher sends the full logits of "
            "some "
            "tokens, and the student compares both divergences; 0: none.",
            "steps", at_least(0)})
      .add("gap_fraction", RUN(distill.gap_fraction),
           {"Share of each sample's tokens that a measurement takes, rounded up to whole tokens.",
            "",
            {.min = 0, .max = 1, .min_is_legal = false}})
      .add("deadline_s", RUN(distill.deadline_s),
           {"Longest wait of teacher and student for each other.", "seconds", above(0)})
      .add("on_teacher_loss", RUN(distill.on_teacher_loss),
           {"When the teacher has sent nothing for distill.deadline_s: stop ends the job with exit code 75; "
            "labels lets the student go on to train.steps with labels alone, write its weights to "
            "checkpoints-student in the run's folder, and end with 75 then."});
  KeyGroup(keys, "distill", commands({Command::distill}))
      .add("source", RUN(distill.source),
           {"Where the signals come from: live, a teacher that runs in this job; or a folder that "
            "distill.record made, then the job has students only and the teacher is the recorded one."})
      .add("record", RUN(distill.record),
           {"Folder in which the signals that the first student gets are recorded; empty: none."})
      .add("record_temperatures", RUN(distill.record_temperatures),
           {"Temperatures to send and record besides those of the schedule, comma-separated, for later runs "
            "at other temperatures."})
      .add("search", RUN(distill.search),
           {"temperature: short trials of constant temperatures in place of a run, and a ranking of them; "
            "also "
            "--search."})
      .add("trials", RUN(distill.trials),
           {"Trials of a search: temperatures from distill.temperature_min to 8 in equal ratios; also "
            "--trials.",
            "trials", between(2, 99)})
      .add("trial_steps", RUN(distill.trial_steps),
           {"Steps of a trial, in place of train.steps for schedules and stages too.", "steps", at_least(1)});
}

#undef RUN

}  // namespace athanor::config
