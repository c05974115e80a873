/*
 * persist.c - queue, jobs, the blob of a record; see persist.h
 */
#include "kvd/cache/persist.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/clock.h"
#include "kvd/base/log.h"
#include "kvd/base/stat.h"
#include "kvd/cache/blob.h"

#define N_JOBS	  16u /* with a waiter */
#define LOG_EVERY 1000u
#define LAZY_NS	  20000000u /* a segment is likely to be followed by others */
#define MISSED_NS 500000000u /* from look to look whether a disk answers */

enum { NONE, QUEUED, BUSY, DURABLE };

struct job {
	struct range_persist rp;
	struct persist *persist;
	struct segment *seg; /* a reference; NULL: free */
	void *meta;
};

struct persist {
	struct persist_conf conf;
	char tenant[64];
	struct list queue; /* segment.persist.node, in order of turn */
	struct list waits;
	struct job jobs[N_JOBS];
	uint32_t n_busy;
	uint64_t turn;
	int stopped;
	int missed; /* some were not made durable as a disk is silent: they will be */
	struct loop_timer timer; /* set while something is left to do */
	struct persist_info info;
	struct stat *st_durable, *st_failed, *st_adopted, *st_bytes;
};

/* ---- the blob -------------------------------------------------------------- */

static uint16_t kind_of(const struct segment *s)
{
	return s->is_chunk     ? KIND_CHUNK
	       : s->is_variant ? KIND_VARIANT
			       : KIND_PREFIX;
}

static void *append(void *at, const void *from, size_t n)
{
	if (n)
		memcpy(at, from, n);
	return (char *)at + n;
}

static void append_variant(void *at, const struct variant_table *t,
			   const struct segment *s)
{
	const struct variant *v = s->variant;
	const struct blob_variant b = {
		.ctx = { v->ctx.w[0], v->ctx.w[1] },
		.frame = { v->frame.w[0], v->frame.w[1] },
		.value = variant_value(t, v),
		.cci = v->cci,
		.depth = v->depth,
	};

	at = append(at, v->prefix, v->n_prefix * sizeof(*v->prefix));
	at = append(at, &b, sizeof(b));
	at = append(at, v->inter, v->n_prefix * sizeof(*v->inter));
	(void)append(at, v->score, s->n_tokens * sizeof(*v->score));
}

static void *blob_new(const struct persist *p, const struct segment *s,
		      size_t *n_bytes)
{
	const uint16_t kind = kind_of(s);
	const uint32_t n_ids = kind == KIND_CHUNK     ? 0
			       : kind == KIND_VARIANT ? s->variant->n_prefix
						      : blob_tiles(s->n_tokens);
	struct blob *b = calloc(1, blob_bytes(kind, s->n_tokens, n_ids));
	const struct map_id id = kind == KIND_VARIANT ? s->variant->chunk
						      : s->chunk_id;
	void *at = b + 1;

	if (!b)
		return NULL;
	*b = (struct blob){
		.magic = BLOB_MAGIC,
		.version = BLOB_VERSION,
		.kind = kind,
		.n_layers = s->layout.n_layers,
		.n_kv_heads = s->layout.n_kv_heads,
		.head_dim = s->layout.head_dim,
		.elem_bytes = s->layout.elem_bytes,
		.page_tokens = s->layout.page_tokens,
		.page_layers = s->layout.page_layers,
		.n_tokens = s->n_tokens,
		.n_ids = n_ids,
		.pos0 = s->pos0,
		.chunk_id = { id.w[0], id.w[1] },
		.n_hits = s->n_hits,
	};
	memcpy(b->tenant, p->tenant, sizeof(b->tenant));
	at = append(at, s->tokens, s->n_tokens * sizeof(uint32_t));
	if (kind == KIND_VARIANT)
		append_variant(at, p->conf.variants, s);
	else
		(void)append(at, s->ids, n_ids * sizeof(struct map_id));
	*n_bytes = blob_bytes(kind, s->n_tokens, n_ids);
	blob_sum(b, b + 1, *n_bytes - sizeof(*b), b->sum);
	return b;
}

int persist_record_sound(const struct kio_record *r)
{
	struct blob b;

	return !blob_head(r, &b) && blob_sound(r, &b);
}

const char *persist_record_tenant(const struct kio_record *r, size_t *len)
{
	struct blob b;

	if (blob_head(r, &b))
		return NULL;
	*len = strlen(b.tenant);
	return (const char *)r->meta + offsetof(struct blob, tenant);
}

