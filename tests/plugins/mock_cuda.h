// What the mock of libcuda.so.1 can be told and asked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mock {

struct Launch {
    std::string entry;
    uint32_t grid[3];
    uint32_t threads;
    uint32_t sharedBytes;
    void* stream;
    std::vector<void*> pointers;
    std::vector<int32_t> integers;
};

struct State {
    int arch = 87;
    int multiprocessors = 16;
    bool context = true;    // whether the calling thread has one
    bool refuse = false;    // whether cuModuleLoadData fails
    bool failLaunch = false;
    unsigned long long contextId = 1; // of the current context, which keeps its address
    int contextsPushed = 0;
    int modulesLoaded = 0;
    int modulesAlive = 0;
    std::string lastImage; // what the last module was loaded from, up to its first NUL
    int largestSharedBytes = 0; // asked for with cuFuncSetAttribute
    std::vector<Launch> launches;
};

} // namespace mock

// The one state, from the mock itself: the test finds it with dlsym.
extern "C" mock::State* mockState();
