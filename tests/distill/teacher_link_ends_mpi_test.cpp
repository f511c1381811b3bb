// The ends of a teacher link that are not the good one: bad packets, dead and slow ranks, other data, early
// stops, mistakes of the caller.
#include "distill/link/teacher_link.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/stopwatch.hpp"
#include "distill/link/signal_packet.hpp"
#include "distill/link_fixture.hpp"
#include "distill/teacher_link_fixture.hpp"
#include "support/mpi_test.hpp"

namespace athanor::distill {
namespace {

using namespace tests;  // the fixture
using athanor::tests::world;
using parallel::PointToPoint;

constexpr double impatience_s = 0.3;

using MakePlan = std::function<std::shared_ptr<const LinkPlan>(const RoleLayout&, const RoleLayout&)>;
using RunEnd = std::function<void(PointToPoint&, const PlanOfStep&)>;

// A teacher and a student of one rank each, with one plan for all steps.
void run_pair_of_plans(const MakePlan& make, const RunEnd& teacher, const RunEnd& student) {
  if (world().size() < 2) {
    return;
  }
  const auto plan = make(make_layout("teacher", 0, {1, 1, 6}, batch, seq),
                         make_layout("student", 1, {1, 1, 12}, batch, seq));
  const PlanOfStep plan_of = [&](std::int64_t) { return plan; };
  PointToPoint wire(world(), "pair");
  if (world().rank() == 0) {
    teacher(wire, plan_of);
  } else if (world().rank() == 1) {
    student(wire, plan_of);
  }
  world().barrier();
}

// The same with the fields of all other tests.
void run_pair(const std::function<void(PointToPoint&, const Roles&)>& teacher,
              const std::function<void(PointToPoint&, const Roles&)>& student) {
  if (world().size() < 2) {
    return;
  }
  const Roles roles(Scenario{{1, 1, 6}, {Split{1, 1, 12}}});
  PointToPoint wire(world(), "pair");
  if (world().rank() == 0) {
    teacher(wire, roles);
  } else if (world().rank() == 1) {
    student(wire, roles);
  }
  world().barrier();
}

const LinkOptions impatient{1, 0, 4, impatience_s};
const LinkOptions patient{1, 0, 4, patience_s};
const RowTags own_tags = tags_of(Range{0, batch}, batch, 0);

template <typename Error>
std::string text_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// Sends the packets of step 0 by hand, changed by `change`.
void send_by_hand(PointToPoint& wire, const Roles& roles,
                  const std::function<void(PacketHeader&, parallel::ByteBuffer&)>& change) {
  const auto route = roles.plan_of(0)(0)->routes_from(0).front();
  for (std::size_t piece = 0; piece < route.pieces.size(); ++piece) {
    const std::int64_t payload = route.pieces[piece].payload_bytes;
    parallel::ByteBuffer packet(static_cast<std::size_t>(packet_header_bytes + payload));
    std::memset(packet.data(), 5, packet.size());
    PacketHeader header{0, 0, 0, 0, 0, payload, static_cast<std::int32_t>(piece), 0, 1};
    header.control = ControlWord::go;
    change(header, packet);
    wire.send(1, static_cast<int>(piece) + 1, std::move(packet));
  }
  EXPECT_TRUE(wire.wait_until([&] { return wire.num_under_way() == 0; }, patience_s));
}

void expect_refusal(const std::function<void(PacketHeader&, parallel::ByteBuffer&)>& change,
                    const std::string& text) {
  run_pair([&](PointToPoint& wire, const Roles& roles) { send_by_hand(wire, roles, change); },
           [&](PointToPoint& wire, const Roles& roles) {
             SignalReceiver receiver(wire, 0, roles.plan_of(0), patient);
             const auto got = text_of<base::CommError>([&] { receiver.wait_step(0, own_tags); });
             EXPECT_NE(got.find("step 0 from teacher rank 0 to student rank 1"), std::string::npos) << got;
             EXPECT_NE(got.find(text), std::string::npos) << got;
             // The rest of the step must not keep the sender waiting.
             wire.wait_until([] { return false; }, 0.1);
           });
}

TEST(TeacherLinkEnds, ADamagedPacketIsNamed) {
  expect_refusal(
      [](PacketHeader& header, parallel::ByteBuffer& packet) {
        seal_packet(header, packet);
        packet.data()[packet.size() - 1] ^= std::byte{1};
      },
      "checksum");
}

TEST(TeacherLinkEnds, APacketOfAnotherStepIsNamed) {
  expect_refusal(
      [](PacketHeader& header, parallel::ByteBuffer& packet) {
        header.step = -1;
        seal_packet(header, packet);
      },
      "late");
}

TEST(TeacherLinkEnds, AShortPacketIsNamed) {
  expect_refusal([](PacketHeader&, parallel::ByteBuffer& packet) { packet.resize(30); }, "30 bytes");
}

// A short one: MPI itself does not notice a long one in time, which is what the test after this is for.
TEST(TeacherLinkEnds, APacketThatIsTooLongIsNamed) {
  run_pair_of_plans(
      [](const RoleLayout& teacher, const RoleLayout& student) {
        return std::make_shared<LinkPlan>(teacher, student, std::vector<Field>{});
      },
      [](PointToPoint& wire, const PlanOfStep&) {
        parallel::ByteBuffer packet(packet_header_bytes + 1);
        std::memset(packet.data(), 0, packet.size());
        wire.send(1, 1, std::move(packet));
        EXPECT_TRUE(wire.wait_until([&] { return wire.num_under_way() == 0; }, patience_s));
      },
      [](PointToPoint& wire, const PlanOfStep& plan_of) {
        SignalReceiver receiver(wire, 0, plan_of, patient);
        const auto text = text_of<base::CommError>([&] { receiver.wait_step(0, own_tags); });
        EXPECT_NE(text.find("packet 0 of step 0 from teacher rank 0 to student rank 1 is lost"),
                  std::string::npos)
            << text;
      });
}

TEST(TeacherLinkEnds, OtherPlansAreRefusedBeforeAnythingIsSent) {
  run_pair(
      [](PointToPoint& wire, const Roles& roles) {
        SignalSender sender(wire, 0, {[plan = roles.plan_of(0)](std::int64_t) { return plan(2); }}, patient);
        const auto text = text_of<base::CommError>([&] { sender.begin_step({0, 0, ControlWord::go}); });
        EXPECT_NE(text.find("teacher rank 0 and student rank 1 do not agree on what is sent in step 0"),
                  std::string::npos)
            << text;
      },
      [](PointToPoint& wire, const Roles& roles) {
        SignalReceiver receiver(wire, 0, roles.plan_of(0), impatient);
        EXPECT_THROW(receiver.wait_step(0, own_tags), LinkTimeout);
      });
}

TEST(TeacherLinkEnds, OtherTokensAreNamed) {
  run_pair(
      [](PointToPoint& wire, const Roles& roles) {
        SignalSender sender(wire, 0, roles.all_plans(), patient);
        send_step(sender, roles, 0, 0);
        sender.finish();
      },
      [](PointToPoint& wire, const Roles& roles) {
        SignalReceiver receiver(wire, 0, roles.plan_of(0), {1, 0, 1, patience_s});
        RowTags other = own_tags;
        other.token_hashes[3] ^= 1;
        const auto text = text_of<base::DataError>([&] { receiver.wait_step(0, other); });
        EXPECT_NE(text.find("read other tokens in step 0 (samples 0 to 5"), std::string::npos) << text;
        receiver.progress();
        wire.wait_until([] { return false; }, 0.1);
      });
}

TEST(TeacherLinkEnds, ADeadTeacherEndsInADeadline) {
  run_pair([](PointToPoint&, const Roles&) {},
           [](PointToPoint& wire, const Roles& roles) {
             SignalReceiver receiver(wire, 0, roles.plan_of(0), impatient);
             const base::Stopwatch watch;
             const auto text = text_of<LinkTimeout>([&] { receiver.wait_step(0, own_tags); });
             EXPECT_NE(text.find("student rank 1 got no signals of step 0 from teacher ranks 0 within"),
                       std::string::npos)
                 << text;
             EXPECT_GE(watch.seconds(), impatience_s);
             EXPECT_LT(watch.seconds(), 20 * impatience_s);
             EXPECT_GE(receiver.stats().wait_s, 0.9 * impatience_s);
           });
}

TEST(TeacherLinkEnds, ATeacherThatDiesInAStepEndsInADeadline) {
  run_pair(
      [](PointToPoint& wire, const Roles& roles) {
        SignalSender sender(wire, 0, roles.all_plans(), patient);
        sender.begin_step({0, 0, ControlWord::go});
        const SentFields sent = fields_of(*roles.plan_of(0)(0), 0, Cadence::micro_batch, 0, 0);
        sender.send_rows(0, tags_of(Range{0, 6}, batch, 0), sent.views);
        sender.finish();
      },
      [](PointToPoint& wire, const Roles& roles) {
        SignalReceiver receiver(wire, 0, roles.plan_of(0), impatient);
        const auto text = text_of<base::CommError>([&] { receiver.wait_step(0, own_tags); });
        EXPECT_NE(text.find("2 packets are missing"), std::string::npos) << text;
      });
}

TEST(TeacherLinkEnds, ADeadStudentEndsInADeadline) {
  run_pair(
      [](PointToPoint& wire, const Roles& roles) {
        SignalSender sender(wire, 0, roles.all_plans(), impatient);
        const auto text = text_of<LinkTimeout>([&] { sender.begin_step({0, 0, ControlWord::go}); });
        EXPECT_NE(text.find("no credit for step 0 from student ranks 1 within"), std::string::npos) << text;
        EXPECT_GE(sender.stats().wait_s, 0.9 * impatience_s);
      },
      [](PointToPoint&, const Roles&) {});
}

// A teacher that waits for credit answers others meanwhile, or two ranks that wait for each other would stay.
TEST(TeacherLinkEnds, AWaitServesOthers) {
  run_pair(
      [](PointToPoint& wire, const Roles& roles) {
        bool is_served = false;
        LinkOptions options = patient;
        options.while_waiting = [&] {
          if (!is_served) {
            wire.send(1, 1000, parallel::ByteBuffer(1));
          }
          is_served = true;
        };
        SignalSender sender(wire, 0, roles.all_plans(), options);
        sender.begin_step({0, 0, ControlWord::go});
        EXPECT_TRUE(is_served);
      },
      [](PointToPoint& wire, const Roles& roles) {
        const auto verdict = wire.receive(0, 1000, parallel::ByteBuffer(1));
        EXPECT_TRUE(wire.wait_until([&] { return wire.is_done(verdict); }, patience_s));
        SignalReceiver receiver(wire, 0, roles.plan_of(0), {1, 0, 1, patience_s});
        wire.wait_until([] { return false; }, 0.1);
      });
}

// Buffers too long for MPI to send before they are asked for.
TEST(TeacherLinkEnds, LongPacketsNeedNobodyToWait) {
  run_pair_of_plans(
      [](const RoleLayout& teacher, const RoleLayout& student) {
        std::vector<Field> fields = {token_field({"wide", 20'000, 8}, teacher, student)};
        return std::make_shared<LinkPlan>(teacher, student, std::move(fields));
      },
      [](PointToPoint& wire, const PlanOfStep& plan_of) {
        SignalSender sender(wire, 0, {plan_of}, patient);
        for (std::int64_t step = 0; step < 3; ++step) {
          sender.begin_step({step, step + 7, control_of(step)});
          for (std::int64_t micro = 0; micro < 2; ++micro) {
            const SentFields sent = fields_of(*plan_of(step), 0, Cadence::micro_batch, micro, step);
            sender.send_rows(micro, tags_of(Range{6 * micro, 6}, batch, step), sent.views);
          }
          sender.end_step(outcome_of(step));
        }
        sender.finish();
      },
      [](PointToPoint& wire, const PlanOfStep& plan_of) {
        SignalReceiver receiver(wire, 0, plan_of, {2, 0, 3, patience_s});
        for (std::int64_t step = 0; step < 3; ++step) {
          const auto& received = receiver.wait_step(step, tags_of(Range{0, batch}, batch, step));
          expect_step(received, *plan_of(step), 0, step);
          EXPECT_EQ(receiver.wait_trailer(step), outcome_of(step));
          receiver.release(step);
        }
      });
}

// A stop in the middle of a run leaves posted receives and credits behind.
TEST(TeacherLinkEnds, AStopBeforeTheEndTakesNoTime) {
  const base::Stopwatch watch;
  run_pair(
      [](PointToPoint& wire, const Roles& roles) {
        SignalSender sender(wire, 0, roles.all_plans(), patient);
        send_step(sender, roles, 0, 0);
        sender.finish();
      },
      [](PointToPoint& wire, const Roles& roles) {
        SignalReceiver receiver(wire, 0, roles.plan_of(0), {8, 0, 100, patience_s});
        receiver.wait_step(0, own_tags);
        receiver.wait_trailer(0);
        receiver.release(0);
      });
  world().barrier();
  EXPECT_LT(watch.seconds(), 5.0);
}

TEST(TeacherLinkEnds, ASlowStudentHoldsTheTeacherAtTheWindow) {
  run_pair(
      [](PointToPoint& wire, const Roles& roles) {
        SignalSender sender(wire, 0, roles.all_plans(), {1, 0, 4, impatience_s});
        send_step(sender, roles, 0, 0);
        send_step(sender, roles, 0, 1);
        EXPECT_THROW(sender.begin_step({2, 0, ControlWord::go}), LinkTimeout);
      },
      [](PointToPoint& wire, const Roles& roles) {
        SignalReceiver receiver(wire, 0, roles.plan_of(0), {2, 0, 4, patience_s});
        for (std::int64_t step = 0; step < 2; ++step) {
          receiver.wait_step(step, tags_of(Range{0, batch}, batch, step));
          receiver.wait_trailer(step);
          if (step == 0) {
            wire.wait_until([] { return false; }, 2 * impatience_s);  // keeps both credits
            receiver.release(0);
          }
        }
      });
}

TEST(TeacherLinkEnds, MistakesOfTheCallerAreRefused) {
  run_pair(
      [](PointToPoint& wire, const Roles& roles) {
        SignalSender sender(wire, 0, roles.all_plans(), patient);
        EXPECT_THROW(sender.begin_step({1, 0, ControlWord::go}), base::InternalError);
        sender.begin_step({0, 0, ControlWord::go});
        SentFields sent = fields_of(*roles.plan_of(0)(0), 0, Cadence::micro_batch, 0, 0);
        const RowTags tags = tags_of(Range{0, 6}, batch, 0);
        sender.send_rows(0, tags, sent.views);
        EXPECT_THROW(sender.send_rows(0, tags, sent.views), base::InternalError);  // twice
        sent.views.pop_back();
        EXPECT_THROW(sender.send_rows(1, tags_of(Range{6, 6}, batch, 0), sent.views), base::InternalError);
        EXPECT_THROW(sender.end_step(StepOutcome::finite), base::InternalError);
        sender.finish();
      },
      [](PointToPoint& wire, const Roles& roles) {
        SignalReceiver receiver(wire, 0, roles.plan_of(0), {1, 0, 1, impatience_s});
        EXPECT_THROW(receiver.wait_step(1, own_tags), base::InternalError);
        EXPECT_THROW(receiver.release(0), base::InternalError);
        EXPECT_THROW(receiver.wait_step(0, RowTags{}), base::InternalError);
        EXPECT_THROW(receiver.wait_step(0, own_tags), LinkTimeout);
      });
}

}  // namespace
}  // namespace athanor::distill