/* ---- waiters ------------------------------------------------------------------ */

/* The oldest turn that has not ended. */
static uint64_t oldest(struct persist *p)
{
	const struct list *n = list_first(&p->queue);
	uint64_t turn = UINT64_MAX;

	if (n)
		turn = list_entry(n, struct segment, persist.node)
			       ->persist.turn;
	for (uint32_t i = 0; i < N_JOBS; i++)
		if (p->jobs[i].seg)
			turn = KV_MIN(turn, p->jobs[i].seg->persist.turn);
	return turn;
}

static void tell_waits(struct persist *p)
{
	const uint64_t turn = oldest(p);

	list_for_each_safe(n, &p->waits) {
		struct persist_wait *w =
			list_entry(n, struct persist_wait, node);

		if (w->turn >= turn)
			continue;
		list_del(n);
		w->wait.done(&w->wait, w->ret);
	}
}

static void note_error(struct persist *p, int err)
{
	list_for_each(n, &p->waits) {
		struct persist_wait *w =
			list_entry(n, struct persist_wait, node);

		if (!w->ret)
			w->ret = err;
	}
}

/* ---- jobs ---------------------------------------------------------------------- */

static void start_jobs(struct persist *p);

static struct pager *pager_of(const struct persist *p)
{
	return segment_pool_pager(p->conf.pool);
}

static int is_indexed(const struct segment *s)
{
	return s->is_chunk || s->is_variant || s->n_indexed;
}

/* It is in no line, and not durable. */
static void set_volatile(struct persist *p, struct segment *s)
{
	s->persist.state = NONE;
	list_del(&s->persist.node);
	list_push(segment_volatiles(p->conf.pool), &s->persist.node);
}

static void job_failed(struct persist *p, int err)
{
	p->info.n_failed++;
	stat_add(p->st_failed, 1);
	note_error(p, err);
	if (p->info.n_failed % LOG_EVERY == 1)
		log_warn("persist", "%s: a segment is not durable: %s",
			 p->tenant, strerror(-err));
}

static void job_done(struct wait *w, int ret)
{
	struct job *j = container_of(
		container_of(w, struct range_persist, wait), struct job, rp);
	struct persist *p = j->persist;
	struct segment *s = j->seg;

	if (!ret) {
		s->persist.state = DURABLE;
		stat_add(p->st_durable, 1);
		stat_add(p->st_bytes, s->bytes);
	} else {
		set_volatile(p, s);
		job_failed(p, ret);
		p->missed |= p->conf.automatic && pager_any_silent(pager_of(p));
	}
	free(j->meta);
	j->meta = NULL;
	j->seg = NULL;
	p->n_busy--;
	segment_put(s);
	if (p->conf.let_go)
		p->conf.let_go(p->conf.ctx);
	start_jobs(p);
}

static struct map_id main_id(const struct segment *s)
{
	const struct variant *v = s->variant;

	switch (kind_of(s)) {
	case KIND_CHUNK:
		return s->chunk_id;
	case KIND_VARIANT: /* this chunk, there */
		return (struct map_id){ { v->chunk.w[0] ^ v->ctx.w[1],
					  v->chunk.w[1] ^ v->ctx.w[0] } };
	default:
		return s->ids[blob_tiles(s->n_tokens) - 1];
	}
}

/* Names the content: the ids do, and the tenant, as ids are per tenant. */
static void job_key(const struct persist *p, const struct segment *s,
		    uint64_t key[2])
{
	const struct map_id id = main_id(s);
	uint64_t h = 0xcbf29ce484222325u; /* FNV-1a of the name */

	for (const char *c = p->tenant; *c; c++)
		h = (h ^ (unsigned char)*c) * 0x100000001b3u;
	key[0] = id.w[0] ^ h;
	key[1] = id.w[1] ^
		 (kind_of(s) == KIND_PREFIX ? blob_tiles(s->n_tokens) : 0);
}

void *persist_record_new(const struct persist *p, const struct segment *s,
			 size_t *n_bytes, uint64_t key[2])
{
	job_key(p, s, key);
	return blob_new(p, s, n_bytes);
}

static int job_start(struct job *j, struct segment *s)
{
	struct persist *p = j->persist;
	int ret;

	j->meta = persist_record_new(p, s, &j->rp.meta_bytes, j->rp.key);
	if (!j->meta)
		return -ENOMEM;
	j->rp.meta = j->meta;
	j->rp.range = s->range;
	j->rp.wait.done = job_done;
	ret = range_persist(&j->rp);
	if (ret) {
		free(j->meta);
		j->meta = NULL;
		return ret;
	}
	segment_get(s);
	list_del(&s->persist.node);
	s->persist.state = BUSY;
	j->seg = s;
	p->n_busy++;
	return 0;
}

