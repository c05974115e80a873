/*
 * log.c - structured log lines; see log.h
 *
 *  (1) A place in the code that says the same again and again is cut short: a client
 *      must not be able to fill the disk, or to make the journal drop what others say.
 *  (2) Nobody waits for who reads the log. A pipe or socket that is full loses the
 *      line; the next one that goes through tells how many.
 */
#include "kvd/base/log.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "kvd/base/clock.h"

#define LINE_MAX_BYTES 1024
#define SITES	       256u /* more than there are */
#define BURST	       200u /* lines of one place at once */
#define REFILL_NS      100000000u /* and one more each */

static _Atomic int max_level = LOG_LVL_INFO;
static const char *const names[] = { "error", "warn", "info", "debug" };
static const int priority[] = { 3, 4, 6, 7 }; /* of syslog */

void log_set_level(enum log_level max)
{
	atomic_store_explicit(&max_level, (int)max, memory_order_relaxed);
}

int log_parse_level(const char *name, enum log_level *out)
{
	for (size_t i = 0; i < KV_ARRAY_LEN(names); i++)
		if (!strcmp(name, names[i])) {
			*out = (enum log_level)i;
			return 0;
		}
	return -EINVAL;
}

/* stderr is the journal's: systemd says which file that is, as device:inode. */
static int to_journal(void)
{
	static _Atomic int known = -1;
	const char *env;
	unsigned long long dev, ino;
	struct stat st;
	int ret = atomic_load_explicit(&known, memory_order_relaxed);

	if (ret >= 0)
		return ret;
	env = getenv("JOURNAL_STREAM");
	ret = env && sscanf(env, "%llu:%llu", &dev, &ino) == 2 &&
	      !fstat(STDERR_FILENO, &st) && st.st_dev == dev &&
	      st.st_ino == ino;
	atomic_store_explicit(&known, ret, memory_order_relaxed);
	return ret;
}

static size_t stamp(char *buf, size_t n)
{
	struct timespec ts;
	struct tm tm;
	size_t len;

	clock_gettime(CLOCK_REALTIME, &ts);
	gmtime_r(&ts.tv_sec, &tm);
	len = strftime(buf, n, "%Y-%m-%dT%H:%M:%S", &tm);
	len += (size_t)snprintf(buf + len, n - len, ".%03ldZ ",
				ts.tv_nsec / 1000000);
	return len;
}

/* What a client can put into a line must not look like another line. */
static void no_controls(char *s)
{
	for (; *s; s++)
		if ((unsigned char)*s < ' ' || *s == 127)
			*s = '?';
}

/* ---- how much ------------------------------------------------------------ */

/* What one place in the code said of late; known by its format. */
struct site {
	const char *fmt;
	uint64_t full_ns; /* when all of BURST may be said again */
	uint64_t n_cut;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* all below */
static struct site sites[SITES];
static uint64_t n_lost; /* lines that were not written */

static struct site *site_of(const char *fmt)
{
	const uint32_t at = (uint32_t)((uintptr_t)fmt * 0x9e3779b1u >> 7);

	for (uint32_t i = 0; i < SITES; i++) {
		struct site *s = &sites[(at + i) % SITES];

		if (!s->fmt)
			s->fmt = fmt;
		if (s->fmt == fmt)
			return s;
	}
	return NULL;
}

/* 1 when it may say a line now. */
static int may_say(struct site *s)
{
	const uint64_t now = clock_ns();
	const uint64_t full = KV_MAX(s->full_ns, now) + REFILL_NS;

	if (full > now + (uint64_t)BURST * REFILL_NS)
		return 0;
	s->full_ns = full;
	return 1;
}

/* ---- a line -------------------------------------------------------------- */

/* One write: lines do not mix with those of others. */
static int put(const char *line, size_t len)
{
	struct pollfd p = { .fd = STDERR_FILENO, .events = POLLOUT };

	if (send(STDERR_FILENO, line, len, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
		return 0;
	if (errno != ENOTSOCK)
		return -errno;
	/* a pipe that can be written takes a line: it is less than PIPE_BUF */
	if (poll(&p, 1, 0) != 1 || !(p.revents & POLLOUT))
		return -EAGAIN;
	return write(STDERR_FILENO, line, len) < 0 ? -errno : 0;
}

static int say_va(enum log_level lvl, const char *module, const char *fmt,
		  va_list ap)
{
	char line[LINE_MAX_BYTES];
	size_t len;
	int n;

	if (to_journal())
		len = (size_t)snprintf(line, sizeof(line), "<%d>",
				       priority[lvl]);
	else
		len = stamp(line, sizeof(line));
	n = snprintf(line + len, sizeof(line) - len, "%s %s: ", names[lvl],
		     module);
	len += n > 0 ? (size_t)n : 0;
	len = KV_MIN(len, sizeof(line) - 2);
	(void)vsnprintf(line + len, sizeof(line) - 1 - len, fmt, ap);
	no_controls(line);
	len = strlen(line);
	line[len++] = '\n';
	return put(line, len);
}

KV_PRINTF(3, 4)
static int say(enum log_level lvl, const char *module, const char *fmt, ...)
{
	va_list ap;
	int ret;

	va_start(ap, fmt);
	ret = say_va(lvl, module, fmt, ap);
	va_end(ap);
	return ret;
}

/* What was not said before; under the lock. */
static void catch_up(enum log_level lvl, const char *module, struct site *s)
{
	if (n_lost &&
	    !say(LOG_LVL_WARN, "log", "%llu lines could not be written",
		 (unsigned long long)n_lost))
		n_lost = 0;
	if (s && s->n_cut &&
	    !say(lvl, module, "%llu lines of \"%s\" were left out",
		 (unsigned long long)s->n_cut, s->fmt))
		s->n_cut = 0;
}

void log_line(enum log_level lvl, const char *module, const char *fmt, ...)
{
	struct site *s;
	va_list ap;

	if ((int)lvl > atomic_load_explicit(&max_level, memory_order_relaxed))
		return;
	pthread_mutex_lock(&lock);
	s = site_of(fmt);
	if (s && !may_say(s)) {
		if (!s->n_cut++)
			(void)say(lvl, module, "more of \"%s\" is left out",
				  fmt);
	} else {
		catch_up(lvl, module, s);
		va_start(ap, fmt);
		n_lost += !!say_va(lvl, module, fmt, ap);
		va_end(ap);
	}
	pthread_mutex_unlock(&lock);
}
