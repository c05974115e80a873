/*
 * seq.c - a sequence as a list of segments; see seq.h
 */
#include "kvd/cache/seq.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void seq_init(struct seq *q, struct segment_pool *pool,
	      const struct kv_layout *g, uint32_t seg_tokens)
{
	memset(q, 0, sizeof(*q));
	q->pool = pool;
	q->layout = *g;
	q->seg_tokens = KV_ALIGN_UP(seg_tokens, SEGMENT_BLOCK);
	q->context = (struct seq_context){ 0, 1, 1 };
}

static struct seq_entry *last(const struct seq *q)
{
	return q->n_entries ? &q->entries[q->n_entries - 1] : NULL;
}

static void drop_last(struct seq *q)
{
	struct seq_entry *e = last(q);

	segment_put(e->seg);
	if (e->patch)
		segment_put(e->patch);
	free(e->patch_at);
	free(e->skip);
	q->n_entries--;
}

void seq_fini(struct seq *q)
{
	segment_ahead_drop(&q->ahead);
	while (q->n_entries)
		drop_last(q);
	free(q->entries);
	q->entries = NULL;
	q->n_room = 0;
	q->n_tokens = 0;
}

static int room_for(struct seq *q, uint32_t n)
{
	struct seq_entry *e;
	uint32_t room = q->n_room ? q->n_room : 4;

	while (room < q->n_entries + n)
		room *= 2;
	if (room == q->n_room)
		return 0;
	e = realloc(q->entries, room * sizeof(*e));
	if (!e)
		return -ENOMEM;
	q->entries = e;
	q->n_room = room;
	return 0;
}

struct segment *seq_open_segment(const struct seq *q)
{
	struct seq_entry *e = last(q);

	return e && !e->seg->sealed ? e->seg : NULL;
}

/* An entry of n tokens at the end; takes over the reference to s. */
static struct seq_entry *push(struct seq *q, struct segment *s, uint32_t from,
			      uint32_t n)
{
	struct seq_entry *e = &q->entries[q->n_entries++];

	e->seg = s;
	e->from = from;
	e->n = n;
	e->pos = (int64_t)q->n_tokens;
	e->begins = q->part_begins || q->n_entries == 1;
	q->part_begins = 0;
	e->skip = NULL;
	e->context = q->context;
	e->patch = NULL;
	e->patch_at = NULL;
	e->stop_layer = 0;
	e->n_patch = e->patch_from = 0;
	e->patch_pages = 0;
	q->n_tokens += n;
	return e;
}

static void use_open(struct seq *q, uint32_t n)
{
	struct seq_entry *e = last(q);

	e->n += n;
	e->seg->n_tokens = e->n;
	q->n_tokens += n;
}

/* Tokens that still go into the open segment. */
static uint32_t room_left(const struct seq *q)
{
	struct segment *s = q->part_begins ? NULL : seq_open_segment(q);

	return s ? s->cap_tokens - s->n_tokens : 0;
}

/* 1: its keys are rotated for another place, so a copy of them would be wrong. */
static int is_moved(const struct seq_entry *e)
{
	return e->pos != e->seg->pos0 + e->from;
}

/* The part-tile at the end that an append has to take over; 0 if none. */
static uint32_t head_tokens(const struct seq *q)
{
	struct seq_entry *e = last(q);

	if (!e || q->part_begins || !e->seg->sealed || is_moved(e) ||
	    e->from % SEGMENT_BLOCK)
		return 0;
	return (e->from + e->n) % SEGMENT_BLOCK;
}

static int bit(const uint64_t *mask, uint64_t i)
{
	return mask && (mask[i / 64] >> (i % 64) & 1);
}

/* Cut head tokens off the last entry and put them at the start of s. */
static int take_head(struct seq *q, struct segment *s, uint32_t head,
		     struct seq_copy *copy)
{
	struct seq_entry *e = last(q);
	const uint32_t keep = e->n - head;
	const int begins = !keep && e->begins;
	uint64_t *skip = NULL;

	if (e->skip) {
		skip = calloc(KV_DIV_UP(s->cap_tokens, 64), sizeof(*skip));
		if (!skip)
			return -ENOMEM;
		for (uint32_t i = 0; i < head; i++)
			if (bit(e->skip, keep + i))
				skip[0] |= 1ull << i;
	}
	copy->src = copy->owned = e->seg;
	copy->dst = s;
	copy->src_from = e->from + keep;
	copy->n = head;
	segment_get(e->seg);
	e->n = keep;
	q->n_tokens -= head;
	if (!keep)
		drop_last(q);
	e = push(q, s, 0, head);
	e->skip = skip;
	e->begins |= begins;
	s->n_tokens = head;
	return 0;
}

