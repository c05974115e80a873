/*
 * persist.c - the stores, what survives a restart, and who waits for it
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "io/sys.h"
#include "kvd/base/clock.h"
#include "kvd/base/log.h"
#include "kvd/mem/clean.h"
#include "kvd/mem/scrub.h"
#include "kvd/serve/keeper.h"
#include "kvd/serve/tenant.h"

#define IO_DEPTH    64u
#define FLUSH_NS    5000000000u /* of the stop */
#define SLACK_BYTES (64ull << 20)
#define BUSY_TRIES  100
#define BUSY_US	    20000u

/* ---- stores ----------------------------------------------------------------- */

static int any_durable(const struct conf *c)
{
	for (uint32_t i = 0; i < c->n_tenants; i++)
		if (c->tenants[i].persist != CONF_PERSIST_NO)
			return 1;
	return 0;
}

/* Room for the disk pool, for zones that are only partly used, and for the index. */
static uint64_t default_bytes(const struct conf *c)
{
	const uint64_t sum = c->disk_bytes;

	return KV_ALIGN_UP(sum + sum / 4 + SLACK_BYTES, 1u << 20);
}

/*
 * Two daemons would write each other's statistics away. A directory that is not there, or
 * cannot be locked, is done without, as what lies in it is.
 */
int serve_lock_state(struct serve *s, char *err, size_t err_len)
{
	const char *dir = s->conf->state_dir;
	int fd = dir[0] ? kio_sys_lock_dir(dir) : -ENOENT;

	/* of a daemon that is just being killed */
	for (int k = 0; fd == -EBUSY && k < BUSY_TRIES; k++) {
		(void)usleep(BUSY_US);
		fd = kio_sys_lock_dir(dir);
	}
	if (fd > 0)
		s->state_fd = fd;
	if (fd != -EBUSY)
		return 0;
	(void)snprintf(err, err_len, "state_dir %s: in use by another kvd",
		       dir);
	return fd;
}

int serve_new_stores(struct serve *s)
{
	const struct conf *c = s->conf;
	struct stores_conf sc = {
		.loop = s->loop,
		.kind = KIO_ENGINE_AUTO,
		.depth = IO_DEPTH,
		.n = c->n_stores,
		.scratch = !any_durable(c),
	};
	char path[sizeof(c->state_dir) + 16];

	for (uint32_t i = 0; i < c->n_stores; i++)
		sc.disks[i] = (struct stores_disk_conf){ c->stores[i].path,
							 c->stores[i].bytes };
	if (!sc.n) {
		snprintf(path, sizeof(path), "%s/kvd.store", c->state_dir);
		sc.n = 1;
		sc.disks[0] =
			(struct stores_disk_conf){ path, default_bytes(c) };
	}
	return stores_new(&s->stores, &sc);
}

struct found {
	struct serve *serve;
	uint64_t n_adopted, n_orphans, n_beyond, n_damaged;
};

static struct serve_tenant *record_tenant(struct serve *s, const char *name,
					  size_t len)
{
	for (uint32_t i = 0; name && i < s->n_tenants; i++) {
		const char *n = s->tenants[i]->conf->name;

		if (strlen(n) == len && !memcmp(n, name, len))
			return s->tenants[i];
	}
	return NULL;
}

/*
 * Records of tenants that are not configured (any more), or beyond what they may have
 * now, stay on disk until the room is needed: a mistake in the configuration costs
 * nothing. Only what is there twice is deleted.
 */
static int record_found(void *ctx, uint32_t i_disk, const struct kio_record *r)
{
	struct found *f = ctx;
	size_t len = 0;
	const char *name = persist_record_tenant(r, &len);
	struct serve_tenant *t = record_tenant(f->serve, name, len);
	int ret;

	/* who adopts it looks at its sum: once is enough, a million times */
	ret = t && t->persist ? persist_adopt(t->persist, i_disk, r) : -EINVAL;
	f->n_damaged += ret == -EINVAL && !persist_record_sound(r);
	if (!ret) {
		f->n_adopted++;
		return KIO_RECORD_KEEP;
	}
	if (ret == -EALREADY)
		return KIO_RECORD_DROP;
	f->n_beyond += ret == -EDQUOT;
	f->n_orphans += ret != -EDQUOT;
	return KIO_RECORD_ORPHAN;
}

