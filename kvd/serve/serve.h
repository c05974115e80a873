/*
 * serve.h - what the daemon does for a session, without sockets or rings
 *
 *   serve            one per daemon: engine threads, models, tenants
 *   serve_tenant     budgets, memory, prefix and chunk index of one tenant
 *   serve_session    one client: its geometries, sequences, requests in flight
 *
 * ipc/ copies and checks entries, then calls one function here. A function
 * that returns int and takes a struct with a wait: 0 means that the wait will be
 * told, once, later, never inside the call; an error means that it will not.
 * Pointers into the client's arena (named arena below) must stay mapped until the
 * wait was told or serve_session_close() has ended. Their contents may change at
 * any time: they are numbers, read as such, never trusted as anything else.
 *
 * Thread: loop thread, all of it. Nothing here blocks.
 */
#ifndef KVD_SERVE_SERVE_H
#define KVD_SERVE_SERVE_H

#include <stddef.h>
#include <stdint.h>
#include "kernels/cuda_api.h"
#include "kvd/base/conf.h"
#include "kvd/base/list.h"
#include "kvd/base/loop.h"
#include "kvd/base/wait.h"
#include "kvd/serve/engine.h"

struct cuda_api;
struct serve;
struct serve_tenant;
struct tokenizer;
struct serve_session;

/*
 * Open models, state and engine threads; conf is borrowed for ever.
 * err gets the reason in words. -errno.
 */
int serve_new(struct serve **out, struct loop *loop, const struct conf *conf,
	      char *err, size_t err_len);
/* The same with a driver (NULL: there is none), which outlives it: conf tells whether
 * KV lies on its device. */
int serve_new_on(struct serve **out, struct loop *loop, const struct conf *conf,
		 const struct cuda_api *cuda, char *err, size_t err_len);
/* 1: KV lies on a device. */
int serve_on_device(const struct serve *s);
/* Everything must have been closed before; stops the threads. */
void serve_free(struct serve *s);
/*
 * Make durable what is not yet (persist = auto), of all tenants, for five seconds at
 * most, and log what is left. Nothing more is made durable after it. serve_free() does it.
 */
void serve_flush(struct serve *s);
struct serve_tenant *serve_tenant_find(struct serve *s, const char *name);
const char *serve_tenant_name(const struct serve_tenant *t);
/* Stop taking new requests (-ESHUTDOWN); w is told when none is in flight. */
void serve_drain(struct serve *s, struct wait *w);
/* Is a chunk being computed, for whoever asked first, who may have gone? */
int serve_chunk_jobs(const struct serve *s);

/* A new client of t. -EDQUOT: the tenant's sessions are used up; -ENOMEM. */
int serve_session_open(struct serve_tenant *t, struct serve_session **out);
/*
 * Cancel its requests (their waits are told -ECANCELED), free all it holds. w is
 * told when nothing touches its arena any more and *session* is freed.
 */
void serve_session_close(struct serve_session *ss, struct wait *w);
/* Requests in flight of this session. */
uint32_t serve_session_n_requests(const struct serve_session *ss);

/* ---- attention service -------------------------------------------------- */

struct serve_geometry { /* as struct kv_geometry, checked by serve */
	uint32_t n_layers, n_heads, n_kv_heads, head_dim;
	uint32_t type; /* enum kern_type: F32, F16, BF16 */
	uint32_t rotary; /* enum kern_rope_kind */
	uint32_t n_rot;
	float theta, rope_scale, scale;
	uint32_t page_tokens, page_layers;
};
/* Handles are > 0. -EINVAL, -EDQUOT (256 geometries a session). */
int serve_geometry(struct serve_session *ss, const struct serve_geometry *g);
int serve_seq_new(struct serve_session *ss, uint32_t geometry,
		  uint64_t max_tokens);
/* -ENOENT no such handle; -EBUSY a request in flight uses it. */
int serve_seq_free(struct serve_session *ss, uint32_t seq);
int serve_seq_fork(struct serve_session *ss, uint32_t seq);
int serve_seq_seal(struct serve_session *ss, uint32_t seq);
int serve_seq_skip(struct serve_session *ss, uint32_t seq, uint64_t from,
		   uint64_t to);

/*
 * Tokens [at, at + n_removed) go; n_new come in their place, whose K and V the client
 * appends next, in each layer from at on; what stands behind moves. -EINVAL, -EBUSY not
 * all layers hold the same tokens, -ENOSPC, -EDQUOT, -ENOMEM.
 */
