/*
 * log.c - structured log lines; see log.h
 */
#include "kvd/base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_BYTES 1024

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

void log_line(enum log_level lvl, const char *module, const char *fmt, ...)
{
	char line[LINE_MAX_BYTES];
	size_t len;
	va_list ap;
	int n;

	if ((int)lvl > atomic_load_explicit(&max_level, memory_order_relaxed))
		return;
	if (to_journal())
		len = (size_t)snprintf(line, sizeof(line), "<%d>",
				       priority[lvl]);
	else
		len = stamp(line, sizeof(line));
	n = snprintf(line + len, sizeof(line) - len, "%s %s: ", names[lvl],
		     module);
	len += n > 0 ? (size_t)n : 0;
	len = KV_MIN(len, sizeof(line) - 2);
	va_start(ap, fmt);
	(void)vsnprintf(line + len, sizeof(line) - 1 - len, fmt, ap);
	va_end(ap);
	no_controls(line);
	len = strlen(line);
	line[len++] = '\n';
	/* one write: lines of threads do not mix; a full pipe loses it */
	if (write(STDERR_FILENO, line, len) < 0)
		return;
}
