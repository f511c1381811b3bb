#include "checkpoint/io_thread.hpp"

#include <hdf5.h>
#include <pthread.h>
#include <signal.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

namespace athanor::checkpoint {
namespace {

// Handlers of the program's signals run on other threads. SIGXFSZ stays blocked too: a write beyond the
// file size limit is then an error like a full disk, not the end of the process.
void block_signals() {
  sigset_t set;
  sigfillset(&set);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) {
    sigdelset(&set, fault);
  }
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

class IoThread {
 public:
  IoThread() : thread_([this] { run(); }) {}

  ~IoThread() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    if (is_current()) {
      thread_.detach();  // exit() was called by a task
    } else {
      thread_.join();
    }
  }

  IoThread(const IoThread&) = delete;
  IoThread& operator=(const IoThread&) = delete;

  std::future<void> post(std::function<void()> task) {
    std::packaged_task<void()> packaged(std::move(task));
    std::future<void> result = packaged.get_future();
    {
      const std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(packaged));
    }
    wake_.notify_one();
    return result;
  }

  bool is_current() const { return std::this_thread::get_id() == thread_.get_id(); }

 private:
  void run() {
    block_signals();
    // The library must not clean up from the main thread's exit handlers while this thread still uses it.
    H5dont_atexit();
    H5open();
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);  // failures are reported by our errors
    while (true) {
      std::packaged_task<void()> task;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
        if (tasks_.empty()) {
          break;
        }
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      task();
    }
    H5close();
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::packaged_task<void()>> tasks_;
  bool stopping_ = false;
  std::thread thread_;  // last: it uses the others
};

IoThread& io_thread() {
  static IoThread thread;
  return thread;
}

}  // namespace

std::future<void> post_to_io_thread(std::function<void()> task) {
  return io_thread().post(std::move(task));
}

void run_on_io_thread(const std::function<void()>& task) {
  if (io_thread().is_current()) {
    task();
  } else {
    io_thread().post(task).get();
  }
}

}  // namespace athanor::checkpoint
