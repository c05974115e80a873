/*
 * map.c - sealed segments in a client's memory; the faults on them are in fault.c
 *
 *  (1) A map is a reference to a segment and an address; it holds no pin and no
 *      reservation. Only a fault on its way does.
 *  (2) An unmapped map stays until the last call into its addresses is over; only
 *      then is the client told, so that it may use them for something else.
 *
 * Loop thread.
 */
#include "kvd/serve/map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/clock.h"
#include "kvd/base/log.h"

#define ADDR_MAX (1ull << 56)

/* ---- what can be had --------------------------------------------------------- */

void serve_probe_maps(struct serve *s)
{
	s->can_map = uffd_probe();
	if (s->can_map < 0)
		log_warn("map",
			 "userfaultfd: %s: clients cannot map, all else works",
			 strerror(-s->can_map));
	else
		log_info("map", "userfaultfd: clients map %s",
			 s->can_map == UFFD_CAN_SHARE ? "the files" : "copies");
}

int serve_map_mode(const struct serve_tenant *t)
{
	if (t->serve->can_map < 0 || t->serve->device)
		return CONF_MAP_NO;
	if (t->serve->can_map == UFFD_CAN_COPY)
		return KV_MIN(t->conf->map, (int)CONF_MAP_COPY);
	return t->conf->map;
}

void tenant_open_maps(struct serve_tenant *t)
{
	const char *v = t->conf->name;
	struct tenant_maps *m = &t->maps;

	m->st_n = stat_get(STAT_GAUGE, "kvd_maps", "Segments mapped by clients",
			   "tenant", v, 1);
	m->st_faults = stat_get(STAT_COUNTER, "kvd_faults_total",
				"Page faults of clients on their maps",
				"tenant", v, 1);
	m->st_resolved = stat_get(STAT_COUNTER, "kvd_faults_resolved_total",
				  "Of these answered with the page", "tenant",
				  v, 1);
	m->st_poisoned = stat_get(STAT_COUNTER, "kvd_faults_poisoned_total",
				  "Of these answered with SIGBUS", "tenant", v,
				  1);
	m->st_ns = stat_get(STAT_HISTOGRAM, "kvd_fault_seconds",
			    "A fault of a map, from read to resolved", "tenant",
			    v, 1e-9);
}

void tenant_close_maps(struct serve_tenant *t)
{
	uffd_free(t->maps.uffd);
}

/* ---- the tables of a session ---------------------------------------------------- */

static int make_room(struct session_maps *sm, uint32_t n)
{
	uint32_t room = sm->n_room ? sm->n_room : 16;
	struct segmap **p;

	while (room < sm->n_all + n)
		room *= 2;
	if (room == sm->n_room)
		return 0;
	p = realloc(sm->all, room * sizeof(struct segmap *));
	if (!p)
		return -ENOMEM;
	sm->all = p;
	p = realloc(sm->placed, room * sizeof(struct segmap *));
	if (!p)
		return -ENOMEM;
	sm->placed = p;
	sm->n_room = room;
	return 0;
}