static struct job *free_job(struct persist *p)
{
	for (uint32_t i = 0; i < N_JOBS; i++)
		if (!p->jobs[i].seg)
			return &p->jobs[i];
	return NULL;
}

/* Lazily: one at a time, and nothing while somebody waits for room. */
static int may_start(const struct persist *p)
{
	if (p->stopped)
		return 0;
	if (!list_empty(&p->waits))
		return p->n_busy < N_JOBS;
	return !p->n_busy && !pager_starved(pager_of(p));
}

static void kick(struct persist *p)
{
	const uint64_t delay = !list_empty(&p->waits)  ? 0
			       : list_empty(&p->queue) ? MISSED_NS
						       : LAZY_NS;

	loop_timer_set(p->conf.loop, &p->timer, clock_ns() + delay);
}

static void start_jobs(struct persist *p)
{
	struct list *n;

	while (may_start(p) && (n = list_first(&p->queue))) {
		struct segment *s = list_entry(n, struct segment, persist.node);
		int ret = -ENOENT;

		set_volatile(p, s);
		if (is_indexed(s))
			ret = job_start(free_job(p), s);
		if (ret && ret != -ENOENT)
			job_failed(p, ret);
	}
	tell_waits(p);
	if ((!list_empty(&p->queue) || p->missed) && !p->n_busy && !p->stopped)
		kick(p);
}

/* ---- calls ------------------------------------------------------------------------ */

static void enqueue(struct persist *p, struct segment *s)
{
	s->persist.state = QUEUED;
	s->persist.turn = ++p->turn;
	list_del(&s->persist.node);
	list_push(&p->queue, &s->persist.node);
}

/* What nobody queued, or what failed before. */
static void queue_missing(struct persist *p)
{
	list_for_each_safe(n, segment_volatiles(p->conf.pool)) {
		struct segment *s = list_entry(n, struct segment, persist.node);

		if (is_indexed(s) && !range_lost(s->range))
			enqueue(p, s);
	}
}

static void timer_run(struct loop_timer *t)
{
	struct persist *p = container_of(t, struct persist, timer);

	if (p->missed && !pager_any_silent(pager_of(p))) {
		p->missed = 0;
		queue_missing(p);
	}
	start_jobs(p);
}

static int has_store(const struct persist *p)
{
	return pager_durable(pager_of(p));
}

void persist_add(struct persist *p, struct segment *s)
{
	if (!p->conf.automatic || p->stopped || !has_store(p) ||
	    !is_indexed(s) || s->persist.state != NONE)
		return;
	enqueue(p, s);
	kick(p);
}

void persist_again(struct persist *p, struct segment *s)
{
	if (s->persist.state == DURABLE)
		set_volatile(p, s);
	persist_add(p, s);
}

int persist_wait(struct persist *p, struct persist_wait *w)
{
	if (!has_store(p))
		return -ENOTSUP;
	if (p->stopped)
		return -ESHUTDOWN;
	queue_missing(p);
	if (list_empty(&p->queue) && !p->n_busy)
		return 1;
	w->turn = p->turn;
	w->ret = 0;
	list_init(&w->node);
	list_push(&p->waits, &w->node);
	kick(p);
	return 0;
}

void persist_wait_cancel(struct persist_wait *w)
{
	list_del(&w->node);
}

void persist_stop(struct persist *p)
{
	struct list *n;

	p->stopped = 1;
	loop_timer_cancel(p->conf.loop, &p->timer);
	while ((n = list_first(&p->queue)))
		set_volatile(p, list_entry(n, struct segment, persist.node));
	while ((n = list_pop(&p->waits))) {
		struct persist_wait *w =
			list_entry(n, struct persist_wait, node);

		w->wait.done(&w->wait, -ECANCELED);
	}
}

int persist_idle(const struct persist *p)
{
	return !p->n_busy;
}

/* ---- a restart --------------------------------------------------------------------- */

static int sound(const float *f, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!(f[i] >= 0 && f[i] <= 1e6f))
			return 0;
	return 1;
}