int serve_seq_edit(struct serve_session *ss, uint32_t seq, uint64_t at,
		   uint64_t n_removed, uint64_t n_new);

struct serve_seq_info {
	uint64_t n_tokens, n_sealed, n_pages, n_resident;
};
int serve_seq_info(struct serve_session *ss, uint32_t seq,
		   struct serve_seq_info *out);

struct serve_attend_item {
	uint32_t seq;
	uint32_t n_tokens; /* may be 0: nothing happens */
	uint64_t pos;
	const void *q; /* arena [n_tokens][n_heads][head_dim] */
	const void *k, *v; /* arena [n_tokens][n_kv_heads][head_dim], or NULL */
	void *o; /* arena [n_tokens][n_heads][head_dim] */
	uint32_t buffer; /* 0; else q, k, v, o are of serve_buffer_at() */
	int res; /* out */
};
#define SERVE_MAX_ITEMS 1024u
struct serve_attend {
	struct wait wait; /* told 0 or the first item's error */
	uint32_t layer;
	uint32_t n_items; /* 1..SERVE_MAX_ITEMS */
	struct serve_attend_item *items; /* the caller's, until told */
	int append_only; /* 1: KV_OP_APPEND, q and o are NULL */
	int may_wait; /* over budget waits instead of -EDQUOT */
	void *priv; /* serve's */
};
int serve_attend(struct serve_session *ss, struct serve_attend *a);
/*
 * a's wait is told soon: -ECANCELED where items were not begun (they keep their
 * length), 0 where they were done.
 */
void serve_attend_cancel(struct serve_session *ss, struct serve_attend *a);
/* Keep n_tokens. -EINVAL there are fewer; -EBUSY. The tile that is cut is
 * copied by the next append. */
int serve_seq_truncate(struct serve_session *ss, uint32_t seq,
		       uint64_t n_tokens);
/* Bytes of one token's q (and o) and of one token's k (or v). -ENOENT. */
int serve_seq_shape(struct serve_session *ss, uint32_t seq, size_t *row_q_bytes,
		    size_t *row_kv_bytes);

/* ---- maps: sealed KV in a client's own memory ------------------------------ */

/* What can be had by clients of t: 0 nothing, else as enum conf_map. */
int serve_map_mode(const struct serve_tenant *t);

struct serve_map_events {
	/* The descriptor misbehaves: end the session with -EPROTO. */
	void (*broken)(struct serve_map_events *e);
	/* The kernel cannot poison: the client must see to these bytes itself. */
	void (*lost)(struct serve_map_events *e, uint64_t addr, uint64_t n);
};
/*
 * The session's userfaultfd, once. On success fd is serve's, and e stays until the
 * session is closed. -EALREADY, -ENOTSUP, -EINVAL it is none, -errno.
 */
int serve_map_faults(struct serve_session *ss, int fd,
		     struct serve_map_events *e);

/* A word of holds: the client is about to map this page of that space's file. */
#define SERVE_MAP_HOLDS		16u
#define SERVE_HOLD(space, page) ((uint64_t)(space) << 48 | ((page) + 1))

struct serve_map_entry { /* as struct kv_map_entry */
	uint32_t map, space;
	uint64_t file_off, n_bytes;
	uint32_t from, n_tokens;
	int64_t pos, base_pos;
};
struct serve_map {
	/* in */
	struct serve_map_entry *entries; /* [n_room] */
	uint32_t n_room;
	uint64_t *skip; /* [n_skip_room] zeros */
	uint64_t n_skip_room;
	/* [SERVE_MAP_HOLDS] words that the client writes: it wants states. NULL. Stays
	 * until the session is closed. */
	const uint64_t *holds;
	/* out; the numbers with -EMSGSIZE too */
	uint32_t n_entries;
	int copy;
	int states; /* serve_map_states() of the entries' spaces */
	uint64_t n_skip, n_tokens, page_bytes;
	uint32_t n_layers, n_kv_heads, head_dim, elem_bytes;
	uint32_t page_tokens, page_layers;
};
/*
 * One map per segment, each with a reference until it is unmapped or the session
 * ends. 0; -EMSGSIZE too little room, -ENOENT, -EBUSY, -EDQUOT the tenant's maps are
 * used up, -ENOTSUP, -ENXIO no serve_map_faults() before, -EAGAIN a session of the
 * tenant is ending and may still work on its maps, -ENOMEM: then nothing is mapped. A map costs no memory and no pin.
 */
