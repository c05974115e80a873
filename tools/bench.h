/*
 * bench.h - what the subcommands of kvbench share
 *
 * Each subcommand measures the machine's own limit and kvd's figure in turn
 * (limit, ours, limit, ours ...), because machines are noisy: figures are
 * medians, ratios are medians of the ratios of neighbours. Higher is better for
 * a rate's ratio, lower for a time's.
 *
 * Thread: everything here is called by the main thread.
 */
#ifndef TOOLS_BENCH_H
#define TOOLS_BENCH_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "io/base.h"
#include "kvd/base/clock.h"
#include "kvd/base/pool.h"
#include "libkvclient/kvclient.h"

#define BENCH_MAX_ROUNDS 31
#define BENCH_MODEL	 "tests/data/models/rag-mini.gguf"

struct bench_line {
	char name[64];
	char unit[16];
	double value;
};

/* The command line, and what was measured; made by kvbench.c. */
struct bench {
	int quick; /* about 5 s a subcommand instead of 30 */
	int json; /* one object at the end instead of lines */
	unsigned int n_threads; /* of kernels and of oneDNN */
	unsigned int n_jobs; /* rag: requests in flight */
	unsigned int n_items; /* rag: questions, 0: by quick */
	const char *dir; /* on a real disk: page files */
	const char *socket; /* of a running daemon; NULL: a private one */
	const char *kvd; /* its program; NULL: beside kvbench */
	const char *model; /* GGUF file of the private daemon */
	uint64_t memory_bytes; /* of the private daemon's tenant */
	const char *daemon_conf, *model_conf; /* more lines for it, or NULL */
	const char *tenant_conf; /* instead of disk = 2G, persist = no */
	const char *mode; /* rag: full, prefix, chunks, all */
	int kl; /* rag: divergence at the answer tokens too */
	const char *file; /* rag: the questions */
	const char *cublas; /* gpu: cuBLASLt; NULL: the system's */
	int pages; /* gpu: the table of page shapes instead */
	const char *cuda; /* gpu: the driver's library; NULL: the system's */
	struct bench_line *lines;
	size_t n_lines;
};

/* The subcommands: 0, or -errno after a message on stderr. */
int bench_ring(struct bench *b);
int bench_attention(struct bench *b);
int bench_linear(struct bench *b);
int bench_paging(struct bench *b);
int bench_io(struct bench *b);
int bench_store(struct bench *b);
int bench_durable(struct bench *b);
int bench_decode(struct bench *b);
int bench_start(struct bench *b);
int bench_rag(struct bench *b);
int bench_return(struct bench *b);
int bench_lookup(struct bench *b);
int bench_fault(struct bench *b);
int bench_reuse(struct bench *b);
int bench_edit(struct bench *b);
int bench_edits(struct bench *b);
int bench_pack(struct bench *b);
int bench_ape(struct bench *b);
int bench_relay(struct bench *b);
int bench_zipf(struct bench *b);
int bench_gpu(struct bench *b);

/* ---- results ------------------------------------------------------------ */

/* Report "name value unit"; name is printf's. */
void bench_put(struct bench *b, double value, const char *unit,
	       const char *name, ...) KV_PRINTF(4, 5);
/* A line for people, on stderr. */
void bench_note(const char *fmt, ...) KV_PRINTF(1, 2);
/* A failure, on stderr; returns err. */
int bench_fail(int err, const char *fmt, ...) KV_PRINTF(2, 3);
/* All lines as one JSON object on stdout. */
void bench_print_json(const struct bench *b);

/* ---- samples ------------------------------------------------------------ */

/* The p quantile (0..1, nearest rank) of v [n], which gets sorted; NAN of 0. */
double bench_quantile(double *v, size_t n, double p);

/* McNemar's exact test, two-sided: a was right where b was not so often, and the
 * other way round. */