/* What a variant says of itself; nothing of it is trusted. */
static int read_variant(struct variant *v, const struct blob *b,
			const char *data)
{
	struct blob_variant bv;

	memcpy(v->prefix, data, b->n_ids * sizeof(*v->prefix));
	data += b->n_ids * sizeof(*v->prefix);
	memcpy(&bv, data, sizeof(bv));
	data += sizeof(bv);
	memcpy(v->inter, data, b->n_ids * sizeof(*v->inter));
	data += b->n_ids * sizeof(*v->inter);
	memcpy(v->score, data, b->n_tokens * sizeof(*v->score));
	v->chunk = (struct map_id){ { b->chunk_id[0], b->chunk_id[1] } };
	v->ctx = (struct map_id){ { bv.ctx[0], bv.ctx[1] } };
	v->frame = (struct map_id){ { bv.frame[0], bv.frame[1] } };
	v->depth = bv.depth;
	v->cci = bv.cci;
	v->value = bv.value;
	if (!(bv.cci >= 0 && bv.cci <= 1) ||
	    !(bv.value >= 0 && bv.value <= 1e12) || bv.depth > 255 ||
	    !sound(v->inter, b->n_ids) || !sound(v->score, b->n_tokens))
		return -EINVAL;
	return 0;
}

static int adopt_variant(struct persist *p, struct segment *s,
			 const struct blob *b, const char *data)
{
	struct variant *v = variant_new(b->n_ids, b->n_tokens);
	int ret;

	if (!v)
		return -ENOMEM;
	ret = read_variant(v, b, data);
	/* nothing goes for it: the store is being opened */
	if (!ret && !variant_room(p->conf.variants, v->chunk))
		ret = -EDQUOT;
	if (ret) {
		variant_free(v);
		return ret;
	}
	return variant_add(p->conf.variants, s, v);
}

static int adopt_chunk(struct persist *p, struct segment *s,
		       const struct blob *b)
{
	const struct map_id id = { { b->chunk_id[0], b->chunk_id[1] } };

	if (!chunk_room(p->conf.chunks))
		return -EDQUOT; /* as above */
	return chunk_add(p->conf.chunks, s, id);
}

static int adopt_index(struct persist *p, struct segment *s,
		       const struct blob *b, const char *data)
{
	const size_t token_bytes = b->n_tokens * sizeof(uint32_t);
	int ret;

	memcpy(s->tokens, data, token_bytes);
	if (b->kind == KIND_VARIANT)
		return adopt_variant(p, s, b, data + token_bytes);
	if (b->kind == KIND_CHUNK)
		return adopt_chunk(p, s, b);
	memcpy(segment_ids(s), data + token_bytes, b->n_ids * sizeof(*s->ids));
	ret = prefix_add(p->conf.prefix, s, segment_ids(s));
	if (!ret && !s->n_indexed)
		ret = -EALREADY;
	return ret;
}

/* What became of it since its record was written. */
static void claim_uses(struct persist *p, struct segment *s)
{
	struct use_entry *e = NULL;
	uint64_t key[2];

	job_key(p, s, key);
	if (p->conf.uses && kind_of(s) != KIND_PREFIX)
		e = uses_find(p->conf.uses, key);
	if (!e || e->n_hits == PERSIST_CLAIMED)
		return;
	if (e->n_hits >= s->n_hits && e->value > 0) {
		s->n_hits = e->n_hits;
		if (s->is_variant)
			variant_set_value(p->conf.variants, s->variant,
					  e->value);
		else
			chunk_set_value(p->conf.chunks, s, e->value);
	}
	e->n_hits = PERSIST_CLAIMED;
}

struct uses_of {
	struct persist *persist;
	struct uses *uses;
	int ret;
};

static void add_uses(struct segment *s, void *arg)
{
	struct uses_of *o = arg;
	const struct persist_conf *c = &o->persist->conf;
	struct use_entry e = { .n_hits = s->n_hits };

	if (o->ret)
		return;
	job_key(o->persist, s, e.key);
	e.value = s->is_chunk ? chunk_value(c->chunks, s)
			      : variant_value(c->variants, s->variant);
	o->ret = uses_add(o->uses, &e);
}

int persist_uses(struct persist *p, struct uses *u)
{
	struct uses_of o = { p, u, 0 };

	const struct map *m = &p->conf.chunks->map;

	for (uint64_t i = 0; i < m->n_slots; i++)
		if (m->slots[i].value)
			add_uses(m->slots[i].value, &o);
	variant_each(p->conf.variants, add_uses, &o);
	return o.ret;
}