/* Segments for n tokens more than the open one holds; all or none. */
static int open_segments(struct seq *q, uint32_t n, uint32_t cap_hint,
			 int64_t pos, struct segment **out, uint32_t n_out)
{
	int ret = 0;
	uint32_t i;

	for (i = 0; i < n_out && !ret; i++) {
		uint32_t cap = KV_MAX(KV_MIN(n, q->seg_tokens), cap_hint);

		cap = KV_ALIGN_UP(KV_MIN(cap, q->seg_tokens), SEGMENT_BLOCK);
		ret = segment_new(q->pool, &q->layout, cap, pos, &out[i]);
		n -= KV_MIN(n, cap);
		pos += cap;
	}
	if (ret)
		for (i--; i-- > 0;)
			segment_put(out[i]);
	return ret;
}

struct segment *seq_open_ahead(struct seq *q, uint32_t n)
{
	const int64_t pos = (int64_t)q->n_tokens + room_left(q);
	const uint32_t cap =
		KV_ALIGN_UP(KV_MIN(n, q->seg_tokens), SEGMENT_BLOCK);

	if (q->ahead.seg && q->ahead.seg->pos0 != pos)
		segment_ahead_drop(&q->ahead);
	if (!q->ahead.seg && seq_open_segment(q))
		(void)segment_ahead_new(q->pool, &q->layout, cap, pos,
					&q->ahead); /* or there is none */
	return q->ahead.seg;
}

/* Of n tokens at pos, if it is there. */
static struct segment *take_ahead(struct seq *q, uint32_t n, int64_t pos)
{
	const struct segment *s = q->ahead.seg;

	return s && s->pos0 == pos && s->cap_tokens >= n
		       ? segment_ahead_take(&q->ahead)
		       : NULL;
}

int seq_grow(struct seq *q, uint32_t n, uint32_t cap_hint,
	     struct seq_copy *copy)
{
	const uint32_t in_open = KV_MIN(n, room_left(q));
	const uint32_t head = n > in_open ? head_tokens(q) : 0;
	const uint32_t more = n - in_open + (n > in_open ? head : 0);
	const uint32_t n_new = KV_DIV_UP(more, q->seg_tokens);
	const int64_t pos = (int64_t)(q->n_tokens + in_open - head);
	struct segment *seg[n_new + 1];
	int ret;

	memset(copy, 0, sizeof(*copy));
	ret = room_for(q, n_new + 1);
	if (ret)
		return ret;
	seg[0] = n_new == 1 ? take_ahead(q, more, pos) : NULL;
	if (n_new && !seg[0]) {
		segment_ahead_drop(&q->ahead);
		ret = open_segments(q, more, cap_hint + head, pos, seg, n_new);
	}
	if (ret)
		return ret;
	if (head && take_head(q, seg[0], head, copy)) {
		for (uint32_t i = 0; i < n_new; i++)
			segment_put(seg[i]);
		return -ENOMEM;
	}
	if (in_open)
		use_open(q, in_open);
	n -= in_open;
	for (uint32_t i = 0; i < n_new; i++) {
		uint32_t take;

		if (i || !head) {
			seq_seal(q);
			push(q, seg[i], 0, 0);
		}
		take = KV_MIN(n, room_left(q));
		use_open(q, take);
		n -= take;
	}
	return 0;
}

void seq_copy_done(struct seq_copy *copy)
{
	if (copy->owned)
		segment_put(copy->owned);
	memset(copy, 0, sizeof(*copy));
}

/* The hidden tokens of n, from at on, are those that mask says. */
static void set_bits(uint64_t *to, uint32_t at, const uint64_t *mask,
		     uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		to[(at + i) / 64] &= ~(1ull << (at + i) % 64);
		to[(at + i) / 64] |= (uint64_t)bit(mask, i) << (at + i) % 64;
	}
}

/* The entry of a head becomes one of the segment that the head is still in. */
static void put_back(struct seq_entry *e, struct seq_copy *copy)
{
	uint64_t *skip = NULL;

	if (e->skip) {
		skip = calloc(KV_DIV_UP(copy->owned->cap_tokens, 64),
			      sizeof(*skip));
		if (!skip)
			return; /* it is copied another time */
		set_bits(skip, 0, e->skip, e->n);
	}
	free(e->skip);
	e->skip = skip;
	segment_put(e->seg);
	e->seg = copy->owned;
	e->from = copy->src_from;
	memset(copy, 0, sizeof(*copy));
}

