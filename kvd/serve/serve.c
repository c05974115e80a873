/*
 * serve.c - start and end of models, tenants and sessions
 */
#include "kvd/serve/serve.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kvd/base/clock.h"
#include "kvd/base/log.h"
#include "kvd/mem/clean.h"
#include "kvd/mem/folio.h"
#include "kvd/mem/space.h"
#include "kvd/serve/batch.h"
#include "kvd/serve/craft.h"
#include "kvd/serve/gate.h"
#include "kvd/serve/keeper.h"
#include "kvd/serve/tenant.h"

#define HUGE_SLACK (2u << 20) /* of a mount, beyond what is accounted for */
#define USAGE_NS   1000000000u /* what metrics say is no older */

/* ---- tenants ---------------------------------------------------------------- */

static int tenant_reclaim(void *ctx)
{
	struct serve_tenant *t = ctx;

	return segment_reclaim(t->pool);
}

static void tenant_reservable(void *ctx)
{
	tenant_kick(ctx);
}

static void tenant_stats(struct serve_tenant *t)
{
	const char *v = t->conf->name;
	const struct {
		struct stat **st;
		const char *name, *help;
	} list[] = {
		{ &t->st_requests, "kvd_requests_total", "Generations begun" },
		{ &t->st_tokens, "kvd_generated_tokens_total",
		  "Tokens generated or scored" },
		{ &t->st_prompt, "kvd_prompt_tokens_total",
		  "Tokens of prompts" },
		{ &t->st_prefix_hits, "kvd_prefix_hits_total",
		  "Requests that found a cached prefix" },
		{ &t->st_prefix_tokens, "kvd_prefix_tokens_total",
		  "Prompt tokens found as a prefix" },
		{ &t->st_chunk_hits, "kvd_chunk_hits_total",
		  "Chunks found in the cache" },
		{ &t->st_chunk_tokens, "kvd_chunk_tokens_total",
		  "Prompt tokens found as chunks" },
		{ &t->st_chunk_misses, "kvd_chunk_misses_total",
		  "Chunks that had to be computed" },
		{ &t->chunks.st_evicted, "kvd_chunks_evicted_total",
		  "Chunks computed alone that went to make room" },
		{ &t->variants.st_evicted, "kvd_variants_evicted_total",
		  "Variants of chunks that went to make room" },
		{ &t->st_repaired, "kvd_repaired_tokens_total",
		  "Tokens of chunks computed again in their context" },
		{ &t->st_loaded, "kvd_hits_loaded_total",
		  "Hits on disk that were read" },
		{ &t->st_recomputed, "kvd_hits_recomputed_total",
		  "Hits on disk that were faster to compute again" },
		{ &t->st_preloaded, "kvd_preloaded_requests_total",
		  "Requests in line whose KV on disk was asked for" },
		{ &t->st_awaited, "kvd_awaited_segments_total",
		  "Cached segments kept back for requests in line" },
		{ &t->st_passed, "kvd_line_passed_total",
		  "Places in line gained as more was cached" },
		{ &t->st_refused, "kvd_refused_total",
		  "Requests refused over budget" },
		{ &t->st_edits, "kvd_seq_edits_total",
		  "Edits of sequences and prompts" },
		{ &t->st_edit_tokens, "kvd_seq_edit_tokens_total",
		  "Tokens behind edits that kept their bytes" },
		{ &t->st_by_deadline, "kvd_hits_by_deadline_total",
		  "Hits on disk decided otherwise for a deadline" },
		{ &t->st_late, "kvd_deadlines_missed_total",
		  "First tokens that came after their deadline" },
		{ &t->st_shared, "kvd_shared_tokens_total",
		  "Prompt tokens found with other tenants" },
		{ &t->st_stopped, "kvd_stopped_tokens_total",
		  "Tokens of chunks out of focus not repaired to the end" },
		{ &t->st_ahead, "kvd_restore_layers_ahead_total",
		  "Layers computed while pages of later ones were read" },
		{ &t->st_attends, "kvd_attends_total",
		  "Append and attend calls" },
	};

	for (size_t i = 0; i < KV_ARRAY_LEN(list); i++)
		*list[i].st = stat_get(STAT_COUNTER, list[i].name, list[i].help,
				       "tenant", v, 1);
	t->st_lookup = stat_get(
		STAT_HISTOGRAM, "kvd_lookup_seconds",
		"Look-up of a tile in the prefix index, mean of a request",
		"tenant", v, 1e-9);
	t->st_ttft = stat_get(STAT_HISTOGRAM, "kvd_first_token_seconds",
			      "Submission to first token", "tenant", v, 1e-9);
}

