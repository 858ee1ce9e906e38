/* LD_PRELOAD: records what a process does to files under $POWERCUT_DIR into the file $POWERCUT_TRACE, in order.
 * A record is: kind (1 byte), fd (int32), offset or size (int64), length (uint32), that many bytes.
 * O open (bytes: path), W write, T truncate, S sync, U unlink (path), R rename (old NUL new). Built by powercut.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* an operation and its record are one step */
static int trace = -2;
static const char *folder;
static char ours[65536];

static int (*real_open)(const char *, int, ...);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static int (*real_ftruncate)(int, off_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_unlink)(const char *);
static int (*real_rename)(const char *, const char *);

__attribute__((constructor)) static void start(void) {
    real_open = dlsym(RTLD_NEXT, "open64");
    real_write = dlsym(RTLD_NEXT, "write");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_unlink = dlsym(RTLD_NEXT, "unlink");
    real_rename = dlsym(RTLD_NEXT, "rename");
    folder = getenv("POWERCUT_DIR");
    const char *path = getenv("POWERCUT_TRACE");
    if (folder && path) trace = real_open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static int inside(const char *path) { return trace >= 0 && !strncmp(path, folder, strlen(folder)); }
static int watched(int fd) { return trace >= 0 && fd >= 0 && fd < (int)sizeof ours && ours[fd]; }

static void note(char kind, int fd, int64_t at, const void *data, uint32_t length) {
    char head[17];
    int32_t fd32 = fd;
    head[0] = kind;
    memcpy(head + 1, &fd32, 4);
    memcpy(head + 5, &at, 8);
    memcpy(head + 13, &length, 4);
    struct iovec parts[2] = {{head, 17}, {(void *)data, length}};
    if (writev(trace, parts, 2) != (ssize_t)(17 + length)) abort();
}

#define STEP(type, call, good, record)   \
    pthread_mutex_lock(&lock);           \
    type result = call;                  \
    if (good) { record; }                \
    pthread_mutex_unlock(&lock);         \
    return result;

static int opened(const char *path, int flags, mode_t mode) {
    if (!inside(path)) {
        int fd = real_open(path, flags, mode);
        if (fd >= 0 && fd < (int)sizeof ours) ours[fd] = 0;
        return fd;
    }
    STEP(int, real_open(path, flags, mode), result >= 0, ours[result] = 1;
         note('O', result, (flags & O_TRUNC) != 0, path, strlen(path)))
}

#define MODE                                       \
    mode_t mode = 0;                               \
    if (flags & (O_CREAT | __O_TMPFILE)) {         \
        va_list more;                              \
        va_start(more, flags);                     \
        mode = va_arg(more, mode_t);               \
        va_end(more);                              \
    }
int open(const char *path, int flags, ...) { MODE return opened(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return opened(path, flags, mode); }

ssize_t write(int fd, const void *data, size_t length) {
    if (!watched(fd)) return real_write(fd, data, length);
    STEP(ssize_t, real_write(fd, data, length), result > 0, note('W', fd, -1, data, result))
}
ssize_t pwrite64(int fd, const void *data, size_t length, off_t at) {
    if (!watched(fd)) return real_pwrite(fd, data, length, at);
    STEP(ssize_t, real_pwrite(fd, data, length, at), result > 0, note('W', fd, at, data, result))
}
ssize_t pwrite(int fd, const void *data, size_t length, off_t at) { return pwrite64(fd, data, length, at); }
int ftruncate64(int fd, off_t size) {
    if (!watched(fd)) return real_ftruncate(fd, size);
    STEP(int, real_ftruncate(fd, size), !result, note('T', fd, size, "", 0))
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }
int fsync(int fd) {
    if (!watched(fd)) return real_fsync(fd);
    STEP(int, real_fsync(fd), !result, note('S', fd, 0, "", 0))
}
int fdatasync(int fd) {
    if (!watched(fd)) return real_fdatasync(fd);
    STEP(int, real_fdatasync(fd), !result, note('S', fd, 0, "", 0))
}
int unlink(const char *path) {
    if (!inside(path)) return real_unlink(path);
    STEP(int, real_unlink(path), !result, note('U', -1, 0, path, strlen(path)))
}
int rename(const char *old, const char *new) {
    if (!inside(new)) return real_rename(old, new);
    char both[8192];
    size_t first = strlen(old), second = strlen(new);
    if (first + second + 1 > sizeof both) abort();
    memcpy(both, old, first + 1);
    memcpy(both + first + 1, new, second);
    STEP(int, real_rename(old, new), !result, note('R', -1, 0, both, first + 1 + second))
}
