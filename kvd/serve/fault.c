/*
 * fault.c - a page fault of a client on what it has mapped
 *
 *   fault -> resident: hold ------------------------------> JOB -> end
 *         -> not: LINE (a reservation) -> WANT (the pager) -> JOB -> end
 *         -> cannot be read: JOB (poison) -> end
 *
 *  (1) The file's pages are mapped into the client (CONTINUE) only while they are
 *      resident and pinned: a page that is being filled is never seen. A page that
 *      is dropped afterwards is taken out of the client by the punched hole.
 *  (2) There is one fault on its way per page. Who touches the page meanwhile is
 *      woken with it; if it is told after the job began, the fault runs again.
 *  (3) A fault on its way is a request of the session, so the session outlives it.
 *  (4) A session with more of them than a process has threads does not wait for its pages:
 *      it leaves its faults (by a signal, say), and ends.
 *
 * Loop thread. The calls into the client's memory are made by uffd.c's thread.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/clock.h"
#include "kvd/base/log.h"
#include "kvd/serve/map.h"

#define AHEAD_BYTES  (2u << 20) /* of resident pages mapped behind a fault */
#define READ_BYTES   (4u << 20) /* most that a fault brings in */
#define RETRY_NS     10000000u
#define N_RETRIES    500u /* five seconds without room: as good as lost */
#define OVERTAKE_MAX 64u /* faults that go before a request in line */
#define FAULTS_MAX   4096u /* on their way, of a session: (4) */

struct fault {
	struct list node; /* of the session's */
	struct list of_map;
	struct segmap *map;
	struct waiter waiter;
	struct page_want want;
	struct page_run run;
	struct uffd_job job;
	struct loop_timer timer;
	uint64_t reserved, start_ns;
	uint32_t held; /* pages of page_hold(), from run.first on */
	uint32_t n_retries;
	enum { FAULT_LINE, FAULT_WANT, FAULT_JOB, FAULT_REST } state;
	int again; /* (2) */
	int is_spare;
};

static void fault_begin(struct fault *f);
static void poison(struct fault *f);
static void wake_all(struct fault *f);

/* ---- the end of a fault ------------------------------------------------------------ */

static void fault_free(struct fault *f)
{
	struct segmap *m = f->map;
	struct session_maps *sm = m->of;
	struct serve_session *ss = sm->ss;

	list_del(&f->node);
	list_del(&f->of_map);
	if (f->is_spare)
		sm->spare = f;
	else
		free(f);
	m->n_faults--;
	sm->n_faults--;
	segmap_look_gone(m);
	maps_look_closed(sm);
	session_request_end(ss); /* the last: it may free all of them */
}

static void give_back(struct fault *f)
{
	struct serve_tenant *t = f->map->of->ss->tenant;

	if (f->held)
		page_let_go(f->run.range, f->run.first, f->held);
	else
		page_unpin(t->pager, &f->run, 1);
	f->held = 0;
}

static void unreserve(struct fault *f)
{
	struct serve_tenant *t = f->map->of->ss->tenant;

	if (!f->reserved)
		return;
	pager_unreserve(t->pager, f->reserved);
	f->reserved = 0;
	tenant_kick(t);
}

/* Nobody waits for it any more. In FAULT_JOB it ends by itself. */
static void fault_cancel(struct fault *f)
{
	struct serve_tenant *t = f->map->of->ss->tenant;

	if (f->state == FAULT_JOB)
		return;
	if (f->state == FAULT_LINE)
		list_del(&f->waiter.node);
	else if (f->state == FAULT_WANT)
		page_want_cancel(t->pager, &f->want);
	else
		loop_timer_cancel(t->serve->loop, &f->timer);
	unreserve(f);
	tenant_kick(t); /* nobody may be left who waits */
	fault_free(f);
}

/* A poor moment: again in a while. */
static void fault_rest(struct fault *f)
{
	struct serve *s = f->map->of->ss->tenant->serve;

	f->state = FAULT_REST;
	loop_timer_set(s->loop, &f->timer, clock_ns() + RETRY_NS);
}

static void cannot_poison(struct fault *f)
{
	struct session_maps *sm = f->map->of;

	if (!sm->closing && !f->map->gone)
		sm->events->lost(sm->events, f->job.addr, f->job.n_bytes);
}

/* What the client is left with: the kernel's answer is of no use to it. */
static int worth_retrying(struct fault *f, int ret)
{
	return ret && ret != -ENOENT && ret != -ESRCH && !f->map->gone &&
	       !f->map->of->closing;
}