/*
 * A mount for each tenant, of its own size: who has a file of it may fill the holes of
 * that file, which is then the tenant's own loss. 0, -errno.
 */
static int tenant_huge(struct serve_tenant *t)
{
	const struct serve *s = t->serve;
	int fd;

	if (!s->mounts_huge)
		return 0;
	fd = space_huge_dir(NULL, t->conf->memory_bytes + HUGE_SLACK);
	if (fd > 0)
		t->huge_dir = fd;
	else if (!strcmp(s->conf->huge, "always"))
		return fd;
	else
		log_warn("serve", "tenant %s: a tmpfs: %s", t->conf->name,
			 strerror(-fd));
	return 0;
}

static int tenant_open(struct serve *s, const struct conf_tenant *c,
		       struct accounts *accounts, struct serve_tenant *t)
{
	struct pager_conf pc = {
		.name = c->name,
		.memory_bytes = c->memory_bytes,
		.disk_bytes = serve_disk_bytes(s, c),
		.accounts = accounts,
		.memory_floor = c->memory_floor,
		.disk_floor = c->disk_floor,
		.weight = c->weight,
		.io_limit = c->io_limit,
		.huge_dir = s->huge_dir,
		.folios = strcmp(s->conf->huge, "never") != 0,
		.mlock = s->conf->mlock,
		.numa_node = s->conf->numa_node,
		.policy = c->policy,
		.loop = s->loop,
		.stores = serve_pager_stores(s),
		.device = s->device,
		.reclaim = tenant_reclaim,
		.damaged = tenant_damaged,
		.reservable = tenant_reservable,
		.held = tenant_page_held,
		.ctx = t,
	};
	int ret;

	t->serve = s;
	t->conf = c;
	list_init(&t->sessions);
	list_init(&t->waiting);
	list_init(&t->chunk_jobs);
	list_init(&t->texts);
	list_init(&t->kick.node);
	list_init(&t->preload.node);
	prefix_init(&t->prefix);
	chunk_init(&t->chunks);
	variant_table_init(&t->variants);
	tenant_stats(t);
	if (c->max_chunks)
		t->chunks.max = t->variants.max_chunks = c->max_chunks;
	tenant_open_maps(t);
	tenant_open_exports(t);
	ret = tenant_huge(t);
	if (t->huge_dir)
		pc.huge_dir = t->huge_dir;
	if (!ret)
		ret = pager_new(&t->pager, &pc);
	if (ret)
		return ret;
	ret = segment_pool_new(&t->pool, t->pager,
			       KV_MAX(c->memory_bytes, pc.disk_bytes));
	return ret ? ret : tenant_open_persist(t);
}

void serve_tenant_free(struct serve_tenant *t)
{
	if (!t)
		return;
	assert(list_empty(&t->sessions) && list_empty(&t->chunk_jobs));
	loop_timer_cancel(t->serve->loop, &t->preload);
	tenant_close_persist(t);
	segment_pool_free(t->pool);
	if (t->pager)
		pager_free(t->pager);
	tenant_close_maps(t);
	prefix_fini(&t->prefix);
	chunk_fini(&t->chunks);
	variant_table_fini(&t->variants);
	if (t->huge_dir)
		(void)close(t->huge_dir); /* its files are */
	free(t);
}

int serve_tenant_new(struct serve_tenant **out, struct serve *s,
		     const struct conf_tenant *conf, struct accounts *accounts)
{
	struct serve_tenant *t = calloc(1, sizeof(*t));

	*out = t;
	return t ? tenant_open(s, conf, accounts, t) : -ENOMEM;
}

struct serve_tenant *serve_tenant_find(struct serve *s, const char *name)
{
	for (uint32_t i = 0; i < s->n_tenants; i++)
		if (!strcmp(s->tenants[i]->conf->name, name))
			return s->tenants[i];
	return NULL;
}

const char *serve_tenant_name(const struct serve_tenant *t)
{
	return t->conf->name;
}

/* ---- models ------------------------------------------------------------------- */

/* Operations a second of a fast host, and a device: what they are measured to do soon. */
#define GUESS_CPU      1e12
#define GUESS_GPU      1e14
#define GUESS_NS       200000u /* it weighs as a step of that time */
/* Rows a second: of a small model launches take the time, and nobody knows how much. */
#define GUESS_GPU_MOST 1e4

/*
 * Until a step tells, a row takes what its products take: the first who come after a start
 * would have what is on disk of a large model computed again, were it taken for a small one.
 */
