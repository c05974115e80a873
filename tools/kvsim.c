/*
 * kvsim.c - replay traces of LLM requests through the daemon's eviction policies
 *
 * `kvsim TRACE...` prints hit rates by cache size, for each policy of kvd/mem (the
 * daemon's own code). Exit: 0 done, 1 failed, 2 usage.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tools/sim.h"

#define MAX_POLICIES 16

struct args {
	uint32_t sizes[SIM_MAX_SIZES];
	uint32_t n_sizes;
	const struct evict_policy *policies[MAX_POLICIES];
	uint32_t n_policies;
	struct sim_load_opts load;
	struct sim_opts sim;
	const char *plot, *convert;
	uint32_t groups[SIM_MAX_SIZES], n_groups;
	int json, usable;
};

static const struct option options[] = {
	{ "sizes", required_argument, NULL, 's' },
	{ "policies", required_argument, NULL, 'p' },
	{ "bits", required_argument, NULL, 'b' },
	{ "flip", required_argument, NULL, 'f' },
	{ "ends", required_argument, NULL, 'e' },
	{ "one-shot", required_argument, NULL, 'o' },
	{ "end-delay", required_argument, NULL, 'D' },
	{ "false-ends", required_argument, NULL, 'E' },
	{ "queue", required_argument, NULL, 'q' },
	{ "seed", required_argument, NULL, 'S' },
	{ "usable", no_argument, NULL, 'u' },
	{ "block", required_argument, NULL, 'B' },
	{ "system-tokens", required_argument, NULL, 'y' },
	{ "start", required_argument, NULL, 't' },
	{ "duration", required_argument, NULL, 'd' },
	{ "groups", required_argument, NULL, 'g' },
	{ "convert", required_argument, NULL, 'c' },
	{ "plot", required_argument, NULL, 'P' },
	{ "json", no_argument, NULL, 'J' },
	{ "help", no_argument, NULL, 'h' },
	{ 0 },
};

static void usage(FILE *f)
{
	fputs("usage: kvsim [options] TRACE...\n"
	      "Replay traces through kvd's eviction policies; print hit rates of "
	      "blocks by cache\nsize. TRACE: Mooncake (JSON lines), Azure (CSV), "
	      "kvd's own, each perhaps .gz, or a\nfolder of ServeGen clients.\n"
	      "  --sizes N,N...      cache sizes in blocks\n"
	      "  --policies A,B...   of:",
	      f);
	for (int i = 0; evict_policies[i]; i++)
		fprintf(f, " %s", evict_policies[i]->name);
	fputs("\n"
	      "  --usable            count blocks of hit prefixes without a gap\n"
	      "  --bits perfect      discard bits of Belady's algorithm\n"
	      "  --flip P            that share of those bits is wrong\n"
	      "  --ends P            that share of conversations tell their end\n"
	      "  --end-delay S       that many seconds after the last turn (0)\n"
	      "  --one-shot P        that share of those of one turn tell at once\n"
	      "  --false-ends P      that share of other turns say so wrongly\n"
	      "  --queue N           N requests ahead are known\n"
	      "  --seed N            of whatever is drawn (1)\n"
	      "  --block N           tokens of a block, where the trace has none "
	      "(512)\n"
	      "  --system-tokens N   common start of a client's prompts, there "
	      "(1024)\n"
	      "  --start S, --duration S   of ServeGen (0, 3600)\n"
	      "  --groups N,N...     the first N requests as a closed set: blocks "
	      "saved by all\n"
	      "                      of the prefix tree, and by groups of one "
	      "level of it\n"
	      "  --convert FILE      write TRACE in kvd's format and stop\n"
	      "  --plot FILE         .svg or .png, by gnuplot; one TRACE\n"
	      "  --json, --help\n",
	      f);
}

/* ---- arguments --------------------------------------------------------------- */

static int parse_u64(const char *s, uint64_t max, uint64_t *out)
{
	char *end;

	if (*s < '0' || *s > '9')
		return -EINVAL;
	errno = 0;
	*out = strtoull(s, &end, 10);
	return errno || *end || *out > max ? -EINVAL : 0;
}

static int parse_u32(const char *s, uint32_t min, uint32_t *out)
{
	uint64_t n;

	if (parse_u64(s, UINT32_MAX / 2, &n) || n < min)
		return -EINVAL;
	*out = (uint32_t)n;
	return 0;
}

static int parse_share(const char *s, double *out)
{
	char *end;

	*out = strtod(s, &end);
	return end == s || *end || !(*out >= 0 && *out <= 1) ? -EINVAL : 0;
}

/* fn for each part of a list with commas. */
static int parse_list(const char *s, struct args *a,
		      int (*fn)(struct args *a, const char *part))
{
	char buf[1024], *at = buf, *p;
	int ret = strlen(s) < sizeof(buf) ? 0 : -EINVAL;

	if (ret)
		return ret;
	strcpy(buf, s);
	while (!ret && (p = strsep(&at, ",")))
		ret = fn(a, p); /* an empty one is none */
	return ret;
}

