/* A wall clock that a test can set back for some processes: preloaded, it takes off so many seconds as the file
   named by TEST_CLOCK says at that moment (8 bytes). Waits for a moment of the wall clock still last as long as
   they were meant to; the monotonic clock and the times of files are the host's. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *seconds;

static int64_t behind(void)
{
    return seconds ? *seconds : 0;
}

__attribute__((constructor)) static void look_at_the_file(void)
{
    const char *name = getenv("TEST_CLOCK");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    void *seen = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *seconds, PROT_READ, MAP_SHARED, file, 0);

    if (seen == MAP_FAILED)
        abort(); /* else it would have the host's clock, and nobody would see that */
    close(file);
    seconds = seen;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = (int)syscall(SYS_clock_gettime, clock, now);

    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE || clock == CLOCK_TAI))
        now->tv_sec -= behind();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec read;

    (void)zone;
    clock_gettime(CLOCK_REALTIME, &read);
    now->tv_sec = read.tv_sec;
    now->tv_usec = read.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec read;

    clock_gettime(CLOCK_REALTIME, &read);
    if (now)
        *now = read.tv_sec;
    return read.tv_sec;
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until)
{
    struct timespec host = {until->tv_sec + behind(), until->tv_nsec};

    return sem_clockwait(semaphore, CLOCK_REALTIME, &host);
}
