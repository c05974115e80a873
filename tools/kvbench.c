/*
 * kvbench.c - measure kvd against the machine it runs on
 *
 * `kvbench SUBCOMMAND [options]` prints `name value unit` lines on stdout and
 * remarks (# ...) on stderr. Exit: 0 measured, 1 failed, 2 usage. What each
 * line means: kvbench SUBCOMMAND --help.
 */
#include "tools/bench.h"

#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct command {
	const char *name;
	int (*run)(struct bench *b);
	const char *help;
	const char *lines;
} commands[] = {
	{ "ring", bench_ring, "round trips between a client and the daemon",
	  "ring.spin.{p50_us,p99_us,ratio}  no-op, both sides spinning, and\n"
	  "                                 over bare shared memory\n"
	  "ring.sleep.{p50_us,p99_us,ratio} no-op, both asleep, and over bare\n"
	  "                                 futexes\n"
	  "ring.bare.{spin_us,futex_us}     the machine: p50 between two\n"
	  "                                 processes, one round trip\n"
	  "*_free                           the same where the scheduler puts\n"
	  "                                 the sides; else a CPU each\n" },
	{ "attention", bench_attention, "attention kernels",
	  "attention.decode.dD.gG.{gb_s,read_ratio}  head_dim D, group G\n"
	  "attention.decode.dD.read_ratio  the worst of the groups, as a part\n"
	  "                                of attention.read_gb_s\n"
	  "attention.decode.ns_per_mb      d64, group 8\n"
	  "attention.prefill.{gflops,gemm_ratio}  2048 x 2048 causal, over\n"
	  "attention.gemm_gflops           oneDNN bf16, 2048 cubed\n" },
	{ "linear", bench_linear, "linear layers of 512 x 2048 x 8192",
	  "linear.{bf16,f32}.{gflops,onednn_gflops,onednn_ratio}\n"
	  "linear.row1.{gb_s,read_gb_s,read_ratio}  one row, 256 MiB of\n"
	  "                                weights, over streaming reads\n" },
	{ "paging", bench_paging, "pages to disk and back, in --dir",
	  "paging.in.{gb_s,raw_ratio}      want to pinned, over raw reads\n"
	  "paging.out.{gb_s,raw_ratio}     written back while filling\n"
	  "paging.raw.{gb_s,write_gb_s}    io_uring, O_DIRECT, same depth,\n"
	  "                                block and file size\n"
	  "paging.resident.ns              want and unpin of a resident page\n"
	  "paging.resident.syscalls        0: it was done under seccomp\n"
	  "paging.restore.{gb_s,raw_ratio,cores_per_gbs}  2 MiB pages, with\n"
	  "                                checksums; .memfd: on 4 KiB pages;\n"
	  "                                .small: 256 KiB on those; .folios:\n"
	  "                                256 KiB on folios\n"
	  "paging.restore.cores_least      what raw requests, clearing and\n"
	  "                                checksums take of those cores\n"
	  "paging.write.raw_ratio          the same, written\n"
	  "paging.restore.mmap_ratio       over faults of a plain map with as\n"
	  "                                much memory for its page cache\n"
	  "paging.{restore,raw}.mmap_free_ratio  with all that is free for it\n"
	  "paging.restore.mmap_part_ratio  and where a quarter of the file\n"
	  "                                is wanted, a page here and there\n" },
	{ "io", bench_io, "what io_uring's options are worth, in --dir",
	  "io.{2m,64k}.HOW.{gb_s,cores_per_gbs}  reads of 2 MiB, 64 KiB: plain;\n"
	  "                                registered files; and buffers; SQPOLL;\n"
	  "                                IOPOLL, where it can be had\n"
	  "io.crc32c.{gb_s,read_ratio}     the checksum of pages, one thread\n" },
	{ "store", bench_store, "the page store on a file in --dir",
	  "store.restart_1m_ms             open with a million records, cold\n"
	  "store.restart_1m.{segments_ms,single_ms}  and adopted, as the daemon\n"
	  "                                does: segments of 8 pages; of one\n"
	  "store.restart_1m.{segments,single}_persist_ms  of the loop, for a\n"
	  "                                request to persist where all is durable\n"
	  "store.record_bytes              of the index, for each of them\n"
	  "store.persist.{p50_ms,p99_ms}   one page written and acknowledged\n"
	  "store.write_amplification       80 % full, random replacement\n"
	  "store.write_amplification.kernel  the same by /proc/self/io\n"
	  "store.metadata_ratio            live index over pages, percent\n"
	  "store.index_ratio               with what is dead and not yet\n"
	  "                                compacted (4 MiB are never)\n"
	  "store.full                      durable over the room, percent\n" },
	{ "durable", bench_durable, "segments made durable behind requests",
	  "store.durable.gb_s              8 MiB segments, acknowledged\n"
	  "store.durable.stall             of the loop thread's time, while they are\n"
	  "store.durable.lost              what it gets less done, for all reasons\n"
	  "store.durable.raw_lost          the same while a thread does pwrite only\n"
	  "                                meanwhile, percent\n" },
	{ "fault", bench_fault, "touching KV that is mapped and not there",
	  "paging.fault.{p50_us,p99_us}       resident: a touch that faults\n"
	  "paging.fault.scan_gb_s             resident, in order\n"
	  "paging.fault.signal.*              the same, by kvc_map_by_signal()\n"
	  "paging.fault.disk.{p50_us,p99_us}  the same, 64 KiB from disk\n"
	  "paging.fault.disk.scan_gb_s        the whole map, in order\n" },
	{ "decode", bench_decode, "a hosted model, --model, by the daemon",
	  "decode.single.{tokens_per_s,read_ratio}\n"
	  "decode.batch8.tokens_per_s      eight requests at once\n"
	  "decode.prefill.tokens_per_s     one prompt of about 900 tokens\n"
	  "decode.limit.tokens_per_s       the model's bytes at the read\n"
	  "                                bandwidth\n" },
	{ "start", bench_start, "the daemon itself: its start, and its rest",
	  "daemon.start.first_token_ms     from fork to the first token\n"
	  "daemon.idle.cpu_percent         of one CPU, with a client that\n"
	  "                                does nothing\n" },
	{ "return", bench_return, "4K tokens that come back from disk",
	  "paging.return4k.compute_ms      to the first token, computed\n"
	  "paging.return4k.return_ms       the same, found on disk\n"
	  "paging.return4k.time_ratio      of the two\n"
	  "paging.return4k.gb_s            bytes of KV over the time\n"
	  "paging.return4k.whole_ms        pages of 4 layers: all, then the step\n"
	  "paging.return4k.layers_ms       the same, computed while they come\n"
	  "paging.return4k.layers_ratio    of the two\n"
	  "paging.return4k.layers_ahead    layers computed before the last page\n"
	  "A model of 1e9 random weights; --quick: one layer of it\n" },
	{ "lookup", bench_lookup, "16 GB of KV on disk behind 1 GB of memory",
	  "store.lookup.kv                 GB on disk\n"
	  "store.lookup.{p50,p99}_us       one tile: hash, index, comparison\n"
	  "store.lookup.metadata_ratio     index, and memory beside frames, of the\n"
	  "                                KV's bytes\n"
	  "--quick: 0.5 GB behind 96 MiB\n" },
	{ "gpu", bench_gpu, "device memory, copies and kernels; none: no lines",
	  "gpu.map.{create,map,set_access,unmap,release}_us  2 MiB, one call\n"
	  "gpu.map.run_us                  64 pages mapped by a MAP, each\n"
	  "gpu.copy.{h2d,d2h}.{gb_s,link_ratio}  over one large copy\n"
	  "gpu.read_gb_s.bB.tT             streaming reads of device memory\n"
	  "gpu.attention.decode.bB.tT.{gb_s,read_ratio}  batch B, T tokens,\n"
	  "                                64 heads of 128, 8 of KV, bf16\n"
	  "gpu.attention.decode.read_ratio the worst of them\n"
	  "gpu.attention.prefill.tT.gemm_ratio  a prompt of T tokens over matrix\n"
	  "                                products of cuBLASLt, FLOP/s\n"
	  "gpu.attention.prefill.gemm_ratio the worst of them\n"
	  "gpu.resident.tokens_per_s       a daemon on the device: turns of\n"
	  "                                conversations, all in its memory\n"
	  "gpu.step.map_waits              its steps that found no frame\n"
	  "gpu.oversubscribed.tokens_ratio the same with half of the memory\n"
	  "--pages: gpu.pages.lL.tT.{gb_s,read_ratio,waste} and the best, for\n"
	  "pages of L layers and T tokens\n" },
	{ "reuse", bench_reuse, "first tokens of prompts made of cached chunks",
	  "reuse.{mini,1b}.{full_ms,repaired_ms,ttft_speedup}  eight chunks of\n"
	  "                                100 tokens: computed, and cached with\n"
	  "                                15 % of them computed again (blend)\n"
	  "reuse.{mini,1b}.{plain,craft,craft_blend}.ttft_speedup  without the\n"
	  "                                repair; with other ones\n"
	  "reuse.{mini,1b}.cold.overhead   nothing cached, over a plain prompt\n"
	  "reuse.cold.overhead             the larger of the two\n"
	  "reuse.{mini,1b}.again.overhead  a plain prompt over a plain prompt:\n"
	  "                                what such a percentage is worth\n"
	  "reuse.{,mini.,1b.}cold.{blend,craft,craft_blend}.overhead  with 15 %\n"
	  "                                repaired; blend computes chunks alone,\n"
	  "                                then repairs, the others in place\n"
	  "1b: 1e9 random weights; --quick: two layers of it\n" },
	{ "edit", bench_edit, "32 tokens in the middle of 4K are replaced",
	  "edit.4k.{suffix_ms,moved_ms,repaired_ms}  to the first token: what\n"
	  "                                is behind is computed, moved, moved\n"
	  "                                with 10 % computed again (blend)\n"
	  "edit.4k.time_ratio              moved over computed\n"
	  "edit.4k.repaired.time_ratio     with the repair\n"
	  "A model of 1e9 random weights; --quick: two layers of it\n" },
	{ "relay", bench_relay, "rows that share text",
	  "reuse.relay.{alone_us,shared_us,time_ratio}  16 rows behind 2,048\n"
	  "                                tokens, which each has for itself, and\n"
	  "                                which all share\n"
	  "reuse.relay.{alone_tokens,shared_tokens}  whose K and V were read\n"
	  "reuse.relay.bytes_ratio         1: what is shared once, and all else\n"
	  "reuse.relay.moved.{time_ratio,bytes_ratio}  the same when each begins\n"
	  "                                with tokens of its own, of any number\n" },
	{ "pack", bench_pack, "short prompts, one by one and all at once",
	  "pack.{alone,together}           prompt tokens a second\n"
	  "pack.speedup                    of the two\n"
	  "pack.rows_ratio                 rows computed, over tokens (1: no padding)\n"
	  "pack.padded.rows_ratio          if each were padded to the longest\n"
	  "pack.together.steps             for 64 prompts\n" },
	{ "zipf", bench_zipf, "FILE.jsonl: the steady state of a chunk cache",
	  "reuse.zipf.computed_ratio       tokens computed, over those with\n"
	  "                                prefix reuse alone\n"
	  "reuse.zipf.work_ratio           with blend's probe: tokens times layers\n"
	  "reuse.zipf.{early,late}.{ttft_p50_ms,exact_match}  the quarter after\n"
	  "                                the first, and the last\n"
	  "reuse.zipf.memory_mb            a third of the working set\n"
	  "--mode: the chunk mode, one (chunks)\n" },
	{ "edits", bench_edits,
	  "FILE.jsonl: edits of source files, what comes next",
	  "edits.HOW.kl                    nats from a full prefill, mean of eight\n"
	  "                                places behind the edited text\n"
	  "edits.HOW.agree                 the most likely token is the same\n"
	  "edits.HOW.exact_match           of 16 tokens, greedily\n"
	  "edits.HOW.{moved,repaired}      percent of the prompt\n"
	  "HOW: moved, blend@PERCENT of what moved computed again\n" },
	{ "ape", bench_ape, "FILE.jsonl: a needle in chunks side by side",
	  "ape.T:S.exact_match             of a third of the questions of one fact, in\n"
	  "                                eight chunks; T, then S from 1 to 0.1\n"
	  "ape.{temperature,scale}         the best of these\n"
	  "ape.exact_match                 with these, of the other questions\n"
	  "ape.{sequential,parallel}.exact_match  a full prefill; side by side with\n"
	  "                                nothing before them\n"
	  "ape.gain                        points over parallel\n"
	  "ape.of_sequential               over sequential\n" },
	{ "rag", bench_rag, "FILE.jsonl: questions over chunks, exact match",
	  "rag.MODE.exact_match            percent; .KIND for each kind\n"
	  "rag.MODE.{ttft_p50_ms,ttft_p99_ms,tokens_per_s}\n"
	  "rag.MODE.ttft_ratio             over the FLOPs of the computed\n"
	  "                                tokens at rag.gemm_gflops\n"
	  "rag.MODE.{prefix_hits,chunk_hits}  percent of the prompt's tokens\n"
	  "rag.MODE.repaired               tokens computed again, percent\n"
	  "rag.MODE.repair_work            the same by the layers that each went\n"
	  "                                through, with what focus looks at\n"
	  "rag.MODE.flop_share             of a full prefill, chunks cached: first, random,\n"
	  "                                blend\n"
	  "rag.MODE.mcnemar_p.OTHER        of the exact matches; OTHER: chunks and\n"
	  "                                random@PERCENT that ran before\n"
	  "rag.MODE.kl                     --kl: nats from the first mode, mean over\n"
	  "                                the tokens of the right answers\n"
	  "MODE: full (nothing reused), prefix, chunks (or naive: reused anywhere),\n"
	  "      SELECTOR@PERCENT: chunks, so much of each computed again;\n"
	  "      SELECTOR: first, random, blend, craft, craft-blend (the last two\n"
	  "      without @PERCENT: by CFO);\n"
	  "      with :focus behind it: early stop of what the question leaves;\n"
	  "      ape@TEMPERATURE:SCALE: chunks side by side (ape: 1:1)\n" },
};