/* It is made durable again, by whoever has it. */
static void record_lost(void *ctx, uint32_t i_disk, uint64_t handle)
{
	struct serve *s = ctx;

	for (uint32_t i = 0; i < s->n_tenants; i++)
		pager_record_lost(s->tenants[i]->pager, i_disk, handle);
}

static void disk_silent(void *ctx, uint32_t i_disk)
{
	struct serve *s = ctx;

	gen_leave_disk(s, i_disk); /* who waits does so no more */
	for (uint32_t i = 0; i < s->n_tenants; i++)
		pager_leave_disk(s->tenants[i]->pager, i_disk);
}

static int start_cleaner(struct serve *s)
{
	const uint64_t rate = s->conf->clean_bytes;
	int ret;

	if (!rate || !serve_pager_stores(s))
		return 0;
	ret = cleaner_new(&s->cleaner, s->loop, s->stores, rate);
	for (uint32_t i = 0; i < s->n_tenants && !ret; i++)
		cleaner_adopt(s->tenants[i]->pager);
	return ret;
}

int serve_open_stores(struct serve *s, char *err, size_t err_len)
{
	struct found f = { .serve = s };
	int ret = stores_open(s->stores, record_found, &f, err, err_len);

	if (!ret) /* records that are not seen now may be seen again */
		keeper_opened(s->keeper,
			      f.n_orphans + stores_n_missing(s->stores));
	stat_set(stat_get(STAT_GAUGE, "kvd_stores_missing",
			  "Stores that could not be opened at start", NULL,
			  NULL, 1),
		 stores_n_missing(s->stores));

	for (uint32_t i = 0; i < s->n_tenants && !ret && s->conf->scrub_bytes;
	     i++)
		if (s->tenants[i]->conf->disk_bytes)
			ret = scrub_new(&s->tenants[i]->scrub,
					s->tenants[i]->pager,
					s->conf->scrub_bytes);
	if (!ret)
		stores_on_lost(s->stores, record_lost, s);
	if (!ret)
		stores_on_silent(s->stores, 0, disk_silent, s);
	if (!ret)
		ret = start_cleaner(s);
	if (!ret && f.n_damaged)
		log_warn("serve",
			 "%llu records on disk are damaged, or of a newer kvd: "
			 "not used",
			 (unsigned long long)f.n_damaged);
	if (!ret && any_durable(s->conf))
		log_info("serve",
			 "%llu segments found on disk, %llu without a tenant, "
			 "%llu beyond its budget",
			 (unsigned long long)f.n_adopted,
			 (unsigned long long)f.n_orphans,
			 (unsigned long long)f.n_beyond);
	return ret;
}

/* ---- tenants ------------------------------------------------------------------- */

static void let_go(void *ctx)
{
	tenant_kick(ctx);
}

int tenant_open_persist(struct serve_tenant *t)
{
	const struct persist_conf pc = {
		.tenant = t->conf->name,
		.loop = t->serve->loop,
		.pool = t->pool,
		.prefix = &t->prefix,
		.chunks = &t->chunks,
		.variants = &t->variants,
		.uses = keeper_uses(t->serve->keeper),
		.let_go = let_go,
		.ctx = t,
		.automatic = t->conf->persist == CONF_PERSIST_AUTO,
	};

	if (t->conf->persist == CONF_PERSIST_NO || !t->conf->disk_bytes)
		return 0;
	return persist_new(&t->persist, &pc);
}

void tenant_damaged(void *ctx, struct range *r)
{
	struct serve_tenant *t = ctx;
	struct segment *s = segment_over(r);

	if (!s)
		return;
	if (!range_lost(r)) {
		if (t->persist)
			persist_again(t->persist, s);
	} else if (!s->n_refs) {
		segment_forget(s); /* others find out when they read */
	}
}

static void flushed(struct wait *w, int ret)
{
	struct persist_wait *pw = container_of(w, struct persist_wait, wait);

	(void)ret; /* counted and logged by persist */
	container_of(pw, struct serve_tenant, flush)->flushing = 0;
}