static void guess_rate(struct serve_model *m)
{
	const struct llama_shape *sh = llama_shape(m->llama);
	const double heads = (double)(sh->n_heads + sh->n_kv_heads);
	const double weights = (double)sh->n_layers * sh->d_model *
			       (2 * heads * sh->head_dim + 3.0 * sh->n_ff);
	double per_s = (m->gpu ? GUESS_GPU : GUESS_CPU) / (2 * weights);

	if (m->gpu)
		per_s = KV_MIN(per_s, GUESS_GPU_MOST);
	rate_add(&m->prefill, per_s * GUESS_NS * 1e-9, GUESS_NS);
}

static int model_load(struct serve *s, struct serve_model *m,
		      const struct conf_model *c, char *err, size_t err_len)
{
	const enum kern_type math = c->math_f32 ? KERN_F32 : KERN_BF16;
	char why[256] = "";
	int ret;

	ret = s->gpu ? serve_gpu_model(s->gpu, &m->gpu, &m->llama, c->path,
				       math, why, sizeof(why))
		     : llama_open(&m->llama, c->path, math, why, sizeof(why));
	if (ret)
		(void)snprintf(err, err_len, "model %s: %s: %s", c->name,
			       c->path, why[0] ? why : strerror(-ret));
	return ret;
}

static int model_open(struct serve *s, const struct conf_model *c, char *err,
		      size_t err_len)
{
	struct serve_model *m = &s->models[s->n_models];
	const struct llama_shape *sh;
	int ret = model_load(s, m, c, err, err_len);

	if (ret)
		return ret;
	s->n_models++;
	m->conf = c;
	m->gate = c->gate ? GATE_PENDING : GATE_OFF;
	list_init(&m->gate_waiting);
	sh = llama_shape(m->llama);
	if (m->gpu)
		llama_gpu_id(m->gpu, m->id);
	else
		llama_id(m->llama, m->id);
	guess_rate(m);
	m->layout = (struct kv_layout){
		.n_layers = sh->n_layers,
		.n_kv_heads = sh->n_kv_heads,
		.head_dim = sh->head_dim,
		.elem_bytes = (uint32_t)kern_type_bytes(sh->math),
		.page_tokens = c->page_tokens,
		.page_layers = c->page_layers,
		.page_align = s->device ? device_frame_bytes(s->device) : 4096,
	};
	m->shape = (struct attn_shape){
		.type = sh->math,
		.n_heads = sh->n_heads,
		.n_kv_heads = sh->n_kv_heads,
		.head_dim = sh->head_dim,
		.scale = sh->attn_scale,
		.rope = sh->rope,
	};
	ret = kv_layout_init(&m->layout);
	if (ret)
		snprintf(err, err_len,
			 "model %s: page_tokens or page_layers "
			 "does not fit its shape",
			 c->name);
	if (!ret)
		ret = serve_check_pages(s, m, err, err_len);
	log_info("serve", "model %s: %u layers, %s, %llu bytes of KV a token",
		 c->name, sh->n_layers, c->math_f32 ? "f32" : "bf16",
		 (unsigned long long)kv_layout_token_bytes(&m->layout));
	return ret;
}

/* ---- start and end --------------------------------------------------------------- */

/*
 * Windows wait for the disk most of the time: half the threads, no spinning. So does a
 * restore, but its answer is waited for.
 */
static int open_lanes(struct serve *s, unsigned int n_threads)
{
	const unsigned int n[N_LANES] = { n_threads, KV_MAX(n_threads / 2, 1u),
					  n_threads };
	int ret = 0;

	ret = engine_new(&s->text_engine, s->loop, 1, 0);
	for (int i = 0; i < N_LANES && !ret; i++) {
		struct lane *l = &s->lanes[i];

		ret = engine_new(&l->engine, s->loop, n[i],
				 i == LANE_RESIDENT ? s->conf->spin_ns : 0);
		if (!ret)
			ret = batch_new(&l->batch, s, l);
	}
	return ret;
}

