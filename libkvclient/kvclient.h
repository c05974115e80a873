/*
 * kvclient.h - all that a client of kvd includes
 *
 * A struct kvc is one session with the daemon: two rings and an arena in shared
 * memory. Calls that only touch it cost no system call while both sides
 * are awake.
 *
 * Thread: a session may be used by any number of threads at once; submission
 * is serialised by a lock inside, waiting lets one thread reap for all. The
 * arena blocks belong to who allocated them. kvc_close() and kvc_reconnect()
 * are called by one thread while no other uses the session. A child of fork()
 * cannot use the session: every call returns -EPERM (kvc_alloc(): NULL), save
 * kvc_close(), which frees the child's copy; it opens a session of its own.
 *
 * Errors: 0 or a count, or -errno. -ECONNRESET: the daemon is gone (or ended
 * the session); all requests in flight fail with it; kvc_reconnect() or a new
 * kvc_open() works as soon as a daemon listens again; handles do not survive.
 */
#ifndef LIBKVCLIENT_KVCLIENT_H
#define LIBKVCLIENT_KVCLIENT_H

#include <stddef.h>
#include <stdint.h>
#include "kv_abi.h"

#ifdef __cplusplus
extern "C" {
#endif

struct kvc;

struct kvc_options {
	/* path; NULL: $KVD_SOCKET or /run/kvd/kvd.sock */
	const char *socket;
	const char *name; /* for the daemon's log; NULL: program name */
	uint64_t features; /* KV_FEATURE_* that must be there */
	uint64_t arena_bytes; /* 0: 16 MiB */
	uint32_t sq_entries; /* 0: 256 */
	uint32_t spin_us; /* before sleeping; 0: 20 */
};

/* Connect; opt may be NULL. The caller owns *out until kvc_close(). -ENOENT or
 * -ECONNREFUSED no daemon, -EACCES unknown uid, -EPROTONOSUPPORT, -EDQUOT, -EMFILE no
 * descriptors left (it takes three). */
int kvc_open(struct kvc **out, const struct kvc_options *opt);
/* Ends the session; requests in flight are cancelled. NULL is fine. */
void kvc_close(struct kvc *c);
/* A new session in place of a broken one; its arena and handles are lost. */
int kvc_reconnect(struct kvc *c);
const char *kvc_tenant(const struct kvc *c);
uint64_t kvc_features(const struct kvc *c);
/* Version of the library: "1.0.0". */
const char *kvc_version(void);

/* ---- arena ------------------------------------------------------------- */
/* Allocate bytes (64-byte aligned) of the arena; NULL when it is full. Any
 * thread. Calls below that need arena memory return -EAGAIN when it is full now
 * and -EMSGSIZE when they can never fit. */
void *kvc_alloc(struct kvc *c, size_t bytes);
void kvc_free(struct kvc *c, void *p);
/* Offset of p for an entry's *_off field; KV_NO_OFF for NULL. */
uint64_t kvc_off(const struct kvc *c, const void *p);

/* ---- asynchronous calls ------------------------------------------------ */
/*
 * One request; memory is the caller's and stays until the last completion was
 * delivered by kvc_wait(), kvc_poll() or on_cqe. Zeroed by kvc_submit() save
 * on_cqe and user. The fields of a completion that others follow (KV_CQE_MORE)
 * are stable in on_cqe only; a thread that waits may already see the next.
 */
struct kvc_req {
	struct kvc_req *next; /* the library's */
	int32_t res; /* of the latest completion */
	uint32_t flags; /* KV_CQE_MORE while it goes on */
	uint64_t arg[2];
	int done; /* 1 after the last completion */
	/* Called for each completion by whichever thread reaps, no lock held;
	 * or NULL. It may submit and cancel, but not wait (-EDEADLK), and on
	 * the last may free r when no thread waits for it. */
	void (*on_cqe)(struct kvc_req *r);
	void *user;
	uint64_t id; /* the library's: user_data on the ring */
	uint32_t n_cqe; /* the library's: completions delivered */
	uint32_t n_seen; /* the library's: of these by kvc_wait_more() */
};
/* Queue sqe (user_data is set by the library) and publish it. -EAGAIN: the ring
 * is full after having waited a second for room (in on_cqe: at once);
 * -ECONNRESET; -EPERM after fork(). After an error r is not in flight. */
int kvc_submit(struct kvc *c, const struct kv_sqe *sqe, struct kvc_req *r);
/* Wait for r's end, delivering completions meanwhile; returns r->res.
 * timeout_ms < 0: no limit; -ETIMEDOUT leaves r in flight. */
int kvc_wait(struct kvc *c, struct kvc_req *r, int timeout_ms);
/* Wait until r has a completion that no earlier kvc_wait_more() returned for,
 * or is done; returns r->res. -ETIMEDOUT. One thread per r. */
int kvc_wait_more(struct kvc *c, struct kvc_req *r, int timeout_ms);
/* Deliver what has completed, without waiting; returns how many. */
int kvc_poll(struct kvc *c);
/* Submit and wait. */
int kvc_call(struct kvc *c, struct kv_sqe *sqe);
/* Ask that r be cancelled; it still completes, with -ECANCELED or its result.
 * 0 when asked; -EAGAIN, -ECONNRESET. Does not wait. */
int kvc_cancel(struct kvc *c, struct kvc_req *r);

/* ---- attention service ------------------------------------------------- */
int kvc_nop(struct kvc *c);
int kvc_geometry(struct kvc *c, const struct kv_geometry *g); /* handle */
int kvc_seq_new(struct kvc *c, int geometry, uint64_t max_tokens); /* handle */
int kvc_seq_free(struct kvc *c, int seq);
int kvc_seq_fork(struct kvc *c, int seq);
int kvc_seq_truncate(struct kvc *c, int seq, uint64_t n_tokens);
int kvc_seq_seal(struct kvc *c, int seq);
int kvc_seq_skip(struct kvc *c, int seq, uint64_t from, uint64_t to);
/*
 * Replace tokens [at, at + n_removed) by n_new, and keep what stands behind, moved. The K and
 * V of the new tokens are appended next: kvc_append() or kvc_attend() at position at, in
 * every layer, n_new tokens. Where nothing stands behind it only cuts off.
 */
int kvc_seq_edit(struct kvc *c, int seq, uint64_t at, uint64_t n_removed,
		 uint64_t n_new);
int kvc_seq_info(struct kvc *c, int seq, struct kv_seq_info *out);
/* items: in the arena, n of them; see struct kv_attend_item. Returns 0 when
 * every item's res is 0, else the first error. flags: KV_SQE_WAIT. */
int kvc_append(struct kvc *c, struct kv_attend_item *items, uint32_t n,
	       uint32_t layer, uint16_t flags);
int kvc_attend(struct kvc *c, struct kv_attend_item *items, uint32_t n,
	       uint32_t layer, uint16_t flags);

/* ---- maps --------------------------------------------------------------- */

/* Tokens [from, from + n_tokens) of one segment. */
struct kvc_map_entry {
	const char *addr; /* of the segment's first page */
	uint32_t from, n_tokens;
	int64_t pos; /* of the first of these tokens, in the sequence */
	int64_t base_pos; /* by which its key was rotated, if at all: so a query
			     at position p is rotated by p - pos + base_pos */
};
struct kvc_map { /* read only; the library's until kvc_unmap() */
	const struct kvc_map_entry *entries; /* in order of the tokens */
	uint32_t n_entries;
	uint32_t n_layers, n_kv_heads, head_dim, elem_bytes;
	uint32_t page_tokens, page_layers;
	uint64_t page_bytes;
	uint64_t n_tokens;
	const uint64_t *skip; /* [(n_tokens + 63) / 64]: bit t % 64 of word
				 t / 64: token t is hidden */
};
/*
 * Map the sealed tokens of seq (kvc_seq_seal() first for all of them) as plain
 * read-only memory. Touching what is on disk brings it in; what is evicted
 * meanwhile is brought in again. The map goes on when the sequence is changed or
 * freed: it shows the tokens as they were. It costs address space only: no pin; the
 * segments stay until kvc_unmap() or the end of the session.
 *
 * -ENOTSUP the daemon, the tenant, or this process may not use userfaultfd; -EDQUOT
 * the tenant's maps are used up; -EBUSY a call that uses seq is in flight, or not
 * all layers hold the same tokens; -ENOENT; -EMFILE, -ENFILE no descriptor left, here or
 * in the daemon: the next call finds what did not come.
 *
 * A touch waits for the page. It is SIGBUS when the page cannot be read (its bytes
 * fail their check), and SIGSEGV when the session has ended (daemon lost, or
 * kvc_reconnect()); nobody ever reads zeros instead. A system call that is given
 * such memory may return -EFAULT where a touch would wait. fork(): the child does
 * not have the memory. A first map starts one thread, which blocks all signals.
 */
int kvc_map(struct kvc *c, int seq, struct kvc_map **out);
/*
 * Before the first kvc_map() of c: from then on a thread that touches a page which is in the
 * daemon's memory maps it itself, in a few microseconds, and only what is on disk is a matter
 * for the daemon. For that the library takes SIGBUS, once for the process: what is not
 * its own goes to the handler that was there before, so install yours first, and do not
 * block SIGBUS in threads that read maps. All of the above holds; where it cannot be had
 * later (kvc_reconnect() to an older daemon) the daemon resolves faults as ever. A system
 * call that is given such memory returns -EFAULT where a touch would fault.
 * -EBUSY there are maps; -ENOTSUP the daemon does not do it; -EPERM.
 */
int kvc_map_by_signal(struct kvc *c);
/* No thread touches it any more. NULL is fine; -EPERM in a child of fork().
 * kvc_close() does it for all. */
int kvc_unmap(struct kvc *c, struct kvc_map *map);
/*
 * K (v = 0) or V (v = 1) of kv head h of token i of the entry, layer l: head_dim
 * elements; those of the tokens that follow lie behind, up to the end of the page
 * (i + from a multiple of page_tokens).
 */
static inline const void *kvc_map_row(const struct kvc_map *m,
				      const struct kvc_map_entry *e, uint32_t l,
				      int v, uint32_t h, uint32_t i)
{
	const uint32_t t = e->from + i;
	const uint64_t n_groups =
		(m->n_layers + m->page_layers - 1) / m->page_layers;
	const uint64_t page =
		t / m->page_tokens * n_groups + l / m->page_layers;
	const uint64_t plane =
		(uint64_t)(l % m->page_layers) * 2 + (v ? 1u : 0u);
	const uint64_t row = (plane * m->n_kv_heads + h) * m->page_tokens +
			     t % m->page_tokens;

	return e->addr + page * m->page_bytes +
	       row * m->head_dim * m->elem_bytes;
}

/* ---- device memory -------------------------------------------------------- */

/* Tokens [from, from + n_tokens) of one segment, counted in it. */
struct kvc_export_entry {
	uint64_t
		addr; /* CUdeviceptr of the segment's token 0, in this process */
	uint64_t
		group_stride; /* bytes from one group of page_layers layers to the
				  next */
	uint32_t from, n_tokens;
	uint32_t
		n_room; /* tokens in all that the tail has room for, else n_tokens */
	int64_t pos; /* of the first of these tokens, in the sequence */
	int64_t base_pos; /* by which its key was rotated, if at all */
};
struct kvc_export { /* the library's until kvc_unexport() */
	const struct kvc_export_entry *entries; /* in order of the tokens */
	uint32_t n_entries;
	int is_contiguous; /* token_stride holds from the first token of an entry to the
			      last; else within page_tokens tokens */
	int is_writable; /* the driver cannot map for reading only: sealed pages can be
			    written, which is never allowed */
	uint32_t n_layers, n_kv_heads, head_dim, elem_bytes;
	uint32_t page_tokens, page_layers;
	uint64_t page_bytes;
	uint64_t token_stride, head_stride; /* bytes */
	uint64_t plane_stride; /* from K to V */
	uint64_t layer_stride; /* from layer to layer of a group */
	uint64_t n_tokens; /* of all entries */
};
struct kvc_export_args {
	int with_tail; /* the open tail too: to be written behind its tokens */
	const char *cuda_library; /* NULL: libcuda.so.1 */
};
/*
 * Map the sealed tokens of seq, which lie in the daemon's device memory, into this
 * process, for kernels of its own: no byte is copied. Sequences of a geometry with
 * page_tokens = 1 have one stride from token to token (is_contiguous): an attention
 * kernel that takes strides runs over them as it is. All pages stay in device memory,
 * against the tenant's budget, until kvc_unexport() (before kvc_close()) or the end of the
 * session. args NULL: sealed tokens only.
 *
 * With the tail: the program writes K and V of more tokens behind the last, in all
 * layers, waits for its stream and calls kvc_seq_wrote(). Until kvc_unexport() the sequence
 * cannot be freed, forked, sealed, edited or truncated (-EBUSY).
 *
 * -ENOTSUP the daemon's KV is not on a device, the tenant has no device_share, there is no
 * driver here or it does not show that device; -EDQUOT more than half of the tenant's
 * share of memory would be exported; -EAGAIN not now; -EBUSY as kvc_map(); -EOPNOTSUPP
 * tokens are hidden; -ENODEV the device is lost; -ENOENT; -ENOMEM; -EMFILE no descriptors
 * left for its frames.
 *
 * When the daemon is gone the memory stays as it was.
 */
int kvc_export(struct kvc *c, int seq, const struct kvc_export_args *args,
	       struct kvc_export **out);
/* Nothing of it is in use any more. NULL is fine. -EIO: the driver failed. */
int kvc_unexport(struct kvc *c, struct kvc_export *x);
/* n_tokens more have been written into the exported tail: -EINVAL it is not
 * exported, -ENOSPC it has no such room, -ENOENT, -EBUSY. */
int kvc_seq_wrote(struct kvc *c, int seq, uint64_t n_tokens);
/*
 * Device memory of the program, for items of kvc_append() and kvc_attend() whose
 * kv_attend_item.buffer is the number returned (> 0): q_off, k_off, v_off and o_off are
 * then offsets in it, multiples of 64, and no byte goes through the host. The daemon waits for
 * the event (KV_BUFFER_EVENT) before it reads, or the item gets -ETIMEDOUT ([kvd]
 * event_wait_ms); when the call is over o is there. The memory
 * stays allocated until kvc_buffer_free() or the end of the session. -ENOTSUP (without
 * KV_FEATURE_BUFFERS), -EINVAL the driver refuses a handle, -EDQUOT 64 of a session.
 */
int kvc_buffer(struct kvc *c, const struct kv_buffer *b);
/* -EBUSY a call uses it; -ENOENT. */
int kvc_buffer_free(struct kvc *c, int buffer);
/*
 * Address of K (v = 0) or V (v = 1) of kv head h of token i of the entry, layer l:
 * head_dim elements.
 */
static inline uint64_t kvc_export_row(const struct kvc_export *x,
				      const struct kvc_export_entry *e,
				      uint32_t l, int v, uint32_t h, uint64_t i)
{
	const uint64_t t = e->from + i;

	return e->addr + l / x->page_layers * e->group_stride +
	       t / x->page_tokens * x->page_bytes +
	       l % x->page_layers * x->layer_stride +
	       (v ? x->plane_stride : 0) + h * x->head_stride +
	       t % x->page_tokens * x->token_stride;
}

/* ---- hosted models ----------------------------------------------------- */
struct kvc_part {
	uint32_t kind; /* enum kv_part_kind */
	uint32_t flags; /* KV_PART_* */
	const char *text; /* KV_PART_TEXT: NUL-terminated, or text_len */
	size_t text_len; /* 0: strlen(text) */
	const uint32_t *tokens; /* KV_PART_TOKENS */
	size_t n_tokens;
	uint64_t id[2]; /* KV_PART_CHUNK */
	float temperature, scale; /* KV_PART_PARALLEL: both > 0 */
};
struct kvc_generate {
	const char *model; /* NULL: the only one */
	const struct kvc_part *parts;
	uint32_t n_parts;
	uint32_t flags; /* KV_GEN_* */
	uint32_t max_tokens;
	float temperature, top_p, min_p;
	uint32_t top_k;
	uint64_t seed;
	const uint32_t *stop_tokens;
	uint32_t n_stop_tokens;
	const char *const *stop; /* strings */
	uint32_t n_stop;
	uint32_t priority;
	uint32_t n_logits; /* KV_GEN_LOGITS: room; 0: 131072 */
	uint32_t repair; /* enum kv_repair, of chunks (KV_PART_REUSE, _CHUNK) */
	uint32_t repair_permille;
	uint16_t sqe_flags; /* KV_SQE_WAIT */
	/* Called as tokens arrive (by the reaping thread), or NULL. */
	void (*on_tokens)(void *user, const struct kv_token *tokens, uint32_t n,
			  const char *text, size_t text_len);
	void *user;
	uint32_t deadline_ms; /* the first token is wanted by then; 0: early */
};
/* A generation in flight, or finished. */
struct kvc_gen;
int kvc_generate_start(struct kvc *c, const struct kvc_generate *g,
		       struct kvc_gen **out);
/* Wait for its end; returns the number of tokens or -errno. */
int kvc_generate_wait(struct kvc *c, struct kvc_gen *g, int timeout_ms);
int kvc_generate_cancel(struct kvc *c, struct kvc_gen *g);
/* Results, valid until kvc_generate_free(). text is NUL-terminated. */
const struct kv_token *kvc_gen_tokens(const struct kvc_gen *g, uint32_t *n);
const char *kvc_gen_text(const struct kvc_gen *g);
const struct kv_gen_stats *kvc_gen_stats(const struct kvc_gen *g);
/* KV_GEN_LOGITS, or NULL */
const float *kvc_gen_logits(const struct kvc_gen *g);
/* How chunks were repaired; zeros without repair, or before the end. */
const struct kv_gen_repair *kvc_gen_repair(const struct kvc_gen *g);
/* KV_REPAIR_CRAFT and _CRAFT_BLEND: one for each part, else NULL. Valid after the end. */
const struct kv_chunk_used *kvc_gen_used(const struct kvc_gen *g, uint32_t *n);
uint32_t kvc_gen_n_logits(const struct kvc_gen *g); /* of these there are */
enum kv_end kvc_gen_end(const struct kvc_gen *g);
/* Cancels and waits for the end first if need be. NULL is fine. */
void kvc_generate_free(struct kvc *c, struct kvc_gen *g);
/* start, wait; the caller frees *out if not NULL. */
int kvc_generate(struct kvc *c, const struct kvc_generate *g,
		 struct kvc_gen **out);

/*
 * Parts for the chunks of text [len], each ending behind a separator (a row of them is
 * one; the last chunk behind none). parts [max] point into text. Their number, -EINVAL no
 * separator, -ENOSPC more than max. Any thread.
 */
int kvc_split(const char *text, size_t len, const char *separator,
	      struct kvc_part *parts, uint32_t max);

/*
 * Which of a closed set of prompts to ask when, so that what they begin with alike is computed
 * once: groups that share most, those first that give most tokens for those they compute. The
 * first of a group should have ended before its others are asked; more groups may run
 * beside it, as many as memory allows (KV_SQE_WAIT: the daemon sees to that).
 */
struct kvc_prompt {
	const uint64_t *ids; /* [n] equal where parts (or tokens) are equal */
	const uint32_t *n_tokens; /* [n] of each */
	uint32_t n;
	uint32_t n_out; /* tokens expected */
};
struct kvc_turn {
	uint32_t prompt;
	uint32_t first; /* the turn that begins its group */
};
/* turns [n]. Returns the number of groups, or -ENOMEM. Any thread. */
int kvc_order(const struct kvc_prompt *prompts, uint32_t n,
	      struct kvc_turn *turns);

/* Compute a chunk once; id names it. Returns its tokens, or -errno. */
int kvc_chunk_put(struct kvc *c, const char *model, const char *text,
		  size_t len, uint64_t id[2]);
int kvc_chunk_rm(struct kvc *c, const uint64_t id[2]);
/* Token ids of text: returns how many, at most max are written. */
int kvc_tokenize(struct kvc *c, const char *model, const char *text, size_t len,
		 uint32_t *out, size_t max);
int kvc_detokenize(struct kvc *c, const char *model, const uint32_t *tokens,
		   size_t n, char *out, size_t max);

/*
 * Wait until everything that this tenant can reuse now (prefixes and chunks) is on
 * stable media: it will be found after a crash of the daemon or of the host. 0;
 * -ENOSPC or -EIO: not all of it is; -ENOTSUP the tenant has persist = no.
 */
int kvc_persist(struct kvc *c);

/* Ask the daemon (see struct kv_query). *out is malloc'ed, NUL-terminated. */
int kvc_query(struct kvc *c, const char *what, const char *arg, char **out);

#ifdef __cplusplus
}
#endif
#endif
