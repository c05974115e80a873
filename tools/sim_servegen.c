/*
 * sim_servegen.c - ServeGen clients: rates by window and laws of lengths, drawn into
 * requests (Xiang et al. 2025, "ServeGen: workload characterization and generation of
 * LLM serving in production")
 *
 *   chunk-N-trace.csv     start s, rate /s, CV of gaps, law, its two parameters
 *   chunk-N-dataset.json  start s: { "input_tokens": "{length: probability}", ... }
 *
 * One client is one tenant. Gaps are drawn from the law of the window (Gamma or Weibull
 * by shape and scale, else exponential by rate), lengths from the window's own or the
 * last one before it. The traces do not say who shares what: see sim_add_private().
 */
#include "tools/sim.h"

#include <errno.h>
#include <glob.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW_S    600.0
#define WINDOW_MOST (1u << 22) /* requests of a client in one */
#define LAW_MOST    1e9 /* parameters of a law, seconds */

struct law {
	uint32_t *lengths;
	double *sums; /* of probabilities up to and with it */
	size_t n;
};

struct draw {
	struct sim_request *requests;
	size_t n, room;
	uint64_t seed;
};

/* "{45: 0.0096, 46: 0.011}" */
static int law_parse(struct law *l, const char *s)
{
	size_t room = 1;
	double sum = 0;

	for (const char *p = s; *p; p++)
		room += *p == ':';
	l->lengths = calloc(room, sizeof(*l->lengths));
	l->sums = calloc(room, sizeof(*l->sums));
	l->n = 0;
	if (!l->lengths || !l->sums)
		return -ENOMEM;
	s = strchr(s, '{');
	while (s && s[1] != '}' && l->n < room) {
		double len, p;
		int used;

		if (sscanf(s + 1, "%lf : %lf%n", &len, &p, &used) != 2 ||
		    !(len >= 0 && len < 1e8) || !(p >= 0 && p <= 1))
			return -EBADMSG;
		sum += p;
		l->lengths[l->n] = (uint32_t)len;
		l->sums[l->n++] = sum;
		s += 1 + used;
		if (*s != ',' && *s != '}')
			return -EBADMSG;
		s = *s == ',' ? s : NULL;
	}
	return l->n && sum > 0 ? 0 : -EBADMSG;
}

static void law_fini(struct law *l)
{
	free(l->lengths);
	free(l->sums);
	memset(l, 0, sizeof(*l));
}

static uint32_t law_draw(const struct law *l, uint64_t *seed)
{
	const double u = sim_random(seed) * l->sums[l->n - 1];
	size_t lo = 0, hi = l->n - 1;

	while (lo < hi) {
		const size_t mid = (lo + hi) / 2;

		if (l->sums[mid] > u)
			hi = mid;
		else
			lo = mid + 1;
	}
	return l->lengths[lo];
}

/* Marsaglia and Tsang 2000, "A simple method for generating gamma variables". */
static double gamma_draw(double shape, uint64_t *seed)
{
	const double d = (shape < 1 ? shape + 1 : shape) - 1.0 / 3;
	const double c = 1 / sqrt(9 * d);
	double boost = 1, u, v, x;

	if (shape < 1)
		boost = pow(1 - sim_random(seed), 1 / shape);
	for (;;) {
		x = sqrt(-2 * log(1 - sim_random(seed))) *
		    cos(2 * M_PI * sim_random(seed));
		v = 1 + c * x;
		u = 1 - sim_random(seed);
		if (v > 0 &&
		    log(u) < x * x / 2 + d - d * v * v * v + 3 * d * log(v))
			return d * v * v * v * boost;
	}
}

static double gap_draw(const char *law, double rate, double a, double b,
		       uint64_t *seed)
{
	if (!strcmp(law, "Gamma") && a > 0 && b > 0)
		return gamma_draw(a, seed) * b;
	if (!strcmp(law, "Weibull") && a > 0 && b > 0)
		return b * pow(-log(1 - sim_random(seed)), 1 / a);
	return -log(1 - sim_random(seed)) / rate;
}

static int push(struct draw *d, double at_s, uint32_t tenant,
		const struct law *in, const struct law *out)
{
	if (d->n == d->room) {
		const size_t room = d->room ? 2 * d->room : 1024;
		void *p = realloc(d->requests, room * sizeof(*d->requests));

		if (!p)
			return -ENOMEM;
		d->requests = p;
		d->room = room;
	}
	d->requests[d->n++] = (struct sim_request){
		.time_ms = (uint64_t)(at_s * 1000),
		.tenant = tenant,
		.in_tokens = law_draw(in, &d->seed),
		.out_tokens = law_draw(out, &d->seed),
	};
	return 0;
}

