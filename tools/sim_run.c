/*
 * sim_run.c - replay a trace through one policy with one cache size; see sim.h
 *
 * What a policy is told is what the daemon knows at that moment: the kind of a block
 * (kvd/mem/kind.h), which conversations have ended, which requests wait in the queue.
 * Only what says so in its name looks ahead: belady, and --bits perfect.
 *
 *  (1) A block is COLD when all conversations that used it have ended (in the daemon:
 *      no sequence refers to it), until somebody uses it again; HOT while a request in the queue has it.
 */
#include "tools/sim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "kvd/mem/kind.h"
#include "tools/trace.h"

/* Recomputing a token costs its linear layers, and attention over all before it:
 * equal at this position for an 8B model of 32 layers of 4096 (16 GFLOP against 4 *
 * 32 * 4096 * position). */
#define ATTENTION_EQUAL_TOKENS 30000.0f
#define GAIN_HIT	       20.0f /* CFO 0: 1 / 0.05 */
#define SEEN		       UINT32_MAX

enum { TOLD = 1, TOLD_AT_ONCE }; /* told[] */

struct sim {
	const struct sim_trace *t;
	struct sim_opts opts;
	uint64_t *
		next_use; /* of each access: the access after it of its block */
	uint8_t *hints; /* of each access: of --bits */
	uint8_t *told; /* of each request: its conversation ends with it */
	/* of a run, by block */
	struct evict_node *nodes;
	uint8_t *resident, *known;
	uint32_t *n_open; /* accesses by conversations that have not ended */
	uint32_t *n_queued; /* requests ahead that have it */
	/* of a run, by conversation: its requests, linked */
	uint32_t *conv_last, *request_prev;
	const struct evict_policy *policy;
	void *state;
	uint32_t capacity, n_resident;
	uint32_t *by_access; /* block to its last access, for the bits */
};

double sim_random(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15u); /* splitmix64 */

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

/* ---- what is known before ---------------------------------------------------- */

static int find_next_uses(struct sim *s)
{
	const struct sim_trace *t = s->t;
	uint64_t *at = malloc(t->n_blocks * sizeof(*at));

	if (!at)
		return -ENOMEM;
	for (uint32_t b = 0; b < t->n_blocks; b++)
		at[b] = EVICT_NEVER;
	for (size_t i = t->n_accesses; i-- > 0;) {
		s->next_use[i] = at[t->blocks[i]];
		at[t->blocks[i]] = i;
	}
	free(at);
	return 0;
}

/* Whose turn is the last of its conversation, and who tells. */
static void draw_ends(struct sim *s)
{
	const struct sim_trace *t = s->t;
	uint64_t seed = s->opts.seed ^ 0xe4d5;

	memset(s->conv_last, 0, t->n_convs * sizeof(*s->conv_last));
	for (size_t i = 0; i < t->n_requests; i++)
		s->conv_last[t->requests[i].conv]++;
	for (size_t i = t->n_requests; i-- > 0;) {
		uint32_t *turns = &s->conv_last[t->requests[i].conv];
		const int last = *turns < SEEN, one = *turns == 1;

		if (last)
			*turns = SEEN;
		s->told[i] = sim_random(&seed) <
			     (last ? s->opts.ends : s->opts.false_ends);
		if ((sim_random(&seed) < s->opts.one_shot && one) ||
		    t->requests[i].flags & TRACE_ONE_SHOT)
			s->told[i] = TOLD_AT_ONCE;
	}
}

static void *many(size_t n, size_t size)
{
	return calloc(n + 1, size);
}

int sim_new(struct sim **out, const struct sim_trace *t,
	    const struct sim_opts *o)
{
	struct sim *s = calloc(1, sizeof(*s));
	int ret = -ENOMEM;

	if (!s)
		return -ENOMEM;
	s->t = t;
	s->opts = *o;
	s->next_use = many(t->n_accesses, sizeof(*s->next_use));
	s->hints = many(t->n_accesses, sizeof(*s->hints));
	s->told = many(t->n_requests, sizeof(*s->told));
	s->nodes = many(t->n_blocks, sizeof(*s->nodes));
	s->resident = many(t->n_blocks, sizeof(*s->resident));
	s->known = many(t->n_blocks, sizeof(*s->known));
	s->n_open = many(t->n_blocks, sizeof(*s->n_open));
	s->n_queued = many(t->n_blocks, sizeof(*s->n_queued));
	s->by_access = many(t->n_blocks, sizeof(*s->by_access));
	s->conv_last = many(t->n_convs, sizeof(*s->conv_last));
	s->request_prev = many(t->n_requests, sizeof(*s->request_prev));
	if (s->next_use && s->hints && s->told && s->nodes && s->resident &&
	    s->known && s->n_open && s->n_queued && s->by_access &&
	    s->conv_last && s->request_prev)
		ret = find_next_uses(s);
	if (ret) {
		sim_delete(s);
		return ret;
	}
	draw_ends(s);
	*out = s;
	return 0;
}