int serve_map_seq(struct serve_session *ss, uint32_t seq, struct serve_map *m);
/* The client's memory for it; -ENOENT, -EALREADY, -EINVAL not whole pages or not
 * apart from others. */
int serve_map_at(struct serve_session *ss, uint32_t map, uint64_t addr);
/*
 * Nothing is done to the client's memory any more once this is over: 1 it is; 0 the
 * wait will be told 0; -ENOENT. Before, its addresses must not be used for anything
 * else. w stays until told; NULL: nobody asks.
 */
int serve_unmap(struct serve_session *ss, uint32_t map, struct wait *w);
/* The read-only descriptor of a space that an entry named; borrowed. -ENOENT. */
int serve_map_space(struct serve_session *ss, uint32_t space);
/* That of its states. */
int serve_map_states(struct serve_session *ss, uint32_t space);

/* ---- device memory of clients: export.c ------------------------------------- */

/* Would serve_export() work for the tenant at all? */
int serve_can_export(const struct serve_tenant *t);

struct serve_export_entry { /* as struct kv_export_entry */
	uint32_t id, n_pages, n_room, from, n_tokens;
	int64_t pos, base_pos;
	int is_tail;
};
struct serve_export {
	struct wait
		wait; /* 0, or the pager's error: then nothing is exported */
	uint32_t seq;
	int with_tail;
	struct serve_export_entry *entries; /* [n_room] */
	uint32_t n_room;
	/* out; n_entries with -EMSGSIZE too */
	uint32_t n_entries;
	uint64_t n_tokens, page_bytes, frame_bytes;
	uint64_t token_stride, head_stride, plane_stride, layer_stride;
	uint32_t n_layers, n_kv_heads, head_dim, elem_bytes;
	uint32_t page_tokens, page_layers;
	int by_token;
	uint8_t uuid[16];
	struct list node; /* serve's */
	void *priv;
};
/*
 * Pin the segments of seq and give each an id: a reservation and a reference, until
 * serve_unexport() or the end of the session. While its tail is exported the sequence
 * cannot be freed, forked, sealed, edited or truncated (-EBUSY). -ENOTSUP, -ENOENT,
 * -EBUSY, -EMSGSIZE too little room, -EPERM tokens of another tenant, -EOPNOTSUPP
 * some are hidden or replaced, -EDQUOT more than half of the tenant's share of memory
 * or too many, -EAGAIN others hold too much now, -ENOSPC, -ENODEV, -ENOMEM.
 */
int serve_export(struct serve_session *ss, struct serve_export *x);
struct serve_export_pages {
	struct wait wait; /* 0: fds are the caller's; -errno */
	uint32_t id, first, n;
	int *fds; /* [n_fds_room] */
	uint32_t n_fds_room;
	uint32_t n_fds; /* out, at once */
	void *priv;
};
/* Descriptors of the frames of pages [first, first + n). -ENOENT, -EINVAL, -EBUSY one of
 * that export is in flight, -ENOMEM. */
int serve_export_pages(struct serve_session *ss, struct serve_export_pages *p);
/* -ENOENT, -EBUSY. What the client has mapped it keeps: vmm_cuda.h, VMM_EXPORT. */
int serve_unexport(struct serve_session *ss, uint32_t id);
/*
 * The client has written K and V of n more tokens, in all layers, into the exported
 * tail of seq. -ENOENT, -EBUSY, -EINVAL its tail is not exported, -ENOSPC there is not as
 * much room.
 */
int serve_seq_wrote(struct serve_session *ss, uint32_t seq, uint64_t n);

struct serve_buffer {
	struct wait
		wait; /* 0: id is there; -EINVAL the driver refuses a handle, or the
			   * allocation is smaller; -ENODEV, -ENOMEM */
	struct cuda_ipc memory, event; /* as the client sent them */
	int with_event;
	uint64_t n_bytes;
	uint32_t id; /* out, > 0 */
};
/* Device memory of the client, for items. -ENOTSUP, -EINVAL, -EDQUOT, -ENOMEM. */
int serve_buffer(struct serve_session *ss, struct serve_buffer *b);
/* -ENOENT, -EBUSY a call uses it. */
int serve_buffer_free(struct serve_session *ss, uint32_t id);
/* Device address of [off, off + n) of it; NULL: not inside, or no such buffer. Valid for a
 * serve_attend() in the same turn. */