/* Index of the first with an id >= id. */
static uint32_t by_id(const struct session_maps *sm, uint32_t id)
{
	uint32_t lo = 0, hi = sm->n_all;

	while (lo < hi) {
		const uint32_t mid = (lo + hi) / 2;

		if (sm->all[mid]->id < id)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

/* Index of the first that ends behind addr. */
static uint32_t by_addr(const struct session_maps *sm, uint64_t addr)
{
	uint32_t lo = 0, hi = sm->n_placed;

	while (lo < hi) {
		const uint32_t mid = (lo + hi) / 2;

		if (sm->placed[mid]->addr + sm->placed[mid]->n_bytes <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

struct segmap *segmap_at(const struct session_maps *sm, uint64_t addr)
{
	const uint32_t i = by_addr(sm, addr);

	return i < sm->n_placed && sm->placed[i]->addr <= addr ? sm->placed[i]
							       : NULL;
}

static void take_out(struct segmap **a, uint32_t *n, uint32_t i)
{
	memmove(a + i, a + i + 1, (--*n - i) * sizeof(struct segmap *));
}

static struct segmap *segmap_find(struct serve_session *ss, uint32_t id)
{
	struct session_maps *sm = ss->maps;
	const uint32_t i = sm ? by_id(sm, id) : 0;

	return sm && i < sm->n_all && sm->all[i]->id == id ? sm->all[i] : NULL;
}

/* The last fault of an unmapped one has gone. */
void segmap_look_gone(struct segmap *m)
{
	if (!m->gone || m->n_faults)
		return;
	segment_put(m->seg);
	if (m->told)
		m->told->done(m->told, 0);
	free(m);
}

static void count(struct serve_tenant *t, int64_t n)
{
	t->maps.n += (uint32_t)n;
	stat_set(t->maps.st_n, t->maps.n);
}

static int segmap_new(struct session_maps *sm, struct segment *seg, int copy,
		      struct segmap **out)
{
	struct serve_tenant *t = sm->ss->tenant;
	struct segmap *m;

	if (t->maps.n >= t->conf->max_maps)
		return -EDQUOT;
	m = calloc(1, sizeof(*m));
	if (!m)
		return -ENOMEM;
	m->of = sm;
	m->seg = seg;
	m->id = ++sm->next_id;
	m->copy = copy;
	m->n_bytes = seg->bytes;
	m->window = 1;
	list_init(&m->faults);
	segment_get(seg);
	sm->all[sm->n_all++] = m;
	count(t, 1);
	*out = m;
	return 0;
}

/* ---- pages that clients map themselves: kvd/mem/states.c ----------------------------- */

#define HOLD_NS 1000000000u

static void end_overdue(struct loop_call *c)
{
	struct session_maps *sm = container_of(c, struct session_maps, overdue);

	if (sm->closing)
		return;
	log_info("map", "session %u holds a page for too long", sm->ss->id);
	sm->events->broken(sm->events);
}

/* Word i stands in the way of an eviction, which is tried again and again: not for ever. */
static void note_hold(struct session_maps *sm, uint32_t i, uint64_t what)
{
	struct segmap_hold *h = &sm->stood[i];
	const uint64_t now = clock_ns();

	if (h->what != what || now - h->last_ns > HOLD_NS / 10)
		h->since_ns = now;
	h->what = what;
	h->last_ns = now;
	if (now - h->since_ns > HOLD_NS && list_empty(&sm->overdue.node))
		loop_defer(sm->ss->tenant->serve->loop, &sm->overdue);
}

int tenant_page_held(void *ctx, uint32_t file_id, uint64_t page)
{
	struct serve_tenant *t = ctx;
	const uint64_t hold = SERVE_HOLD(file_id, page);
	int held = 0;

	list_for_each(n, &t->sessions) {
		struct session_maps *sm =
			list_entry(n, struct serve_session, node)->maps;

		for (uint32_t i = 0; sm && sm->holds && i < SERVE_MAP_HOLDS;
		     i++)
			if (__atomic_load_n(&sm->holds[i], __ATOMIC_SEQ_CST) ==
			    hold) {
				note_hold(sm, i, hold);
				held = 1;
			}
	}
	return held;
}

/* States for all entries, or for none. */
static int show_states(struct session_maps *sm, const struct seq *q,
		       struct serve_map *m)
{
	if (!m->holds || m->copy)
		return 0;
	if (sm->holds && sm->holds != m->holds)
		return -EINVAL;
	for (uint32_t i = 0; i < m->n_entries; i++)
		if (range_states(q->entries[i].seg->range) < 0)
			return 0;
	sm->holds = m->holds;
	m->states = 1;
	return 0;
}

static void on_broken(struct uffd_peer *p)
{
	struct session_maps *sm = container_of(p, struct session_maps, peer);

	sm->events->broken(sm->events);
}

/* ---- what a session calls ------------------------------------------------------------- */

int serve_map_faults(struct serve_session *ss, int fd,
		     struct serve_map_events *e)
{
	struct serve_tenant *t = ss->tenant;
	struct session_maps *sm;
	int ret = 0;

	if (serve_map_mode(t) == CONF_MAP_NO)
		return -ENOTSUP;
	if (ss->maps)
		return -EALREADY;
	if (!t->maps.uffd)
		ret = uffd_new(&t->maps.uffd, t->serve->loop,
			       t->serve->conf->spin_ns);
	if (ret)
		return ret;
	sm = calloc(1, sizeof(*sm));
	if (!sm)
		return -ENOMEM;
	sm->spare = fault_new();
	if (!sm->spare) {
		free(sm);
		return -ENOMEM;
	}
	sm->ss = ss;
	sm->events = e;
	sm->peer.fault = fault_told;
	sm->peer.broken = on_broken;
	list_init(&sm->faults);
	list_init(&sm->overdue.node);
	sm->overdue.run = end_overdue;
	ret = uffd_open(t->maps.uffd, &sm->peer, fd);
	if (ret) {
		free(sm->spare);
		free(sm);
		return ret;
	}
	ss->maps = sm;
	return 0;
}

static uint32_t n_sealed_entries(const struct seq *q)
{
	return q->n_entries - !!seq_open_segment(q);
}

static void describe(const struct session_seq *s, struct serve_map *m)
{
	const struct seq *q = &s->seq;
	const struct kv_layout *g = &q->layout;

	m->n_entries = n_sealed_entries(q);
	m->n_tokens = q->n_tokens;
	if (m->n_entries < q->n_entries)
		m->n_tokens -= q->entries[m->n_entries].n;
	m->n_skip = KV_DIV_UP(m->n_tokens, 64);
	m->page_bytes = g->page_bytes;
	m->n_layers = g->n_layers;
	m->n_kv_heads = g->n_kv_heads;
	m->head_dim = g->head_dim;
	m->elem_bytes = g->elem_bytes;
	m->page_tokens = g->page_tokens;
	m->page_layers = g->page_layers;
}

static void copy_skip(const struct seq_entry *e, uint64_t *out)
{
	for (uint64_t i = 0; e->skip && i < e->n; i++) {
		const uint64_t t = (uint64_t)e->pos + i;

		if (e->skip[i / 64] >> (i % 64) & 1)
			out[t / 64] |= 1ull << (t % 64);
	}
}

/* The earlier entry with the same segment, or i. */
static uint32_t same_segment(const struct seq *q, uint32_t i)
{
	uint32_t k = 0;

	while (q->entries[k].seg != q->entries[i].seg)
		k++;
	return k;
}

/* Undo: the last n maps, which nobody knows of. */
static void forget_last(struct session_maps *sm, uint32_t n)
{
	while (n--) {
		struct segmap *m = sm->all[--sm->n_all];

		count(sm->ss->tenant, -1);
		segment_put(m->seg);
		free(m);
	}
}

/* Files for all of them, or copies for all. */
static int map_by_copy(struct serve_session *ss, const struct seq *q,
		       uint32_t n)
{
	struct range_file file;

	if (serve_map_mode(ss->tenant) == CONF_MAP_COPY)
		return 1;
	for (uint32_t i = 0; i < n; i++)
		if (range_file(q->entries[i].seg->range, &file))
			return 1;
	return 0;
}

static void fill_entry(const struct seq_entry *e, const struct segmap *m,
		       struct serve_map_entry *out)
{
	struct range_file file = { 0 };

	if (!m->copy)
		(void)range_file(e->seg->range, &file); /* asked before */
	*out = (struct serve_map_entry){
		.map = m->id,
		.space = file.id,
		.file_off = file.off_bytes,
		.n_bytes = m->n_bytes,
		.from = e->from,
		.n_tokens = e->n,
		.pos = e->pos,
		.base_pos = e->seg->pos0 + e->from,
	};
}

static int map_entries(struct session_maps *sm, const struct seq *q,
		       struct serve_map *out)
{
	uint32_t n_new = 0;
	int ret;

	for (uint32_t i = 0; i < out->n_entries; i++) {
		const struct seq_entry *e = &q->entries[i];
		const uint32_t k = same_segment(q, i);
		struct segmap *m;

		copy_skip(e, out->skip);
		if (k < i) {
			m = segmap_find(sm->ss, out->entries[k].map);
		} else {
			ret = segmap_new(sm, e->seg, out->copy, &m);
			if (ret) {
				forget_last(sm, n_new);
				return ret;
			}
			n_new++;
		}
		fill_entry(e, m, &out->entries[i]);
	}
	return 0;
}

int serve_map_seq(struct serve_session *ss, uint32_t seq, struct serve_map *m)
{
	struct session_seq *s = session_seq_find(ss, seq);
	int ret;

	if (serve_map_mode(ss->tenant) == CONF_MAP_NO)
		return -ENOTSUP;
	if (!ss->maps)
		return -ENXIO;
	if (!s)
		return -ENOENT;
	if (s->n_busy || !session_seq_settled(s))
		return -EBUSY;
	if (ss->tenant->maps.n_ending)
		return -EAGAIN;
	describe(s, m);
	if (m->n_entries > m->n_room || m->n_skip > m->n_skip_room)
		return -EMSGSIZE;
	ret = make_room(ss->maps, m->n_entries);
	if (ret)
		return ret;
	m->copy = map_by_copy(ss, &s->seq, m->n_entries);
	ret = show_states(ss->maps, &s->seq, m);
	return ret ? ret : map_entries(ss->maps, &s->seq, m);
}

int serve_map_at(struct serve_session *ss, uint32_t id, uint64_t addr)
{
	struct session_maps *sm = ss->maps;
	struct segmap *m = segmap_find(ss, id);
	uint32_t i;

	if (!m)
		return -ENOENT;
	if (m->placed)
		return -EALREADY;
	if (addr % 4096 || addr >= ADDR_MAX || m->n_bytes > ADDR_MAX - addr)
		return -EINVAL;
	i = by_addr(sm, addr);
	if (i < sm->n_placed && sm->placed[i]->addr < addr + m->n_bytes)
		return -EINVAL;
	memmove(sm->placed + i + 1, sm->placed + i,
		(sm->n_placed - i) * sizeof(struct segmap *));
	sm->placed[i] = m;
	sm->n_placed++;
	m->addr = addr;
	m->placed = 1;
	return 0;
}

static void segmap_drop(struct segmap *m)
{
	struct session_maps *sm = m->of;

	take_out(sm->all, &sm->n_all, by_id(sm, m->id));
	if (m->placed)
		take_out(sm->placed, &sm->n_placed, by_addr(sm, m->addr));
	count(sm->ss->tenant, -1);
	m->gone = 1;
	fault_cancel_map(m);
}

int serve_unmap(struct serve_session *ss, uint32_t id, struct wait *w)
{
	struct segmap *m = segmap_find(ss, id);
	int over;

	if (!m)
		return -ENOENT;
	segmap_drop(m);
	over = !m->n_faults;
	m->told = over ? NULL : w;
	segmap_look_gone(m);
	return over;
}

int serve_map_space(struct serve_session *ss, uint32_t space)
{
	struct session_maps *sm = ss->maps;
	struct range_file file;

	for (uint32_t i = sm ? sm->n_all : 0; i-- > 0;)
		if (!range_file(sm->all[i]->seg->range, &file) &&
		    file.id == space)
			return file.fd;
	return -ENOENT;
}

int serve_map_states(struct serve_session *ss, uint32_t space)
{
	struct session_maps *sm = ss->maps;
	struct range_file file;

	for (uint32_t i = sm ? sm->n_all : 0; i-- > 0;)
		if (!range_file(sm->all[i]->seg->range, &file) &&
		    file.id == space)
			return range_states(sm->all[i]->seg->range);
	return -ENOENT;
}

/* ---- the end of a session ---------------------------------------------------------------- */

static void peer_closed(struct uffd_job *j)
{
	struct session_maps *sm = container_of(j, struct session_maps, close);
	struct serve_session *ss = sm->ss;

	assert(!sm->n_faults && !sm->n_all);
	ss->maps = NULL;
	ss->tenant->maps.n_ending--;
	list_del(&sm->overdue.node);
	free(sm->all);
	free(sm->placed);
	free(sm->spare);
	free(sm);
	session_request_end(ss);
}

void maps_look_closed(struct session_maps *sm)
{
	if (!sm->closing || sm->n_faults || sm->close_started)
		return;
	sm->close_started = 1;
	sm->close.done = peer_closed;
	uffd_close(&sm->peer, &sm->close);
}

/*
 * n_ending: a job of this session may still be at work. The same process may have
 * connected again and map at the same addresses: not before the job is over.
 */
void map_cancel_session(struct serve_session *ss)
{
	struct session_maps *sm = ss->maps;

	if (!sm)
		return;
	session_request_begin(ss); /* until peer_closed() */
	ss->tenant->maps.n_ending++;
	while (sm->n_all)
		(void)serve_unmap(ss, sm->all[sm->n_all - 1]->id, NULL);
	sm->closing = 1;
	sm->holds = NULL; /* they are the session's */
	sm->peer.closed = 1;
	maps_look_closed(sm);
}

void map_check(const struct serve_session *ss, struct map_sums *s)
{
	const struct session_maps *sm = ss->maps;

	if (!sm)
		return;
	s->n_maps += sm->n_all;
	for (uint32_t i = 1; i < sm->n_all; i++)
		assert(sm->all[i - 1]->id < sm->all[i]->id);
	for (uint32_t i = 1; i < sm->n_placed; i++)
		assert(sm->placed[i - 1]->addr + sm->placed[i - 1]->n_bytes <=
		       sm->placed[i]->addr);
	fault_check(sm, s);
}