/* 1: f goes on. */
static int after_job(struct fault *f, enum uffd_kind kind, int ret)
{
	struct segmap *m = f->map;
	struct tenant_maps *tm = &m->of->ss->tenant->maps;

	if (kind == UFFD_POISON) {
		stat_add(tm->st_poisoned, 1);
		if (worth_retrying(f, ret))
			cannot_poison(f);
		return 0;
	}
	if (kind != UFFD_WAKE) {
		give_back(f);
		unreserve(f);
	}
	if (f->run.n > 1 && worth_retrying(f, ret) && kind != UFFD_WAKE) {
		wake_all(f);
		return 1;
	}
	f->run.n = 1;
	if (worth_retrying(f, ret)) {
		log_debug("map", "session %u: map %u: %s", m->of->ss->id, m->id,
			  strerror(-ret));
		if (f->n_retries++ < N_RETRIES)
			fault_rest(f);
		else
			poison(f);
		return 1;
	}
	stat_add(tm->st_resolved, !ret && kind != UFFD_WAKE);
	if (!f->again || m->gone || m->of->closing)
		return 0;
	f->again = 0;
	f->start_ns = clock_ns();
	fault_begin(f);
	return 1;
}

static void job_done(struct uffd_job *j)
{
	struct fault *f = container_of(j, struct fault, job);
	struct stat *st = f->map->of->ss->tenant->maps.st_ns;
	const uint64_t ns = clock_ns() - f->start_ns;

	if (after_job(f, j->kind, j->ret))
		return;
	stat_observe(st, ns);
	fault_free(f);
}

/* ---- a fault on its way --------------------------------------------------------------- */

static void start_job(struct fault *f, enum uffd_kind kind, uint32_t n_must)
{
	const struct segmap *m = f->map;
	const size_t page = m->seg->layout.page_bytes;

	f->state = FAULT_JOB;
	f->job = (struct uffd_job){
		.done = job_done,
		.peer = &f->map->of->peer,
		.kind = kind,
		.addr = m->addr + f->run.first * page,
		.n_bytes = n_must * page,
		.src = range_addr(m->seg->range) + f->run.first * page,
	};
	if (kind == UFFD_CONTINUE || kind == UFFD_COPY)
		f->job.n_ahead =
			((f->held ? f->held : f->run.n) - n_must) * page;
	uffd_start(&f->job);
}

static void resolve(struct fault *f)
{
	/* others may wait for any page that was wanted, (2) */
	start_job(f, f->map->copy ? UFFD_COPY : UFFD_CONTINUE,
		  f->held ? 1 : f->run.n);
}

static void poison(struct fault *f)
{
	f->run.n = 1;
	start_job(f, UFFD_POISON, 1);
}

/*
 * Not all of a run could be had. Others may wait for any page of it: who does is told
 * again, one page at a time (the next fault is not where the last run ended).
 */
static void wake_all(struct fault *f)
{
	start_job(f, UFFD_WAKE, f->run.n);
}

static void rest_over(struct loop_timer *t)
{
	fault_begin(container_of(t, struct fault, timer));
}

/* It did not come. Alone it may still be had; without room later. */
static void fault_failed(struct fault *f, int err)
{
	unreserve(f);
	if (f->run.n > 1) {
		wake_all(f);
	} else if ((err == -ENOSPC || err == -ENOMEM) &&
		   f->n_retries++ < N_RETRIES) {
		fault_rest(f);
	} else {
		log_warn("map", "session %u: map %u, page %u: %s, poisoned",
			 f->map->of->ss->id, f->map->id, f->run.first,
			 strerror(-err));
		poison(f);
	}
}

static void want_done(struct wait *w, int ret)
{
	struct fault *f = container_of(w, struct fault, want.wait);

	if (ret)
		fault_failed(f, ret);
	else
		resolve(f);
}

/* With a reservation for run. */
static void fault_want(struct fault *f)
{
	int ret;

	f->state = FAULT_WANT;
	f->want = (struct page_want){ .wait.done = want_done,
				      .runs = &f->run,
				      .n_runs = 1 };
	list_init(&f->want.node);
	list_init(&f->want.call.node);
	f->map->next = f->run.first + f->run.n;
	ret = page_want(f->map->of->ss->tenant->pager, &f->want);
	if (ret > 0)
		resolve(f);
	else if (ret < 0)
		fault_failed(f, ret);
}

/* As many pages as the window says and can be had now, at least one. */
static int fault_reserve(struct fault *f)
{
	struct pager *pager = f->map->of->ss->tenant->pager;
	const size_t page = f->map->seg->layout.page_bytes;
	int ret;

	if (f->run.n * page > pager_reservable(pager))
		f->run.n = 1;
	ret = pager_reserve(pager, f->run.n * page);
	if (!ret)
		f->reserved = f->run.n * page;
	return ret;
}

static int fault_retry(struct waiter *w)
{
	struct fault *f = container_of(w, struct fault, waiter);
	int ret = fault_reserve(f);

	if (ret == -EAGAIN)
		return ret;
	list_del(&w->node);
	if (ret)
		fault_failed(f, ret);
	else
		fault_want(f);
	return 0;
}

