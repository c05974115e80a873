/*
 * ipc.h - the daemon's face to clients: sockets, sessions, their poller
 *
 *   sock.c   listening sockets, handshake, credentials -> sess_new()
 *   sess.c   one client: its channel, requests in flight, end
 *   dispatch.c, op_attend.c, op_gen.c, admin.c   one entry -> one call in serve
 *   ipc.c    who is polled, who sleeps, orderly stop
 *
 * Thread: loop thread, all of it.
 */
#ifndef KVD_IPC_IPC_H
#define KVD_IPC_IPC_H

#include <stddef.h>
#include <stdint.h>
#include "kvd/base/conf.h"
#include "kvd/base/list.h"
#include "kvd/base/loop.h"
#include "kvd/base/stat.h"
#include "kvd/base/wait.h"
#include "kvd/serve/serve.h"

struct sock_set;

/*
 * A session is in exactly one of the lists: hot (polled on each turn), cold
 * (its doorbell is armed), stalled (entries wait, no room for completions) or
 * closing.
 */
struct ipc {
	struct loop *loop;
	struct serve *serve;
	const struct conf *conf;
	struct loop_poller poller;
	struct list hot, cold, stalled, closing;
	uint32_t n_sessions; /* in all lists */
	uint32_t n_admin; /* of these without a tenant */
	uint32_t next_session;
	struct sock_set *socks;
	struct wait *stopped; /* asked for by ipc_stop() */
	struct loop_call stopped_call;
	/* admin.c */
	struct list drains; /* requests that wait for the end of draining */
	struct wait drain_wait;
	int draining, drained;
	struct list late; /* queries that wait for their tenant's turn */
	struct loop_timer late_timer;
	/* when each may ask again; the last: administrators without a tenant */
	uint64_t query_ns[CONF_MAX_TENANTS + 1];
	struct stat *st_sessions, *st_accepted, *st_refused, *st_broken,
		*st_entries, *st_doorbells;
};

/*
 * Listen on all sockets of conf. serve may be NULL in tests of the transport:
 * then no tenant needs to be known to it. err gets the reason in words.
 * -errno; then nothing is left.
 */
int ipc_new(struct ipc **out, struct loop *loop, struct serve *serve,
	    const struct conf *conf, char *err, size_t err_len);
/* Stop listening and close all sessions; w is told when the last is gone. */
void ipc_stop(struct ipc *ipc, struct wait *w);
/* After ipc_stop() was told, or when no session was ever made. */
void ipc_free(struct ipc *ipc);
/* For sess.c: the last session of a stopping ipc is gone. */
void ipc_session_gone(struct ipc *ipc);

#endif
