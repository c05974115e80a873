/*
 * pick_craft.c - the tokens that looked most at the chunks before them (Cache-Craft)
 */
#include "kvd/serve/craft.h"
#include "kvd/serve/pick.h"

/* Of each chunk its share (as in the paper), those with the largest scores. */
static int choose(const struct gen *g, const struct repair_group *r,
		  uint32_t *at)
{
	uint32_t done = 0, sum = 0;
	int ret = 0;

	for (uint32_t i = r->i_part; i < r->i_part + r->n_parts && !ret; i++) {
		const struct gen_part *p = &g->parts[i];
		const struct segment *s;
		uint32_t k;

		if (!p->group)
			continue;
		s = g->seq.entries[p->i_entry].seg;
		sum += p->n;
		k = g->craft->permille == REPAIR_BY_CFO
			    ? g->craft->parts[i].k
			    : repair_count(sum, g->craft->permille) - done;
		ret = repair_pick_largest(s->variant->score, p->n, k,
					  at + done);
		for (uint32_t j = 0; j < k; j++)
			at[done + j] += p->first - r->first;
		done += k;
	}
	return ret;
}

const struct pick pick_craft = { .choose = choose };