int persist_adopt(struct persist *p, uint32_t i_disk,
		  const struct kio_record *r)
{
	struct kv_layout g;
	struct segment *s;
	struct range *range;
	struct blob b;
	int ret;

	if (blob_head(r, &b) || !blob_sound(r, &b))
		return -EINVAL;
	ret = blob_layout(&b, r, pager_page_align(pager_of(p)), &g);
	if (!ret)
		ret = range_adopt(pager_of(p), i_disk, r, &range);
	if (ret)
		return ret;
	ret = segment_adopt(p->conf.pool, &g, b.n_tokens, b.pos0,
			    b.kind == KIND_PREFIX ? b.n_ids : 0, range, &s);
	if (ret) {
		range_disown(range);
		return ret;
	}
	ret = adopt_index(p, s, &b, (const char *)r->meta + sizeof(b));
	if (ret) {
		if (is_indexed(s))
			s->unindex(s, s->unindex_ctx);
		range_disown(segment_disown(s));
		return ret;
	}
	s->n_hits = b.n_hits;
	claim_uses(p, s);
	s->persist.state = DURABLE;
	segment_put(s);
	p->info.n_adopted++;
	stat_add(p->st_adopted, 1);
	return 0;
}

/* ---- start, end, what there is -------------------------------------------------------- */

int persist_new(struct persist **out, const struct persist_conf *conf)
{
	struct persist *p;

	if (strlen(conf->tenant) >= sizeof(p->tenant))
		return -EINVAL;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	p->conf = *conf;
	strcpy(p->tenant, conf->tenant);
	list_init(&p->queue);
	list_init(&p->waits);
	list_init(&p->timer.node);
	p->timer.run = timer_run;
	for (uint32_t i = 0; i < N_JOBS; i++)
		p->jobs[i].persist = p;
	p->st_durable = stat_get(STAT_COUNTER, "kvd_segments_persisted_total",
				 "Segments made durable", "tenant", p->tenant,
				 1);
	p->st_bytes = stat_get(STAT_COUNTER, "kvd_persisted_bytes_total",
			       "Bytes of segments made durable", "tenant",
			       p->tenant, 1);
	p->st_failed = stat_get(STAT_COUNTER, "kvd_persist_errors_total",
				"Segments that could not be made durable",
				"tenant", p->tenant, 1);
	p->st_adopted = stat_get(STAT_COUNTER, "kvd_segments_restored_total",
				 "Durable segments found at start", "tenant",
				 p->tenant, 1);
	*out = p;
	return 0;
}

void persist_free(struct persist *p)
{
	if (!p)
		return;
	persist_stop(p);
	assert(persist_idle(p));
	pager_keep_records(pager_of(p));
	free(p);
}

static void count_left(struct segment *s, void *arg)
{
	struct persist_left *l = arg;

	if (!range_durable(s->range) && s->sealed && is_indexed(s) &&
	    !range_lost(s->range)) {
		l->n++;
		l->bytes += s->bytes;
	}
}

struct persist_left persist_left(const struct persist *p)
{
	struct persist_left l = { 0, 0 };

	segment_each(p->conf.pool, count_left, &l);
	return l;
}

void persist_info(const struct persist *p, struct persist_info *out)
{
	struct pager_info i;

	pager_info(segment_pool_pager(p->conf.pool), &i);
	*out = p->info;
	out->n_durable = i.n_durable;
	out->durable_bytes = i.durable_bytes;
	out->n_queued = p->n_busy;
	list_for_each(n, (struct list *)&p->queue)
		out->n_queued++;
}

static void check_place(struct segment *s, void *arg)
{
	(void)arg;
	assert((s->sealed && s->persist.state <= QUEUED) !=
	       list_empty(&s->persist.node));
}

void persist_check(const struct persist *p)
{
	uint32_t n_busy = 0;

	segment_each(p->conf.pool, check_place, NULL);
	list_for_each(n, segment_volatiles(p->conf.pool)) {
		assert(list_entry(n, struct segment, persist.node)
			       ->persist.state == NONE);
	}

	list_for_each(n, (struct list *)&p->queue) {
		const struct segment *s =
			list_entry(n, struct segment, persist.node);

		assert(s->sealed && s->persist.state == QUEUED);
	}
	for (uint32_t i = 0; i < N_JOBS; i++) {
		const struct segment *s = p->jobs[i].seg;

		n_busy += !!s;
		assert(!s ||
		       (s->sealed && s->n_refs && s->persist.state == BUSY));
	}
	assert(n_busy == p->n_busy);
}