/* Before the spaces are opened, which is when a page size is first met. */
static int open_huge(struct serve *s, char *err, size_t err_len)
{
	const struct conf *c = s->conf;
	const char *path = c->huge_dir[0] ? c->huge_dir : NULL;
	int fd;

	if (!strcmp(c->huge, "never"))
		return 0;
	if (strcmp(c->huge, "keep")) {
		fd = folio_switch_on();
		if (fd < 0)
			log_info(
				"serve",
				"no folios smaller than 2 MiB: shmem_enabled: %s",
				strerror(-fd));
	}
	fd = path ? space_huge_dir(path, 0) : -ENOENT;
	if (path && fd < 0)
		log_warn("serve", "huge_dir %s: %s", path, strerror(-fd));
	if (fd > 0) {
		s->huge_dir = fd;
		return 0;
	}
	fd = space_huge_dir(NULL, HUGE_SLACK); /* can it be had? */
	if (fd > 0) {
		(void)close(fd); /* nothing is in it */
		s->mounts_huge = 1;
		return 0;
	}
	if (!strcmp(c->huge, "always")) {
		snprintf(err, err_len, "huge: a tmpfs: %s", strerror(-fd));
		return fd;
	}
	log_info("serve", "no tmpfs with huge pages: %s", strerror(-fd));
	return 0;
}

static int start_parts(struct serve *s, char *err, size_t err_len)
{
	long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned int n = s->conf->n_threads;
	int ret = 0;

	if (!n)
		n = n_cpus > 0 ? (unsigned int)n_cpus : 1;
	ret = serve_lock_state(s, err, err_len);
	if (!ret)
		ret = serve_open_device(s, err, err_len);
	if (!ret && !s->device)
		ret = open_huge(s, err, err_len);
	if (!ret)
		ret = serve_new_stores(s);
	if (!ret)
		ret = serve_open_gpu(s, err, err_len);
	for (uint32_t i = 0; i < s->conf->n_models && !ret; i++)
		ret = model_open(s, &s->conf->models[i], err, err_len);
	if (!ret)
		ret = open_lanes(s, n);
	if (!ret)
		ret = measures_new(&s->measures, s);
	if (!ret)
		ret = keeper_new(&s->keeper, s);
	if (!ret)
		ret = serve_open_accounts(s, err, err_len);
	for (uint32_t i = 0; i < s->conf->n_tenants && !ret; i++) {
		ret = serve_tenant_new(&s->tenants[i], s, &s->conf->tenants[i],
				       &s->accounts);
		s->n_tenants += s->tenants[i] ? 1 : 0;
		if (ret)
			snprintf(err, err_len, "tenant %s: memory: %s",
				 s->conf->tenants[i].name, strerror(-ret));
	}
	if (!ret)
		ret = gate_new(&s->gate, s);
	return ret ? ret : serve_open_stores(s, err, err_len);
}

/* What a tenant has costs it, too, while nothing happens. */
static void tell_usage(struct loop_timer *t)
{
	struct serve *s = container_of(t, struct serve, usage_timer);
	struct pager_usage u;

	for (uint32_t i = 0; i < s->n_tenants; i++)
		pager_usage(s->tenants[i]->pager, &u);
	s->usage_timer.run = tell_usage;
	loop_timer_set(s->loop, t, clock_ns() + USAGE_NS);
}

int serve_new(struct serve **out, struct loop *loop, const struct conf *conf,
	      char *err, size_t err_len)
{
	return serve_new_on(out, loop, conf, NULL, err, err_len);
}

int serve_on_device(const struct serve *s)
{
	return s->device != NULL;
}

int serve_new_on(struct serve **out, struct loop *loop, const struct conf *conf,
		 const struct cuda_api *cuda, char *err, size_t err_len)
{
	struct serve *s = calloc(1, sizeof(*s));
	int ret;

	if (!s)
		return -ENOMEM;
	s->loop = loop;
	s->conf = conf;
	s->cuda = cuda;
	s->start_ns = clock_ns();
	list_init(&s->drain_call.node);
	list_init(&s->check_timer.node);
	list_init(&s->usage_timer.node);
	list_init(&s->free_attends);
	for (int i = 0; i < N_LANES; i++)
		attn_scratch_init(&s->lanes[i].scratch);
	kern_init(KERN_ISA_AMX);
	if (err_len)
		err[0] = 0;
	serve_probe_maps(s);
	ret = start_parts(s, err, err_len);
	if (ret) {
		if (err_len && !err[0])
			snprintf(err, err_len, "%s", strerror(-ret));
		serve_free(s);
		return ret;
	}
	tell_usage(&s->usage_timer);
#ifdef KV_DEBUG
	serve_check_start(s);
#endif
	log_info("serve", "arithmetic %s, storage %s",
		 kern_isa_name(kern_isa()), stores_engine_name(s->stores));
	*out = s;
	return 0;
}