void sim_delete(struct sim *s)
{
	if (!s)
		return;
	free(s->next_use);
	free(s->hints);
	free(s->told);
	free(s->nodes);
	free(s->resident);
	free(s->known);
	free(s->n_open);
	free(s->n_queued);
	free(s->by_access);
	free(s->conv_last);
	free(s->request_prev);
	free(s);
}

double sim_ceiling(const struct sim_trace *t)
{
	return t->n_accesses ? 1 - (double)t->n_blocks / (double)t->n_accesses
			     : 0;
}

/* ---- hints ------------------------------------------------------------------- */

static void set_hint(struct sim *s, uint32_t block, uint8_t hint)
{
	struct evict_node *n = &s->nodes[block];

	if (n->hint == hint)
		return;
	n->hint = hint;
	if (s->policy->hint)
		s->policy->hint(s->state, n);
}

static uint8_t hint_now(const struct sim *s, uint32_t block)
{
	return s->n_queued[block]		      ? EVICT_HOT
	       : s->known[block] && !s->n_open[block] ? EVICT_COLD
						      : EVICT_NONE;
}

/* The request enters (n = 1) or leaves (-1) the queue. */
static void queue_move(struct sim *s, size_t i, uint32_t n)
{
	const struct sim_request *r = &s->t->requests[i];

	for (uint32_t j = 0; j < r->n; j++) {
		const uint32_t b = s->t->blocks[r->first + j];

		s->n_queued[b] += n;
		set_hint(s, b, hint_now(s, b));
	}
}

static void conv_ends(struct sim *s, uint32_t conv)
{
	uint32_t i = s->conv_last[conv];

	s->conv_last[conv] = 0;
	for (; i; i = s->request_prev[i - 1]) {
		const struct sim_request *r = &s->t->requests[i - 1];

		for (uint32_t j = 0; j < r->n; j++) {
			const uint32_t b = s->t->blocks[r->first + j];

			if (!--s->n_open[b])
				set_hint(s, b, hint_now(s, b));
		}
	}
}

/* ---- a run ------------------------------------------------------------------- */

static int access_block(struct sim *s, size_t i, uint8_t kind, uint8_t hint,
			uint64_t at_token)
{
	const uint32_t b = s->t->blocks[i];
	struct evict_node *n = &s->nodes[b], *v;
	const int hit = s->resident[b];

	if (hit)
		s->policy->remove(s->state, n);
	n->hint = hint;
	n->kind = kind;
	n->next_use = s->next_use[i];
	n->cost = 1 + (float)at_token / ATTENTION_EQUAL_TOKENS;
	n->gain = hit ? GAIN_HIT : 1;
	s->policy->use(s->state, n);
	s->by_access[b] = (uint32_t)i;
	if (!hit && s->n_resident == s->capacity) {
		v = s->policy->victim(s->state);
		s->resident[v - s->nodes] = 0;
		if (s->policy->needs_future)
			s->hints[s->by_access[v - s->nodes]] = EVICT_DEAD;
	} else if (!hit) {
		s->n_resident++;
	}
	s->resident[b] = 1;
	s->policy->add(s->state, n);
	return hit;
}

