/*
 * tenant.h - the daemon's models, tenants and sessions, as serve's files see them
 *
 * Loop thread. Who owns what: serve owns tenants and models; a tenant owns its
 * pager, segments and indexes; a session its geometries and sequences. A request in
 * flight holds its session open until it has ended.
 */
#ifndef KVD_SERVE_TENANT_H
#define KVD_SERVE_TENANT_H

#include "kvd/base/rate.h"
#include "kvd/base/stat.h"
#include "kvd/cache/chunk.h"
#include "kvd/cache/persist.h"
#include "kvd/cache/prefix.h"
#include "kvd/cache/seq.h"
#include "kvd/cache/variant.h"
#include "kvd/mem/account.h"
#include "kvd/mem/device.h"
#include "kvd/model/llama.h"
#include "kvd/model/tokenizer.h"
#include "kvd/serve/attn.h"
#include "kvd/serve/gpu.h"
#include "kvd/serve/serve.h"
#include "kvd/serve/trace.h"

#define SERVE_SEGMENT_TOKENS 1024u /* room of an open segment */

struct serve_model {
	const struct conf_model *conf;
	struct llama *llama; /* with gpu: shape, tokenizer */
	struct llama_gpu *gpu; /* its weights; NULL: in host memory */
	struct kv_layout layout;
	struct attn_shape shape;
	uint64_t id[2];
	struct rate prefill; /* rows of steps that are mostly prefill */
	struct rate small_steps; /* steps of fewer rows */
	uint64_t queued_rows; /* prompts that are admitted and not computed */
	enum gate_state {
		GATE_OFF,
		GATE_PENDING,
		GATE_PASSED,
		GATE_FAILED
	} gate; /* gate.h */
	struct list gate_waiting; /* gens: waiter.node, until it is known */
	double gate_error, gate_plain_error;
	int gate_kept; /* measured by an earlier daemon: verdict.h */
};

struct serve_tenant {
	struct serve *serve;
	const struct conf_tenant *conf;
	int huge_dir; /* its own; 0: none */
	struct pager *pager;
	struct segment_pool *pool;
	struct prefix_tree prefix;
	struct chunk_table chunks;
	struct variant_table variants;
	uint64_t query_bytes; /* of fresh chunks, to be measured: craft.h */
	struct persist *persist; /* NULL: nothing survives a restart */
	struct persist_wait flush; /* at the stop */
	int flushing;
	struct scrub *scrub; /* NULL: off, or no disk */
	struct list sessions;
	struct list waiting; /* gens and attends: waiter.node; line.h */
	struct list texts; /* text_job.node: in line */
	struct list chunk_jobs; /* gens that compute a chunk */
	struct loop_call kick; /* look at waiting again */
	int kicked;
	struct loop_timer preload; /* preload.h */
	uint32_t n_sessions, n_sequences, n_requests;
	uint32_t n_uncounted; /* that wait for a place among n_requests */
	struct tenant_maps {
		struct uffd *uffd; /* from the first map on */
		uint32_t n; /* segments mapped, of all sessions */
		uint32_t
			n_ending; /* sessions whose descriptor is not closed yet */
		uint32_t n_overtaken; /* faults, since somebody waits */
		struct stat *st_n, *st_faults, *st_resolved, *st_poisoned,
			*st_ns;
	} maps;
	struct tenant_exports {
		uint64_t bytes; /* pinned for clients */
		uint32_t n, n_buffers;
		struct stat *st_n, *st_bytes, *st_buffers;
	} exports;
	uint32_t n_active; /* requests that hold a reservation */
	uint64_t lent_bytes; /* reserved here by requests of others: share.h */
	struct stat *st_requests, *st_tokens, *st_prompt, *st_prefix_hits,
		*st_prefix_tokens, *st_chunk_hits, *st_chunk_tokens,
		*st_chunk_misses, *st_loaded, *st_recomputed, *st_preloaded,
		*st_awaited, *st_refused, *st_ttft, *st_attends, *st_edits,
		*st_edit_tokens, *st_ahead, *st_by_deadline, *st_late,
		*st_lookup, *st_shared, *st_stopped, *st_passed, *st_repaired;
};

/* Somebody who waits for memory or a place of the tenant. */
struct waiter {
	struct list node;
	uint64_t since_ns; /* its request came (0: now): the line's order */
	/* line.h; all 0: it keeps the place that since_ns gives it */
	struct gen *gen; /* a request: what is cached may change */
	uint32_t cached; /* tokens of it */
	uint32_t priority; /* 0 most urgent */
	int yields; /* who has more cached may go before it */
	const struct rate *rate; /* tokens computed a second; NULL */
	/*
	 * Try again; 0: it left the list (it went on or ended); -EAGAIN: it waits
	 * for memory, nobody may overtake it; -EBUSY: for the end of a request,
	 * and one that is counted already may stand behind it.
	 */
	int (*retry)(struct waiter *w);
};