void *serve_buffer_at(struct serve_session *ss, uint32_t id, uint64_t off,
		      uint64_t n);

/* ---- hosted models -------------------------------------------------------- */

enum serve_part_kind { SERVE_PART_TEXT, SERVE_PART_TOKENS, SERVE_PART_CHUNK };
#define SERVE_PART_REUSE    1u
#define SERVE_PART_BOS	    2u
#define SERVE_PART_PARALLEL 8u /* side by side with others like it */
#define SERVE_PART_BASE	    4u /* earlier version of the part behind it */

struct serve_part { /* daemon memory, copied from the arena before */
	enum serve_part_kind kind;
	uint32_t flags;
	const char *text;
	size_t text_len;
	const uint32_t *tokens;
	size_t n_tokens;
	uint64_t id[2];
	float temperature, scale; /* SERVE_PART_PARALLEL */
	int own; /* serve's */
};

struct serve_token { /* layout of struct kv_token */
	uint32_t id;
	float logprob;
	uint32_t text_off;
	uint32_t text_len;
};

struct serve_gen_stats { /* as struct kv_gen_stats */
	uint64_t n_prompt, n_prefix, n_chunk, n_computed;
	uint64_t queue_ns, ttft_ns, total_ns, n_read_back;
	uint64_t n_moved; /* taken from earlier versions of parts */
	uint64_t n_repaired; /* of n_chunk and fresh chunks: computed again */
	uint64_t n_ahead; /* layers computed while later ones were read */
};

struct serve_gen_repair { /* as struct kv_gen_repair */
	uint32_t permille, n_layers, stop_layer, n_stopped;
	uint32_t n_looked, looked_layers, n_probed;
};

/* What became of a part that may be a chunk, with repair = craft. */
struct serve_used {
	uint64_t variant; /* 0: computed here */
	uint32_t use; /* enum kv_chunk_use */
	uint32_t n_tokens, n_repaired;
	uint32_t cfo; /* permille */
};

#define SERVE_GEN_SCORE	     1u
#define SERVE_GEN_NO_REUSE   2u
#define SERVE_GEN_IGNORE_EOS 4u
#define SERVE_GEN_LOGITS     8u
#define SERVE_GEN_NO_TEXT    16u
#define SERVE_GEN_FOCUS	     32u /* with repair: focus.h */
#define SERVE_MAX_STOP	     8

/*
 * One generation. In: the caller's, and all it points to, until the wait was
 * told. Out: counters and buffers in daemon memory; progress() says that they grew.
 */
struct serve_gen {
	struct wait wait; /* told n_out, or -errno */
	void (*progress)(
		struct serve_gen *g); /* after new tokens, not the last */
	/* in */
	const char *model; /* "" : the only one */
	const struct serve_part *parts;
	uint32_t n_parts;
	uint32_t flags; /* SERVE_GEN_* */
	uint32_t max_tokens;
	uint32_t stop_tokens[SERVE_MAX_STOP];
	uint32_t n_stop_tokens;
	/* NUL-terminated; text from the first one found on is neither shown
	 * nor returned, tokens are */
	const char *stop[SERVE_MAX_STOP];
	uint32_t n_stop;
	float temperature, top_p, min_p;
	uint32_t top_k;
	uint64_t seed;
	uint32_t priority;
	uint32_t repair; /* enum kv_repair */
	uint32_t
		repair_permille; /* of each chunk; 1000: no chunk is reused; craft.h */
	uint32_t deadline_ms; /* of the first token, from now; 0: none */
	int may_wait;
	/* out; the caller reads in progress() and after the end */
	struct serve_token *tokens; /* serve's until the wait was told */
	char *text; /* serve's; n_text bytes */
	float *logits; /* serve's; n_vocab, or NULL */
	uint32_t n_out;
	uint32_t n_text;
	uint32_t n_vocab;
	uint32_t end; /* enum kv_end */
	struct serve_used *used; /* serve's; [n_parts], or NULL */
	struct serve_gen_stats stats;
	struct serve_gen_repair how;
	void *priv; /* serve's */
};
/*
 * -ENOENT no such model, or a chunk id unknown; -EINVAL; -EDQUOT requests of the
 * tenant used up and !may_wait; -ENOSPC it can never fit; -ESHUTDOWN draining.
 * out's tokens, text, logits are freed by serve right after the wait was told.
 */