double bench_mcnemar(uint32_t n_only_a, uint32_t n_only_b);
/* KL divergence in nats of softmax(q [n]) from softmax(p [n]). */
double bench_kl(const float *p, const float *q, uint32_t n);

/* One of the things measured in turn. run() does it once and returns the
 * figure (a rate or a time), or a negative number when it failed. */
struct bench_side {
	double (*run)(void *arg);
	void *arg;
	double v[BENCH_MAX_ROUNDS];
	unsigned int n;
};
/*
 * Run the sides in turn, one round after the other, until budget_s has passed,
 * at least min_rounds times. The first round is a warm-up when rounds are
 * quick. 0, or -EIO when a run failed.
 */
int bench_rounds(struct bench_side *sides, unsigned int n_sides,
		 unsigned int min_rounds, double budget_s);
double bench_median(const struct bench_side *s);
/* Median of a/b, round by round. */
double bench_ratio(const struct bench_side *a, const struct bench_side *b);

/* ---- memory ------------------------------------------------------------- */

/* Anonymous memory, touched, huge pages where they can be had. NULL: none. */
void *bench_alloc(size_t n_bytes);
void bench_free(void *p, size_t n_bytes);
/* Random bf16 (or f32) numbers of [-1, 1). */
void bench_fill_bf16(void *p, size_t n_bytes);
void bench_fill_f32(float *p, size_t n);

/* Streaming sum over base [n_bytes] by all threads of pool, several streams
 * each: the read bandwidth of the machine. */
struct bench_read {
	struct pool *pool;
	const char *base;
	size_t n_bytes;
	uint64_t sum; /* so that the reads are not optimised away */
};
/* A bench_side run(): GB/s. arg: struct bench_read. */
double bench_read_run(void *arg);

/* ---- oneDNN ------------------------------------------------------------- */

/* y[m][n] = x[m][k] W, weights packed beforehand in the library's format. */
struct bench_gemm;
/* Why there is no baseline, for bench_note(). */
const char *bench_no_gemm(int err);
/* bf16: 1 for bf16 operands and f32 results, 0 for f32. -ENOSYS: built without
 * oneDNN; -ENOTSUP: it has no such primitive on this CPU. */
int bench_gemm_new(struct bench_gemm **out, int64_t m, int64_t n, int64_t k,
		   int bf16, unsigned int n_threads);
void bench_gemm_free(struct bench_gemm *g);
/* A bench_side run(): GFLOP/s. arg: struct bench_gemm. */
double bench_gemm_run(void *arg);

/* A model of the Llama kind; bf16, output tied to the embedding, 512 tokens. */
struct bench_shape {
	uint32_t n_layers, d_model, n_ff, n_heads, n_kv_heads, head_dim, n_ctx;
};
/* Write it with random weights to path, a GGUF file. 0, -errno. */
int bench_model_write(const struct bench_shape *s, const char *path);

/* ---- a daemon of our own ------------------------------------------------ */

struct bench_daemon {
	pid_t pid; /* 0: somebody else's, by --socket */
	char dir[64];
	char socket[108];
	char state[256];
};
/*
 * Start kvd on a private socket and wait until it answers; or take --socket.
 * with_model 1: it hosts b->model as "bench". Killed by bench_daemon_stop() and
 * by signals that end kvbench. -ENOENT: no kvd, no model.
 */
int bench_daemon_start(struct bench *b, struct bench_daemon *d, int with_model);
void bench_daemon_stop(struct bench_daemon *d);
/*
 * Wait until it does nothing any more: what comes after an answer (statistics of
 * chunks, keeping, writes) is done. 0; -ETIMEDOUT after a minute, -errno. Nothing to
 * wait for with --socket: others may keep it busy.
 */
int bench_daemon_settle(const struct bench_daemon *d);
/* In a child just forked: end when parent ends. */
void bench_die_with_parent(pid_t parent);
/* The daemon's program; 0 or -ENOENT. */
int bench_daemon_program(const struct bench *b, char *out, size_t n);

#endif
