// The arithmetic of the teacher link, for any pair of layouts on one process: every element that is needed
// arrives exactly once, both ends agree, sizes follow the formula.
#include "distill/link/link_plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "distill/link/credit_window.hpp"
#include "distill/link/signal_packet.hpp"
#include "distill/link_fixture.hpp"

namespace athanor::distill {
namespace {

using tests::make_layout;
using tests::make_plan;
using tests::Split;

constexpr std::int64_t step = 3;

struct Case {
  Split teacher;
  Split student;
  std::int64_t batch = 12;
  std::int64_t seq = 7;
};

std::string describe(const Case& c) {
  return fmt::format("teacher dp {} tp {} micro {}, student dp {} tp {} micro {}, {} x {}", c.teacher.dp,
                     c.teacher.tp, c.teacher.micro, c.student.dp, c.student.tp, c.student.micro, c.batch,
                     c.seq);
}

std::vector<Case> many_cases() {
  std::vector<Case> cases;
  const std::vector<Split> splits = {{1, 1, 1}, {1, 1, 12}, {2, 1, 3}, {1, 2, 5}, {3, 1, 2},
                                     {2, 2, 2}, {1, 3, 4},  {3, 2, 1}, {4, 1, 3}, {1, 5, 12}};
  for (const Split& teacher : splits) {
    for (const Split& student : splits) {
      cases.push_back({teacher, student});
    }
  }
  cases.push_back({{5, 1, 1}, {3, 1, 1}, 15, 1});   // coprime ranks, one position
  cases.push_back({{1, 4, 1}, {1, 3, 1}, 1, 5});    // a last block that is all padding
  cases.push_back({{2, 1, 1}, {3, 2, 1}, 2, 4});    // a student replica without rows
  cases.push_back({{3, 1, 1}, {2, 1, 1}, 2, 4});    // a teacher replica without rows
  cases.push_back({{1, 16, 1}, {1, 2, 1}, 1, 16});  // more tensor ranks than vocabulary
  cases.push_back({{7, 3, 1}, {4, 5, 7}, 28, 13});
  return cases;
}

using Tensors = std::map<std::string, std::vector<std::int64_t>>;

// Packs and unpacks every piece of every route to one receiver, counting how often an element is written.
struct Arrival {
  Tensors values;
  Tensors counts;
};

std::byte* bytes_of(std::vector<std::int64_t>& values) {
  return reinterpret_cast<std::byte*>(values.data());
}

void deliver(const LinkPlan& plan, const Route& route, const Piece& piece, Arrival& arrival) {
  for (const PieceBox& part : piece.boxes) {
    const Field& field = plan.fields()[static_cast<std::size_t>(part.field)];
    const FieldShare& source = field.sender[static_cast<std::size_t>(route.sender)];
    const FieldShare& target = field.receiver[static_cast<std::size_t>(route.receiver)];
    Box held = source.memory;
    if (piece.kind == PieceKind::rows) {
      held = held.with_rows(plan.sender().micro_batch_rows(route.sender, piece.micro_batch));
    }
    auto sent = tests::tensor_of(field, held, step);
    std::vector<std::int64_t> packed(static_cast<std::size_t>(part.box.numel()));
    copy_box(part.box, held, bytes_of(sent), part.box, bytes_of(packed), 8);
    copy_box(part.box, part.box, bytes_of(packed), target.memory, bytes_of(arrival.values[field.name]), 8);
    std::vector<std::int64_t> once(static_cast<std::size_t>(target.memory.numel()), 0);
    std::fill(packed.begin(), packed.end(), 1);
    copy_box(part.box, part.box, bytes_of(packed), target.memory, bytes_of(once), 8);
    auto& counts = arrival.counts[field.name];
    std::transform(counts.begin(), counts.end(), once.begin(), counts.begin(), std::plus<>());
  }
}

void expect_exactly_once(const LinkPlan& plan, int receiver) {
  Arrival arrival;
  for (const Field& field : plan.fields()) {
    const auto size = field.receiver[static_cast<std::size_t>(receiver)].memory.numel();
    arrival.values[field.name].assign(static_cast<std::size_t>(size), 0);
    arrival.counts[field.name].assign(static_cast<std::size_t>(size), 0);
  }
  for (const Route& route : plan.routes_to(receiver)) {
    for (const Piece& piece : route.pieces) {
      deliver(plan, route, piece, arrival);
    }
  }
  for (const Field& field : plan.fields()) {
    const FieldShare& share = field.receiver[static_cast<std::size_t>(receiver)];
    const auto needed = tests::needed_of(field, share, step);
    ASSERT_EQ(arrival.values[field.name], needed) << field.name << " of receiver " << receiver;
    for (std::size_t i = 0; i < needed.size(); ++i) {
      ASSERT_EQ(arrival.counts[field.name][i], needed[i] == 0 ? 0 : 1) << field.name << " element " << i;
    }
  }
}

TEST(LinkPlan, EveryElementArrivesExactlyOnce) {
  for (const Case& c : many_cases()) {
    SCOPED_TRACE(describe(c));
    const auto plan = make_plan(make_layout("teacher", 0, c.teacher, c.batch, c.seq),
                                make_layout("student", 100, c.student, c.batch, c.seq));
    for (int receiver = 0; receiver < plan->receiver().num_ranks(); ++receiver) {
      expect_exactly_once(*plan, receiver);
    }
    if (HasFatalFailure()) {
      return;
    }
  }
}

bool same_piece(const Piece& a, const Piece& b) {
  const auto same_box = [](const PieceBox& x, const PieceBox& y) {
    return x.field == y.field && x.box == y.box;
  };
  return a.kind == b.kind && a.micro_batch == b.micro_batch && a.rows == b.rows &&
         a.payload_bytes == b.payload_bytes && a.boxes.size() == b.boxes.size() &&
         std::equal(a.boxes.begin(), a.boxes.end(), b.boxes.begin(), same_box);
}

TEST(LinkPlan, BothEndsAgreeOnEveryPieceAndEveryReceiverHearsOfTheStep) {
  for (const Case& c : many_cases()) {
    SCOPED_TRACE(describe(c));
    const auto plan = make_plan(make_layout("teacher", 0, c.teacher, c.batch, c.seq),
                                make_layout("student", 100, c.student, c.batch, c.seq));
    std::map<std::pair<int, int>, Route> sent;
    for (int sender = 0; sender < plan->sender().num_ranks(); ++sender) {
      for (const Route& route : plan->routes_from(sender)) {
        sent[{route.sender_world_rank, route.receiver_world_rank}] = route;
      }
    }
    std::size_t received = 0;
    std::int64_t payload = 0;
    for (int receiver = 0; receiver < plan->receiver().num_ranks(); ++receiver) {
      const auto routes = plan->routes_to(receiver);
      EXPECT_FALSE(routes.empty());
      received += routes.size();
      for (const Route& route : routes) {
        const auto found = sent.find({route.sender_world_rank, route.receiver_world_rank});
        ASSERT_NE(found, sent.end());
        ASSERT_TRUE(std::equal(route.pieces.begin(), route.pieces.end(), found->second.pieces.begin(),
                               found->second.pieces.end(), same_piece));
        EXPECT_EQ(route.fingerprint, found->second.fingerprint);
        ASSERT_GE(route.pieces.size(), 2U);
        EXPECT_EQ(route.pieces.back().kind, PieceKind::trailer);
        EXPECT_EQ(route.wire_bytes(), route.payload_bytes() + std::ssize(route.pieces) * packet_header_bytes);
        payload += route.payload_bytes();
      }
    }
    EXPECT_EQ(received, sent.size());
    EXPECT_EQ(payload, plan->step_payload_bytes());
  }
}

TEST(LinkPlan, PayloadFollowsTheFormulaOfItsFields) {
  const std::int64_t batch = 12;
  const std::int64_t seq = 7;
  for (const Split& student : {Split{1, 1, 4}, Split{3, 1, 2}, Split{2, 3, 3}}) {
    const auto plan = make_plan(make_layout("teacher", 0, {2, 2, 3}, batch, seq),
                                make_layout("student", 4, student, batch, seq));
    const std::int64_t tokens = batch * seq;
    // ids and last to every tp rank, ce, state and logits once; the head once to every replica.
    const std::int64_t per_token = student.tp * (2 + tests::hidden) + 1 + tests::hidden + tests::vocab;
    EXPECT_EQ(plan->step_payload_bytes(),
              8 * (tokens * per_token + student.dp * tests::vocab * tests::hidden));
  }
}

TEST(LinkPlan, MemoryGrowsWithTheWindow) {
  const auto plan =
      make_plan(make_layout("teacher", 0, {2, 1, 2}, 12, 4), make_layout("student", 2, {3, 2, 4}, 12, 4));
  const std::int64_t sent = wire_bytes_of(plan->routes_from(1));
  EXPECT_EQ(plan->sender_memory_bytes(1, 3), 3 * sent);
  std::int64_t fields = 0;
  for (const Field& field : plan->fields()) {
    fields += field.receiver[4].memory.numel() * field.element_bytes;
  }
  EXPECT_EQ(plan->receiver_memory_bytes(4, 3), 3 * wire_bytes_of(plan->routes_to(4)) + fields);
}

TEST(LinkPlan, PiecesOfARouteComeInTheOrderOfMicroBatches) {
  const auto plan =
      make_plan(make_layout("teacher", 0, {2, 1, 2}, 12, 4), make_layout("student", 2, {3, 1, 4}, 12, 4));
  const auto routes = plan->routes_to(1);  // rows 4 to 7: micro-batch 2 of replica 0, 0 of replica 1
  ASSERT_EQ(routes.size(), 2U);
  const auto& first = routes[0].pieces;
  ASSERT_EQ(first.size(), 3U);
  EXPECT_EQ(first[0].micro_batch, 2);
  EXPECT_EQ(first[0].rows, (Range{4, 2}));
  EXPECT_EQ(first[1].kind, PieceKind::step_fields);
  EXPECT_EQ(routes[1].pieces[0].micro_batch, 0);
  EXPECT_EQ(routes[1].pieces[0].rows, (Range{6, 2}));
}

TEST(LinkPlan, FingerprintsTellRoutesApart) {
  const auto teacher = make_layout("teacher", 0, {2, 1, 2}, 12, 4);
  const auto student = make_layout("student", 2, {1, 1, 4}, 12, 4);
  std::set<std::uint64_t> seen;
  for (const bool with_head : {true, false}) {
    for (const std::int64_t micro : {2, 3}) {
      RoleLayout other = teacher;
      other.micro_batch = micro;
      for (const Route& route : make_plan(other, student, with_head)->routes_to(0)) {
        seen.insert(route.fingerprint);
      }
    }
  }
  for (const std::int64_t columns : {2, 3}) {
    LinkPlan plan(teacher, student, {token_field({"ids", columns, 8}, teacher, student)});
    seen.insert(plan.routes_to(0)[0].fingerprint);
  }
  EXPECT_EQ(seen.size(), 10U);
}

TEST(LinkPlan, RefusesRolesThatDoNotShareTheBatch) {
  const auto teacher = make_layout("teacher", 0, {2, 1, 2}, 12, 4);
  EXPECT_THROW(make_plan(teacher, make_layout("student", 2, {1, 1, 1}, 8, 4)), base::ConfigError);
  EXPECT_THROW(make_plan(teacher, make_layout("student", 2, {1, 1, 1}, 12, 5)), base::ConfigError);
  RoleLayout wrong = teacher;
  wrong.world_ranks.push_back(7);
  EXPECT_THROW(make_plan(wrong, teacher), base::ConfigError);
}

TEST(Box, CopiesOnlyWhatItHolds) {
  const Box source{{Range{0, 2}, Range{0, 3}, Range{0, 4}}};
  const Box part{{Range{1, 1}, Range{1, 2}, Range{1, 2}}};
  std::vector<std::int64_t> values(24);
  std::iota(values.begin(), values.end(), 100);
  std::vector<std::int64_t> out(4);
  copy_box(part, source, bytes_of(values), part, bytes_of(out), 8);
  EXPECT_EQ(out, (std::vector<std::int64_t>{117, 118, 121, 122}));
  EXPECT_THROW(copy_box(source, source, bytes_of(values), part, bytes_of(out), 8), base::InternalError);
}

TEST(CreditWindow, PostsAWindowAndThenOneStepForEachRelease) {
  CreditWindow window(2, 5, 8);
  EXPECT_EQ(window.post_next(), 5);
  EXPECT_EQ(window.post_next(), 6);
  EXPECT_EQ(window.post_next(), std::nullopt);
  EXPECT_THROW(window.release(6), base::InternalError);
  window.release(5);
  EXPECT_EQ(window.post_next(), 7);
  window.release(6);
  EXPECT_EQ(window.post_next(), std::nullopt);  // the run ends with step 7
  EXPECT_EQ(window.current(), 7);
  EXPECT_THROW(CreditWindow(0, 0, 1), base::ConfigError);
}

TEST(CreditBook, KeepsTheOrderOfEachReceiver) {
  CreditBook book(1);
  EXPECT_FALSE(book.has(3, 0));
  book.grant(3, {0, 50});
  book.grant(3, {1, 51});
  book.use(3, {0, 50});
  EXPECT_FALSE(book.has(3, 0));
  EXPECT_TRUE(book.has(3, 1));
  EXPECT_FALSE(book.has(3, 2));
  EXPECT_FALSE(book.has(2, 0));
  EXPECT_THROW(book.grant(3, {1, 51}), base::CommError);
  EXPECT_THROW(book.use(3, {0, 50}), base::InternalError);
  EXPECT_THROW(book.use(3, {1, 50}), base::CommError);
}

parallel::ByteBuffer sealed(const PacketHeader& header) {
  parallel::ByteBuffer packet(static_cast<std::size_t>(packet_header_bytes + header.payload_bytes));
  for (std::int64_t i = packet_header_bytes; i < packet_header_bytes + header.payload_bytes; ++i) {
    packet.data()[i] = static_cast<std::byte>(i);
  }
  seal_packet(header, packet);
  return packet;
}

PacketHeader sample_header() {
  PacketHeader header{7, 6, 84, 3, 0x1234, 21, 2, 1, 4};
  header.control = ControlWord::cut;
  return header;
}

std::string refusal(const ExpectedPacket& expected, parallel::ByteBuffer packet) {
  try {
    open_packet(expected, packet);
  } catch (const base::CommError& error) {
    return error.what();
  }
  return "";
}

TEST(SignalPacket, RoundTripsAndNamesWhatIsWrong) {
  const ExpectedPacket expected{7, 2, 1, 4, 21};
  auto packet = sealed(sample_header());
  EXPECT_EQ(open_packet(expected, packet), sample_header());

  for (std::size_t at = 8; at < packet.size(); ++at) {  // any bit of checksum, header and payload
    auto damaged = sealed(sample_header());
    damaged.data()[at] ^= std::byte{0x10};
    const std::string text = refusal(expected, std::move(damaged));
    ASSERT_NE(text.find("step 7 from teacher rank 1 to student rank 4 (its checksum"), std::string::npos)
        << "byte " << at << ": " << text;
  }
  auto foreign = sealed(sample_header());
  foreign.data()[0] ^= std::byte{1};
  EXPECT_NE(refusal(expected, std::move(foreign)).find("does not begin"), std::string::npos);
  EXPECT_NE(refusal({8, 2, 1, 4, 21}, sealed(sample_header())).find("it is late: its step is 7"),
            std::string::npos);
  EXPECT_NE(refusal({6, 2, 1, 4, 21}, sealed(sample_header())).find("it is early"), std::string::npos);
  EXPECT_NE(refusal({7, 3, 1, 4, 21}, sealed(sample_header())).find("packet 2"), std::string::npos);
  auto short_one = sealed(sample_header());
  short_one.resize(40);
  EXPECT_NE(refusal(expected, std::move(short_one)).find("40 bytes instead of 101"), std::string::npos);
}

}  // namespace
}  // namespace athanor::distill
