/*
 * metrics.h - Prometheus text over HTTP, on a UNIX socket or a loopback port
 */
#ifndef KVD_IPC_METRICS_H
#define KVD_IPC_METRICS_H

#include <stddef.h>

struct metrics;

/*
 * Serve GET /metrics at where: "unix:PATH" (mode 0660), or "tcp:ADDRESS:PORT"
 * with ADDRESS 127.0.0.1 or [::1]. It has a thread of its own and only
 * reads counters. err gets the reason in words; -EINVAL, -errno.
 */
int metrics_new(struct metrics **out, const char *where, char *err,
		size_t err_len);
/* Stops the thread. NULL is fine. */
void metrics_free(struct metrics *m);

#endif