void seq_copy_undo(struct seq *q, struct seq_copy *copy)
{
	struct seq_entry *e = last(q), *p;

	if (!copy->n || !e || e->seg != copy->dst || e->n > copy->n)
		return;
	p = q->n_entries > 1 ? e - 1 : NULL;
	segment_ahead_drop(&q->ahead);
	if (!p || e->begins || p->seg != copy->owned ||
	    p->from + p->n != copy->src_from || !p->skip != !e->skip) {
		put_back(e, copy);
		return;
	}
	if (p->skip)
		set_bits(p->skip, p->n, e->skip, e->n);
	p->n += e->n;
	drop_last(q);
	seq_copy_done(copy);
}

void seq_seal(struct seq *q)
{
	struct segment *s = seq_open_segment(q);

	if (!s)
		return;
	if (s->n_tokens)
		segment_seal(s, s->n_tokens);
	else
		drop_last(q);
}

void seq_part(struct seq *q)
{
	seq_seal(q);
	q->part_begins = 1;
}

static int same_context(const struct seq_context *a,
			const struct seq_context *b)
{
	return a->shift == b->shift && a->temperature == b->temperature &&
	       a->scale == b->scale;
}

int seq_append(struct seq *q, struct segment *s, uint32_t from, uint32_t n)
{
	struct seq_entry *e = last(q);
	int ret;

	assert(s->sealed && from + n <= s->n_tokens && !seq_open_segment(q));
	if (e && !q->part_begins && e->seg == s && e->from + e->n == from &&
	    !e->skip && !e->patch && same_context(&e->context, &q->context)) {
		e->n += n;
		q->n_tokens += n;
		segment_put(s);
		return 0;
	}
	ret = room_for(q, 1);
	if (ret)
		return ret;
	push(q, s, from, n);
	return 0;
}

int seq_patch_new(struct seq *q, uint32_t n, struct segment **out)
{
	struct segment *patch;
	const int ret = segment_new(q->pool, &q->layout, n, 0, &patch);

	if (ret)
		return ret;
	segment_seal(patch, n);
	*out = patch;
	return 0;
}

int seq_append_patched(struct seq *q, struct segment *s, uint32_t from,
		       uint32_t n, struct segment *patch, int pages)
{
	struct seq_entry *e;
	int ret;

	assert(s->sealed && from + n <= s->n_tokens && !seq_open_segment(q));
	ret = room_for(q, 1);
	if (ret)
		return ret;
	segment_get(patch);
	e = push(q, s, from, n);
	e->patch = patch;
	e->patch_pages = pages;
	return 0;
}

int seq_patch(struct seq *q, uint32_t i, uint32_t from, uint32_t *at,
	      uint32_t n)
{
	struct seq_entry *e = &q->entries[i];

	assert(e->patch && from + n <= e->patch->n_tokens && !e->n_patch &&
	       !e->skip);
	e->skip = calloc(KV_DIV_UP(e->seg->cap_tokens, 64), sizeof(*e->skip));
	if (!e->skip)
		return -ENOMEM;
	for (uint32_t k = 0; k < n; k++) {
		assert(at[k] < e->n && (!k || at[k] > at[k - 1]));
		e->skip[at[k] / 64] |= 1ull << at[k] % 64;
	}
	e->patch_from = from;
	e->patch_at = at;
	e->n_patch = n;
	return 0;
}