static int add_group(struct args *a, const char *s)
{
	if (a->n_groups == SIM_MAX_SIZES ||
	    parse_u32(s, 1, &a->groups[a->n_groups]))
		return -EINVAL;
	a->n_groups++;
	return 0;
}

static int add_size(struct args *a, const char *s)
{
	if (a->n_sizes == SIM_MAX_SIZES ||
	    parse_u32(s, 1, &a->sizes[a->n_sizes]))
		return -EINVAL;
	a->n_sizes++;
	return 0;
}

static int add_policy(struct args *a, const char *s)
{
	const struct evict_policy *p = evict_find(s);

	if (!p || a->n_policies == MAX_POLICIES)
		return -EINVAL;
	a->policies[a->n_policies++] = p;
	return 0;
}

static int parse_bits(const char *s, struct sim_opts *o)
{
	if (strcmp(s, "perfect"))
		return -EINVAL;
	o->bits = SIM_BITS_PERFECT;
	return 0;
}

static int parse_option(struct args *a, int c, const char *s)
{
	switch (c) {
	case 'g':
		return parse_list(s, a, add_group);
	case 's':
		a->n_sizes = 0;
		return parse_list(s, a, add_size);
	case 'p':
		a->n_policies = 0;
		return parse_list(s, a, add_policy);
	case 'b':
		return parse_bits(s, &a->sim);
	case 'f':
		return parse_share(s, &a->sim.flip);
	case 'e':
		return parse_share(s, &a->sim.ends);
	case 'o':
		return parse_share(s, &a->sim.one_shot);
	case 'D':
		if (parse_u64(s, UINT32_MAX, &a->sim.end_delay_ms))
			return -EINVAL;
		a->sim.end_delay_ms *= 1000;
		return 0;
	case 'E':
		return parse_share(s, &a->sim.false_ends);
	case 'q':
		return parse_u32(s, 0, &a->sim.queue);
	case 'S':
		return parse_u64(s, UINT64_MAX, &a->sim.seed);
	case 'B':
		return parse_u32(s, 1, &a->load.block_tokens);
	case 'y':
		return parse_u32(s, 0, &a->load.system_tokens);
	case 't':
		return parse_u64(s, UINT32_MAX, &a->load.start_s);
	case 'd':
		return parse_u64(s, UINT32_MAX, &a->load.duration_s);
	case 'u':
		a->usable = 1;
		return 0;
	case 'c':
		a->convert = s;
		return 0;
	case 'P':
		a->plot = s;
		return 0;
	case 'J':
		a->json = 1;
		return 0;
	default:
		return -EINVAL;
	}
}

static void defaults(struct args *a)
{
	static const uint32_t sizes[] = {
		1000, 2000, 5000, 10000, 20000, 50000
	};

	memset(a, 0, sizeof(*a));
	memcpy(a->sizes, sizes, sizeof(sizes));
	a->n_sizes = KV_ARRAY_LEN(sizes);
	while (evict_policies[a->n_policies]) {
		a->policies[a->n_policies] = evict_policies[a->n_policies];
		a->n_policies++;
	}
	a->load = (struct sim_load_opts){ .block_tokens = 512,
					  .system_tokens = 1024,
					  .duration_s = 3600 };
	a->sim.seed = 1;
}

/* ---- results ------------------------------------------------------------------- */

static double rate(const struct args *a, const struct sim_trace *t,
		   const struct sim_result *r)
{
	return (double)(a->usable ? r->n_usable : r->n_hits) /
	       (double)t->n_accesses;
}

static void print_table(const struct args *a, const struct sim_trace *t,
			const char *path, const struct sim_result *r)
{
	printf("%s: %zu requests, %zu blocks of %" PRIu32 " tokens, %" PRIu32
	       " distinct, ceiling %.4f\n",
	       path, t->n_requests, t->n_accesses, t->block_tokens, t->n_blocks,
	       sim_ceiling(t));
	printf("%-12s", a->usable ? "usable rate" : "hit rate");
	for (uint32_t j = 0; j < a->n_sizes; j++)
		printf(" %8" PRIu32, a->sizes[j]);
	printf("  s/1M requests\n");
	for (uint32_t i = 0; i < a->n_policies; i++) {
		double seconds = 0;

		printf("%-12s", a->policies[i]->name);
		for (uint32_t j = 0; j < a->n_sizes; j++) {
			const struct sim_result *one = &r[i * a->n_sizes + j];

			printf(" %8.4f", rate(a, t, one));
			seconds += one->seconds;
		}
		printf(" %14.2f\n",
		       seconds / a->n_sizes / (double)t->n_requests * 1e6);
	}
}

