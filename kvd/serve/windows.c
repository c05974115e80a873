/*
 * windows.c - attention over a sequence larger than its budget; see attn.h
 *
 * The engine asks the loop for the pages of the next window, waits, runs its tasks over
 * them; the window before is given back with the next question.
 */
#include <errno.h>
#include "kvd/serve/attn_priv.h"

struct window {
	struct engine_ask ask;
	struct page_want want;
	struct pager *pager;
	const int *cancelled;
	struct page_run *runs; /* of the window wanted */
	uint32_t n_runs;
	struct page_run *held; /* pinned before; given back first */
	uint32_t n_held;
};

static void window_done(struct wait *w, int ret)
{
	struct window *win = container_of(
		container_of(w, struct page_want, wait), struct window, want);

	engine_answer(&win->ask, ret);
}

static void window_turn(struct engine_ask *a)
{
	struct window *win = container_of(a, struct window, ask);
	int ret;

	if (win->n_held)
		page_unpin(win->pager, win->held, win->n_held);
	win->n_held = 0;
	if (!win->n_runs) {
		engine_answer(a, 0);
		return;
	}
	if (win->cancelled && *win->cancelled) {
		engine_answer(a, -ECANCELED);
		return;
	}
	win->want.wait.done = window_done;
	win->want.runs = win->runs;
	win->want.n_runs = win->n_runs;
	ret = page_want(win->pager, &win->want);
	if (ret)
		engine_answer(a, ret > 0 ? 0 : ret);
}

/* The end of the window that starts at from and pins at most max_pages. */
static uint64_t window_end(const struct seq *q, uint64_t from, uint64_t to,
			   uint64_t max_pages, uint32_t page_tokens)
{
	uint64_t end = from, n_pages = 0;

	for (uint32_t i = 0; i < q->n_entries && end < to; i++) {
		const struct seq_entry *e = &q->entries[i];
		const uint64_t stop = KV_MIN(to, (uint64_t)e->pos + e->n);

		while (end < stop && n_pages < max_pages) {
			const uint64_t t = e->from + end - (uint64_t)e->pos;

			end += page_tokens - t % page_tokens;
			end = KV_MIN(end, stop);
			n_pages++;
		}
		if (n_pages >= max_pages)
			break;
	}
	return end;
}

/* Bring in [from, to) of the item's layer and run its tasks over it. */
static int run_window(struct engine *e, struct pool *pool, struct task_list *l,
		      struct window *win, uint64_t from, uint64_t to,
		      struct page_run *room[2])
{
	struct prepared *p = l->tasks[0].p;
	const struct seq *q = p->it->seq;
	const uint32_t group = p->layer / q->layout.page_layers;
	int ret;

	win->runs = room[win->runs == room[0]];
	win->n_runs = seq_runs(q, from, to, group, win->runs, UINT32_MAX);
	ret = engine_ask(e, &win->ask);
	if (ret) {
		win->n_runs = 0;
		return ret;
	}
	p->it->n_read += win->want.n_read;
	win->held = win->runs;
	win->n_held = win->n_runs;
	attn_build_spans(p, from, to);
	attn_run(pool, l, attn_run_spans);
	return 0;
}

int attn_run_windows(struct engine *e, struct pool *pool,
		     struct attn_scratch *s, struct prepared *p)
{
	struct attn_item *it = p->it;
	const struct seq *q = it->seq;
	const uint64_t max_pages = it->window_bytes / q->layout.page_bytes;
	struct window win = { .ask.run = window_turn,
			      .cancelled = it->cancelled,
			      .pager = segment_pool_pager(q->pool) };
	const uint32_t group = p->layer / q->layout.page_layers;
	const uint32_t n_runs = seq_runs(q, 0, q->n_tokens, group, NULL, 0);
	struct page_run *room[2];
	struct task_list l;
	int ret = -ENOMEM;

	room[0] = attn_scratch_alloc(s, n_runs * sizeof(*room[0]));
	room[1] = attn_scratch_alloc(s, n_runs * sizeof(*room[1]));
	if (!room[0] || !room[1] || attn_list_tasks(&l, s, p, 1, 1))
		return ret;
	attn_run(pool, &l, attn_run_clear);
	ret = max_pages ? 0 : -ENOSPC;
	for (uint64_t at = 0; !ret && at < it->resident_from;) {
		const uint64_t end = window_end(q, at, it->resident_from,
						max_pages,
						q->layout.page_tokens);

		ret = run_window(e, pool, &l, &win, at, end, room);
		at = end;
	}
	win.n_runs = 0;
	if (win.n_held)
		(void)engine_ask(e, &win.ask); /* only gives back */
	if (ret)
		return ret;
	attn_build_spans(p, it->resident_from, it->pos + it->n_rows);
	attn_run(pool, &l, attn_run_spans);
	attn_run(pool, &l, attn_run_finish);
	return it->ret;
}