int64_t seq_patch_index(const struct seq_entry *e, uint32_t off)
{
	uint32_t lo = 0, hi = e->n_patch;

	while (lo < hi) {
		const uint32_t mid = (lo + hi) / 2;

		if (e->patch_at[mid] < off)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < e->n_patch && e->patch_at[lo] == off
		       ? (int64_t)(e->patch_from + lo)
		       : -1;
}

void seq_truncate(struct seq *q, uint64_t n)
{
	struct seq_entry *e;

	if (q->n_tokens > n) {
		segment_ahead_drop(&q->ahead);
		q->part_begins = 0;
	}
	while ((e = last(q)) && q->n_tokens > n) {
		const uint64_t over = q->n_tokens - n;

		if (over >= e->n) {
			q->n_tokens -= e->n;
			q->part_begins = over == e->n && e->begins;
			drop_last(q);
			continue;
		}
		e->n -= (uint32_t)over;
		q->n_tokens = n;
		if (!e->seg->sealed)
			e->seg->n_tokens = e->n;
		while (e->n_patch && e->patch_at[e->n_patch - 1] >= e->n)
			e->n_patch--;
		for (uint64_t i = e->n; e->skip && i < e->n + over; i++)
			e->skip[i / 64] &= ~(1ull << (i % 64));
	}
}

static uint64_t *skip_copy(const struct seq_entry *e)
{
	const size_t n = KV_DIV_UP(e->seg->cap_tokens, 64) * sizeof(*e->skip);
	uint64_t *skip = malloc(n);

	if (skip)
		memcpy(skip, e->skip, n);
	return skip;
}

static int fork_entry(struct seq *dst, const struct seq_entry *e)
{
	struct seq_entry *to;
	uint64_t *skip = NULL;
	uint32_t *at = NULL;

	if (e->n_patch)
		at = malloc(e->n_patch * sizeof(*at));
	if (e->skip)
		skip = skip_copy(e);
	if ((e->n_patch && !at) || (e->skip && !skip)) {
		free(at);
		free(skip);
		return -ENOMEM;
	}
	segment_get(e->seg);
	to = push(dst, e->seg, e->from, e->n);
	to->begins = e->begins;
	to->skip = skip;
	to->context = e->context;
	to->stop_layer = e->stop_layer;
	if (e->patch) {
		segment_get(e->patch);
		to->patch = e->patch;
		to->patch_from = e->patch_from;
		to->patch_pages = e->patch_pages;
	}
	if (at)
		memcpy(at, e->patch_at, e->n_patch * sizeof(*at));
	to->patch_at = at;
	to->n_patch = e->n_patch;
	return 0;
}

int seq_fork(struct seq *dst, struct seq *src)
{
	int ret;

	seq_seal(src);
	ret = room_for(dst, src->n_entries);
	if (ret)
		return ret;
	for (uint32_t i = 0; i < src->n_entries; i++)
		if (fork_entry(dst, &src->entries[i])) {
			seq_truncate(dst, 0);
			return -ENOMEM;
		}
	dst->part_begins = src->part_begins;
	dst->context = src->context;
	return 0;
}

/* Tokens [off, n) of e at the end of dst, which has room for the entry. */
static int fork_rest(struct seq *dst, const struct seq_entry *e, uint32_t off)
{
	const uint32_t n_words = KV_DIV_UP(e->seg->cap_tokens, 64);
	struct seq_entry *to;
	uint64_t *skip = NULL;

	assert(!e->patch);
	if (e->skip) {
		skip = calloc(n_words, sizeof(*skip));
		if (!skip)
			return -ENOMEM;
		for (uint32_t i = off; i < e->n; i++)
			if (bit(e->skip, i))
				skip[(i - off) / 64] |= 1ull << (i - off) % 64;
	}
	segment_get(e->seg);
	to = push(dst, e->seg, e->from + off, e->n - off);
	to->begins = off || e->begins;
	to->skip = skip;
	to->context = e->context;
	to->stop_layer = e->stop_layer;
	return 0;
}

/* dst (empty) gets the tokens of src from position from on. */
static int fork_tail(struct seq *dst, const struct seq *src, uint64_t from)
{
	int ret = room_for(dst, src->n_entries + 1);

	for (uint32_t i = 0; i < src->n_entries && !ret; i++) {
		const struct seq_entry *e = &src->entries[i];
		const uint64_t pos = (uint64_t)e->pos;

		if (pos + e->n > from)
			ret = fork_rest(dst, e,
					from > pos ? (uint32_t)(from - pos)
						   : 0);
	}
	return ret;
}

/* Move the entries of tail to the end of q, which has room for them. */
static void join(struct seq *q, struct seq *tail)
{
	for (uint32_t i = 0; i < tail->n_entries; i++) {
		const struct seq_entry *e = &tail->entries[i];
		struct seq_entry *to = push(q, e->seg, e->from, e->n);

		to->begins = !i || e->begins;
		to->skip = e->skip;
		to->context = e->context;
	}
	tail->n_entries = 0;
}

int seq_edit(struct seq *q, uint64_t at, uint64_t n_removed, uint32_t n_new)
{
	const uint32_t n_seg = KV_DIV_UP(n_new, q->seg_tokens);
	struct segment *seg[n_seg + 1];
	struct seq tail;
	int ret;

	if (at > q->n_tokens || n_removed > q->n_tokens - at)
		return -EINVAL;
	seq_seal(q);
	if (at + n_removed == q->n_tokens) {
		seq_truncate(q, at);
		return 0;
	}
	seq_init(&tail, q->pool, &q->layout, q->seg_tokens);
	ret = fork_tail(&tail, q, at + n_removed);
	if (!ret)
		ret = room_for(q, n_seg + tail.n_entries + 1);
	if (!ret && n_seg)
		ret = open_segments(q, n_new, 0, (int64_t)at, seg, n_seg);
	if (ret) {
		seq_fini(&tail);
		return ret;
	}
	seq_truncate(q, at);
	for (uint32_t i = 0; i < n_seg; i++) {
		const uint32_t n = KV_MIN(n_new, seg[i]->cap_tokens);

		segment_seal(seg[i], n);
		push(q, seg[i], 0, n);
		n_new -= n;
	}
	join(q, &tail);
	q->part_begins = 1;
	seq_fini(&tail);
	return 0;
}

int seq_skip(struct seq *q, uint64_t from, uint64_t to)
{
	if (from > to || to > q->n_tokens)
		return -EINVAL;
	for (uint32_t i = 0; i < q->n_entries; i++) {
		struct seq_entry *e = &q->entries[i];
		const uint64_t pos = (uint64_t)e->pos;

		if (pos + e->n <= from || pos >= to || e->skip)
			continue;
		e->skip = calloc(KV_DIV_UP(e->seg->cap_tokens, 64),
				 sizeof(*e->skip));
		if (!e->skip)
			return -ENOMEM;
	}
	for (uint32_t i = 0; i < q->n_entries; i++) {
		struct seq_entry *e = &q->entries[i];
		const uint64_t pos = (uint64_t)e->pos;

		for (uint64_t t = KV_MAX(from, pos); t < KV_MIN(to, pos + e->n);
		     t++)
			e->skip[(t - pos) / 64] |= 1ull << ((t - pos) % 64);
	}
	return 0;
}

/* Runs of tokens [from, to) of s. */
static uint32_t segment_runs(const struct segment *s, uint32_t from,
			     uint32_t to, struct seq_groups groups,
			     struct page_run *runs, uint32_t max)
{
	const uint32_t n_groups = s->layout.n_groups;
	struct page_run all;
	uint32_t n = 0;

	segment_pages(s, from, to, &all);
	if (groups.n >= n_groups) {
		if (all.n && max)
			runs[0] = all;
		return all.n ? 1 : 0;
	}
	for (uint32_t i = groups.first; i < all.n; i += n_groups, n++)
		if (n < max)
			runs[n] = (struct page_run){ .range = all.range,
						     .first = all.first + i,
						     .n = groups.n };
	return n;
}

/* Of one entry's tokens [from, to), and its patch with the last of them. */
static uint32_t entry_runs(const struct seq_entry *e, uint32_t from,
			   uint32_t to, struct seq_groups groups,
			   struct page_run *runs, uint32_t max)
{
	uint32_t n = segment_runs(e->seg, e->from + from, e->from + to, groups,
				  runs, max);

	if (e->patch_pages && to == e->n)
		n += segment_runs(e->patch, 0, e->patch->n_tokens, groups,
				  runs + n, max > n ? max - n : 0);
	return n;
}

uint32_t seq_runs(const struct seq *q, uint64_t from, uint64_t to,
		  uint32_t group, struct page_run *runs, uint32_t max)
{
	const struct seq_groups all = { 0, UINT32_MAX }, one = { group, 1 };

	return seq_group_runs(q, from, to, group == UINT32_MAX ? all : one,
			      runs, max);
}

uint32_t seq_group_runs(const struct seq *q, uint64_t from, uint64_t to,
			struct seq_groups groups, struct page_run *runs,
			uint32_t max)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < q->n_entries; i++) {
		const struct seq_entry *e = &q->entries[i];
		const uint64_t pos = (uint64_t)e->pos;
		const uint64_t a = KV_MAX(from, pos);
		const uint64_t b = KV_MIN(to, pos + e->n);

		if (a < b)
			n += entry_runs(e, (uint32_t)(a - pos),
					(uint32_t)(b - pos), groups, runs + n,
					max > n ? max - n : 0);
	}
	return n;
}

void seq_check(const struct seq *q)
{
	uint64_t pos = 0;

	for (uint32_t i = 0; i < q->n_entries; i++) {
		const struct seq_entry *e = &q->entries[i];

		assert(e->pos == (int64_t)pos && e->n);
		assert(e->from + e->n <= e->seg->n_tokens);
		assert(e->seg->sealed || (i + 1 == q->n_entries &&
					  e->seg->n_refs == 1 && !e->from));
		assert(!e->n_patch || (e->patch && e->patch_from + e->n_patch <=
							   e->patch->n_tokens));
		for (uint32_t k = 0; k < e->n_patch; k++) /* hidden, in order */
			assert(e->patch_at[k] < e->n &&
			       bit(e->skip, e->patch_at[k]) &&
			       (!k || e->patch_at[k] > e->patch_at[k - 1]));
		pos += e->n;
	}
	assert(pos == q->n_tokens);
}