static const struct option options[] = {
	{ "json", no_argument, NULL, 'J' },
	{ "quick", no_argument, NULL, 'q' },
	{ "help", no_argument, NULL, 'h' },
	{ "threads", required_argument, NULL, 't' },
	{ "dir", required_argument, NULL, 'd' },
	{ "socket", required_argument, NULL, 's' },
	{ "kvd", required_argument, NULL, 'k' },
	{ "model", required_argument, NULL, 'm' },
	{ "mode", required_argument, NULL, 'M' },
	{ "jobs", required_argument, NULL, 'j' },
	{ "kl", no_argument, NULL, 'K' },
	{ "cuda", required_argument, NULL, 'C' },
	{ "cublas", required_argument, NULL, 'B' },
	{ "pages", no_argument, NULL, 'P' },
	{ 0 },
};

static void usage(FILE *f)
{
	fputs("usage: kvbench SUBCOMMAND [options]\n\n", f);
	for (size_t i = 0; i < KV_ARRAY_LEN(commands); i++)
		fprintf(f, "  %-10s %s\n", commands[i].name, commands[i].help);
	fputs("  all        those above that need no file\n\n"
	      "options:\n"
	      "  --quick        about 5 s a subcommand, not 30\n"
	      "  --json         one JSON object instead of lines\n"
	      "  --threads N    compute threads (one per CPU)\n"
	      "  --dir DIR      page files go there ($TMPDIR or /var/tmp)\n"
	      "  --socket PATH  use this daemon, start none\n"
	      "  --kvd PATH     the daemon's program (beside kvbench)\n"
	      "  --model FILE   GGUF to host (" BENCH_MODEL ")\n"
	      "  --mode MODE    rag: full, prefix, chunks, SELECTOR@PERCENT, a list of\n"
	      "                 them with commas, or all (the first three)\n"
	      "  -n N           rag, zipf: the first N questions (100, 2000; quick 20, 60)\n"
	      "  --jobs J       rag, zipf: requests in flight (1)\n"
	      "  --cuda FILE    gpu: the driver's library (libcuda.so.1)\n"
	      "  --cublas FILE  gpu: cuBLASLt (libcublasLt.so)\n"
	      "  --pages        gpu: the table of layers and tokens of a page\n"
	      "  --kl           rag: KL divergence from full prefill, too\n"
	      "  --help         this, or the lines of a subcommand\n",
	      f);
}

