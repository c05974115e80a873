/*
 * log.h - structured log lines: time, level, module, text
 *
 * `2026-01-02T03:04:05.678Z warn move: page 812 host->disk: -EIO, kept`
 * Any thread. Goes to stderr; where that is the journal (JOURNAL_STREAM), with
 * its prefix of the priority in place of the time. At most 1023 bytes a line;
 * control characters become '?'. fmt is a string constant: a place that says more than
 * 200 lines at once, or ten a second for long, is cut short and says how much was left
 * out. Never waits: lines that a full pipe does not take are counted.
 */
#ifndef KVD_BASE_LOG_H
#define KVD_BASE_LOG_H

#include "io/base.h"

enum log_level { LOG_LVL_ERROR, LOG_LVL_WARN, LOG_LVL_INFO, LOG_LVL_DEBUG };

void log_set_level(enum log_level max);
/* Parse "error" | "warn" | "info" | "debug"; -EINVAL. */
int log_parse_level(const char *name, enum log_level *out);
void log_line(enum log_level lvl, const char *module, const char *fmt, ...)
	KV_PRINTF(3, 4);

#define log_error(mod, ...) log_line(LOG_LVL_ERROR, mod, __VA_ARGS__)
#define log_warn(mod, ...)  log_line(LOG_LVL_WARN, mod, __VA_ARGS__)
#define log_info(mod, ...)  log_line(LOG_LVL_INFO, mod, __VA_ARGS__)
#define log_debug(mod, ...) log_line(LOG_LVL_DEBUG, mod, __VA_ARGS__)

#endif
