/*
 * stat.c - counters, gauges and histograms; see stat.h
 *
 * The list only grows at its end, under the lock; readers follow next with
 * acquire loads and need none.
 */
#include "kvd/base/stat.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct stat *first, *last;
static struct stat dummy = { .name = "kvd_dummy", .help = "out of memory" };

static struct stat *next_of(struct stat *const *p)
{
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static int matches(const struct stat *s, const char *name, const char *value)
{
	return !strcmp(s->name, name) && !strcmp(s->value, value);
}

struct stat *stat_get(enum stat_kind kind, const char *name, const char *help,
		      const char *label, const char *value, double unit)
{
	struct stat *s;

	if (!value)
		value = "";
	pthread_mutex_lock(&lock);
	for (s = first; s && !matches(s, name, value);)
		s = s->next;
	if (!s && (s = calloc(1, sizeof(*s)))) {
		s->name = name;
		s->help = help;
		s->label = label;
		snprintf(s->value, sizeof(s->value), "%s", value);
		s->kind = kind;
		s->unit = unit;
		__atomic_store_n(last ? &last->next : &first, s,
				 __ATOMIC_RELEASE);
		last = s;
	}
	pthread_mutex_unlock(&lock);
	return s ? s : &dummy;
}

static uint32_t bucket_of(uint64_t raw)
{
	const uint32_t b = raw > 1 ? 64 - (uint32_t)__builtin_clzll(raw - 1)
				   : 0;

	return b < STAT_BUCKETS ? b : STAT_BUCKETS - 1;
}

void stat_observe(struct stat *s, uint64_t raw)
{
	atomic_fetch_add_explicit(&s->n, raw, memory_order_relaxed);
	atomic_fetch_add_explicit(&s->bucket[bucket_of(raw)], 1,
				  memory_order_relaxed);
	atomic_fetch_add_explicit(&s->count, 1, memory_order_relaxed);
}

uint64_t stat_quantile(const struct stat *s, double q)
{
	const uint64_t count =
		atomic_load_explicit(&s->count, memory_order_relaxed);
	double rank = q * (double)count, seen = 0;

	if (!count)
		return 0;
	for (uint32_t i = 0; i < STAT_BUCKETS; i++) {
		const double in = (double)atomic_load_explicit(
			&s->bucket[i], memory_order_relaxed);
		const double low = i ? (double)(1ull << (i - 1)) : 0;
		const double high = (double)(1ull << i);

		if (in > 0 && seen + in >= rank)
			return (uint64_t)(low +
					  (high - low) * (rank - seen) / in);
		seen += in;
	}
	return 1ull << (STAT_BUCKETS - 1);
}

/* ---- Prometheus text ---------------------------------------------------- */

static void put_escaped(FILE *f, const char *s)
{
	for (; *s; s++) {
		if (*s == '"' || *s == '\\' || *s == '\n')
			fputc('\\', f);
		fputc(*s == '\n' ? 'n' : *s, f);
	}
}

static void put_label(FILE *f, const struct stat *s, const char *extra)
{
	const int own = s->label && s->value[0];

	if (!own && !extra)
		return;
	fputc('{', f);
	if (own) {
		fprintf(f, "%s=\"", s->label);
		put_escaped(f, s->value);
		fputc('"', f);
	}
	if (extra)
		fprintf(f, "%sle=\"%s\"", own ? "," : "", extra);
	fputc('}', f);
}

static void put_histogram(FILE *f, const struct stat *s)
{
	uint64_t sum = 0;
	char le[32];

	for (uint32_t i = 0; i + 1 < STAT_BUCKETS; i++) {
		sum += atomic_load_explicit(&s->bucket[i],
					    memory_order_relaxed);
		snprintf(le, sizeof(le), "%.9g", (double)(1ull << i) * s->unit);
		fprintf(f, "%s_bucket", s->name);
		put_label(f, s, le);
		fprintf(f, " %llu\n", (unsigned long long)sum);
	}
	sum += atomic_load_explicit(&s->bucket[STAT_BUCKETS - 1],
				    memory_order_relaxed);
	fprintf(f, "%s_bucket", s->name);
	put_label(f, s, "+Inf");
	fprintf(f, " %llu\n%s_sum", (unsigned long long)sum, s->name);
	put_label(f, s, NULL);
	fprintf(f, " %.15g\n%s_count", (double)stat_read(s) * s->unit, s->name);
	put_label(f, s, NULL);
	fprintf(f, " %llu\n", (unsigned long long)sum);
}

static void put_value(FILE *f, const struct stat *s)
{
	if (s->kind == STAT_HISTOGRAM) {
		put_histogram(f, s);
		return;
	}
	fputs(s->name, f);
	put_label(f, s, NULL);
	fprintf(f, " %llu\n", (unsigned long long)stat_read(s));
}

/* All of one name together, under one HELP and TYPE. */
static void put_name(FILE *f, struct stat *head)
{
	static const char *const kinds[] = { "counter", "gauge", "histogram" };

	fprintf(f, "# HELP %s %s\n# TYPE %s %s\n", head->name, head->help,
		head->name, kinds[head->kind]);
	for (struct stat *s = head; s; s = next_of(&s->next))
		if (!strcmp(s->name, head->name))
			put_value(f, s);
}

static int is_first_of_name(const struct stat *s)
{
	for (struct stat *o = next_of(&first); o != s; o = next_of(&o->next))
		if (!strcmp(o->name, s->name))
			return 0;
	return 1;
}

int stat_render(char **out, size_t *len)
{
	FILE *f = open_memstream(out, len);

	if (!f)
		return -ENOMEM;
	for (struct stat *s = next_of(&first); s; s = next_of(&s->next))
		if (is_first_of_name(s))
			put_name(f, s);
	if (!fclose(f))
		return 0;
	free(*out);
	return -ENOMEM;
}

void stat_each(void (*fn)(const struct stat *s, void *arg), void *arg)
{
	for (struct stat *s = next_of(&first); s; s = next_of(&s->next))
		fn(s, arg);
}