static const struct command *find_command(const char *name)
{
	for (size_t i = 0; i < KV_ARRAY_LEN(commands); i++)
		if (!strcmp(commands[i].name, name))
			return &commands[i];
	return NULL;
}

/* A number of [1, max]; 0 when s is none. */
static unsigned int number(const char *s, unsigned int max)
{
	char *end;
	unsigned long v;

	errno = 0;
	v = strtoul(s, &end, 10);
	return errno || end == s || *end || v > max ? 0 : (unsigned int)v;
}

static int usage_error(const char *what, const char *arg)
{
	fprintf(stderr, "kvbench: %s: %s; see kvbench --help\n", what, arg);
	return -EINVAL;
}

/* 0, -EINVAL after a message, or 1: help was asked for. */
static int parse_options(struct bench *b, int argc, char **argv)
{
	unsigned int *n = NULL;
	int c;

	while ((c = getopt_long(argc, argv, "hqn:j:t:", options, NULL)) != -1) {
		switch (c) {
		case 'J':
			b->json = 1;
			continue;
		case 'q':
			b->quick = 1;
			continue;
		case 'K':
			b->kl = 1;
			continue;
		case 'd':
			b->dir = optarg;
			continue;
		case 's':
			b->socket = optarg;
			continue;
		case 'k':
			b->kvd = optarg;
			continue;
		case 'm':
			b->model = optarg;
			continue;
		case 'M':
			b->mode = optarg;
			continue;
		case 'C':
			b->cuda = optarg;
			continue;
		case 'B':
			b->cublas = optarg;
			continue;
		case 'P':
			b->pages = 1;
			continue;
		case 't':
			n = &b->n_threads;
			break;
		case 'n':
			n = &b->n_items;
			break;
		case 'j':
			n = &b->n_jobs;
			break;
		case 'h':
			return 1;
		default:
			return -EINVAL; /* getopt has said why */
		}
		*n = number(optarg, 1000000);
		if (!*n)
			return usage_error("not a number above 0", optarg);
	}
	return 0;
}