struct batch;

/*
 * Engine threads that know nothing of each other: what is pinned whole goes on while a
 * sequence larger than its budget waits for its windows, or a first step for its
 * later layers (restore.h; one request a step), on another.
 */
enum { LANE_RESIDENT, LANE_WINDOWS, LANE_RESTORE, N_LANES };
struct lane {
	struct engine *engine;
	struct attn_scratch scratch; /* engine thread */
	struct batch *batch;
	struct gpu_lane *gpu; /* it computes there; NULL: on the CPU */
};

struct serve {
	struct loop *loop;
	const struct conf *conf;
	struct lane lanes[N_LANES];
	struct stores *stores;
	struct cleaner *cleaner; /* NULL: off */
	const struct cuda_api *cuda; /* NULL: no driver */
	struct device *device; /* KV lies there; NULL: in host memory */
	struct serve_gpu *gpu; /* what computes there */
	struct trace *trace; /* NULL: not recording */
	struct accounts accounts; /* of memory and disk, all tenants */
	struct serve_model models[CONF_MAX_MODELS];
	uint32_t n_models;
	struct serve_tenant *tenants[CONF_MAX_TENANTS];
	uint32_t n_tenants;
	int draining;
	int can_map; /* UFFD_CAN_*, or -errno */
	struct wait *drained;
	struct loop_call drain_call;
	uint64_t start_ns;
	uint32_t next_session, next_seq;
	struct measures *measures; /* measure.c */
	struct keeper *keeper; /* keeper.h; NULL: nothing to keep */
	struct gate *gate; /* NULL: nothing to measure */
	struct engine *text_engine; /* text.c */
	uint32_t text_turn; /* whose text was last */
	int text_running;
	struct list free_attends; /* attend.c: of earlier calls */
	uint32_t n_free_attends;
	int huge_dir; /* of all tenants: a tmpfs with huge pages; 0: none */
	int state_fd; /* state_dir, locked; 0: not */
	int mounts_huge; /* 1: each tenant has one of its own */
	struct loop_timer usage_timer; /* byte-seconds grow by themselves */
	struct loop_timer check_timer; /* check.c: debug builds */
};

struct serve_session {
	struct list node; /* of the tenant's */
	struct serve_tenant *tenant;
	uint32_t id;
	struct session_geometry {
		struct kv_layout layout;
		struct attn_shape shape;
	} * geometries;
	uint32_t n_geometries;
	struct session_seq {
		struct seq seq;
		uint32_t geometry;
		uint32_t handle;
		uint32_t n_busy; /* requests in flight that use it */
		uint32_t n_tails; /* exports of its open segment */
		uint64_t max_tokens;
		uint64_t *layer_tokens; /* [n_layers] appended */
		uint64_t
			hole_end; /* end of tokens inserted, being written; 0 */
		struct seq_copy copy; /* to be done by the next job */
	} * *seqs; /* [n_seq_room], NULL where free */
	uint32_t n_seq_room;
	struct list requests; /* gens: their session_node */
	struct list attends; /* attend calls */
	struct list persists; /* persist calls */
	struct session_maps *maps; /* NULL: none yet */
	struct list exports, export_calls; /* export.c */
	uint64_t export_bytes; /* reserved by calls */
	struct list buffers; /* buffer.c */
	uint32_t n_buffers, next_buffer;
	uint32_t n_exports, next_export;
	uint32_t n_requests; /* of all kinds */
	struct wait *closing;
	struct loop_call close_call;
};

/* conf and accounts are borrowed. -errno; then free it all the same. */
int serve_tenant_new(struct serve_tenant **out, struct serve *s,
		     const struct conf_tenant *conf, struct accounts *accounts);
void serve_tenant_free(struct serve_tenant *t);
/*
 * line.c: stand in line of t; told by retry(). A chunk stands where the request stands that
 * wants it, so nobody gets ahead of others by asking for chunks.
 */
void tenant_wait(struct serve_tenant *t, struct waiter *w);
/* Before all others: what is small and short, and not without end. */
void tenant_wait_front(struct serve_tenant *t, struct waiter *w);
/* Reserve now or not at all: as pager_reserve(), but -EAGAIN is not waited for. */
int tenant_reserve_now(struct serve_tenant *t, uint64_t bytes);
/* Something was given back: the line moves on a later turn. */
void tenant_kick(struct serve_tenant *t);
/*
 * There is no room (-EDQUOT) for who is at the head of the line and holds no reservation.
 * 1: what ends by itself holds segments, and tenant_kick() follows when it has ended: what
 * runs, what becomes durable; if there is none of that, statistics that wait for their turn
 * (measure.c), of which one is given up; then what requests of others refer to (share.h).
 * 0: nobody gives anything back.
 */