void serve_free(struct serve *s)
{
	if (!s)
		return;
	loop_timer_cancel(s->loop, &s->check_timer);
	loop_timer_cancel(s->loop, &s->usage_timer);
	gate_free(s->gate);
	attend_free_all(s);
	measures_free(s->measures);
	engine_free(s->text_engine);
	for (int i = 0; i < N_LANES; i++) {
		engine_free(s->lanes[i].engine);
		batch_free(s->lanes[i].batch);
		attn_scratch_fini(&s->lanes[i].scratch);
		gpu_lane_free(s->lanes[i].gpu);
	}
	cleaner_free(s->cleaner);
	keeper_free(s->keeper);
	s->keeper = NULL;
	serve_flush(s);
	if (s->stores) {
		stores_on_lost(s->stores, NULL, NULL);
		stores_on_silent(s->stores, 0, NULL, NULL);
	}
	for (uint32_t i = 0; i < s->n_tenants; i++)
		serve_tenant_free(s->tenants[i]);
	for (uint32_t i = 0; i < s->n_models; i++) {
		llama_gpu_close(s->models[i].gpu);
		llama_close(s->models[i].llama);
	}
	serve_gpu_free(s->gpu);
	device_close(s->device); /* cuFile has descriptors of stores */
	stores_free(s->stores);
	trace_free(s->trace);
	if (s->huge_dir > 0)
		(void)close(s->huge_dir);
	if (s->state_fd > 0)
		(void)close(s->state_fd); /* and with it the lock */
	free(s);
}

static uint32_t n_requests(struct serve *s)
{
	uint32_t n = measures_drain(s->measures) ? 0 : 1;

	for (uint32_t i = 0; i < s->n_tenants; i++) {
		n += !list_empty(&s->tenants[i]->chunk_jobs);
		list_for_each(l, &s->tenants[i]->sessions)
			n += list_entry(l, struct serve_session, node)
				     ->n_requests;
	}
	return n;
}

static void drained(struct loop_call *c)
{
	struct serve *s = container_of(c, struct serve, drain_call);
	struct wait *w = s->drained;

	s->drained = NULL;
	s->drain_call.run = NULL;
	if (w)
		w->done(w, 0);
}

void serve_look_drained(struct serve *s)
{
	if (!s->drained || n_requests(s) || s->drain_call.run)
		return;
	s->drain_call.run = drained;
	loop_defer(s->loop, &s->drain_call);
}

void serve_drain(struct serve *s, struct wait *w)
{
	s->draining = 1;
	s->drained = w;
	serve_look_drained(s);
}

/* ---- sessions ------------------------------------------------------------------------ */

int serve_session_open(struct serve_tenant *t, struct serve_session **out)
{
	struct serve_session *ss;

	if (t->n_sessions >= t->conf->max_sessions)
		return -EDQUOT;
	ss = calloc(1, sizeof(*ss));
	if (!ss)
		return -ENOMEM;
	ss->tenant = t;
	ss->id = ++t->serve->next_session;
	list_init(&ss->requests);
	list_init(&ss->attends);
	list_init(&ss->persists);
	list_init(&ss->exports);
	list_init(&ss->buffers);
	list_init(&ss->export_calls);
	list_init(&ss->close_call.node);
	list_init(&ss->node);
	list_push(&t->sessions, &ss->node);
	t->n_sessions++;
	*out = ss;
	return 0;
}

static void closed(struct loop_call *c)
{
	struct serve_session *ss =
		container_of(c, struct serve_session, close_call);
	struct serve_tenant *t = ss->tenant;
	struct wait *w = ss->closing;

	session_free_seqs(ss);
	session_free_buffers(ss);
	list_del(&ss->node);
	t->n_sessions--;
	free(ss->geometries);
	free(ss);
	tenant_kick(t);
	serve_look_drained(t->serve);
	w->done(w, 0);
}

static void look_closed(struct serve_session *ss)
{
	if (!ss->closing || ss->n_requests || ss->close_call.run)
		return;
	ss->close_call.run = closed;
	loop_defer(ss->tenant->serve->loop, &ss->close_call);
}

void serve_session_close(struct serve_session *ss, struct wait *w)
{
	ss->closing = w;
	trace_session(ss->tenant->serve->trace, ss);
	gen_cancel_session(ss);
	attend_cancel_session(ss);
	persist_cancel_session(ss);
	map_cancel_session(ss);
	export_cancel_session(ss);
	look_closed(ss);
}

uint32_t serve_session_n_requests(const struct serve_session *ss)
{
	return ss->n_requests;
}

void session_request_begin(struct serve_session *ss)
{
	ss->n_requests++;
}

void session_request_end(struct serve_session *ss)
{
	struct serve *s = ss->tenant->serve;

	assert(ss->n_requests);
	ss->n_requests--;
	look_closed(ss);
	serve_look_drained(s);
}