int serve_generate(struct serve_session *ss, struct serve_gen *g);
/* g ends soon with -ECANCELED (or its result if that came first). */
void serve_cancel(struct serve_session *ss, struct serve_gen *g);

struct serve_chunk_put {
	struct wait wait; /* told the number of tokens, or -errno */
	const char *model;
	struct serve_part part; /* TEXT or TOKENS */
	uint64_t id[2]; /* out */
	void *priv;
};
int serve_chunk_put(struct serve_session *ss, struct serve_chunk_put *p);
/* p's wait is told soon; the chunk may be computed all the same. */
void serve_chunk_put_cancel(struct serve_session *ss,
			    struct serve_chunk_put *p);
/* -ENOENT. A chunk in use goes when its last user is done. */
int serve_chunk_rm(struct serve_session *ss, const uint64_t id[2]);

struct serve_persist {
	struct wait wait; /* told 0, or -ENOSPC, -EIO, -ECANCELED */
};
/*
 * Everything that the tenant can reuse now is on stable media when the wait is
 * told, or the first error; and, if that can be, how it was used (keeper.h). Returns
 * 0; 1 when it already is (the wait is not told); -ENOTSUP persist = no, -ENOMEM.
 */
int serve_persist(struct serve_session *ss, struct serve_persist *p);

/* A text in line for the thread of tokenizers: serve's. */
struct text_job {
	struct engine_job job;
	struct list node;
	struct serve_tenant *tenant;
	void (*run)(struct text_job *t); /* that thread */
	void (*done)(struct text_job *t); /* loop */
};
/* Text to tokens, on a thread; memory is the caller's until told. */
struct serve_text {
	struct wait wait; /* told 0: see n */
	const char *model;
	const char *text;
	size_t len;
	uint32_t *tokens; /* [max] */
	size_t max;
	int64_t n; /* out: in all, at most max are written; or -errno */
	struct text_job job; /* serve's, as the rest */
	struct serve_session *session;
	const struct tokenizer *tokenizer;
};
/* -ENOENT no such model. It is not cancelled, and holds its session open. */
int serve_tokenize(struct serve_session *ss, struct serve_text *t);
/* Returns the count in all, at most max are written; -ENOENT no such model. */
int64_t serve_detokenize(struct serve_session *ss, const char *model,
			 const uint32_t *tokens, size_t n, char *out,
			 size_t max);

/*
 * JSON about what: "status" "models" "tenants" "sequences" "segments" "chunks"
 * "pages" "usage" "stores" "device". ss NULL: the administrator's view of all tenants; else only that
 * session's tenant (and "status", "models"; not "stores", "device"). *out is malloc'ed. -ENOENT, -EACCES, -ENOMEM.
 */
int serve_query(struct serve *s, struct serve_session *ss, const char *what,
		const char *arg, char **out);

/*
 * "segments" and "chunks" in parts: there may be a million. ss and arg as above. Written to out
 * as far as room goes, which is borrowed until serve_list_free(). -ENOENT, -ENOMEM.
 */
struct serve_list;
int serve_is_list(const char *what);
int serve_list_new(struct serve *s, const struct serve_session *ss,
		   const char *what, const char *arg, char *out, size_t room,
		   struct serve_list **list);
/* Until then (clock_ns()), or a little longer: 0 there is more, its size, -ENOMEM. */
int64_t serve_list_step(struct serve_list *l, uint64_t until_ns);
void serve_list_free(struct serve_list *l);
/* All at once; *out is malloc'ed, with a 0 at the end. */
int serve_list_whole(struct serve *s, const struct serve_session *ss,
		     const char *what, const char *arg, char **out);

/* Give memory of the device that no page needs back to the system. */
struct serve_trim {
	struct wait wait; /* told 0, or -ENODEV */
	uint64_t n_bytes; /* in: at most, 0 all; out: given back */
	void *priv; /* serve's */
};
/* 0; -ENOTSUP KV is in host memory, which is given back at once anyway; -ENOMEM. */
int serve_trim(struct serve *s, struct serve_trim *t);

/* Walk every invariant of tenants, sessions, requests and memory; asserts. */
void serve_check(struct serve *s);

#endif
