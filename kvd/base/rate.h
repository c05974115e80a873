/*
 * rate.h - how fast something goes, measured while it goes
 *
 * An average of units per second over what was seen lately: each sample counts by the
 * time it took, and the past fades with RATE_FADE_S. Not thread-safe.
 */
#ifndef KVD_BASE_RATE_H
#define KVD_BASE_RATE_H

#include <stdint.h>

#define RATE_FADE_S 2.0

struct rate {
	double units;
	double seconds;
};

/* units were done in ns. */
static inline void rate_add(struct rate *r, double units, uint64_t ns)
{
	const double s = (double)ns * 1e-9;

	r->units += units;
	r->seconds += s;
	if (r->seconds > RATE_FADE_S) {
		r->units *= RATE_FADE_S / r->seconds;
		r->seconds = RATE_FADE_S;
	}
}

/* Units a second; before enough was seen, prior. */
static inline double rate_per_s(const struct rate *r, double prior)
{
	return r->seconds > 1e-4 && r->units > 0 ? r->units / r->seconds
						 : prior;
}

/* Nanoseconds for units; before enough was seen, prior (units a second) is. */
static inline uint64_t rate_ns(const struct rate *r, double units, double prior)
{
	return (uint64_t)(units / rate_per_s(r, prior) * 1e9);
}

#endif