/* Who goes on where it stopped gets more and more at once. */
static void set_window(struct fault *f)
{
	struct segmap *m = f->map;
	const uint32_t n_pages = range_n_pages(m->seg->range);
	const size_t page = m->seg->layout.page_bytes;
	const uint64_t part = pager_memory_bytes(m->of->ss->tenant->pager) / 8;
	const uint64_t most = KV_MAX(KV_MIN(READ_BYTES, part) / page, 1u);

	if (m->next && f->run.first == m->next)
		m->window = (uint32_t)KV_MIN(2ull * m->window, most);
	else
		m->window = 1;
	f->run.n = KV_MIN(m->window, n_pages - f->run.first);
}

/*
 * Get a reservation: before all others in line, since it is small and short; but
 * not for ever, or a request that needs all memory would never have its turn.
 */
static void fault_line(struct fault *f)
{
	struct serve_tenant *t = f->map->of->ss->tenant;

	f->state = FAULT_LINE;
	f->waiter.retry = fault_retry;
	if (list_empty(&t->waiting))
		t->maps.n_overtaken = 0;
	else if (t->maps.n_overtaken++ >= OVERTAKE_MAX) {
		tenant_wait(t, &f->waiter);
		tenant_kick(t); /* who stands before it may let it pass */
		return;
	}
	if (fault_retry(&f->waiter) == -EAGAIN)
		tenant_wait_front(t, &f->waiter);
}

/* Bring run.first to the client. */
static void fault_begin(struct fault *f)
{
	struct segmap *m = f->map;
	const size_t page = m->seg->layout.page_bytes;

	f->run.range = m->seg->range;
	f->held = page_hold(f->run.range, f->run.first,
			    (uint32_t)KV_MAX(AHEAD_BYTES / page, 1u));
	if (f->held) {
		resolve(f);
		return;
	}
	if (!f->run.n)
		set_window(f);
	fault_line(f);
}

/* The fault that is on its way for this page, or NULL. */
static struct fault *on_its_way(struct segmap *m, uint32_t page)
{
	list_for_each(n, &m->faults) {
		struct fault *f = list_entry(n, struct fault, of_map);

		if (page - f->run.first < KV_MAX(f->run.n, 1u))
			return f;
	}
	return NULL;
}

struct fault *fault_new(void)
{
	return calloc(1, sizeof(struct fault));
}

/* One of a session can be had without memory. */
static struct fault *fault_get(struct session_maps *sm)
{
	struct fault *f = fault_new();

	if (f || !sm->spare)
		return f;
	f = sm->spare;
	sm->spare = NULL;
	*f = (struct fault){ .is_spare = 1 };
	return f;
}

void fault_told(struct uffd_peer *p, uint64_t addr, uint64_t read_ns)
{
	struct session_maps *sm = container_of(p, struct session_maps, peer);
	struct segmap *m = segmap_at(sm, addr);
	struct fault *f;
	uint32_t page;

	if (!m)
		return; /* not ours, or unmapped meanwhile */
	page = (uint32_t)((addr - m->addr) / m->seg->layout.page_bytes);
	f = on_its_way(m, page);
	if (f) {
		f->again |= f->state == FAULT_JOB && page == f->run.first;
		if (f->state != FAULT_JOB || page == f->run.first)
			return;
	}
	f = sm->n_faults < FAULTS_MAX ? fault_get(sm) : NULL;
	if (!f) {
		log_warn("map", "session %u: %s", sm->ss->id,
			 sm->n_faults < FAULTS_MAX ? "no memory for a fault"
						   : "too many faults");
		sm->events->broken(sm->events);
		return;
	}
	f->map = m;
	f->start_ns = read_ns;
	f->run.first = page;
	f->timer.run = rest_over;
	list_init(&f->timer.node);
	list_init(&f->waiter.node);
	list_init(&f->node);
	list_push(&sm->faults, &f->node);
	list_push(&m->faults, &f->of_map);
	m->n_faults++;
	sm->n_faults++;
	session_request_begin(sm->ss);
	stat_add(sm->ss->tenant->maps.st_faults, 1);
	fault_begin(f);
}

void fault_cancel_map(struct segmap *m)
{
	m->n_faults++; /* ours, so that the last fault's end does not free it */
	list_for_each_safe(n, &m->faults)
		fault_cancel(list_entry(n, struct fault, of_map));
	m->n_faults--;
}

void fault_check(const struct session_maps *sm, struct map_sums *s)
{
	const uint32_t before = s->n_faults;

	list_for_each(n, &sm->faults) {
		const struct fault *f = list_entry(n, struct fault, node);
		const size_t page = f->map->seg->layout.page_bytes;

		assert(f->state == FAULT_WANT || f->state == FAULT_JOB ||
		       (!f->reserved && !f->held));
		assert(!f->held || !f->reserved);
		s->n_faults++;
		s->reserved += f->reserved;
		s->held += f->held * page;
	}
	assert(s->n_faults - before == sm->n_faults);
}
