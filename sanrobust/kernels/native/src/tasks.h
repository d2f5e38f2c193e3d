// Tasks that each need some memory.
#pragma once
#include "workspaces.h"

namespace san {

// Runs body(task, memory of `floats` floats) for every task in [0, tasks), in any order.
template <class Body>
inline void share_tasks(int64_t tasks, int threads, size_t floats, const Body &body) {
  Workspaces<float> spaces(std::max<int64_t>(1, std::min<int64_t>(threads, tasks)), floats);
  parallel_for(tasks, threads, [&](int64_t task) {
    const int64_t space = spaces.take();
    body(task, spaces.at(space));
    spaces.give_back(space);
  });
}

}  // namespace san