static void defaults(struct bench *b)
{
	cpu_set_t set;

	*b = (struct bench){ .n_threads = 1,
			     .memory_bytes = 1ull << 30,
			     .n_jobs = 1,
			     .mode = "all",
			     .model = BENCH_MODEL };
	if (!sched_getaffinity(0, sizeof(set), &set))
		b->n_threads = (unsigned int)CPU_COUNT(&set);
	b->dir = getenv("TMPDIR");
	if (!b->dir || !*b->dir)
		b->dir = "/var/tmp";
}

static int needs_file(const struct command *c)
{
	return c->run == bench_rag || c->run == bench_zipf ||
	       c->run == bench_ape || c->run == bench_edits;
}

static int run_all(struct bench *b)
{
	int ret, first = 0;

	for (size_t i = 0; i < KV_ARRAY_LEN(commands); i++) {
		if (needs_file(&commands[i]))
			continue;
		ret = commands[i].run(b);
		first = first ? first : ret;
	}
	return first;
}

static int run(struct bench *b, const struct command *c, int argc, char **argv)
{
	const int with_file = c && needs_file(c);
	int ret = parse_options(b, argc, argv);

	if (ret == 1 && c)
		printf("kvbench %s: %s\n\n%s", c->name, c->help, c->lines);
	else if (ret == 1)
		usage(stdout);
	if (ret)
		return ret == 1 ? 0 : 2;
	if (optind < argc && with_file)
		b->file = argv[optind++];
	if (optind < argc) {
		(void)usage_error("one argument too many", argv[optind]);
		return 2;
	}
	if (with_file && !b->file) {
		(void)usage_error("missing", "FILE.jsonl");
		return 2;
	}
	ret = c ? c->run(b) : run_all(b);
	if (b->json)
		bench_print_json(b);
	return ret ? 1 : 0;
}

static int dispatch(int argc, char **argv)
{
	const struct command *c;
	struct bench b;
	int ret;

	defaults(&b);
	if (argc < 2) {
		usage(stderr);
		return 2;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
		usage(stdout);
		return 0;
	}
	c = find_command(argv[1]);
	if (!c && strcmp(argv[1], "all")) {
		(void)usage_error("no such subcommand", argv[1]);
		return 2;
	}
	ret = run(&b, c, argc - 1, argv + 1);
	free(b.lines);
	return ret;
}

int main(int argc, char **argv)
{
	const int ret = dispatch(argc, argv);

	errno = 0;
	if (!fflush(stdout) && !ferror(stdout))
		return ret;
	fprintf(stderr, "kvbench: standard output: %s\n",
		strerror(errno ? errno : EIO));
	return ret ? ret : 1;
}