/* What a window says can be drawn from. */
static int sane(double start, double rate, double a, double b)
{
	return start >= 0 && start < LAW_MOST && rate >= 0 && rate < 1e6 &&
	       a >= 0 && a < LAW_MOST && b >= 0 && b < LAW_MOST;
}

/* The laws of the window, if the client has them; else those there are stay. */
static int window_laws(json_t *all, uint64_t start_s, struct law *in,
		       struct law *out)
{
	char key[24];
	const char *a, *b;
	json_t *w;
	int ret;

	snprintf(key, sizeof(key), "%" PRIu64, start_s);
	w = json_object_get(all, key);
	a = json_string_value(json_object_get(w, "input_tokens"));
	b = json_string_value(json_object_get(w, "output_tokens"));
	if (!a || !b || !strchr(a, ':') || !strchr(b, ':'))
		return 0;
	law_fini(in);
	law_fini(out);
	ret = law_parse(in, a);
	return ret ? ret : law_parse(out, b);
}

static int draw_windows(struct draw *d, FILE *f, json_t *all, uint32_t tenant,
			const struct sim_load_opts *o)
{
	struct law in = { 0 }, out = { 0 };
	char line[512], law[16];
	int ret = 0;

	while (!ret && fgets(line, sizeof(line), f)) {
		double start, rate, cv, a = 0, b = 0, t;
		uint32_t n = 0;

		*law = '\0';
		if (sscanf(line, "%lf,%lf,%lf,%15[A-Za-z],%lf,%lf", &start,
			   &rate, &cv, law, &a, &b) < 3 ||
		    !sane(start, rate, a, b)) {
			ret = -EBADMSG;
			break;
		}
		ret = window_laws(all, (uint64_t)start, &in, &out);
		if (ret || start < (double)o->start_s || !in.n || !out.n)
			continue;
		if (start >= (double)(o->start_s + o->duration_s))
			break;
		if (rate <= 0)
			continue;
		t = gap_draw(law, rate, a, b, &d->seed);
		for (; t < WINDOW_S && !ret;
		     t += gap_draw(law, rate, a, b, &d->seed))
			ret = n++ == WINDOW_MOST
				      ? -EBADMSG
				      : push(d, start + t, tenant, &in, &out);
	}
	law_fini(&in);
	law_fini(&out);
	return ret;
}

static int load_client(struct draw *d, const char *csv,
		       const struct sim_load_opts *o)
{
	const char *base = strrchr(csv, '/');
	const size_t dir = base ? (size_t)(base - csv) + 1 : 0;
	char path[4096];
	uint32_t tenant;
	json_t *all;
	FILE *f;
	int ret;

	if (sscanf(csv + dir, "chunk-%" SCNu32, &tenant) != 1 ||
	    snprintf(path, sizeof(path), "%.*schunk-%" PRIu32 "-dataset.json",
		     (int)dir, csv, tenant) >= (int)sizeof(path))
		return -EBADMSG;
	all = json_load_file(path, 0, NULL);
	if (!all) {
		fprintf(stderr, "kvsim: %s: missing, its client is left out\n",
			path);
		return 0;
	}
	f = fopen(csv, "re");
	ret = f ? draw_windows(d, f, all, tenant, o) : -errno;
	if (f)
		fclose(f);
	json_decref(all);
	if (ret)
		fprintf(stderr, "kvsim: %s: %s\n", csv,
			ret == -EBADMSG ? "not ServeGen's" : strerror(-ret));
	return ret;
}

static int by_time(const void *a, const void *b)
{
	const struct sim_request *x = a, *y = b;

	if (x->time_ms != y->time_ms)
		return x->time_ms < y->time_ms ? -1 : 1;
	return x->tenant < y->tenant ? -1 : x->tenant > y->tenant;
}

int sim_load_servegen(struct sim_trace *t, const char *dir,
		      const struct sim_load_opts *o)
{
	struct draw d = { .seed = o->seed };
	char pattern[4096];
	glob_t g = { 0 };
	int ret = 0;

	t->block_tokens = o->block_tokens;
	snprintf(pattern, sizeof(pattern), "%s/chunk-*-trace.csv", dir);
	if (glob(pattern, 0, NULL, &g) || !g.gl_pathc) {
		fprintf(stderr, "kvsim: %s: no chunk-N-trace.csv in it\n", dir);
		ret = -ENOENT;
	}
	for (size_t i = 0; i < g.gl_pathc && !ret; i++)
		ret = load_client(&d, g.gl_pathv[i], o);
	if (!ret && d.n)
		qsort(d.requests, d.n, sizeof(*d.requests), by_time);
	for (size_t i = 0; i < d.n && !ret; i++)
		ret = sim_add_private(t, &d.requests[i], o);
	if (!ret && !t->n_accesses) {
		fprintf(stderr, "kvsim: %s: no requests in that time\n", dir);
		ret = -EBADMSG;
	}
	free(d.requests);
	globfree(&g);
	return ret;
}