static void run_request(struct sim *s, size_t i, struct sim_result *out)
{
	const struct sim_request *r = &s->t->requests[i];
	const uint32_t *b = &s->t->blocks[r->first];
	struct kind_facts f = { .n_tokens = r->in_tokens,
				.page_tokens = s->t->block_tokens };
	int run = 1;

	f.root_tokens = f.page_tokens;
	for (uint32_t j = 0; j < r->n && s->known[b[j]]; j++)
		f.found_tokens += f.page_tokens;
	for (uint32_t j = 0; j < r->n; j++) {
		uint8_t hint = s->hints[r->first + j];
		int hit;

		s->n_open[b[j]]++;
		s->known[b[j]] = 1;
		if (s->opts.bits == SIM_BITS_NONE)
			hint = hint_now(s, b[j]);
		f.at_token = (uint64_t)j * f.page_tokens;
		hit = access_block(s, r->first + j, (uint8_t)page_kind_of(&f),
				   hint, f.at_token);
		run &= hit;
		out->n_hits += (uint64_t)hit;
		out->n_usable += (uint64_t)run;
	}
	s->request_prev[i] = s->conv_last[r->conv];
	s->conv_last[r->conv] = (uint32_t)i + 1;
	if (s->told[i] == TOLD_AT_ONCE)
		conv_ends(s, r->conv);
}

/* What was to be told by now, unless the conversation has gone on since. */
static void tell_ends(struct sim *s, size_t *next, size_t n, uint64_t now_ms)
{
	const struct sim_request *r = s->t->requests;

	for (; *next < n && r[*next].time_ms + s->opts.end_delay_ms <= now_ms;
	     (*next)++)
		if (s->told[*next] == TOLD &&
		    s->conv_last[r[*next].conv] == *next + 1)
			conv_ends(s, r[*next].conv);
}

static void reset(struct sim *s)
{
	const struct sim_trace *t = s->t;

	memset(s->nodes, 0, t->n_blocks * sizeof(*s->nodes));
	for (uint32_t b = 0; b < t->n_blocks; b++)
		evict_node_init(&s->nodes[b], 1);
	memset(s->resident, 0, t->n_blocks * sizeof(*s->resident));
	memset(s->known, 0, t->n_blocks * sizeof(*s->known));
	memset(s->n_open, 0, t->n_blocks * sizeof(*s->n_open));
	memset(s->n_queued, 0, t->n_blocks * sizeof(*s->n_queued));
	memset(s->conv_last, 0, t->n_convs * sizeof(*s->conv_last));
	s->n_resident = 0;
}

static int run(struct sim *s, const struct evict_policy *p,
	       struct sim_result *out)
{
	const struct sim_trace *t = s->t;
	const size_t ahead = KV_MIN((size_t)s->opts.queue, t->n_requests);
	struct timespec a, b;
	size_t end = 0, tell = 0;
	int ret;

	memset(out, 0, sizeof(*out));
	reset(s);
	s->policy = p;
	ret = p->open(&s->state);
	if (ret)
		return ret;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
	for (size_t i = 0; i < ahead; i++)
		queue_move(s, i, 1);
	for (size_t i = 0; i < t->n_requests; i++) {
		for (; end < t->n_ends && t->ends[end].before <= i; end++)
			conv_ends(s, t->ends[end].conv);
		tell_ends(s, &tell, i, t->requests[i].time_ms);
		if (ahead && i + ahead < t->n_requests)
			queue_move(s, i + ahead, 1);
		if (ahead)
			queue_move(s, i, UINT32_MAX); /* -1 */
		run_request(s, i, out);
	}
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
	out->seconds = (double)(b.tv_sec - a.tv_sec) +
		       1e-9 * (double)(b.tv_nsec - a.tv_nsec);
	p->close(s->state);
	return 0;
}

/* Belady's bits: 1 where it lets go of the block before its next use. */
static int find_bits(struct sim *s)
{
	uint64_t seed = s->opts.seed ^ 0xb175;
	struct sim_result r;
	int ret;

	memset(s->hints, 0, s->t->n_accesses);
	ret = run(s, &evict_belady, &r);
	for (size_t i = 0; i < s->t->n_accesses && !ret; i++)
		if (sim_random(&seed) < s->opts.flip)
			s->hints[i] = s->hints[i] ? EVICT_NONE : EVICT_DEAD;
	return ret;
}

int sim_run(struct sim *s, const struct evict_policy *p, uint32_t capacity,
	    struct sim_result *out)
{
	int ret = 0;

	s->capacity = capacity;
	if (s->opts.bits == SIM_BITS_PERFECT && !p->needs_future)
		ret = find_bits(s);
	return ret ? ret : run(s, p, out);
}