static void flush_begin(struct serve_tenant *t)
{
	t->flush.wait.done = flushed;
	t->flushing = t->persist && t->conf->persist == CONF_PERSIST_AUTO &&
		      !persist_wait(t->persist, &t->flush);
}

/* What did not become durable in time, or could not. */
static void flush_end(struct serve_tenant *t)
{
	struct persist_left left;

	if (t->flushing)
		persist_wait_cancel(&t->flush);
	t->flushing = 0;
	if (!t->persist || t->conf->persist != CONF_PERSIST_AUTO)
		return;
	left = persist_left(t->persist);
	if (left.n)
		log_warn(
			"serve",
			"tenant %s: %llu segments, %llu bytes, are not durable: "
			"what needs them computes them again",
			t->conf->name, (unsigned long long)left.n,
			(unsigned long long)left.bytes);
	persist_stop(t->persist);
}

void serve_flush(struct serve *s)
{
	const uint64_t limit_ns = clock_ns() + FLUSH_NS;
	uint32_t n = s->n_tenants;

	for (uint32_t i = 0; i < s->n_tenants; i++)
		flush_begin(s->tenants[i]);
	while (n && clock_ns() < limit_ns) {
		n = 0;
		for (uint32_t i = 0; i < s->n_tenants; i++)
			n += s->tenants[i]->flushing != 0;
		if (n && loop_turn(s->loop, 10) < 0)
			break;
	}
	for (uint32_t i = 0; i < s->n_tenants; i++)
		flush_end(s->tenants[i]);
}

void tenant_close_persist(struct serve_tenant *t)
{
	struct loop *loop = t->serve->loop;

	scrub_free(t->scrub);
	t->scrub = NULL;
	if (!t->persist)
		return;
	persist_stop(t->persist);
	while (!persist_idle(t->persist))
		if (loop_turn(loop, 10) < 0)
			break;
	persist_free(t->persist);
	t->persist = NULL;
}

/* ---- who waits ------------------------------------------------------------------ */

struct call {
	struct persist_wait w;
	struct keeper_wait kept; /* then */
	struct list node;
	struct loop_call cancel;
	struct serve_session *session;
	struct serve_persist *req;
};

static void call_end(struct call *c, int ret)
{
	struct serve_session *ss = c->session;
	struct serve_persist *req = c->req;

	list_del(&c->node);
	free(c);
	req->wait.done(&req->wait, ret);
	session_request_end(ss);
}

static void call_kept(struct wait *w, int ret)
{
	call_end(container_of(container_of(w, struct keeper_wait, wait),
			      struct call, kept),
		 ret);
}

/* The records are there; now what is known of their uses. */
static void call_done(struct wait *w, int ret)
{
	struct call *c = container_of(
		container_of(w, struct persist_wait, wait), struct call, w);
	struct keeper *k = c->session->tenant->serve->keeper;

	if (ret || !k)
		call_end(c, ret);
	else
		keeper_save(k, &c->kept);
}

int serve_persist(struct serve_session *ss, struct serve_persist *p)
{
	struct call *c;
	int ret;

	if (!ss->tenant->persist)
		return -ENOTSUP;
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->w.wait.done = call_done;
	c->kept.wait.done = call_kept;
	list_init(&c->w.node);
	list_init(&c->kept.node);
	c->session = ss;
	c->req = p;
	ret = persist_wait(ss->tenant->persist, &c->w);
	if (ret < 0 || (ret && !ss->tenant->serve->keeper)) {
		free(c);
		return ret;
	}
	list_init(&c->node);
	list_init(&c->cancel.node);
	list_push(&ss->persists, &c->node);
	session_request_begin(ss);
	if (ret) /* they are there already */
		keeper_save(ss->tenant->serve->keeper, &c->kept);
	return 0;
}

static void cancel_turn(struct loop_call *lc)
{
	struct call *c = container_of(lc, struct call, cancel);

	call_end(c, -ECANCELED);
}

void persist_cancel_session(struct serve_session *ss)
{
	list_for_each_safe(n, &ss->persists) {
		struct call *c = list_entry(n, struct call, node);

		persist_wait_cancel(&c->w);
		keeper_cancel(&c->kept);
		list_del(n);
		c->cancel.run = cancel_turn;
		loop_defer(ss->tenant->serve->loop, &c->cancel);
	}
}
