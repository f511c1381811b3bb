// Lines on disks that are full for a while.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/error.hpp"
#include "base/line_file.hpp"

namespace athanor::base {
namespace {

namespace fs = std::filesystem;

class LineFileTest : public ::testing::Test {
 protected:
  LineFileTest() {
    std::string name = (fs::temp_directory_path() / "athanor_lines_XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
  }
  ~LineFileTest() override { fs::remove_all(folder_); }

  std::string path() const { return folder_ / "lines"; }
  std::string text() const {
    std::ifstream file(path());
    return {std::istreambuf_iterator<char>(file), {}};
  }

  fs::path folder_;
};

// No file of this process may grow beyond a size while this lives, as on a full disk.
class SizeLimit {
 public:
  explicit SizeLimit(rlim_t bytes) {
    std::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~SizeLimit() { ::setrlimit(RLIMIT_FSIZE, &before_); }
  SizeLimit(const SizeLimit&) = delete;
  SizeLimit& operator=(const SizeLimit&) = delete;

 private:
  rlimit before_{};
};

TEST_F(LineFileTest, AppendsToWhatIsThere) {
  LineFile(path()).append("one");
  LineFile file(path());
  EXPECT_TRUE(file.append("two"));
  EXPECT_EQ(text(), "one\ntwo\n");
  EXPECT_EQ(file.dropped(), 0);
}

TEST_F(LineFileTest, ALineThatDoesNotFitIsTakenBackAndTheNextOnesAreWritten) {
  LineFile file(path());
  file.append("whole");
  {
    const SizeLimit limit(10);
    EXPECT_FALSE(file.append("too long to fit"));
    EXPECT_FALSE(file.append("so is this"));
  }
  EXPECT_TRUE(file.append("again"));
  EXPECT_EQ(text(), "whole\nagain\n");
  EXPECT_EQ(file.dropped(), 2);
}

TEST_F(LineFileTest, ADeviceThatIsFullDropsLinesOnly) {
  LineFile file("/dev/full");
  EXPECT_FALSE(file.append("lost"));
  EXPECT_EQ(file.dropped(), 1);
}

TEST_F(LineFileTest, WhatCannotBeOpenedIsRefused) {
  EXPECT_THROW(LineFile(folder_ / "missing" / "lines"), CannotCreateError);
}

}  // namespace
}  // namespace athanor::base
