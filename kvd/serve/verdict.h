/*
 * verdict.h - what the gate measured, kept across restarts
 *
 * One small file, state_dir/kvd.gates: which model (its id names weights and arithmetic), how
 * it was measured (a hash of the questions), and the errors found, not the verdict: the
 * bound is the reader's. Newest first, VERDICT_MAX at most. Written under another name, then
 * renamed; not flushed: what a crash of the host leaves fails its checksum, and is
 * measured anew. So is anything else that is not as it was written.
 *
 * Any thread; one writer at a time.
 */
#ifndef KVD_SERVE_VERDICT_H
#define KVD_SERVE_VERDICT_H

#include <stdint.h>

#define VERDICT_FILE "kvd.gates"
#define VERDICT_MAX  64u

struct verdict {
	uint64_t model[2]; /* llama_id() */
	uint64_t how[2]; /* of the questions and what is asked of them */
	double plain, blend; /* errors, finite and >= 0 */
};

/*
 * All that dir's file has into list [VERDICT_MAX]; how many, or -errno: -ENOENT there is
 * none, -EINVAL it is damaged, of another version, or no file of ours.
 */
int verdict_read(const char *dir, struct verdict *list);
/* list [n] first, then what the file had of others. -errno: the file is as it was. */
int verdict_keep(const char *dir, const struct verdict *list, uint32_t n);

#endif