static json_t *json_of(const struct args *a, const struct sim_trace *t,
		       const char *path, const struct sim_result *r)
{
	json_t *list = json_array();

	for (uint32_t i = 0; i < a->n_policies; i++) {
		for (uint32_t j = 0; j < a->n_sizes; j++) {
			const struct sim_result *one = &r[i * a->n_sizes + j];
			const double n = (double)t->n_accesses;

			json_array_append_new(
				list,
				json_pack("{s:s, s:I, s:f, s:f, s:f}", "policy",
					  a->policies[i]->name, "blocks",
					  (json_int_t)a->sizes[j], "hit_rate",
					  (double)one->n_hits / n,
					  "usable_rate",
					  (double)one->n_usable / n,
					  "seconds_per_million_requests",
					  one->seconds / (double)t->n_requests *
						  1e6));
		}
	}
	return json_pack("{s:s, s:I, s:I, s:I, s:I, s:f, s:o}", "trace", path,
			 "requests", (json_int_t)t->n_requests, "blocks",
			 (json_int_t)t->n_accesses, "distinct",
			 (json_int_t)t->n_blocks, "block_tokens",
			 (json_int_t)t->block_tokens, "ceiling", sim_ceiling(t),
			 "results", list);
}

static int draw_plot(const struct args *a, const struct sim_trace *t,
		     const char *path, const struct sim_result *r)
{
	const char *names[MAX_POLICIES];
	double rates[MAX_POLICIES * SIM_MAX_SIZES];
	const char *base = strrchr(path, '/');
	const struct sim_plot p = {
		.path = a->plot,
		.title = base ? base + 1 : path,
		.sizes = a->sizes,
		.n_sizes = a->n_sizes,
		.names = names,
		.n_names = a->n_policies,
		.rates = rates,
		.ceiling = sim_ceiling(t),
	};

	for (uint32_t i = 0; i < a->n_policies; i++) {
		names[i] = a->policies[i]->name;
		for (uint32_t j = 0; j < a->n_sizes; j++)
			rates[i * a->n_sizes + j] =
				rate(a, t, &r[i * a->n_sizes + j]);
	}
	return sim_plot(&p);
}

static int replay(const struct args *a, const struct sim_trace *t,
		  struct sim_result *r)
{
	struct sim *s;
	int ret = sim_new(&s, t, &a->sim);

	if (ret)
		return ret;
	for (uint32_t i = 0; i < a->n_policies && !ret; i++)
		for (uint32_t j = 0; j < a->n_sizes && !ret; j++)
			ret = sim_run(s, a->policies[i], a->sizes[j],
				      &r[i * a->n_sizes + j]);
	sim_delete(s);
	return ret;
}

static int print_groups(const struct args *a, const struct sim_trace *t,
			const char *path, json_t *all)
{
	struct sim_groups g;
	int ret = 0;

	for (uint32_t i = 0; i < a->n_groups && !ret; i++) {
		ret = sim_groups(t, a->groups[i], &g);
		if (!ret && all)
			json_array_append_new(
				all,
				json_pack("{s:s, s:I, s:f, s:f}", "trace", path,
					  "requests", (json_int_t)a->groups[i],
					  "tree", g.tree, "one_level",
					  g.one_level));
		else if (!ret)
			printf("%s: first %" PRIu32 " requests: tree %.4f, "
			       "groups of one level %.4f\n",
			       path, a->groups[i], g.tree, g.one_level);
	}
	return ret;
}

static int one_trace(const struct args *a, const char *path, json_t *all)
{
	struct sim_result r[MAX_POLICIES * SIM_MAX_SIZES];
	struct sim_trace t;
	int ret = sim_load(&t, path, &a->load);

	if (ret)
		return ret;
	if (a->convert) {
		ret = sim_save(&t, a->convert);
		sim_free(&t);
		return ret;
	}
	if (a->n_groups) {
		ret = print_groups(a, &t, path, all);
		sim_free(&t);
		return ret;
	}
	ret = replay(a, &t, r);
	if (ret)
		fprintf(stderr, "kvsim: %s: %s\n", path, strerror(-ret));
	else if (all)
		json_array_append_new(all, json_of(a, &t, path, r));
	else
		print_table(a, &t, path, r);
	if (!ret && a->plot)
		ret = draw_plot(a, &t, path, r);
	sim_free(&t);
	return ret;
}

int main(int argc, char **argv)
{
	json_t *all = NULL;
	struct args a;
	int c, ret = 0;

	signal(SIGPIPE, SIG_IGN); /* of gnuplot */
	defaults(&a);
	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (c == 'h') {
			usage(stdout);
			return 0;
		}
		if (c == '?' || parse_option(&a, c, optarg)) {
			if (c != '?')
				fprintf(stderr, "kvsim: not good: %s\n",
					optarg ? optarg : "?");
			usage(stderr);
			return 2;
		}
	}
	if (optind == argc || ((a.plot || a.convert) && argc - optind != 1)) {
		usage(stderr);
		return 2;
	}
	if (a.json)
		all = json_array();
	for (int i = optind; i < argc && !ret; i++)
		ret = one_trace(&a, argv[i], all);
	errno = 0;
	if (all) {
		if (!ret) {
			json_dumpf(all, stdout, JSON_INDENT(1));
			putchar('\n');
		}
		json_decref(all);
	}
	if ((fflush(stdout) || ferror(stdout)) && !ret) {
		ret = errno ? -errno : -EIO;
		fprintf(stderr, "kvsim: standard output: %s\n", strerror(-ret));
	}
	return ret ? 1 : 0;
}
