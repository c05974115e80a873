/*
 * sess.h - one client: its channel, its requests in flight, all it holds
 *
 *   OPEN --EOF, death, -EPROTO, stop--> CLOSING --all requests done--> freed
 *
 *  (1) A request in flight owns one sess_req; there is always room in the cq
 *      for its last completion.
 *  (2) The channel stays mapped until serve_session_close() was told and no
 *      request is in flight.
 */
#ifndef KVD_IPC_SESS_H
#define KVD_IPC_SESS_H

#include <sys/types.h>
#include "kvd/ipc/chan.h"
#include "kvd/ipc/ipc.h"

#define SESS_ADMIN    1u /* may administer */
#define SESS_COPY_MAX (16u << 20) /* bytes copied for requests in flight */

struct sess;

/* What op_gen.c remembers of a generation. */
struct sess_gen {
	struct serve_gen gen;
	uint64_t tokens_off, text_off, text_bytes, logits_off, stats_off,
		used_off, repair_off;
	uint32_t n_used; /* parts */
	uint32_t n_room; /* tokens */
	uint32_t n_logits; /* room */
	uint32_t n_sent, n_text; /* in the arena already */
};

struct sess_attend {
	struct serve_attend attend;
	uint64_t items_off;
};

struct sess_chunk {
	struct serve_chunk_put put;
	uint64_t off; /* of kv_chunk_put */
};

struct sess_text {
	struct serve_text text;
	uint64_t tokens_off;
};

struct sess_export {
	struct serve_export export;
	uint64_t off, entries_off; /* checked */
};

struct sess_buffer {
	struct serve_buffer buffer;
};

struct sess_pages {
	struct serve_export_pages pages;
	int fds[KV_FRAMES_MAX];
};

/* A request in flight; of a table that the session allocates at its start. */
struct sess_req {
	struct list node; /* sess.free or sess.inflight */
	struct list drain; /* ipc.drains, ipc.late, or empty */
	struct sess *sess;
	uint64_t user_data;
	uint16_t opcode;
	int late; /* of ipc.late */
	void *copy; /* malloc'ed arguments, freed with the request */
	size_t copy_bytes;
	union {
		struct sess_gen gen;
		struct sess_attend attend;
		struct sess_chunk chunk;
		struct sess_text text;
		struct serve_persist persist;
		struct wait unmap;
		struct sess_export export;
		struct sess_pages pages;
		struct sess_buffer buffer;
		struct {
			uint64_t out_off, out_bytes; /* checked */
		} query; /* that waits for the end of draining */
		struct {
			struct kv_query query; /* checked */
			struct serve_list *list; /* begun, or NULL */
		} late;
		struct {
			uint64_t out_off, out_bytes; /* checked */
			struct serve_trim req;
		} trim;
	} u;
};

struct sess {
	struct list node; /* one of ipc's lists */
	struct ipc *ipc;
	struct serve_session *ss; /* NULL: an administrator without tenant */
	struct chan ch;
	uint32_t id;
	uint32_t flags; /* SESS_ADMIN */
	uid_t uid;
	pid_t pid;
	char name[32];
	char tenant[CONF_NAME_MAX];
	uint32_t i_tenant; /* of the configuration; CONF_MAX_TENANTS: none */
	uint64_t opened_ns;
	uint64_t n_entries;
	struct sess_req *reqs; /* [cq_entries] */
	struct list free, inflight;
	uint32_t n_inflight;
	size_t copied_bytes;
	uint32_t idle_turns; /* polled in vain, one after the other */
	uint32_t stall_ms;
	struct loop_fd sock, pidfd, bell;
	struct loop_timer stall;
	struct loop_call free_call;
	int closing, serve_closed;
	struct serve_map_events map_events;
	int faults_fd; /* it came, and there is no memory to use it yet; or -1 */
	uint64_t spaces_sent; /* bit i: the client has file i */
	uint64_t states_sent; /* and its states */
	struct wait closed;
};

/* What the handshake found out. */
struct sess_args {
	struct ipc *ipc;
	struct serve_tenant *tenant; /* NULL: none */
	const char *tenant_name;
	const struct kv_hello *hello; /* checked, defaults filled in */
	uint64_t features;
	uint32_t flags;
	uid_t uid;
	pid_t pid;
	int sock, pidfd; /* the session's on success */
};
/*
 * Open a session; *memfd is the caller's. -EDQUOT, -ENOMEM, -errno; then sock
 * and pidfd are still the caller's.
 */
int sess_new(struct sess **out, const struct sess_args *a, int *memfd);
/* End it; err is what the client finds in cq.closed. Twice is fine. */
void sess_close(struct sess *s, int err);
/* Handle what is in the sq, a bounded number; nonzero when there was work. */
int sess_poll(struct sess *s);
/* Poll it on the next turns; any completion makes the next entry likely. */
void sess_heat(struct sess *s);

/*
 * A place for a request that does not end at once; it counts as in flight until
 * sess_req_end(). Never fails: an entry is only taken when one is free.
 */
struct sess_req *sess_req_begin(struct sess *s, const struct kv_sqe *e);
/* malloc(bytes) owned by r; -EDQUOT above SESS_COPY_MAX, -ENOMEM. */
int sess_req_copy(struct sess_req *r, size_t bytes, void **out);
/* Give the place back; the entry ends with the caller's completion. */
void sess_req_drop(struct sess_req *r);
/* The last completion: res, arg0, arg1. r is gone. */
void sess_req_end(struct sess_req *r, int res, uint64_t arg0, uint64_t arg1);
/* One of several, when the cq has room to spare: 1 if it was sent, else 0. */
int sess_req_more(struct sess_req *r, int res, uint64_t arg0);

/*
 * dispatch.c: one entry, checked, to one call of serve. Returns res of its
 * completion, or DISPATCH_LATER when a sess_req will end it.
 */
#define DISPATCH_LATER INT32_MIN
int dispatch(struct sess *s, const struct kv_sqe *e);
/* op_attend.c */
int op_attend(struct sess *s, const struct kv_sqe *e);
/* op_gen.c */
int op_generate(struct sess *s, const struct kv_sqe *e);
int op_cancel(struct sess *s, const struct kv_sqe *e);
int op_chunk_put(struct sess *s, const struct kv_sqe *e);
int op_persist(struct sess *s, const struct kv_sqe *e);
int op_tokenize(struct sess *s, const struct kv_sqe *e);
int op_detokenize(struct sess *s, const struct kv_sqe *e);
/*
 * op_map.c: a message on the control socket. 1 taken, 0 there is none, -EPROTO it is
 * not one of ours, -ECONNRESET.
 */
int sess_read_ctl(struct sess *s);
int op_map(struct sess *s, const struct kv_sqe *e);
int op_map_at(struct sess *s, const struct kv_sqe *e);
int op_unmap(struct sess *s, const struct kv_sqe *e);
/* op_export.c */
int op_export(struct sess *s, const struct kv_sqe *e);
int op_export_pages(struct sess *s, const struct kv_sqe *e);
int op_unexport(struct sess *s, const struct kv_sqe *e);
int op_seq_wrote(struct sess *s, const struct kv_sqe *e);
int op_buffer(struct sess *s, const struct kv_sqe *e);
int op_buffer_free(struct sess *s, const struct kv_sqe *e);
/* admin.c */
int op_query(struct sess *s, const struct kv_sqe *e);
void admin_late(struct loop_timer *t); /* ipc.late_timer */
/* r is of ipc.late, and goes without an answer. */
void admin_late_free(struct sess_req *r);

#endif
