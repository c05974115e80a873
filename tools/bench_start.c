/*
 * bench_start.c - how long a daemon takes to its first token, and what it costs
 * while nobody wants anything
 */
#include "tools/bench.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

/* CPU time of a process in seconds; negative when it cannot be read. */
static double cpu_s(pid_t pid)
{
	unsigned long user = 0, system = 0;
	char path[64];
	int n;
	FILE *f;

	(void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return -1;
	n = fscanf(f,
		   "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u "
		   "%lu %lu",
		   &user, &system);
	(void)fclose(f);
	return n == 2 ? (double)(user + system) / (double)sysconf(_SC_CLK_TCK)
		      : -1;
}

static int first_token(struct kvc *c, uint32_t n_parts)
{
	const struct kvc_part part[] = {
		{ .flags = KV_PART_REUSE, .text = "Once" },
		{ .flags = KV_PART_BOS, .text = "Once upon a time" }
	};
	const struct kvc_generate g = { .parts = part + 2 - n_parts,
					.n_parts = n_parts,
					.flags = KV_GEN_IGNORE_EOS,
					.max_tokens = 1,
					.sqe_flags = KV_SQE_WAIT };
	struct kvc_gen *gen = NULL;
	const int ret = kvc_generate(c, &g, &gen);

	kvc_generate_free(c, gen);
	return ret < 0 ? ret : 0;
}

static void idle(struct bench *b, pid_t pid)
{
	const struct timespec ts = { .tv_sec = b->quick ? 2 : 20 };
	const double before = cpu_s(pid);
	const uint64_t start_ns = clock_ns();

	(void)nanosleep(&ts, NULL);
	if (before >= 0)
		bench_put(b,
			  100.0 * (cpu_s(pid) - before) /
				  ((double)(clock_ns() - start_ns) * 1e-9),
			  "%", "daemon.idle.cpu_percent");
}

int bench_start(struct bench *b)
{
	struct kvc_options opt = { .name = "kvbench" };
	const uint64_t start_ns = clock_ns();
	struct bench_daemon d;
	struct kvc *c;
	int ret;

	if (b->socket) {
		bench_note("start: skipped: it wants a daemon of its own");
		return 0;
	}
	ret = bench_daemon_start(b, &d, 1);
	if (ret)
		return ret;
	opt.socket = d.socket;
	ret = kvc_open(&c, &opt);
	if (!ret) {
		ret = first_token(c, 1);
		if (!ret) {
			bench_put(b, (double)(clock_ns() - start_ns) * 1e-6,
				  "ms", "daemon.start.first_token_ms");
			/* a request with a chunk waits for the model's gate */
			ret = first_token(c, 2);
			idle(b, d.pid);
		}
		kvc_close(c);
	}
	bench_daemon_stop(&d);
	return ret ? bench_fail(ret, "start") : 0;
}
