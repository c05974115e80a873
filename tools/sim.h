/*
 * sim.h - traces and their replay through the daemon's eviction policies; inside kvsim
 *
 * A trace is requests, each a run of numbered blocks. All policies replay the
 * same one: block by block, a hit if the block is in the cache. Single thread.
 */
#ifndef TOOLS_SIM_H
#define TOOLS_SIM_H

#include <stdint.h>
#include <stdio.h>
#include "kvd/base/map.h"
#include "kvd/mem/evict.h"

#define SIM_MAX_SIZES 32

struct sim_request {
	uint64_t time_ms;
	uint64_t in_tokens, out_tokens;
	uint32_t tenant;
	uint32_t conv; /* whose turn it is */
	uint32_t flags; /* TRACE_* */
	uint32_t n; /* blocks */
	size_t first; /* in blocks[] */
};

/* A conversation has ended before the request `before`. */
struct sim_end {
	uint32_t before;
	uint32_t tenant;
	uint32_t conv;
};

struct sim_trace {
	uint32_t block_tokens;
	struct sim_request *requests;
	uint32_t *blocks; /* [n_accesses] < n_blocks */
	struct sim_end *ends; /* in order */
	size_t n_requests, n_accesses, n_ends;
	uint32_t n_blocks, n_convs;
	/* of the builder */
	size_t requests_room, blocks_room, ends_room;
	struct map ids;
};

/* What to do with files that lack something. */
struct sim_load_opts {
	uint32_t block_tokens; /* of files without blocks */
	uint32_t
		system_tokens; /* the same start of all prompts of a client, there */
	uint64_t duration_s, start_s; /* of ServeGen */
	uint64_t seed;
};

/* ---- sim_trace.c: files. Errors are said on stderr. */
int sim_load(struct sim_trace *t, const char *path,
	     const struct sim_load_opts *o);
void sim_free(struct sim_trace *t);
int sim_save(const struct sim_trace *t, const char *path);
/* A request; ids are 64 bits of a hash or a number. -ENOMEM, -EFBIG. */
int sim_add(struct sim_trace *t, const struct sim_request *r,
	    const uint64_t *ids);
/* The same for a prompt without identity: blocks that nobody else has, behind the
 * common start of its tenant. */
int sim_add_private(struct sim_trace *t, const struct sim_request *r,
		    const struct sim_load_opts *o);
int sim_add_end(struct sim_trace *t, uint32_t tenant, uint32_t conv);
/* ---- sim_servegen.c: a folder of chunk-N-trace.csv and chunk-N-dataset.json */
int sim_load_servegen(struct sim_trace *t, const char *dir,
		      const struct sim_load_opts *o);

/* ---- sim_run.c: replay */
enum sim_bits { SIM_BITS_NONE, SIM_BITS_PERFECT };
struct sim_opts {
	enum sim_bits bits; /* the discard bit of each access */
	double flip; /* share of those bits that are wrong */
	double ends; /* share of conversations whose end is told */
	double one_shot; /* share of those of one turn that are told to be */
	uint64_t end_delay_ms; /* that long after the last turn */
	double false_ends; /* share of other turns that are told to be the end */
	uint32_t queue; /* requests known ahead */
	uint64_t seed;
};
struct sim_result {
	uint64_t n_hits; /* blocks */
	uint64_t n_usable; /* blocks of hit prefixes without a gap */
	double seconds; /* of CPU */
};
struct sim;
/* The trace is borrowed. -ENOMEM. */
int sim_new(struct sim **out, const struct sim_trace *t,
	    const struct sim_opts *o);
void sim_delete(struct sim *s);
int sim_run(struct sim *s, const struct evict_policy *p, uint32_t capacity,
	    struct sim_result *out);
/* Share of accesses that hit in a cache without limit. */
double sim_ceiling(const struct sim_trace *t);

/* Seeded, the same everywhere: uniform in [0, 1). */
double sim_random(uint64_t *state);

/* ---- sim_groups.c: of the first n_requests, the share of blocks that need not be
 * computed when all of the prefix tree is kept, and with groups of one level. -ENOMEM. */
struct sim_groups {
	double tree, one_level;
};
int sim_groups(const struct sim_trace *t, uint32_t n_requests,
	       struct sim_groups *out);

/* ---- sim_plot.c */
struct sim_plot {
	const char *path; /* .svg or .png */
	const char *title;
	const uint32_t *sizes;
	uint32_t n_sizes;
	const char *const *names;
	uint32_t n_names;
	const double *rates; /* [n_names][n_sizes] */
	double ceiling;
};
/* Says what is wrong on stderr. -ENOENT no gnuplot, -EINVAL the name, -EIO. */
int sim_plot(const struct sim_plot *p);

#endif