int tenant_frees(struct serve_tenant *t);
/* One request more or less of a session; drives closing and draining. */
void session_request_begin(struct serve_session *ss);
void session_request_end(struct serve_session *ss);

/* A request or chunk job has gone: is the daemon drained? */
void serve_look_drained(struct serve *s);

/* text.c: NULL no such model. */
/* Run t in its turn; its memory stays until t->done(). */
void text_start(struct serve_tenant *tenant, struct text_job *t);
struct serve_model *serve_model_find(struct serve *s, const char *name);

/* session.c */
void session_free_seqs(struct serve_session *ss);
/* The sequence with this handle, or NULL. */
struct session_seq *session_seq_find(struct serve_session *ss, uint32_t handle);
/* All layers hold the same tokens, and none is still to be copied. */
int session_seq_settled(const struct session_seq *s);
/* gen.c: cancel every generation of ss. */
void gen_cancel_session(struct serve_session *ss);
/* request.c: what waits for a disk that is silent is planned again, without it. */
void gen_leave_disk(struct serve *s, uint32_t i_disk);
/* attend.c: end what of ss still waits for memory. */
void attend_cancel_session(struct serve_session *ss);

void attend_free_all(struct serve *s);
/* attend.c: how many calls ss has; adds what they hold. */
uint32_t attend_check(struct serve_session *ss, uint32_t *n_active,
		      uint64_t *reserved, uint32_t *n_requests,
		      uint32_t *n_uncounted);
/* check.c: walk the invariants now and then. */
void serve_check_start(struct serve *s);

/* export.c */
void tenant_open_exports(struct serve_tenant *t);
/* n more, or fewer, of all three. */
void tenant_count_exports(struct serve_tenant *t, int n, int64_t bytes,
			  int n_buffers);
/* export.c: end them; the session stays open while a call is in flight. */
void export_cancel_session(struct serve_session *ss);
/*
 * pager_reserve() for who stands in line. What exports hold comes back when their clients like:
 * who cannot have its bytes beside them gets -EBUSY, and is in nobody's way, or -ENOSPC.
 */
int tenant_reserve(struct serve_tenant *t, uint64_t bytes, int may_wait);
/* Bytes that they have reserved. */
uint64_t export_reserved(const struct serve_session *ss);

/* buffer.c: a call uses it from now on; the event that it is to wait for, or NULL. */
void *buffer_use(struct serve_session *ss, uint32_t id);
void buffer_let_go(struct serve_session *ss, uint32_t id);
/* What it has recorded is done: 0, -EAGAIN not yet, or the driver's. */
int buffer_event_passed(struct serve_session *ss, void *event);
/* No call is in flight. */
void session_free_buffers(struct serve_session *ss);

/* map.c */
void serve_probe_maps(struct serve *s);
void tenant_open_maps(struct serve_tenant *t);
void tenant_close_maps(struct serve_tenant *t);
/* pager_conf.held; ctx: the tenant. */
int tenant_page_held(void *ctx, uint32_t file_id, uint64_t page);
/* What ss has: asserts; adds to them. n_active does not count faults. */
struct map_sums {
	uint32_t n_maps, n_faults;
	uint64_t reserved;
	uint64_t held; /* pinned without a reservation (page_hold()) */
};
void map_check(const struct serve_session *ss, struct map_sums *s);
/* End faults and maps; the session stays open until that is done. */
void map_cancel_session(struct serve_session *ss);

/* device.c: as conf says; s->device stays NULL where KV lies in host memory. */
int serve_open_device(struct serve *s, char *err, size_t err_len);
/* Kernels and a lane on the device, if there is one; before models. */
int serve_open_gpu(struct serve *s, char *err, size_t err_len);
/* -EINVAL: the host pool is too little for pages of m. */
int serve_check_pages(const struct serve *s, const struct serve_model *m,
		      char *err, size_t err_len);
/* The models are known: the pools of the tenants. */
int serve_open_accounts(struct serve *s, char *err, size_t err_len);
/* What pagers get; NULL: they have no disk. */
struct stores *serve_pager_stores(const struct serve *s);
/* Bytes that pages of t can take below the device or host memory. */
uint64_t serve_disk_bytes(const struct serve *s, const struct conf_tenant *t);

/* persist.c */
int tenant_open_persist(struct serve_tenant *t);
void tenant_close_persist(struct serve_tenant *t);
/* The pager found a page of r bad on disk. */
void tenant_damaged(void *ctx, struct range *r);
/* Nobody else writes there; -EBUSY. Before anything of it is read. */
int serve_lock_state(struct serve *s, char *err, size_t err_len);
int serve_new_stores(struct serve *s);
/* Find what survived; the tenants are there. */
int serve_open_stores(struct serve *s, char *err, size_t err_len);
void persist_cancel_session(struct serve_session *ss);

#endif
