// main() of tests that need a GPU.
#include "support/skip_code.hpp"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const int result = RUN_ALL_TESTS();
  return athanor::tests::exit_code(result);
}
