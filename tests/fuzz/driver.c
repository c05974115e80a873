/*
 * driver.c - run a fuzz target without libFuzzer: driver SECONDS CORPUS_DIR
 *
 * First every file of the corpus as it is, then seeded mutations of them (or of
 * nothing) until the time is over. A target that crashes has written its input
 * to fuzz-crash before.
 */
#include <dirent.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <fcntl.h>

#define INPUT_ROOM (1u << 20)
#define MAX_FILES  1024

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static uint8_t input[INPUT_ROOM];
static size_t n_input;
static char *files[MAX_FILES];
static size_t sizes[MAX_FILES];
static uint32_t n_files;
static uint64_t state = 1;

static uint32_t rnd(uint32_t n)
{
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(state >> 33) % n;
}

static void crashed(int sig)
{
	const int fd = open("fuzz-crash", O_WRONLY | O_CREAT | O_TRUNC, 0600);

	if (fd >= 0 && write(fd, input, n_input) < 0)
		_exit(2);
	signal(sig, SIG_DFL);
	raise(sig);
}

static void load(const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	char path[4096];

	while (d && (e = readdir(d)) && n_files < MAX_FILES) {
		FILE *f;

		snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
		f = e->d_name[0] == '.' ? NULL : fopen(path, "rb");
		if (!f)
			continue;
		files[n_files] = malloc(INPUT_ROOM);
		if (files[n_files]) {
			sizes[n_files] =
				fread(files[n_files], 1, INPUT_ROOM, f);
			n_files++;
		}
		fclose(f);
	}
	if (d)
		closedir(d);
}

static void mutate(void)
{
	static const uint64_t odd[] = { 0,	    1,		UINT64_MAX,
					INT64_MAX,  UINT32_MAX, INT32_MAX,
					1ull << 63, 4096 };
	const uint32_t n = 1 + rnd(8);

	for (uint32_t i = 0; i < n && n_input; i++) {
		const uint32_t at = rnd((uint32_t)n_input);
		const size_t left = n_input - at;

		switch (rnd(5)) {
		case 0:
			input[at] ^= (uint8_t)(1u << rnd(8));
			break;
		case 1:
			input[at] = (uint8_t)rnd(256);
			break;
		case 2:
			memcpy(input + at, &odd[rnd(8)], left < 8 ? left : 8);
			break;
		case 3:
			n_input = at;
			break;
		default:
			input[at] = input[rnd((uint32_t)n_input)];
		}
	}
}

int main(int argc, char **argv)
{
	const time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 10);
	uint64_t n = 0;

	load(argc > 2 ? argv[2] : ".");
	signal(SIGSEGV, crashed);
	signal(SIGABRT, crashed);
	signal(SIGBUS, crashed);
	signal(SIGFPE, crashed);
	for (uint32_t i = 0; i < n_files; i++, n++) {
		memcpy(input, files[i], sizes[i]);
		n_input = sizes[i];
		LLVMFuzzerTestOneInput(input, n_input);
	}
	while (time(NULL) < end) {
		if (n_files && rnd(8)) {
			const uint32_t i = rnd(n_files);

			memcpy(input, files[i], sizes[i]);
			n_input = sizes[i];
		} else {
			n_input = rnd(4096);
			for (size_t i = 0; i < n_input; i++)
				input[i] = (uint8_t)rnd(256);
		}
		mutate();
		LLVMFuzzerTestOneInput(input, n_input);
		n++;
	}
	printf("%s: %llu inputs, %u in the corpus\n", argv[0],
	       (unsigned long long)n, n_files);
	return 0;
}
