// Kills its own process, by SIGKILL, before the n-th system call that changes something below a folder; of a call that
// writes, half is written first. Preloaded (LD_PRELOAD) into the process that tests/kill_at_each_call.py forks.
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>

static char root[PATH_MAX];
static std::atomic<long> calls{0};
static long last = 0;
static bool counting = false;

extern "C" void arm(const char* folder, long at) {
    snprintf(root, sizeof root, "%s/", folder);
    last = at;
    calls = 0;
    counting = true;
}

extern "C" long counted() { return calls; }

static void resolve(int folder, const char* path, char* out) {
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return;
    }
    char link[64], base[PATH_MAX];
    if (folder == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) base[0] = 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t size = readlink(link, base, sizeof base - 1);
        base[size < 0 ? 0 : size] = 0;
    }
    snprintf(out, PATH_MAX, "%.2000s/%.2000s", base, path);
}

static bool below(const char* path) { return counting && strncmp(path, root, strlen(root)) == 0; }

// Whether this call is the one to die at.
static bool due() { return ++calls == last; }

static void die() {
    kill(getpid(), SIGKILL);
    pause();
}

static void before(int folder, const char* path) {
    if (!counting) return;
    char whole[PATH_MAX];
    resolve(folder, path, whole);
    if (below(whole) && due()) die();
}

static bool is_below(int file) {
    if (!counting) return false;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return false;
    path[size] = 0;
    return below(path);
}

template <class F>
static F real(F, const char* name) {
    return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

extern "C" ssize_t write(int file, const void* data, size_t size) {
    static auto next = real(&write, "write");
    if (is_below(file) && due()) {
        next(file, data, size / 2);
        die();
    }
    return next(file, data, size);
}

extern "C" ssize_t pwrite(int file, const void* data, size_t size, off_t at) {
    static auto next = real(&pwrite, "pwrite");
    if (is_below(file) && due()) die();
    return next(file, data, size, at);
}

extern "C" ssize_t pwrite64(int file, const void* data, size_t size, off64_t at) {
    static auto next = real(&pwrite64, "pwrite64");
    if (is_below(file) && due()) die();
    return next(file, data, size, at);
}

extern "C" ssize_t writev(int file, const struct iovec* parts, int count) {
    static auto next = real(&writev, "writev");
    if (is_below(file) && due()) die();
    return next(file, parts, count);
}

extern "C" int fsync(int file) {
    static auto next = real(&fsync, "fsync");
    if (is_below(file) && due()) die();
    return next(file);
}

extern "C" int ftruncate(int file, off_t size) {
    static auto next = real(&ftruncate, "ftruncate");
    if (is_below(file) && due()) die();
    return next(file, size);
}

#define COUNTS_CREATION(name)                          \
    extern "C" int name(const char* path, int flags, ...) { \
        static auto next = real(&name, #name);         \
        va_list more;                                  \
        va_start(more, flags);                         \
        mode_t mode = va_arg(more, mode_t);            \
        va_end(more);                                  \
        if (flags & O_CREAT) before(AT_FDCWD, path);   \
        return next(path, flags, mode);                \
    }
COUNTS_CREATION(open)
COUNTS_CREATION(open64)

extern "C" int rename(const char* from, const char* to) {
    static auto next = real(&rename, "rename");
    before(AT_FDCWD, to);
    return next(from, to);
}

extern "C" int unlink(const char* path) {
    static auto next = real(&unlink, "unlink");
    before(AT_FDCWD, path);
    return next(path);
}

extern "C" int unlinkat(int folder, const char* path, int flags) {
    static auto next = real(&unlinkat, "unlinkat");
    before(folder, path);
    return next(folder, path, flags);
}

extern "C" int remove(const char* path) {
    static auto next = real(&remove, "remove");
    before(AT_FDCWD, path);
    return next(path);
}

extern "C" int rmdir(const char* path) {
    static auto next = real(&rmdir, "rmdir");
    before(AT_FDCWD, path);
    return next(path);
}

extern "C" int mkdir(const char* path, mode_t mode) {
    static auto next = real(&mkdir, "mkdir");
    before(AT_FDCWD, path);
    return next(path, mode);
}
