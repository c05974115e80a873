/*
 * stat.h - counters, gauges and histograms, registered by name
 *
 * One registry per process. Updates: any thread, relaxed atomics. A metric
 * lives as long as the process. Rendered as Prometheus text by stat_render().
 */
#ifndef KVD_BASE_STAT_H
#define KVD_BASE_STAT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum stat_kind { STAT_COUNTER, STAT_GAUGE, STAT_HISTOGRAM };

#define STAT_BUCKETS 48 /* powers of two of the unit, starting at 1 */

struct stat {
	const char *name; /* kvd_pages_evicted_total: Prometheus rules */
	const char *help;
	const char *label; /* "tenant" or NULL */
	char value[64]; /* of the label */
	enum stat_kind kind;
	double unit; /* histograms: rendered value of 1 raw, e.g. 1e-9 */
	_Atomic uint64_t n; /* counter or gauge; histogram: sum */
	_Atomic uint64_t count;
	_Atomic uint64_t bucket[STAT_BUCKETS];
	struct stat *next;
};

/*
 * Find or make the metric (name, label value). name, help and label are
 * string constants; value is copied; value NULL for none. Never fails: when
 * memory is out a shared dummy is returned. Any thread.
 */
struct stat *stat_get(enum stat_kind kind, const char *name, const char *help,
		      const char *label, const char *value, double unit);
static inline void stat_add(struct stat *s, uint64_t n)
{
	atomic_fetch_add_explicit(&s->n, n, memory_order_relaxed);
}
static inline void stat_sub(struct stat *s, uint64_t n)
{
	atomic_fetch_sub_explicit(&s->n, n, memory_order_relaxed);
}
static inline void stat_set(struct stat *s, uint64_t n)
{
	atomic_store_explicit(&s->n, n, memory_order_relaxed);
}
static inline uint64_t stat_read(const struct stat *s)
{
	return atomic_load_explicit(&s->n, memory_order_relaxed);
}
/* Histogram: one observation in raw units (e.g. ns). */
void stat_observe(struct stat *s, uint64_t raw);
/* Approximate quantile q in 0..1 of a histogram, raw units; 0 if empty. */
uint64_t stat_quantile(const struct stat *s, double q);
/* Prometheus text format 0.0.4; caller frees *out (malloc). 0 or -ENOMEM. */
int stat_render(char **out, size_t *len);
/* Visit all metrics, in order of registration. */
void stat_each(void (*fn)(const struct stat *s, void *arg), void *arg);

#endif
